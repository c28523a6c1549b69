"""The answer at the beginning of a report: measured of a ladder with known multiplier, or withheld with the reason."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pipeline.scaling.analysis import Analysis, PairView, Refused, analyse
from pipeline.scaling.fit.equivalence import EffectTest
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.fit.points import Excluded
from pipeline.scaling.input_checks import InputCheck, InputChecks, input_checks
from pipeline.scaling.ladder.arm_models import ARM_MODELS
from pipeline.scaling.report.fit_figures import comparison_figure, multiplier_figures
from pipeline.scaling.report.headline import carrying_figure, question, short_answer
from pipeline.scaling.report.honesty import HonestyBox, honesty_box
from pipeline.scaling.report.input_figures import check_figure
from pipeline.scaling.report.words import arm_in_words
from pipeline.scaling.results import ResultSet, collect
from tests.helpers.ladders import MULTIPLIER

SUBJECTS = ("the order of its input", "a table of counted trigrams", "an encoder without mixing at equal text")
VERBS = {False: ("does not use", "does not beat", "is not ahead of"), None: ("uses", "beats", "is ahead of")}


@pytest.fixture(scope="module")
def results(ladder_folder: Path) -> ResultSet:
    return collect([ladder_folder]).sets[0]


@pytest.fixture(scope="module")
def analysis(results: ResultSet) -> Analysis:
    return analyse(results, "t5", num_draws=40)


def checks_with(holds: tuple[bool | None, ...]) -> InputChecks:
    order, floor, control = (InputCheck(one, f"Check {number}: what was found.") for number, one in enumerate(holds))
    return InputChecks(order=order, floor=floor, control=control)


HOLD = checks_with((True, True, True))


@pytest.mark.parametrize("holds", [one for one in product((True, False, None), repeat=3) if one != (True, True, True)])
def test_the_answer_is_withheld_and_names_every_check_that_does_not_hold(
    analysis: Analysis, holds: tuple[bool | None, ...]
) -> None:
    first, second = short_answer(analysis, checks_with(holds))
    assert second == "So every statement about mixing and every compute multiplier is withheld."
    assert first.startswith("There is no answer: ")
    for one, subject, number in zip(holds, SUBJECTS, range(3), strict=True):
        said = {found: f"{VERBS[found][number]} {subject}" in first for found in (False, None)}
        assert said == {False: one is False, None: one is None}
    assert ("was not measured" in first) is (None in holds)


def test_the_known_multiplier_is_answered_with_its_band(analysis: Analysis) -> None:
    first, second = short_answer(analysis, HOLD)
    found = re.fullmatch(
        r"For the same loss fnet_t5 needs less compute than t5: (\S+) times \(95 % interval (\S+) to (\S+)\) at (\S+) FLOPs "
        r"a run, the largest budget that both cover, and (\S+) times \((\S+) to (\S+)\) at (\S+), the smallest\.",
        first,
    )
    assert found, first
    value, low, high, flops, *smallest = map(float, found.groups())
    assert low <= MULTIPLIER <= high  # shown with two digits
    assert smallest[1] <= MULTIPLIER <= smallest[2]
    assert value == pytest.approx(MULTIPLIER, abs=0.02)
    assert smallest[3] < flops == 6e12
    assert second.startswith("Fourier mixing matters here: at d64 and equal FLOPs the loss of the encoder without mixing")
    above = re.search(r"\(ff_only_positions\) is (\S+) % above that of fnet_t5 \(95 % interval (\S+) to (\S+)\)", second)
    assert above, second
    value, low, high = map(float, above.groups())
    assert low < 5.0 < high  # the made-up penalty of encoders without mixing
    assert low < value < high


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (
            Interval(1.3, 1.1, 1.5),
            "For the same loss fnet_t5 needs more compute than t5: 1.30 times (95 % interval 1.10 to 1.50)",
        ),
        (Interval(0.9, 0.7, 1.2), "No difference between the compute of fnet_t5 and of t5 is shown: 0.90 times"),
    ],
)
def test_the_answer_follows_the_interval(analysis: Analysis, interval: Interval, said: str) -> None:
    first = short_answer(with_comparison(analysis, multiplier=interval, multiplier_of_minima=Refused("none")), HOLD)[0]
    assert first.startswith(said)
    assert "neither is reliable" not in first


def with_comparison(analysis: Analysis, **changes: Any) -> Analysis:
    changed = [replace(one, **changes) if one.arm == "fnet_t5" else one for one in analysis.comparisons]
    return replace(analysis, comparisons=tuple(changed))


def test_methods_that_disagree_are_named(analysis: Analysis) -> None:
    other = with_comparison(analysis, multiplier_of_minima=Interval(1.2, 1.1, 1.3))
    assert short_answer(other, HOLD)[0].endswith("A second method gives 1.20 (1.10 to 1.30): neither is reliable.")


def test_without_a_fit_the_reason_is_given(analysis: Analysis) -> None:
    refused = Refused("fnet_t5 has 3 runs of 1 sizes: train more")
    other = with_comparison(analysis, multiplier=refused, band=refused)
    assert short_answer(other, HOLD)[0] == "No compute multiplier can be given: fnet_t5 has 3 runs of 1 sizes: train more."


def judged(p_different: float, p_equivalent: float | None) -> EffectTest:
    return EffectTest(
        p_different=p_different,
        p_equivalent=p_equivalent,
        corrected_different=p_different,
        corrected_equivalent=p_equivalent,
        family=1,
    )


def control(analysis: Analysis, **changes: Any) -> Analysis:
    pair: PairView = next(one for one in analysis.controls if one.arm == "ff_only")
    return replace(analysis, controls=(replace(pair, **changes),))


@pytest.mark.parametrize(
    ("difference", "test", "said"),
    [
        (Interval(0.02, 0.01, 0.03), judged(0.001, None), "Fourier mixing matters here: at d64"),
        (Interval(-0.02, -0.03, -0.01), judged(0.001, None), "Fourier mixing does harm here: at d64"),
        (Interval(0.02, 0.001, 0.04), judged(0.2, None), "That Fourier mixing matters is not shown: at d64"),
        (Interval(0.001, -0.002, 0.003), judged(0.7, 0.001), "Fourier mixing changes the loss by less than the plan's margin"),
        (None, None, "What mixing is worth is not known: no place has two seeds"),
    ],
)
def test_what_mixing_is_worth_follows_the_corrected_verdict(
    analysis: Analysis, difference: Interval | None, test: EffectTest | None, said: str
) -> None:
    second = short_answer(control(analysis, difference=difference, test=test), HOLD)[1]
    assert second.startswith(said)
    assert ("positions, which ff_only has not" in second) is (difference is not None)


def test_a_ladder_without_controls_says_that_mixing_was_not_measured(analysis: Analysis) -> None:
    assert "was not measured" in short_answer(replace(analysis, controls=()), HOLD)[1]


def test_the_question_names_the_hybrid_that_was_trained(analysis: Analysis) -> None:
    assert "T5's compute does the Fourier hybrid (fnet_t5) need" in question(analysis)
    decoders = [fit for fit in analysis.fits if fit.arm in ("t5", "gpt2")]
    assert (
        question(replace(analysis, fits=tuple(decoders)))
        == "How much of T5's compute do the other arms need for the same loss?"
    )


def test_the_figure_is_the_comparison_or_the_checks(results: ResultSet, analysis: Analysis) -> None:
    """What is drawn is said in the alternative text, here against the files' own numbers."""
    shown = carrying_figure(results, analysis, HOLD)
    assert shown is not None
    assert shown.title == "Multiplier by compute, and differences at equal FLOPs"
    assert re.search(r"fnet_t5 0\.8\d \(0\.\d\d to 0\.\d\d\) at \S+ FLOPs", shown.panels[0].alt)
    assert all(arm in shown.panels[1].alt for arm in ("fnet_t5", "ff_only", "ff_only_positions", "gpt2"))
    withheld = carrying_figure(results, analysis, checks_with((False, True, True)))
    assert withheld is not None
    assert withheld.title == "The three checks"
    texts = [" ".join(re.findall(r">([^<>]+)</text>", panel.svg)) for panel in withheld.panels]
    assert ["1 Order: does not hold" in texts[0], "2 Trigram floor: holds" in texts[1], "3 Mixing: holds" in texts[2]] == [
        True
    ] * 3
    assert all(size in texts[0] for size in ("d32", "d64", "d96", "d144"))


