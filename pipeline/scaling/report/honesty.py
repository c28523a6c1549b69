"""The box that says what a comparison rests on: what was checked, withheld, left out and not measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.scaling.analysis import Analysis, Refused
from pipeline.scaling.fit.points import Excluded
from pipeline.scaling.input_checks import TIMES_NOISE, InputChecks
from pipeline.scaling.report.input_figures import RESULTS
from pipeline.scaling.report.words import arm_in_words, scope, short_runs, why_withheld
from pipeline.scaling.results import ResultSet

TITLE = "What was checked, and what is withheld"
_QUESTIONS = (
    f"T5 uses the order of its input: shuffling it costs more than {TIMES_NOISE:g} x the noise between seeds",
    "T5 beats a table of counted trigrams",
    f"T5 is ahead of an encoder without mixing at equal text, by {TIMES_NOISE:g} x the noise",
)


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One check: what must hold, whether it does, and the figures."""

    needed: str
    result: str
    found: str


@dataclass(frozen=True, kw_only=True)
class HonestyBox:
    """The checks, and further remarks as (subject, text)."""

    checks: tuple[CheckRow, ...]
    remarks: tuple[tuple[str, str], ...]


def honesty_box(results: ResultSet, analysis: Analysis, checks: InputChecks, excluded: Sequence[Excluded]) -> HonestyBox:
    """The box of a set of results; `excluded` are the runs of the whole report that no table has."""
    rows = tuple(
        CheckRow(needed=needed, result=RESULTS[check.holds], found=_found(check.sentence))
        for needed, check in zip(_QUESTIONS, checks.all, strict=True)
    )
    withheld = checks.withheld
    remarks = [
        ("Withheld", "Nothing: all three checks hold." if withheld is None else why_withheld(withheld)),
        ("Left out of fits", _left_out(results, analysis)),
        ("Excluded runs", _excluded(excluded)),
    ]
    if withheld is None and (without := _without_multiplier(analysis)):
        remarks.append(("No multiplier", without))
    remarks += [("Short runs", text) for text in short_runs(results)]
    remarks += [
        ("Noise", _noise(results, analysis)),
        ("Learning rates", _rates(results, analysis)),
        ("Not measured", _sentence("; ".join(_not_measured(results, analysis, checks)))),
        ("Scope", scope(results)),
        ("Arms", f"{'; '.join(f'{arm}: {text}' for arm, text in _arms(results))}."),
    ]
    return HonestyBox(checks=rows, remarks=tuple(remarks))


def _found(sentence: str) -> str:
    """The figures of a check: what follows the colon of its sentence."""
    text = sentence.split(": ", 1)[-1]
    return text[0].upper() + text[1:]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _arms(results: ResultSet) -> Iterator[tuple[str, str]]:
    for arm in dict.fromkeys(one.point.arm for one in results.results):
        if text := arm_in_words(arm):
            yield arm, text


def _left_out(results: ResultSet, analysis: Analysis) -> str:
    if not analysis.left_out:
        return f"None of {len(results.results)} results."
    arm_of = {one.point.run: one.point.arm for one in results.results}
    counted: dict[str, dict[str, int]] = {}
    for run, reason in analysis.left_out:
        arms = counted.setdefault(reason.split(":")[0], {})
        arms[arm_of[run]] = arms.get(arm_of[run], 0) + 1
    parts = [f"{', '.join(f'{count} of {arm}' for arm, count in arms.items())} ({reason})" for reason, arms in counted.items()]
    return f"{len(analysis.left_out)} of {len(results.results)} results: {'; '.join(parts)}."


def _excluded(excluded: Sequence[Excluded]) -> str:
    if not excluded:
        return "None."
    planned = sum("not started" in one.reason for one in excluded)
    parts = [f"{planned} that were planned and not started yet"] if planned else []
    parts += [f"{len(excluded) - planned} by the rules of the report"] if len(excluded) > planned else []
    return f"{' and '.join(parts)}; the section “Excluded runs” has the reasons."


def _without_multiplier(analysis: Analysis) -> str:
    refused = [(one.arm, one.band.reason) for one in analysis.comparisons if isinstance(one.band, Refused)]
    reasons = [reason if arm in reason else f"{arm}: {reason}" for arm, reason in refused]
    return f"{'; '.join(dict.fromkeys(reasons))}." if reasons else ""


def _noise(results: ResultSet, analysis: Analysis) -> str:
    if isinstance(analysis.noise, Refused):
        return f"Not known: {analysis.noise.reason}."
    seeds: dict[tuple[str, str], set[int]] = {}
    for point in results.checked.points:
        seeds.setdefault((point.arm, point.size), set()).add(point.seed)
    several = list(dict.fromkeys(size for (_, size), found in seeds.items() if len(found) > 1))
    arms = list(dict.fromkeys(arm for (arm, _), found in seeds.items() if len(found) > 1))
    return (
        f"Seeds scatter by {100 * analysis.noise.deviation:.2f} % of the loss ({analysis.noise.dof} "
        f"degree{'' if analysis.noise.dof == 1 else 's'} of freedom), "
        f"measured with {', '.join(arms)} at {', '.join(several)} and assumed everywhere else."
    )


def _rates(results: ResultSet, analysis: Analysis) -> str:
    if not analysis.regrets:
        return "What rates that were not the best cost is not known here, so no interval includes it."
    costs: dict[str, float] = {}
    for one in results.results:
        if one.point.run in analysis.regrets:
            costs[one.point.arm] = max(costs.get(one.point.arm, 0.0), analysis.regrets[one.point.run])
    listed = ", ".join(f"{arm} up to {100 * cost:.2f} %" for arm, cost in costs.items())
    return f"By the sweeps, rates that were not the best cost some of the loss: {listed}. The intervals include it."


def _not_measured(results: ResultSet, analysis: Analysis, checks: InputChecks) -> Iterator[str]:
    number = len(results.results)
    without = sum(one.measurements is None for one in results.results)
    if without:
        yield f"losses with other encoder inputs, n-gram floors and slices of {_of(without, number)}"
    if not any(point.shuffle_cost is not None for one in results.results for point in one.curve):
        yield "when a model begins to read order"
    elif any(check.holds is None for check in checks.all):
        yield "the checks above that say so"
    if analysis.margin is None:
        yield "equivalence (the plan states no margin)"
    if all(one.needed_flops is None for one in results.results):
        yield "FLOPs as needed"
    yield "quality after fine-tuning, generated text"


def _of(part: int, whole: int) -> str:
    return f"all {whole} results" if part == whole else f"{part} of {whole} results"
