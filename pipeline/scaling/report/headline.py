"""The opening of a report: the question, the answer in a few sentences, and the figure that carries it."""

from __future__ import annotations

from pipeline.scaling.analysis import HYBRIDS, NO_MIXING, Analysis, Comparison, PairView, Refused
from pipeline.scaling.fit.equivalence import DIFFERENT, EQUIVALENT
from pipeline.scaling.input_checks import REFERENCE, InputChecks
from pipeline.scaling.report.drawing import Figure
from pipeline.scaling.report.fit_figures import comparison_figure
from pipeline.scaling.report.input_figures import check_figure
from pipeline.scaling.report.words import flops, verdict
from pipeline.scaling.results import ResultSet

_FAILED = (
    "T5 does not use the order of its input",
    "T5 does not beat a table of counted trigrams",
    "T5 is not ahead of an encoder without mixing at equal text",
)
_UNKNOWN = (
    "uses the order of its input",
    "beats a table of counted trigrams",
    "is ahead of an encoder without mixing at equal text",
)


def question(analysis: Analysis) -> str:
    """What the comparison is to answer."""
    base = "T5" if analysis.baseline == REFERENCE else analysis.baseline
    arms = {fit.arm for fit in analysis.fits}
    hybrids = " or ".join(arm for arm in HYBRIDS if arm in arms and arm != analysis.baseline)
    if not hybrids:
        return f"How much of {base}'s compute do the other arms need for the same loss?"
    what = f"how much of {base}'s compute does the Fourier hybrid ({hybrids}) need for the same loss"
    return f"Does mixing tokens in the encoder matter, and {what}?"


def short_answer(analysis: Analysis, checks: InputChecks) -> list[str]:
    """Two short paragraphs: the multiplier and what mixing is worth, or that both are withheld and why."""
    if checks.withheld is not None:
        return [
            f"There is no answer: {_why(checks)}.",
            "So every statement about mixing and every compute multiplier is withheld.",
        ]
    found = _main(analysis)
    return [_multiplier(found, analysis) if found else _no_multiplier(analysis), _mixing(analysis)]


def carrying_figure(results: ResultSet, analysis: Analysis, checks: InputChecks) -> Figure | None:
    """The comparison, or the checks where it is withheld; None if there is nothing to draw."""
    found = None if checks.withheld else comparison_figure(analysis)
    return found or check_figure(results, checks)


def _why(checks: InputChecks) -> str:
    holds = [check.holds for check in checks.all]
    failed = [text for text, one in zip(_FAILED, holds, strict=True) if one is False]
    unknown = [text for text, one in zip(_UNKNOWN, holds, strict=True) if one is None]
    parts = [_listed(failed)] if failed else []
    if unknown:
        parts.append(f"whether {'it' if failed else 'T5'} {_listed(unknown)} was not measured")
    return ", and ".join(parts)


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _main(analysis: Analysis) -> Comparison | None:
    """The hybrid's comparison if it has a multiplier, or the first that has one."""
    known = [one for one in analysis.comparisons if not isinstance(one.multiplier, Refused)]
    return next((one for arm in HYBRIDS for one in known if one.arm == arm), known[0] if known else None)


def _multiplier(found: Comparison, analysis: Analysis) -> str:
    assert not isinstance(found.multiplier, Refused)
    value, base = found.multiplier, analysis.baseline
    opening = {
        "better": f"For the same loss {found.arm} needs less compute than {base}",
        "worse": f"For the same loss {found.arm} needs more compute than {base}",
        "no difference shown": f"No difference between the compute of {found.arm} and of {base} is shown",
    }[verdict(value, 1.0)]
    text = (
        f"{opening}: {value.value:.2f} times (95 % interval {value.low:.2f} to {value.high:.2f}) at {flops(found.flops)} FLOPs "
        "a run, the largest budget that both cover"
    )
    if not isinstance(found.band, Refused):
        band = found.band
        text += (
            f", and {band.value[0]:.2f} times ({band.low[0]:.2f} to {band.high[0]:.2f}) at {flops(band.flops[0])}, the smallest"
        )
    second = found.multiplier_of_minima
    if not isinstance(second, Refused) and (second.low > value.high or value.low > second.high):
        return f"{text}. A second method gives {second.value:.2f} ({second.low:.2f} to {second.high:.2f}): neither is reliable."
    return f"{text}."


def _no_multiplier(analysis: Analysis) -> str:
    refused = [one for one in analysis.comparisons if isinstance(one.band, Refused)]
    one = next((one for arm in HYBRIDS for one in refused if one.arm == arm), refused[0] if refused else None)
    if one is None or not isinstance(one.band, Refused):
        return f"No compute multiplier can be given, because no arm can be compared with {analysis.baseline}."
    return f"No compute multiplier can be given: {one.band.reason}."


def _mixing(analysis: Analysis) -> str:
    """What an encoder without mixing loses against the hybrid, by the verdict that is corrected for all comparisons."""
    pair = _mixing_pair(analysis)
    if pair is None:
        return "What mixing is worth was not measured: no hybrid was trained beside an encoder without mixing."
    if pair.difference is None or pair.test is None:
        return "What mixing is worth is not known: no place has two seeds, so the noise is not known."
    value, low, high = (100 * part for part in (pair.difference.value, pair.difference.low, pair.difference.high))
    found = (
        f"at {pair.size} and equal FLOPs the loss of the encoder without mixing ({pair.arm}) is {abs(value):.2f} % "
        f"{'below' if value < 0 else 'above'} that of {pair.against} (95 % interval {low:+.2f} to {high:+.2f})"
    )
    note = ""
    if (pair.against, pair.arm) == ("fnet_t5", "ff_only"):
        note = " Fourier mixing also brings positions, which ff_only has not; this does not tell the two apart."
    if pair.test.verdict == EQUIVALENT:
        return f"Fourier mixing changes the loss by less than the plan's margin: {found}.{note}"
    if pair.test.verdict != DIFFERENT:
        return f"That Fourier mixing matters is not shown: {found}.{note}"
    matters = "matters" if pair.difference.value > 0 else "does harm"
    return f"Fourier mixing {matters} here: {found}.{note}"


def _mixing_pair(analysis: Analysis) -> PairView | None:
    """The cleanest control, at the size with the most seeds and the largest budget."""
    for hybrid in HYBRIDS:
        for arm in NO_MIXING:
            found = [pair for pair in analysis.controls if (pair.against, pair.arm) == (hybrid, arm)]
            if found:
                return max(found, key=lambda pair: (max(seeds for *_, seeds in pair.by_budget), pair.budget))
    return None
