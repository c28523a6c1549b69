"""The tables that `prepare` and `data stats` print about a dataset folder."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from data_prep.dataset.manifest import AppendRecord, Manifest, SourceCounts
from data_prep.dataset.preview import source_table


def sources(manifest: Manifest) -> Iterator[Table]:
    """One table per split: documents, tokens and bytes of text, by source and in total."""
    rows = source_table(manifest)
    for split, record in manifest.ordered_splits:
        mixed = split == "train" and bool(manifest.epochs)
        table = _table(split, "documents", "tokens", "share", "MB", "B/token", *(["epochs"] if mixed else []))
        for row in rows:
            if row.split == split:
                counts = SourceCounts(documents=row.documents, tokens=row.tokens, bytes=row.bytes)
                epochs = [f"{manifest.epochs[row.source]:.3g}"] if mixed else []
                table.add_row(row.source, *_cells(counts, row.token_share), *epochs)
        table.add_section()
        table.add_row("all", *_cells(record.total, 1.0))
        yield table


def lengths(manifest: Manifest) -> Iterator[Table]:
    """One table: the share of each source's training documents by length in tokens, in steps of a factor of four."""
    for split, record in manifest.ordered_splits[:1]:
        histograms = record.length_histogram
        first = min(next(i for i, count in enumerate(bins) if count) for bins in histograms.values()) // 2
        last = -(-max(map(len, histograms.values())) // 2)
        table = _table(f"{split}: tokens", *(_short(4**step) for step in range(first, last)))
        for source, bins in sorted(histograms.items()):
            padded = [*bins, *[0] * (2 * last - len(bins))]
            shares = [(padded[2 * step] + padded[2 * step + 1]) / sum(bins) for step in range(first, last)]
            table.add_row(source, *(f"{share:.0%}" if share else "" for share in shares))
        yield table


def packing(manifest: Manifest) -> Table:
    """The row indexes of every split: rows, pieces, the share of positions without a token, and the share of documents in
    more than one piece."""
    table = _table("rows of", "split", "rows", "pieces", "padding", "documents cut", "method")
    for split, record in manifest.ordered_splits:
        for index in record.packing:
            cells = (
                split,
                f"{index.rows:,}",
                f"{index.pieces:,}",
                f"{index.padding_share:.2%}",
                f"{index.cut_documents / max(record.total.documents, 1):.2%}",
                index.method,
            )
            table.add_row(f"{index.row_length:,} tokens", *cells)
    return table


def stages(manifest: Manifest) -> Table:
    """The time of each stage of the preparation, longest first."""
    table = _table("stage", "seconds")
    for stage, seconds in sorted(manifest.stage_seconds.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{seconds:,.2f}")
    return table


def rejections(manifest: Manifest) -> str:
    """The number of rejected records by reason, in one line."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.rejected.items())) or "nothing"


def appended(record: AppendRecord) -> str:
    """One line: when files were added to a finished folder, how many, and what they had."""
    tokens = sum(counts.tokens for counts in record.splits.values())
    documents = ", ".join(f"{counts.documents:,} {split}" for split, counts in record.splits.items()) or "no"
    files = "1 file" if len(record.inputs) == 1 else f"{len(record.inputs):,} files"
    return f"Added to {record.base} at {record.time}: {files} with {documents} documents, {tokens:,} tokens"


def reconciliation(manifest: Manifest) -> str:
    """The sum of records read = kept + rejected + dropped, in one line."""
    kept = sum(record.total.documents for record in manifest.splits.values())
    lost = {**manifest.rejected, **manifest.dropped}
    parts = [f"{kept:,} kept", *(f"{count:,} {reason}" for reason, count in sorted(lost.items()))]
    repeated = f" - {manifest.repeated:,} repeated" if manifest.repeated else ""
    return f"Records: {manifest.records:,} read = {' + '.join(parts)}{repeated}"


def _short(number: int) -> str:
    for divisor, unit in ((2**20, "M"), (2**10, "k")):
        if number >= divisor:
            return f"{number // divisor}{unit}+"
    return f"{number}+"


def _cells(counts: SourceCounts, share: float) -> list[str]:
    return [
        f"{counts.documents:,}",
        f"{counts.tokens:,}",
        f"{share:.1%}",
        f"{counts.bytes / 1e6:,.2f}",
        f"{counts.bytes / counts.tokens:.2f}",
    ]


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
