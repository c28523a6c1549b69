"""A small ladder with real training processes, stopped and resumed: sweeps, plateaus, branches, the report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.tokenization.tokenizer import train_tokenizer
from launch.config import write_resolved
from launch.local import PREEMPTED_EXIT
from pipeline.eval.measurements import read_measurements
from pipeline.eval.row_losses import read_losses
from pipeline.eval.suffix_bpb import read_suffix_bpb
from pipeline.scaling.ladder.ladder import read_ladder
from pipeline.scaling.ladder.learning_rates import rate_for, read_check, read_optimum, regrets
from pipeline.scaling.ladder.run_configs import run_config, runs_of
from pipeline.tracking.metrics import read_metrics
from tests.helpers.datasets import write_text_dataset

RECIPE = """
name: small
data: {path: DATA, encoder_length: 16, decoder_length: 8, validation_rows: 8, validation_rows_per_source: 0}
objectives: [prefix_lm]
sizes:
  s: {micro_batch_size: 4, model: {d_model: 16, d_ff: 64, d_kv: 8, num_heads: 2, num_encoder_layers: 2, num_decoder_layers: 1}}
  m: {micro_batch_size: 4, model: {d_model: 32, d_ff: 64, d_kv: 8, num_heads: 4, num_encoder_layers: 2, num_decoder_layers: 1}}
