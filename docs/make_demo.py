"""Writes the generated part of docs/demo.md: the page that `fnet-t5 demo` prints, from the numbers of a recorded run.

python docs/make_demo.py                  # renders docs/demo.json; a test fails where the page is not what this writes
python docs/make_demo.py runs/demo        # first takes the numbers and the loss curve of a finished demo
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.dataset.manifest import (
    EngineRecord,
    Manifest,
    SourceCounts,
    SplitRecord,
    TokenizerRecord,
    load_manifest,
    write_manifest,
)
from launch.config import load_run_config, write_resolved
from launch.demo.page import CURVE_FILE, PAGE_FILE, show
from launch.demo.steps import RESULT_FILE, TRAIN_RECIPE, Demo, Result
from pipeline.run_folder import METRICS

DOCS = Path(__file__).parent
PAGE, FACTS, CURVE = DOCS / "demo.md", DOCS / "demo.json", DOCS / "demo-loss.png"
FOLDER, TRACKING = Path("runs/demo"), "sqlite:////home/you/fnet-t5/runs/demo/mlflow.db"


def main() -> None:
    if len(sys.argv) > 1:
        record(Path(sys.argv[1]))
    facts = json.loads(FACTS.read_text(encoding="utf-8"))
    PAGE.write_text(with_generated(PAGE.read_text(encoding="utf-8"), facts), encoding="utf-8")


def record(demo: Path) -> None:
    """Keep the numbers and the loss curve of a finished demo."""
    manifest = load_manifest(demo / "data")
    sources: dict[str, SourceCounts] = {}
    for split in manifest.splits.values():
        for name, counts in split.sources.items():
            sources[name] = sources.get(name, SourceCounts()) + counts
    facts = {
        "result": json.loads((demo / RESULT_FILE).read_bytes()),
        "sources": {name: counts.model_dump() for name, counts in sorted(sources.items())},
    }
    FACTS.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copy(demo / CURVE_FILE, CURVE)


def with_generated(page: str, facts: dict[str, Any]) -> str:
    """docs/demo.md with its generated part rendered from the facts."""
    pattern = r"(<!-- demo page: made by docs/make_demo.py -->\n```text\n).*?(```\n<!-- end of demo page -->)"
    page, count = re.subn(pattern, lambda found: f"{found[1]}{rendered(facts)}{found[2]}", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE} has {count} parts called 'demo page': restore its two comment lines")
    return page


def rendered(facts: dict[str, Any]) -> str:
    """What the demo prints for these facts, from the code that prints it: in a folder of its own, which is removed."""
    result = Result(**facts["result"])
    with tempfile.TemporaryDirectory() as folder, _working_in(Path(folder)):
        demo = Demo(FOLDER, Console(file=io.StringIO()))
        write_resolved(load_run_config(TRAIN_RECIPE, [f"data.path={demo.data}"]), demo.run)
        rows = ({"step": 1, "loss": result.training_loss_first}, {"step": 2, "validation_loss": result.loss, "source": "all"})
        (demo.run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        demo.data.mkdir()
        write_manifest(demo.data, _manifest({name: SourceCounts(**counts) for name, counts in facts["sources"].items()}))
        show(demo, result, demo.console)
        lines = (demo.folder / PAGE_FILE).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """The page names paths as a person in the checkout sees them."""
    before, tracking = Path.cwd(), os.environ.get("MLFLOW_TRACKING_URI")
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = TRACKING
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop("MLFLOW_TRACKING_URI")
        if tracking is not None:
            os.environ["MLFLOW_TRACKING_URI"] = tracking


def _manifest(sources: dict[str, SourceCounts]) -> Manifest:
    """Of which the page reads the counts alone."""
    return Manifest(
        command="docs/make_demo.py",
        config={},
        config_sha256="",
        tokenizer=TokenizerRecord(sha256="", vocab_size=1, eos_id=0),
        token_dtype="uint16",
        inputs=[],
        splits={"train": SplitRecord(sources=sources, length_histogram={}, packing=[])},
        records=0,
        rejected={},
        dropped={},
        blank_lines=0,
        skipped_inputs={},
        engine=EngineRecord(name="none", note=None, checked_documents=0),
        units=0,
        retokenized_units=0,
        stage_seconds={},
        files={},
    )


if __name__ == "__main__":
    main()
