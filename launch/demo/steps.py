"""The demo's four stages; a restart skips those that an earlier start has finished."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import typer
from rich.console import Console

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import Manifest
from data_prep.files import canonical_json, sha256_bytes, write_json_atomically
from launch.config import load_config, load_run_config
from launch.demo.corpus import write_corpus
from launch.demo.findings import Findings, findings
from launch.prepare.peak_memory import PeakMemory
from launch.prepare.progress_bar import preparation_bar
from launch.start import Processes, check_run, start_run, write_config
from pipeline.config import RunConfig

DATA_RECIPE, TRAIN_RECIPE = "configs/data/demo.yaml", "configs/train/demo.yaml"
IDENTITY_FILE, CORPUS_FILE, SECONDS_FILE, RESULT_FILE = "demo.json", "corpus.json", "seconds.json", "result.json"
STAGES = ("text", "data", "training", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Result(Findings):
    """The findings of the demo and its cost, as the page prints them."""

    peak_memory_bytes: int
    """Of all processes together: the sum of their proportional set sizes."""
    stage_seconds: dict[str, float]


class Demo:
    """One demo folder: raw text, dataset and run in it."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.raw, self.data, self.run = folder / "raw", folder / "data", folder / "run"
        self.step = 0
        self.seconds: dict[str, float] = {}
        """Time of each stage, over all starts."""
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').resolve()}")

    def perform(self, fresh: bool, overrides: list[str]) -> Result:
        """Do the stages that are not done yet. Raises ValueError if one fails, typer.Exit if training ends early."""
        recipe = load_run_config(TRAIN_RECIPE, [f"data.path={self.data}", *overrides])
        finished = self._begin(recipe, fresh)
        if finished is not None:
            return finished
        with PeakMemory() as memory:
            with self._timed("text", "Finding text on this machine"):
                self._find_text()
            with self._timed("data", "Training a tokenizer and preparing the data with Ray"):
                manifest = self._prepare(recipe)
            mesh = recipe.mesh
            num_processes = mesh.tensor_parallel * mesh.pipeline_parallel
            with self._timed(
                "training",
                f"Training on {num_processes} processes (tensor parallel {mesh.tensor_parallel} x pipeline parallel "
                f"{mesh.pipeline_parallel})",
            ):
                self._train(recipe, manifest, num_processes)
            with self._timed("evaluation", "Evaluating the checkpoint in one process, and generating text"):
                found = findings(self.run)
        result = Result(**asdict(found), peak_memory_bytes=memory.peak_bytes, stage_seconds=self.seconds)
        write_json_atomically(self.folder / RESULT_FILE, asdict(result))
        return result

    def _begin(self, recipe: RunConfig, fresh: bool) -> Result | None:
        """Decide whether to show, resume or start over, and print which; returns the result if there is one already."""
        identity, path = demo_identity(recipe), self.folder / IDENTITY_FILE
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise ValueError(f"{self.folder} holds files that are not a demo's: give another --output, or empty it")
            self.console.print(f"A new demo in {self.folder}.")
        elif fresh or json.loads(path.read_bytes()) != identity:
            why = "as --fresh asks" if fresh else "because its recipe, its Python or its packages have changed"
            self.console.print(f"Replacing the demo in {self.folder}: [bold]starting over[/bold], {why}.")
            shutil.rmtree(self.folder)
        elif (self.folder / RESULT_FILE).is_file():
            self.console.print(f"A finished demo is in {self.folder}; this is its page. --fresh starts over.")
            return Result(**json.loads((self.folder / RESULT_FILE).read_bytes()))
        else:
            self.console.print(f"[bold]Resuming[/bold] the unfinished demo in {self.folder}.")
            if (self.folder / SECONDS_FILE).is_file():
                self.seconds = json.loads((self.folder / SECONDS_FILE).read_bytes())
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, identity)
        return None

    def _find_text(self) -> None:
        if (self.folder / CORPUS_FILE).is_file():
            self.console.print(f"  already in {self.raw}")
            return
        shutil.rmtree(self.raw, ignore_errors=True)
        self.raw.mkdir()
        summary = write_corpus(self.raw)
        kinds = {kind: asdict(count) for kind, count in summary.by_kind.items()}
        write_json_atomically(self.folder / CORPUS_FILE, kinds)
        self.console.print(
            f"  {summary.total.documents:,} documents, {summary.total.bytes / 1e6:.1f} MB, {len(kinds)} kinds of source, "
            f"as Pile-format shards in {self.raw}"
        )

    def _prepare(self, recipe: RunConfig) -> Manifest:
        from data_prep.prepare import prepare

        settings = load_config(
            PrepareConfig,
            DATA_RECIPE,
            extra={
                "input": [str(self.raw / "train" / "*.jsonl.zst")],
                "val": [str(self.raw / "val.jsonl.zst")],
                "test": [str(self.raw / "test.jsonl.zst")],
                "output": self.data,
                "packing": {"lengths": sorted({640, recipe.data.row_length})},
            },
        )
        with preparation_bar(self.console) as listener:
            manifest = prepare(settings, listener, "fnet-t5 demo")
        documents = sum(split.total.documents for split in manifest.splits.values())
        tokens = sum(split.total.tokens for split in manifest.splits.values())
        self.console.print(
            f"  {documents:,} documents, {tokens:,} tokens of a vocabulary of {manifest.tokenizer.vocab_size:,} in {self.data}"
        )
        return manifest

    def _train(self, config: RunConfig, manifest: Manifest, num_processes: int) -> None:
        from pipeline.tracking.mlflow_session import tracking_uri

        run = check_run(config, self.run, processes=Processes(num_processes), manifest=manifest)
        write_config(run)
        self.console.print(
            f"  logs in {self.run / 'logs'}, MLflow at {tracking_uri()}; the processes take some seconds to start"
        )
        code = start_run(run)
        if code:
            raise typer.Exit(code)

    @contextmanager
    def _timed(self, name: str, title: str) -> Iterator[None]:
        self.step += 1
        self.console.print(f"[bold]{self.step}/{len(STAGES)}[/bold] {title}")
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - begin, 1)
            write_json_atomically(self.folder / SECONDS_FILE, self.seconds)


def demo_identity(recipe: RunConfig) -> dict[str, str]:
    """What must be equal for an unfinished demo to be resumed: recipe, Python and packages."""
    return {
        "recipe": sha256_bytes(canonical_json(recipe.model_dump(mode="json"))),
        "python": sys.version.split()[0],
        "packages": " ".join(f"{name} {version(name)}" for name in ("fnet-t5", "torch", "deepspeed", "megatron-core", "ray")),
    }
