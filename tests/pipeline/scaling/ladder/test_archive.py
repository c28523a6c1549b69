"""An archive of a ladder: small, without the paths of this machine, with the same report, and itself a ladder to go on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.run_folder import latest
from pipeline.scaling.fit.points import Point
from pipeline.scaling.ladder.archive import Archived, archive
from pipeline.scaling.ladder.ladder import Ladder, make_ladder, read_ladder, write_ladder
from pipeline.scaling.ladder.recipe import LadderRecipe
from pipeline.scaling.ladder.run_configs import runs_of
from pipeline.scaling.ladder.states import state_of
from pipeline.scaling.results import collect
from pipeline.tracking.metrics import read_metrics
from tests.helpers.datasets import write_dataset
from tests.helpers.ladders import write_run

LIMIT = 60_000


@pytest.fixture
def ladder_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete ladder of two arms; its data are at a relative path."""
    monkeypatch.chdir(tmp_path)
    data = write_dataset(Path("data"), [list(range(300))] * 4000, row_lengths=(24,))
    model = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_encoder_layers": 3, "num_decoder_layers": 2}
    ladder = make_ladder(
        LadderRecipe.model_validate(
            {
                "name": "made-up",
                "data": {"path": str(data), "encoder_length": 16, "decoder_length": 8},
                "objectives": ["prefix_lm"],
                "sizes": {"d32": {"model": model}, "d48": {"model": {**model, "d_model": 48, "num_heads": 3}}},
                "arms": {"t5": {}, "fnet_t5": {}},
                "budgets": [3e10, 6e10],
                "learning_rate": {"values": [0.001, 0.002, 0.004], "sizes": ["d32", "d48"], "budget": 3e10, "check_arms": []},
                "batch": {"tokens": 240, "exponent": 0},
                "schedule": {"warmup": 0.1, "allow_short": True},
                "device": {"flops_per_second": 1e9},
                "tracking": {"enabled": False},
            }
        )
    )
    folder = tmp_path / "ladder"
    write_ladder(ladder, folder)
    noise = np.random.default_rng(3)
    for run in ladder.runs:
        if run.phase == "main":
            for end, name in run.folders():
                write_run(ladder, folder, run, end, name, noise)
                fill(runs_of(folder) / name)
    return folder


def fill(run: Path) -> None:
    """Add what a real run has besides: training rows, the state of the spike detector, weights, logs."""
    steps = int(json.loads((run / "config.json").read_bytes())["train"]["steps"])
    validations = read_metrics(run / "metrics.jsonl")
    spent = {key: value for key, value in validations[0].items() if key not in ("step", "source", "validation_loss")}
    training = [{"step": step, "loss": 2.0, "memory_gb": 1.0 + (step == 17), **spent} for step in range(1, steps + 1)]
    rows = sorted([*training, *validations], key=lambda row: (row["step"], "source" in row))
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    position = {"dataset_fingerprint": "abc", "guards": {"losses": [1.0] * 128}}
    (checkpoint / "state" / "position.json").write_text(json.dumps(position))
    (checkpoint / "weights").mkdir()
    (checkpoint / "weights" / "model.safetensors").write_bytes(bytes(100_000))
    (run / "logs").mkdir()
    (run / "logs" / "rank_0.log").write_text("started\n")
    (run / "losses.parquet").write_bytes(bytes(LIMIT + 1))


def points(folder: Path) -> dict[str, tuple[Any, ...]]:
    found = [point for one in collect([folder]).sets for point in one.checked.points]
    return {Path(point.run).name: values(point) for point in found}


def values(point: Point) -> tuple[Any, ...]:
    return (point.loss, point.flops, point.tokens, point.epochs, point.tokenizer, point.data, point.measure, point.seed)


def states(folder: Path) -> dict[str, str]:
    ladder = read_ladder(folder)
    return {run.name: state_of(folder, ladder, run).state for run in ladder.runs if run.phase == "main"}


def test_an_archive_is_small_and_reports_the_same_without_the_data(ladder_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "archive"
    done = archive(ladder_folder, output, LIMIT)
    before = points(ladder_folder)
    assert len(before) == 8 == len(done.runs)
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    shutil.rmtree(ladder_folder)
    assert points(output) == before
    assert set(states(output).values()) == {"complete"}
    for name in done.runs:
        run = runs_of(output) / name
        assert sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) < LIMIT
        assert latest(run) is None  # no weights
        steps = [row["step"] for row in read_metrics(run / "metrics.jsonl")]
        assert {1, 17} < set(steps)  # the first, and the one with the most memory
        assert len([row for row in read_metrics(run / "metrics.jsonl") if "source" in row]) == 3
    assert set(done.large) == {f"runs/{name}/losses.parquet (60 kB)" for name in done.runs}
    everything = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    assert str(tmp_path).encode() not in everything


def test_an_archive_is_completed_and_never_overwritten(ladder_folder: Path, tmp_path: Path) -> None:
    output, first = tmp_path / "archive", "t5-d32-seed0"
    scores = runs_of(ladder_folder) / f"{first}-b1" / "suffix_bpb.json"
    text = scores.read_bytes()
    scores.unlink()
    done = archive(ladder_folder, output, LIMIT)
    assert first in done.incomplete
    assert not any(name.startswith(first) for name in done.runs)  # not its other end either: a branch needs its plateau
    assert states(output)[first] == "waiting"  # for the sweeps, which nobody made
    scores.write_bytes(text)
    assert first not in archive(ladder_folder, output, LIMIT).incomplete
    assert states(output)[first] == "complete"
    other = runs_of(ladder_folder) / "fnet_t5-d48-seed0-b2" / "suffix_bpb.json"
    kept = (runs_of(output) / "fnet_t5-d48-seed0-b2" / "suffix_bpb.json").read_bytes()
    other.write_bytes(text)
    again: Archived = archive(ladder_folder, output, LIMIT)
    assert again.kept == ("runs/fnet_t5-d48-seed0-b2/suffix_bpb.json",)
    assert (runs_of(output) / "fnet_t5-d48-seed0-b2" / "suffix_bpb.json").read_bytes() == kept


def test_an_archive_of_an_archive_is_equal(ladder_folder: Path, tmp_path: Path) -> None:
    archive(ladder_folder, tmp_path / "one", LIMIT)
    archive(tmp_path / "one", tmp_path / "two", LIMIT)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) > 8 * 6
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_an_archive_is_not_written_over_something_else(ladder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files and no archive"):
        archive(ladder_folder, tmp_path / "notes", LIMIT)
    with pytest.raises(ValueError, match="is the ladder itself"):
        archive(ladder_folder, ladder_folder, LIMIT)
    ladder: Ladder = read_ladder(ladder_folder)
    other = make_ladder(ladder.recipe.model_copy(update={"name": "another"}))
    write_ladder(other, tmp_path / "another")
    with pytest.raises(ValueError, match="holds the archive of another plan"):
        archive(ladder_folder, tmp_path / "another", LIMIT)