arms: {t5: {sizes: [m]}, fnet_t5: {sizes: [m]}}
budgets: [4.0e+9, 8.0e+9]
# far apart, so that the middle one is best after any number of steps
learning_rate: {values: [1.0e-6, 0.003, 2.0], sizes: [s, m], budget: 2.0e+9, check_arms: [fnet_t5]}
batch: {tokens: 96, exponent: 0}
schedule: {warmup: 0.1, allow_short: true}
train: {precision: fp32, spike_sigma: 0}
suffix_bpb: {rows_per_source: 8}
device: {flops_per_second: 1.0e+9}
tracking: {experiment: small-ladder}
"""


def fnet_t5(cwd: Path, environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from launch.cli import main; main()", *map(str, words)]
    settings = {**environment, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{cwd}/mlflow.db"}
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=1500)


# The ladder of these tests trains for minutes, on a loaded machine for more than the usual limit.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ladder")


@pytest.fixture(scope="module")
def module_environment() -> dict[str, str]:
    repository = Path(__file__).parents[3]
    return {**{key: value for key, value in os.environ.items() if key != "RANK"}, "PYTHONPATH": str(repository)}


@pytest.fixture(scope="module")
def ladder(place: Path, module_environment: dict[str, str]) -> Path:
    """A ladder that was stopped after a few seconds and completed with the same command."""
    words = "the ladder climbs from size to size and every budget leaves its branch".split()  # noqa: SIM905
    text = [" ".join(words[(i * k + i) % len(words)] for i in range(60 + k % 9)) for k in range(400)]
    texts = {"train": [(line, "text") for line in text[:360]], "val": [(line, "text") for line in text[360:]]}
    write_text_dataset(place / "data", texts, [24], tokenizer=train_tokenizer(text, 420))
    (place / "small.yaml").write_text(RECIPE.replace("DATA", "data"))
    planned = fnet_t5(place, module_environment, "scaling", "plan", "small.yaml", "--output", "ladder")
    assert planned.returncode == 0, planned.stderr
    stopped = fnet_t5(place, module_environment, "scaling", "run", "ladder", "--jobs", 2, "--minutes", 0.3)
    assert stopped.returncode == PREEMPTED_EXIT, stopped.stdout + stopped.stderr
    ended = fnet_t5(place, module_environment, "scaling", "run", "ladder", "--jobs", 2)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return place / "ladder"


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def test_the_optimum_of_every_sweep_is_inside_its_values(ladder: Path) -> None:
    plan = read_ladder(ladder)
    for run in plan.runs:
        if run.phase == "sweep":
            found = read_optimum(ladder, run)
            assert found is not None
            assert 1e-6 < found.rate < 2.0


def test_a_branch_equals_a_run_trained_without_branching(ladder: Path, place: Path, module_environment: dict[str, str]) -> None:
    plan = read_ladder(ladder)
    run = plan.run("fnet_t5-m-seed0")
    end, name = next(run.folders())
    alone = place / "alone"
    config = run_config(plan, run, end, rate_for(ladder, plan, run), None)
    write_resolved(config.model_copy(update={"tracking": config.tracking.model_copy(update={"enabled": False})}), alone)
    code = f"from pathlib import Path; from launch.local import run_local; raise SystemExit(run_local(Path({str(alone)!r}), 1))"
    settings = {**module_environment, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=settings, check=True, capture_output=True, timeout=300)
    assert losses(runs_of(ladder) / name) == losses(alone)
    assert len(losses(alone)) > 5
    scored = fnet_t5(place, module_environment, "scaling", "measure", alone, "--prefix", 16, "--suffix", 8, "--rows", 8)
    assert scored.returncode == 0, scored.stderr
    assert read_suffix_bpb(alone) == read_suffix_bpb(runs_of(ladder) / name)


def test_every_end_is_measured_on_the_same_text(ladder: Path) -> None:
    plan = read_ladder(ladder)
    measured = [
        read_suffix_bpb(runs_of(ladder) / name)["all"] for run in plan.runs if run.phase == "main" for _, name in run.folders()
    ]
    assert len(measured) == 4
    assert len({one["text_sha256"] for one in measured}) == 1


def test_every_end_is_measured_and_n_grams_are_counted_once(
    ladder: Path, place: Path, module_environment: dict[str, str]
) -> None:
    plan = read_ladder(ladder)
    ends = [runs_of(ladder) / name for run in plan.runs if run.phase == "main" for _, name in run.folders()]
    found = [read_measurements(run) for run in ends]
    losses = [read_losses(run) for run in ends]
    assert all(one is not None and one.input_use is not None for one in found)
    assert len({one.floors for one in found if one is not None}) == 1
    assert len(list((ladder / "floors").iterdir())) == 1
    assert all(one is not None and losses[0] is not None and losses[0].is_on_rows_of(one) for one in losses)
    # a run of an earlier version has no such file; its checkpoint gives the same one
    before = (ends[0] / "measurements.json").read_bytes()
    (ends[0] / "measurements.json").unlink()
    again = fnet_t5(place, module_environment, "scaling", "measure", "ladder")
    assert again.returncode == 0, again.stderr
    assert "1 of 4 finished runs were measured now" in again.stdout
    assert (ends[0] / "measurements.json").read_bytes() == before


def test_runs_have_one_mlflow_parent(ladder: Path, place: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("small-ladder")
    assert experiment is not None
    runs = {run.info.run_id: run.data.tags for run in client.search_runs([experiment.experiment_id])}
    parent = (ladder / "mlflow_run_id").read_text().strip()
    children = [tags["mlflow.runName"] for tags in runs.values() if tags.get("mlflow.parentRunId") == parent]
    assert set(children) == {path.name for path in runs_of(ladder).iterdir() if (path / "config.json").is_file()}
    assert runs[parent]["ladder.sha256"] == read_ladder(ladder).sha256
    assert client.get_run(parent).info.status == "FINISHED"


def test_complete_runs_are_skipped_and_a_report_is_written(
    ladder: Path, place: Path, module_environment: dict[str, str]
) -> None:
    shown = fnet_t5(place, module_environment, "scaling", "status", "ladder")
    assert "5 complete" in shown.stdout
    before = {path: path.stat().st_mtime_ns for path in runs_of(ladder).rglob("metrics.jsonl")}
    again = fnet_t5(place, module_environment, "scaling", "run", "ladder")
    assert "5 of 5 runs are complete" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    made = fnet_t5(place, module_environment, "scaling", "report", "ladder", "--output", "report")
    assert made.returncode == 0, made.stderr
    fits: list[dict[str, Any]] = json.loads((place / "report" / "fits.json").read_bytes())
    assert {pair["arm"] for pair in fits[0]["pairs"]} == {"fnet_t5"}


def test_a_run_outside_of_the_plan_is_named(ladder: Path, place: Path, module_environment: dict[str, str]) -> None:
    wrong = fnet_t5(place, module_environment, "scaling", "run", "ladder", "--only", "t5-m-seed7")
    assert wrong.returncode == 1
    assert "no run 't5-m-seed7'; there are t5-m-seed0" in wrong.stderr


def test_a_ladder_refuses_changed_data(ladder: Path, place: Path, module_environment: dict[str, str]) -> None:
    """A run that still has something to do; a complete one needs no data."""
    manifest, measured = place / "data" / "manifest.json", ladder / "runs" / "t5-m-seed0-b1" / "suffix_bpb.json"
    before = manifest.read_bytes()
    manifest.write_bytes(before + b" ")
    measured.rename(measured.with_suffix(".aside"))
    try:
        refused = fnet_t5(place, module_environment, "scaling", "run", "ladder", "--only", "t5-m-seed0")
    finally:
        manifest.write_bytes(before)
        measured.with_suffix(".aside").rename(measured)
    assert refused.returncode == 1
    assert "is not the data that the ladder was planned on" in refused.stderr


def test_two_runs_are_compared_on_the_same_text(ladder: Path, place: Path, module_environment: dict[str, str]) -> None:
    runs = [f"ladder/runs/{arm}-m-seed0-b1" for arm in ("t5", "fnet_t5")]
    shown = fnet_t5(place, module_environment, "compare", *runs, "--suffix", 8, "--rows", 8)
    assert shown.returncode == 0, shown.stderr
    bits = [read_suffix_bpb(place / run)["all"]["bits_per_byte"] for run in runs]
    line = next(line for line in shown.stdout.splitlines() if "all together" in line)
    assert line.split()[-3:] == [f"{bits[0]:.4f}", f"{bits[1]:.4f}", f"{float(bits[1]) - float(bits[0]):+.4f}"]


def test_a_check_compares_the_rate_of_the_law_at_the_largest_budget(ladder: Path) -> None:
    plan = read_ladder(ladder)
    check = plan.run("check-fnet_t5-m")
    found = read_check(ladder, check)
    assert found is not None
    assert found.rate == rate_for(ladder, plan, plan.run("fnet_t5-m-seed0"))
    assert [float(rate) / found.rate for rate in found.tries] == pytest.approx([0.5, 1.0, 2.0], rel=1e-4)
    own = read_metrics(runs_of(ladder) / "fnet_t5-m-seed0-b2" / "metrics.jsonl")
    assert found.tries[f"{found.rate:.6g}"] == [row["validation_loss"] for row in own if row.get("source") == "all"][-1]
    trained = [json.loads((path / "config.json").read_bytes()) for path in runs_of(ladder).glob("check-*-lr*")]
    assert {config["train"]["steps"] for config in trained} == {check.ends[0].steps}
    assert set(regrets(ladder, plan)) == {"t5-m-seed0", "fnet_t5-m-seed0"}


@pytest.mark.slow
def test_an_archive_goes_on_in_another_place_with_moved_data(
    ladder: Path, place: Path, module_environment: dict[str, str], tmp_path: Path
) -> None:
    """The run that it lacks is trained again, to the bit."""
    done = fnet_t5(place, module_environment, "scaling", "archive", "ladder", "--output", tmp_path / "archive")
    assert done.returncode == 0, done.stderr
    names = [name for _, name in read_ladder(ladder).run("fnet_t5-m-seed0").folders()]
    for name in names:
        shutil.rmtree(runs_of(tmp_path / "archive") / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "archive").rename(tmp_path / "other" / "ladder")
    shutil.copytree(place / "data", tmp_path / "other" / "text")
    lost = fnet_t5(tmp_path, module_environment, "scaling", "run", "other/ladder")
    assert "the data of the ladder are not in" in lost.stdout
    words = ["scaling", "run", "other/ladder", "--jobs", "auto", "--nice", 1]
    stopped = fnet_t5(tmp_path, module_environment, *words, "--data", "other/text", "--minutes", 0.4)
    assert "4 of 5 runs are complete" in stopped.stdout, stopped.stderr
    (tmp_path / "other").rename(tmp_path / "third")  # the folder moves while a run is unfinished
    ended = fnet_t5(tmp_path, module_environment, "scaling", "run", "third/ladder", "--data", "third/text")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for name in names:
        assert losses(runs_of(tmp_path / "third" / "ladder") / name) == losses(runs_of(ladder) / name)
        assert read_suffix_bpb(runs_of(tmp_path / "third" / "ladder") / name) == read_suffix_bpb(runs_of(ladder) / name)
