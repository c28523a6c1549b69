"""The progress bar of `prepare`: stage, finished units, tokens, rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from data_prep.units.job_progress import Progress


@contextmanager
def preparation_bar(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar while the block runs; yields the `on_progress` argument of `data_prep.prepare.prepare`."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("units  {task.fields[counts]}"),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("plan", total=None, counts="", visible=False)

        shown: set[str] = set()

        def listener(progress: Progress) -> None:
            if progress.note and progress.note not in shown:
                shown.add(progress.note)
                console.print(f"Note: {progress.note}", markup=False)
            total, seconds = progress.total, max(progress.seconds, 1e-6)
            counts = f"{total.tokens / 1e6:,.1f}M tokens  {(total.bytes - progress.resumed_bytes) / seconds / 1e6:.1f} MB/s"
            bar.update(
                task,
                description=progress.stage,
                completed=progress.units_done,
                total=progress.num_units,
                counts=counts if total.documents else "",
                visible=True,
            )

        yield listener