def test_the_checks_are_drawn_of_the_results_that_were_checked(results: ResultSet) -> None:
    """At the largest budget of each size: seeds that only smaller budgets have are not in the means."""
    drawn: dict[str, Any] = {}

    class Axis:
        figure = None

        def plot(self, places: Any, values: list[float], **style: Any) -> None:
            drawn[style["label"]] = values

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.scaling.report.input_figures.legend_below", lambda *_: None)
        patch.setattr("pipeline.scaling.report.input_figures.draw", lambda plots, _: plots[1].paint(Axis()) or ())
        check_figure(results, input_checks(results))
    sentence = input_checks(results).floor.sentence
    assert [f"{loss:.3f}" for loss in drawn["loss of T5"]] == re.findall(r"(\S+) against", sentence)
    assert drawn["needed: below the trigram floor"] == [40.0] * 4


def test_many_multipliers_have_a_panel_each(analysis: Analysis) -> None:
    (own,) = (one for one in analysis.comparisons if one.arm == "fnet_t5")
    arms = ("ff_only", "ff_only_positions", "gpt2")
    many = replace(analysis, comparisons=(*(replace(own, arm=arm) for arm in arms), own))
    assert multiplier_figures(analysis) == []
    (figure,) = multiplier_figures(many)
    assert [panel.alt.split(": ")[1].split(" ")[0] for panel in figure.panels] == ["fnet_t5", *arms]
    first = comparison_figure(many)
    assert first is not None
    assert len(first.panels) == 2
    assert "Bands of gpt2: in a figure below." in first.caption


