"""The report of a ladder with runs written from known loss surfaces: it must recover the surfaces and list every run that it
excludes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import write_json_atomically
from launch.scaling.execute import measure_ladder
from launch.scaling.report import make_report
from pipeline.eval.suffix_bpb import read_suffix_bpb
from pipeline.run_folder import write_status
from pipeline.scaling.analysis import analyse
from pipeline.scaling.ladder.ladder import read_ladder
from pipeline.scaling.ladder.run_configs import runs_of
from pipeline.scaling.ladder.states import state_of
from pipeline.scaling.results import collect
from tests.helpers.ladders import MULTIPLIER, suffix_bpb


@pytest.fixture(autouse=True)
def quick(whole: tuple[Path, list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports after the first, whole one have few bootstraps and no figures: what they test depends on neither."""
    monkeypatch.setattr("launch.scaling.report.analyse", partial(analyse, num_draws=100))
    monkeypatch.setattr("pipeline.scaling.report.page.figures", lambda *_: [])
    monkeypatch.setattr("pipeline.scaling.report.page.input_figures", lambda *_: [])
    monkeypatch.setattr("pipeline.scaling.report.page.check_figure", lambda *_: None)
    monkeypatch.setattr("pipeline.scaling.report.page.carrying_figure", lambda *_: None)


def report(folders: list[Path], output: Path) -> tuple[list[str], dict[str, Any]]:
    made = make_report(folders, output, None, None, "fnet-t5 scaling report")
    return made.answer, json.loads((output / "fits.json").read_bytes())[0]


@pytest.fixture(scope="module")
def whole(ladder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, Any]]:
    output = tmp_path_factory.mktemp("page")
    return output, *report([ladder_folder], output)


def test_the_summary_starts_with_the_true_multiplier(whole: tuple[Path, list[str], dict[str, Any]]) -> None:
    _, answer, fits = whole
    (comparison,) = (one for one in fits["comparisons"] if one["arm"] == "fnet_t5")
    for found in (comparison["multiplier"], comparison["multiplier_of_minima"]):
        assert found["low"] < MULTIPLIER < found["high"]
        assert found["high"] - found["low"] < 0.15
    assert answer[0].startswith(
        "T5 uses the order of its input: shuffling it costs, in nats per text token, 0.5000 at d32 (3 x"
    )
    assert answer[1].startswith("T5 beats a table of counted trigrams: ")
    assert answer[2].startswith("T5 is ahead of an encoder without mixing at equal text: the loss of ff_only_positions, ")
    assert answer[3].startswith("At equal loss and each at its best size, fnet_t5 needs less compute than t5: 0.")
    assert f"{comparison['multiplier']['value']:.2f} times" in answer[3]
    assert fits["withheld"] is None


def test_arms_at_one_size_are_compared_without_a_surface(whole: tuple[Path, list[str], dict[str, Any]]) -> None:
    _, _, fits = whole
    control = next(pair for pair in fits["pairs"] if pair["arm"] == "ff_only")
    hybrid = next(pair for pair in fits["pairs"] if pair["arm"] == "fnet_t5" and pair["size"] == "d64")
    top = {budget: value for budget, value, _ in control["by_budget"]}
    ours = {budget: value for budget, value, _ in hybrid["by_budget"]}
    for budget, value in top.items():
        assert (1 + value) / (1 + ours[budget]) == pytest.approx(1.05, abs=0.015)
    fit = next(one for one in fits["fits"] if one["arm"] == "ff_only")
    assert fit["surface"]["refused"]
    assert "too few" in fit["surface"]["reason"]


def test_the_hybrid_is_compared_with_the_encoder_without_mixing(
    whole: tuple[Path, list[str], dict[str, Any]], damaged: Path, tmp_path: Path
) -> None:
    controls = {control["arm"]: control for control in whole[2]["controls"]}
    assert list(controls) == ["ff_only_positions", "ff_only"]
    for control in controls.values():
        assert control["against"] == "fnet_t5"
        assert control["difference"]["value"] == pytest.approx(0.05, abs=0.015)
    assert any(line.startswith("ff_only against fnet_t5 at d64 and equal FLOPs") and "worse" in line for line in whole[1])
    statement = "these results do not show that Fourier mixing helps"
    assert statement not in " ".join(whole[1])
    for label in ("b1", "b2", "b3"):
        source = runs_of(damaged) / f"fnet_t5-d64-seed0-{label}" / "suffix_bpb.json"
        shutil.copy(source, runs_of(damaged) / f"ff_only-d64-seed0-{label}" / "suffix_bpb.json")
    assert statement in " ".join(report([damaged], tmp_path / "page")[0])


