"""The how-to pages work: their edits are applied to a copy of the packages, and their commands and scripts run there.

On a page, "`path/to/file.py`:" before a block of Python names a new file; other blocks of Python are scripts. A block of diff
names a file and has edits without line numbers, between lines of @@. Words in capitals are placeholders for the reader's paths.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest

REPOSITORY = Path(__file__).parents[2]
HOWTO = REPOSITORY / "docs" / "howto"
PACKAGES = ("launch", "pipeline", "models", "data_prep", "configs")
_BLOCK = re.compile(
    r"(?:^`(?P<file>[\w/]+\.py)`:\n\n)?^```(?P<kind>python|diff|sh)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)

Follow = Callable[..., str]


@pytest.fixture
def follow(tmp_path: Path, dataset: Path) -> Follow:
    """Apply a page's edits to a copy of the packages, run its commands, and return their output."""

    def do(page: str, **places: object) -> str:
        for package in PACKAGES:
            shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
        text_file = tmp_path / "reader.jsonl"
        text_file.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()))
        output = ""
        for block in _BLOCK.finditer((HOWTO / page).read_text(encoding="utf-8")):
            text = block["text"]
            if block["kind"] == "diff":
                apply_edits(tmp_path, text)
            elif block["file"]:
                assert not (tmp_path / block["file"]).exists(), f"{block['file']} exists already"
                (tmp_path / block["file"]).write_text(text, encoding="utf-8")
            else:
                for word, path in {"DATA": dataset, "TEXT.jsonl": text_file, **places}.items():
                    text = re.sub(rf"(?<![\w/.-]){re.escape(word)}(?![\w-])", str(path), text)
                program = ["bash", "-euo", "pipefail", "-c"] if block["kind"] == "sh" else [sys.executable, "-P", "-c"]
                output += run([*program, text], tmp_path)
        return output

    return do


def run(command: list[str], folder: Path) -> str:
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RANK"},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),  # before the installed packages
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550, check=False)
    logs = "".join(path.read_text()[-2000:] for path in folder.glob("runs/*/logs/*.log")) if done.returncode else ""
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}\n{logs}"
    return done.stdout


def apply_edits(folder: Path, diff: str) -> None:
    """Replace the old lines of each hunk by its new lines. The old lines must occur in the file exactly once."""
    head, *lines = diff.splitlines()
    path = folder / head.removeprefix("--- ")
    text = path.read_text(encoding="utf-8")
    for hunk in hunks(lines):
        old = "".join(f"{line[1:]}\n" for line in hunk if line[:1] in (" ", "-"))
        new = "".join(f"{line[1:]}\n" for line in hunk if line[:1] in (" ", "+"))
        assert text.count(old) == 1, f"{path.name} has these lines {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def hunks(lines: list[str]) -> Iterator[list[str]]:
    hunk: list[str] = []
    for line in [*lines, "@@"]:
        if line != "@@":
            hunk.append(line)
        elif hunk:
            yield hunk
            hunk = []


def test_add_a_mixing(follow: Follow) -> None:
    output = follow("add-a-mixing.md")
    assert "fnet_t5 demo" in output


def test_add_an_objective(follow: Follow, tmp_path: Path) -> None:
    output = follow("add-an-objective.md")
    assert "copy on" in output
    assert (tmp_path / "runs/copy/STATUS").read_text() == "finished\n"
    assert (tmp_path / "runs/copy/metrics.jsonl").read_text().count('"loss"') == 4


def test_add_an_architecture(follow: Follow, tmp_path: Path) -> None:
    output = follow("add-an-architecture.md")
    two_stages = re.search(r"validation loss (\d\.\d+)", output)
    one_process = re.search(r"validation loss, nats per target token +(\d\.\d+)", output)
    assert two_stages is not None
    assert one_process is not None
    assert two_stages[1] == one_process[1]
    assert (tmp_path / "runs/bridged/STATUS").read_text() == "finished\n"


def test_add_a_task(follow: Follow, tmp_path: Path, dataset: Path) -> None:
    first = f"""fnet-t5 train configs/train/demo.yaml --nproc 1 --output first data.path={dataset} data.encoder_length=16 \
        data.decoder_length=8 data.validation_rows=16 model.size=nano mesh.tensor_parallel=1 mesh.pipeline_parallel=1 \
        train.steps=2 optimizer.warmup_steps=0"""
    run(["bash", "-c", first], tmp_path)
    output = follow("add-a-task.md", RUN=tmp_path / "first")
    assert "answers are exact" in output
    assert (tmp_path / "runs/task/STATUS").read_text() == "finished\n"


def test_add_a_platform(follow: Follow, tmp_path: Path) -> None:
    output = follow("add-a-platform.md")
    assert "ended" in output
    assert "STATUS finished" in output
    assert (tmp_path / "runs/machine/launch/train.sh").is_file()


def test_every_page_is_tested() -> None:
    tested = re.findall(r'follow\("([\w-]+\.md)"', Path(__file__).read_text(encoding="utf-8"))
    assert sorted(tested) == sorted(page.name for page in HOWTO.glob("*.md"))