def test_what_was_not_measured_is_not_drawn(results: ResultSet) -> None:
    bare = replace(results, results=tuple(replace(one, measurements=None, curve=()) for one in results.results))
    shown = check_figure(bare, input_checks(bare))
    assert shown is not None
    assert len(shown.panels) == 1
    assert shown.caption.endswith("not drawn: 1 Order: not measured; 2 Trigram floor: not measured.")
    alone = tuple(one for one in bare.results if one.point.arm == "t5")
    assert check_figure(replace(bare, results=alone), input_checks(replace(bare, results=alone))) is None


def remarks(box: HonestyBox) -> dict[str, str]:
    return dict(box.remarks)


def test_the_box_says_what_the_comparison_rests_on(results: ResultSet, analysis: Analysis) -> None:
    early = next(point.run for point in results.checked.points if point.arm == "ff_only")
    rates = {point.run: 0.004 for point in results.checked.points if point.arm == "t5"}
    known = replace(analysis, left_out=((early, "before it reads order: shuffling costs 0"),), regrets=rates)
    box = honesty_box(results, known, input_checks(results), [Excluded("x", "diverged"), Excluded("y", "was not started yet")])
    assert [row.result for row in box.checks] == ["holds"] * 3
    assert box.checks[0].found.startswith("Shuffling it costs, in nats per text token, 0.5000 at d32 (3 x the noise is ")
    found = remarks(box)
    assert found["Withheld"] == "Nothing: all three checks hold."
    assert found["Left out of fits"] == "1 of 41 results: 1 of ff_only (before it reads order)."
    assert found["Excluded runs"].startswith("1 that were planned and not started yet and 1 by the rules of the report; ")
    assert "gpt2 has 3 runs of 1 sizes" in found["No multiplier"]
    assert found["Learning rates"].startswith(
        "By the sweeps, rates that were not the best cost some of the loss: t5 up to 0.40 %."
    )
    assert "measured with t5, fnet_t5 at d64" in found["Noise"]
    assert "fnet_t5: Fourier encoder, attention decoder" in found["Arms"]
    assert "fine-tuning" in found["Not measured"]


def test_the_box_of_an_archived_table_says_what_is_not_known(results: ResultSet, analysis: Analysis) -> None:
    bare = replace(results, results=tuple(replace(one, measurements=None, curve=()) for one in results.results))
    box = honesty_box(bare, replace(analysis, noise=Refused("no place has two seeds")), input_checks(bare), [])
    assert [row.result for row in box.checks] == ["not measured", "not measured", "holds"]
    found = remarks(box)
    assert found["Withheld"].startswith("Every statement about mixing and every compute multiplier is withheld, because")
    assert found["Excluded runs"] == "None."
    assert found["Noise"] == "Not known: no place has two seeds."
    assert "of all 41 results; when a model begins to read order" in found["Not measured"]
    assert "No multiplier" not in found
    assert "is not known here" in found["Learning rates"]


def test_every_arm_of_the_ladders_has_words() -> None:
    words = {arm: arm_in_words(arm) for arm in ARM_MODELS}
    assert all(words.values())
    assert len(set(words.values())) == len(words)
    assert arm_in_words("t5_unknown") == ""