def test_the_largest_size_is_predicted_from_the_others(whole: tuple[Path, list[str], dict[str, Any]]) -> None:
    held = next(one for one in whole[2]["fits"] if one["arm"] == "t5")["held_out"]
    assert len(held) == 3
    assert all(abs(one["predicted"]["value"] / one["loss"] - 1) < 0.03 for one in held)


def test_the_page_shows_the_plan(whole: tuple[Path, list[str], dict[str, Any]], ladder_folder: Path) -> None:
    page = (whole[0] / "index.html").read_text()
    assert "&#34;path&#34;: &#34;data&#34;" in page
    assert str(ladder_folder.parent / "data") not in page
    assert "H1: the hybrid is &lt;cheaper&gt;." in page
    markdown = (whole[0] / "report.md").read_text()
    assert "## Excluded runs" in markdown
    assert "No run was left out." in markdown


def test_every_run_is_in_the_csv_unrounded(whole: tuple[Path, list[str], dict[str, Any]], ladder_folder: Path) -> None:
    with (whole[0] / "runs.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert set(rows) == {path.name for path in runs_of(ladder_folder).iterdir()}
    row = rows["t5-d32-seed0-b1"]
    written = json.loads((runs_of(ladder_folder) / "t5-d32-seed0-b1" / "suffix_bpb.json").read_bytes())
    assert float(row["measure"]) == written["sources"]["all"]["bits_per_byte"]


def test_tables_show_the_shapes_of_the_trained_models(
    whole: tuple[Path, list[str], dict[str, Any]], ladder_folder: Path, tmp_path: Path
) -> None:
    run = runs_of(ladder_folder) / "gpt2-d64-seed0-b1"
    config = json.loads((run / "config.json").read_bytes())
    model = config["model"]
    shape = f"{model['num_decoder_layers']} x {model['d_model']}, {model['num_heads']} heads"
    markdown = (whole[0] / "report.md").read_text()
    rows = [line for line in markdown.splitlines() if "| gpt2 | d64 |" in line]
    assert len(rows) >= 5  # pairs, seconds, text, throughput, and all runs
    assert all(f"| gpt2 | d64 | {shape} |" in row for row in rows)
    assert any(f"gpt2 ({shape})" in line for line in markdown.splitlines() if line.startswith("| source |"))
    with (whole[0] / "runs.csv").open() as file:
        assert {row["shape"] for row in csv.DictReader(file) if row["arm"] == "gpt2"} == {shape}
    # a run that no ladder planned, with a shape from another rule
    folders = [Path(shutil.copytree(path, tmp_path / path.name)) for path in (run, runs_of(ladder_folder) / "t5-d64-seed0-b1")]
    config["model"] = {**model, "num_decoder_layers": 31, "d_model": 48, "num_heads": 3}
    (folders[0] / "config.json").write_text(json.dumps(config))
    report(folders, tmp_path / "page")
    assert "| gpt2 | d48 | 31 x 48, 3 heads |" in (tmp_path / "page" / "report.md").read_text()


def test_json_holds_no_nan_or_infinity(whole: tuple[Path, list[str], dict[str, Any]]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((whole[0] / "fits.json").read_text(), parse_constant=refuse)


@pytest.fixture
def damaged(ladder_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ladder_folder, tmp_path / "ladder"))


def edit_metrics(run: Path, **changes: Any) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[-1].update(changes)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_runs_without_valid_results_are_listed_and_excluded(damaged: Path, tmp_path: Path) -> None:
    runs = runs_of(damaged)
    edit_metrics(runs / "t5-d64-seed1-b1", validation_loss=None)
    edit_metrics(runs / "t5-d64-seed2-b1", validation_loss=99.0)
    (runs / "fnet_t5-d64-seed1-b1" / "metrics.jsonl").unlink()
    write_status(runs / "fnet_t5-d64-seed2-b1", "preempted")
    (runs / "gpt2-d64-seed0-b1" / "checkpoints" / "latest").unlink()
    (runs / "t5-d96-seed0-b1" / "suffix_bpb.json").unlink()
    edit_metrics(runs / "ff_only-d64-seed0-b1", raw_tokens=5 * 10**9)
    copy = runs / "t5-d32-seed0-b1"
    made = make_report([damaged, Path(shutil.copytree(copy, tmp_path / "copy"))], tmp_path / "page", None, None, "")
    reasons = {Path(one.run).name: one.reason for one in made.excluded}
    assert "diverged: no finite" in reasons["t5-d64-seed1-b1"]
    assert "diverged: validation loss 99" in reasons["t5-d64-seed2-b1"]
    assert "missing file: metrics.jsonl" in reasons["fnet_t5-d64-seed1-b1"]
    assert "preempted" in reasons["fnet_t5-d64-seed2-b1"]
    assert "missing file: latest" in reasons["gpt2-d64-seed0-b1"]
    assert "has no suffix bits per byte yet" in reasons["t5-d96-seed0-b1"]
    assert "repeats its data 5.0 times" in reasons["ff_only-d64-seed0-b1"]
    page = (tmp_path / "page" / "index.html").read_text()
    assert all(name in page.split("Excluded runs")[-1] for name in reasons)
    with (tmp_path / "page" / "runs.csv").open() as file:
        assert not {row["run"] for row in csv.DictReader(file)} & set(reasons)


def test_modified_runs_are_listed_and_excluded(damaged: Path, tmp_path: Path) -> None:
    runs = runs_of(damaged)

    def edit(name: str, change: Callable[[Any], object]) -> None:
        values = json.loads((runs / name).read_bytes())
        change(values)
        (runs / name).write_text(json.dumps(values))

    edit("t5-d32-seed0-b1/config.json", lambda config: config["model"].update(d_ff=128))
    edit("t5-d32-seed0-b2/suffix_bpb.json", lambda found: found["sources"]["all"].update(bits_per_byte=1.0))
    (runs / "t5-d64-seed0-b1" / "suffix_bpb.json").write_text("{}")
    (runs / "t5-d64-seed0-b2" / "config.json").write_text("{")
    with (runs / "t5-d96-seed0-b1" / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    shutil.rmtree(runs / "t5-d96-seed0-b2")
    shutil.rmtree(runs / "t5-d64-seed1-b2")
    shutil.copytree(runs / "t5-d64-seed2-b2", runs / "t5-d64-seed1-b2")
    edit("t5-d64-seed1-b2/config.json", lambda config: config["train"].update(seed=1))
    made = make_report([damaged], tmp_path / "page", None, None, "")
    reasons = {Path(one.run).name: one.reason for one in made.excluded}
    expected = {
        "t5-d32-seed0-b1": "is not the run that was planned: its model.d_ff differs",
        "t5-d32-seed0-b2": "suffix_bpb.json was changed: bits_per_byte of all is not nll / ln 2 / target_bytes",
        "t5-d64-seed0-b1": "holds a file that cannot be read (KeyError: 'sources')",
        "t5-d64-seed0-b2": "config.json",
        "t5-d96-seed0-b1": "metrics.jsonl",
        "t5-d96-seed0-b2": "was not started yet",
        "t5-d64-seed2-b2": "a copy of",
    }
    assert reasons.keys() == expected.keys()
    assert all(words in reasons[name] for name, words in expected.items()), reasons
    with pytest.raises(ValueError, match="there is no such folder"):
        make_report([tmp_path / "nowhere"], tmp_path / "page", None, None, "")


def test_a_run_given_twice_is_counted_once(damaged: Path, tmp_path: Path) -> None:
    run = runs_of(damaged) / "t5-d32-seed0-b1"
    made = make_report([run, run, runs_of(damaged) / "fnet_t5-d32-seed0-b1"], tmp_path / "page", None, None, "")
    assert [one.reason for one in made.excluded] == [f"a copy of {run}"]


def test_mixed_tokenizers_data_and_texts_are_refused(damaged: Path, tmp_path: Path) -> None:
    run = runs_of(damaged) / "t5-d32-seed0-b1"
    before = (run / "tokenizer.json").read_bytes()
    (run / "tokenizer.json").write_bytes(before + b" ")
    with pytest.raises(ValueError, match="mixed tokenizers"):
        report([damaged], tmp_path / "page")
    (run / "tokenizer.json").write_bytes(before)
    position = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() / "state" / "position.json"
    position.write_text(json.dumps({"dataset_fingerprint": "other"}))
    with pytest.raises(ValueError, match="mixed training data"):
        report([damaged], tmp_path / "page")
    position.write_text(json.dumps({"dataset_fingerprint": "abc"}))
    write_json_atomically(run / "suffix_bpb.json", suffix_bpb(2.0, "b" * 64))
    with pytest.raises(ValueError, match="mixed measures"):
        report([damaged], tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_a_ladder_without_a_finished_run_reports_the_missing_runs(damaged: Path, tmp_path: Path) -> None:
    shutil.rmtree(runs_of(damaged))
    with pytest.raises(ValueError, match=r"no run is left to report .*was not started yet; and \d+ more"):
        report([damaged], tmp_path / "page")


def test_runs_without_a_ladder_are_grouped_by_their_models(damaged: Path, tmp_path: Path) -> None:
    names = [f"{arm}-d64-seed{seed}-b2" for arm in ("t5", "fnet_t5") for seed in (0, 1, 2)] + ["ff_only-d64-seed0-b2"]
    answer, fits = report([runs_of(damaged) / name for name in names], tmp_path / "page")
    assert {pair["arm"] for pair in fits["pairs"]} == {"fnet_t5", "ff_only"}
    assert fits["noise"]["dof"] == 4
    assert answer[2].startswith(
        "T5 is ahead of an encoder without mixing at equal text: the loss of ff_only (without positions:"
    )
    assert answer[3].startswith("No compute multiplier can be given")


def test_scores_under_their_earlier_file_name_are_read(damaged: Path, tmp_path: Path) -> None:
    """Runs of earlier versions contain yardstick.json. A file with the new name takes precedence."""
    before, _ = report([damaged], tmp_path / "before")
    folders = sorted(path.parent for path in runs_of(damaged).glob("*/suffix_bpb.json"))
    for folder in folders:
        (folder / "suffix_bpb.json").rename(folder / "yardstick.json")
    assert {state_of(damaged, read_ladder(damaged), run).state for run in read_ladder(damaged).runs if run.phase == "main"} == {
        "complete"
    }
    assert report([damaged], tmp_path / "page")[0] == before
    assert (tmp_path / "page" / "runs.csv").read_bytes() == (tmp_path / "before" / "runs.csv").read_bytes()
    write_json_atomically(folders[0] / "suffix_bpb.json", suffix_bpb(2.5))
    assert read_suffix_bpb(folders[0])["all"]["bits_per_byte"] == 2.5
    (folders[0] / "suffix_bpb.json").unlink()
    (folders[0] / "yardstick.json").unlink()
    with pytest.raises(FileNotFoundError, match="scaling measure"):
        read_suffix_bpb(folders[0])


def test_runs_are_compared_by_their_loss_if_some_have_no_suffix_bpb(damaged: Path, tmp_path: Path) -> None:
    runs = [runs_of(damaged) / name for name in ("t5-d64-seed0-b1", "fnet_t5-d64-seed0-b1")]
    (runs[0] / "suffix_bpb.json").unlink()
    _, fits = report(runs, tmp_path / "page")
    assert fits["measure"].startswith("nats per target token")
    runs.append(runs_of(damaged) / "gpt2-d64-seed0-b1")
    with pytest.raises(ValueError, match="fnet-t5 scaling measure"):
        report(runs, tmp_path / "page")


def test_other_objectives_are_compared_by_their_text_alone(damaged: Path) -> None:
    """Sentinels and end tokens are a part of a run's own loss. Where one run was not measured, all are compared by that."""
    runs = [runs_of(damaged) / name for name in ("t5-d64-seed0-b1", "fnet_t5-d64-seed0-b1")]
    for run in runs:
        config = json.loads((run / "config.json").read_bytes())
        config["data"]["objective"] = {"name": "span_corruption"}
        (run / "config.json").write_text(json.dumps(config))
    (results,) = collect(runs).sets
    assert results.measure == "nats per text target token of 20 rows, text cccccccc"
    written = [json.loads((run / "measurements.json").read_bytes())["text_loss"] for run in runs]
    assert [one.point.loss for one in results.results] == written
    (runs[1] / "measurements.json").unlink()
    (results,) = collect(runs).sets
    assert results.measure.startswith("nats per target token of ")
    assert [one.point.loss for one in results.results] == [one.own_loss for one in results.results] != written


def test_runs_without_checkpoints_are_counted_not_measured(damaged: Path) -> None:
    """The made-up runs have no weights. Those that were measured before are left alone."""
    names = ("t5-d64-seed0-b1", "fnet_t5-d64-seed0-b1")
    for name in names:
        (runs_of(damaged) / name / "measurements.json").unlink()
    said: list[str] = []
    measure_ladder(damaged, said.append)
    total = len(list(runs_of(damaged).iterdir()))
    assert said == [
        f"{damaged}: 0 of {total} finished runs were measured now",
        f"{damaged}: 2 runs cannot be measured, because their checkpoints are gone",
    ]


def test_the_noise_floor_uses_one_end_of_each_run(whole: tuple[Path, list[str], dict[str, Any]]) -> None:
    """2 arms with 3 seeds are 4 degrees of freedom for any number of budgets, because the ends of a run share its plateau."""
    assert whole[2]["noise"]["dof"] == 4
    assert whole[2]["noise"]["deviation"] == pytest.approx(0.002, rel=0.9)
