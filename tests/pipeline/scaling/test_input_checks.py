"""Which reports may say something about mixing: ladders with planted faults, and the first ladder's archived table."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.cli import _GlobalOptions, build_app
from pipeline.scaling.analysis import analyse
from pipeline.scaling.input_checks import before_order, input_checks, seed_noise
from pipeline.scaling.ladder.ladder import read_ladder
from pipeline.scaling.ladder.planned_runs import End, PlannedRun
from pipeline.scaling.ladder.run_configs import runs_of
from pipeline.scaling.report.page import ReportedSet, opening, write_report
from pipeline.scaling.results import Collected, collect

REPOSITORY = Path(__file__).parents[3]
CLAIMS = re.compile(
    r"needs (less|more) compute|times \(95 %|mixing (helps|matters|does harm)|% (above|below) that of|: (better|worse)"
    r"|\| (better|worse) \||no difference shown"
)


@pytest.fixture
def planted(ladder_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ladder_folder, tmp_path / "ladder"))


def edit(ladder: Path, arm: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change measurements.json in every run of an arm."""
    for path in runs_of(ladder).glob(f"{arm}-d*/measurements.json"):
        values = json.loads(path.read_bytes())
        change(values)
        path.write_text(json.dumps(values))


def remove(ladder: Path, pattern: str) -> None:
    for path in runs_of(ladder).glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def reads_no_order(ladder: Path) -> None:
    edit(ladder, "t5", lambda found: found["input_use"].update(shuffled_loss=found["text_loss"] + 1e-4))


def was_not_shuffled(ladder: Path) -> None:
    remove(ladder, "t5-d96-*/measurements.json")
    for path in runs_of(ladder).glob("t5-d96-*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if "text_loss" not in key} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def is_no_better_than_counting(ladder: Path) -> None:
    edit(ladder, "t5", lambda found: found["floors"].update(trigram_loss=found["text_loss"] - 0.01))


def has_no_floors(ladder: Path) -> None:
    edit(ladder, "t5", lambda found: found.update(floors=None))


def control_is_as_good(ladder: Path) -> None:
    for path in runs_of(ladder).glob("ff_only_positions-d64-*/suffix_bpb.json"):
        values = json.loads(path.read_bytes())
        for part in values["sources"].values():
            part["bits_per_byte"] *= 0.9
            part["nll"] *= 0.9
        path.write_text(json.dumps(values))


def has_no_control(ladder: Path) -> None:
    remove(ladder, "ff_only*")


def has_one_seed(ladder: Path) -> None:
    remove(ladder, "*-seed[12]-*")


@pytest.mark.parametrize(
    ("plant", "sentence", "reason"),
    [
        (
            reads_no_order,
            "T5 does not use the order of its input: shuffling it costs",
            "it is not the case that T5 uses the order",
        ),
        (was_not_shuffled, "the loss with shuffled input is not known at d96", "it was not measured whether T5 uses the order"),
        (is_no_better_than_counting, "T5 does not beat a table of counted trigrams", "it is not the case that T5 beats"),
        (has_no_floors, "no tables of n-grams were counted", "it was not measured whether T5 beats the trigram floor"),
        (control_is_as_good, "T5 is not ahead of an encoder without mixing", "it is not the case that T5 is ahead"),
        (has_no_control, "neither of the arms ff_only_positions and ff_only", "it was not measured whether T5 is ahead"),
        (
            has_one_seed,
            "the noise is not known",
            "whether T5 uses the order of its input, nor whether T5 is ahead",
        ),
    ],
)
def test_statements_are_withheld_where_a_check_does_not_hold(
    planted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Path], None],
    sentence: str,
    reason: str,
) -> None:
    plant(planted)
    said = quick_report(collect([planted]), tmp_path / "page", monkeypatch)
    assert any(sentence in line for line in said[:3]), said
    assert said[3].startswith("Every statement about mixing and every compute multiplier is withheld, because ")
    assert reason in said[3]
    assert len(said) == 6  # the last two are about short runs, and the scope
    for name in ("index.html", "report.md"):
        text = (tmp_path / "page" / name).read_text()
        assert not CLAIMS.search(text), CLAIMS.search(text)
        assert text.count("is withheld, because") >= 2
        assert (
            text.index("There is no answer: ")
            < text.index("every compute multiplier is withheld.")
            < text.index("What was checked")
        )
    (fits,) = json.loads((tmp_path / "page" / "fits.json").read_bytes())
    assert reason in fits["withheld"]
    assert not CLAIMS.search(" ".join(said))


def quick_report(collected: Collected, output: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Written with few bootstraps and without figures: what is said depends on neither."""
    monkeypatch.setattr("pipeline.scaling.report.page.figures", lambda *_: [])
    monkeypatch.setattr("pipeline.scaling.report.page.input_figures", lambda *_: [])
    monkeypatch.setattr("pipeline.scaling.report.page.check_figure", lambda *_: None)
    monkeypatch.setattr("pipeline.scaling.report.page.carrying_figure", lambda *_: None)
    reported = [ReportedSet.of(results, analyse(results, "t5", num_draws=40)) for results in collected.sets]
    write_report(output, collected, reported, "fnet-t5 scaling report")
    return opening(reported)


def test_statements_are_made_where_all_checks_hold(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = quick_report(collect([planted]), tmp_path / "page", monkeypatch)
    assert CLAIMS.search(" ".join(said))
    assert CLAIMS.search((tmp_path / "page" / "report.md").read_text())
    markdown = (tmp_path / "page" / "report.md").read_text()
    assert "is withheld" not in markdown.replace("what is withheld", "")
    assert "Withheld: Nothing: all three checks hold." in markdown


def test_the_shuffle_cost_must_exceed_three_times_the_noise(planted: Path) -> None:
    """At a loss of 3.0 nats and a noise of s the limit is 9 s nats: just below and just above."""
    (results,) = collect([planted]).sets
    noise = seed_noise(results.checked.points)
    assert noise is not None
    for factor, holds in ((2.9, False), (3.1, True)):
        edit(
            planted, "t5", lambda found, f=factor: found["input_use"].update(shuffled_loss=found["text_loss"] * (1 + f * noise))
        )
        (results,) = collect([planted]).sets
        assert input_checks(results).order.holds is holds


def test_the_control_is_read_at_the_text_of_t5(planted: Path) -> None:
    """The control's losses are a power of its tokens, so its loss at T5's tokens is known exactly."""
    (results,) = collect([planted]).sets
    (t5,) = [one.point for one in results.results if (one.point.arm, one.point.size, one.point.budget) == ("t5", "d64", 6e12)]
    for one in results.results:
        if one.point.arm == "ff_only_positions":
            path = runs_of(planted) / one.name / "suffix_bpb.json"
            values = json.loads(path.read_bytes())
            loss = t5.loss * 1.07 * (one.point.tokens / t5.tokens) ** -0.3
            for part in values["sources"].values():
                part.update(bits_per_byte=loss, nll=loss * 0.6931471805599453)
            path.write_text(json.dumps(values))
    (results,) = collect([planted]).sets
    assert "+7.00 % at d64 (3 x" in input_checks(results).control.sentence


def test_a_control_with_more_text_shows_a_lead_only_if_it_is_behind(planted: Path) -> None:
    """Without its smaller budgets the control has read more text than T5: behind it all the same, T5 is ahead; else unknown."""
    remove(planted, "ff_only-*")
    remove(planted, "t5-d64-*-b3")
    remove(planted, "ff_only_positions-d64-*-b[12]")
    (results,) = collect([planted]).sets
    found = input_checks(results).control
    assert found.holds is None
    assert "not at equal text: the control had read" in found.sentence
    for path in runs_of(planted).glob("ff_only_positions-d64-*/suffix_bpb.json"):
        values = json.loads(path.read_bytes())
        for part in values["sources"].values():
            part["bits_per_byte"] *= 1.5
            part["nll"] *= 1.5
        path.write_text(json.dumps(values))
    (results,) = collect([planted]).sets
    assert input_checks(results).control.holds is True


@pytest.mark.parametrize(("factor", "holds"), [(1.07, True), (0.98, False)])
def test_with_one_budget_the_curves_before_the_decay_are_compared(planted: Path, factor: float, holds: bool) -> None:
    """Both arms' curves are the same power of the text, times a factor; at its end the control has read more, and is ahead."""
    remove(planted, "ff_only-*")
    remove(planted, "t5-d64-*-b[13]")
    remove(planted, "ff_only_positions-d64-*-b[13]")
    for arm, scale in (("t5", 1.0), ("ff_only_positions", factor)):
        for path in runs_of(planted).glob(f"{arm}-d64-*/metrics.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                is_decayed = row is rows[-1]
                row["text_loss"] = 0.1 if is_decayed else 10 * scale * row["raw_tokens"] ** -0.1
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in runs_of(planted).glob("ff_only_positions-d64-*/suffix_bpb.json"):
        values = json.loads(path.read_bytes())
        for part in values["sources"].values():
            part.update(bits_per_byte=0.1, nll=0.1 * 0.6931471805599453)
        path.write_text(json.dumps(values))
    (results,) = collect([planted]).sets
    found = input_checks(results).control
    assert found.holds is holds
    assert f"{100 * (factor - 1):+.2f} % at d64 (before the learning rate decays)" in found.sentence


def test_results_before_the_jump_are_named(planted: Path) -> None:
    edit(planted, "fnet_t5", lambda found: found["input_use"].update(shuffled_loss=found["text_loss"] + 0.019))
    (results,) = collect([planted]).sets
    early = before_order(results)
    arms = {one.point.arm for one in results.results if one.point.run in early}
    assert arms == {"fnet_t5", "ff_only"}
    assert len(early) == len([one for one in results.results if one.point.arm in arms])
    assert "shuffling costs 0.0190 nats, less than 0." in next(reason for run, reason in early.items() if "fnet_t5" in run)


def test_short_runs_are_named(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under 1,000 steps, 200 of warm-up or 3 tokens a parameter, computed from the plan and not from the results."""

    def is_short(run: PlannedRun, end: End) -> bool:
        return run.warmup_steps < 200 or end.steps < 1000 or end.tokens < 3 * run.num_parameters

    main = [run for run in read_ladder(planted).runs if run.phase == "main"]
    short = [end for run in main for end in run.ends if is_short(run, end)]
    said = quick_report(collect([planted]), tmp_path / "page", monkeypatch)
    total = sum(len(run.ends) for run in main)
    assert 0 < len(short) < total
    assert said[-2].startswith(
        f"{len(short)} of {total} results are of short runs, with under 1,000 steps, 200 steps of warm-up"
    )
    markdown = (tmp_path / "page" / "report.md").read_text()
    of_seed_0 = sum(is_short(run, end) for run in main if run.seed == 0 for end in run.ends)
    assert markdown.count("| short |") == of_seed_0


def test_the_command_prints_the_reason(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reads_no_order(planted)
    runs = [str(runs_of(planted) / f"{arm}-d64-seed{seed}-b1") for arm in ("t5", "fnet_t5") for seed in (0, 1, 2)]
    build_app(_GlobalOptions())(["scaling", "report", *runs, "--output", str(tmp_path / "page")], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "every compute multiplier is withheld, because it is not the case that T5 uses the order" in printed
    assert not CLAIMS.search(printed)


def test_the_first_ladder_is_reported_without_its_multiplier() -> None:
    """From what is committed: the page that is there says what its table allows, and no more."""
    folder = REPOSITORY / "docs" / "reports" / "cpu-smoke"
    (results,) = collect([folder / "runs.csv"]).sets
    assert len(results.results) == 60
    checks = input_checks(results)
    assert (checks.order.holds, checks.floor.holds, checks.control.holds) == (None, None, False)
    assert checks.withheld is not None
    for name in ("report.md", "index.html"):
        text = (folder / name).read_text().replace("&#39;", "'").replace("<code>", "`").replace("</code>", "`")
        assert all(check.sentence in text for check in checks.all)
        assert checks.withheld in text
        assert not CLAIMS.search(text)
        assert "0.59 times" not in text
    (fits,) = json.loads((folder / "fits.json").read_bytes())
    assert fits["withheld"] == checks.withheld
