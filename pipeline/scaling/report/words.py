"""The results of an analysis in sentences: the answer first, with its uncertainty, and no claim beyond the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.scaling.analysis import NO_MIXING, Analysis, Comparison, PairView, Refused
from pipeline.scaling.fit.intervals import Interval
from pipeline.scaling.input_checks import InputChecks, before_order
from pipeline.scaling.ladder.planned_runs import FEWEST_STEPS, FEWEST_TOKENS, FEWEST_WARMUP
from pipeline.scaling.results import ResultSet

WITHHELD = "withheld"
_ENCODERS = {
    "fnet_t5": "Fourier encoder, attention decoder",
    "ff_only": "encoder without mixing, attention decoder",
    "t5": "attention encoder and decoder",
    "gpt2": "GPT-2's block, no encoder",
    "prefix_decoder": "T5's block without an encoder, the prefix seen in both directions",
    "causal": "T5's block without an encoder, causal everywhere",
}
_VARIANTS = {
    "top2": "attention in its two last encoder layers",
    "equal_parameters": "a wider encoder, as many parameters as T5",
    "equal_flops": "a wider encoder, as many FLOPs as T5",
    "deep_encoder": "half of the decoder's layers moved to the encoder",
    "learned_only": "learnt positions instead of the relative bias",
    "no_positions": "no positions in the encoder",
    "positions": "learnt positions",
}


def answer(results: ResultSet, analysis: Analysis, checks: InputChecks) -> list[str]:
    """The opening of a report: the checks of the input first. Where one does not hold, nothing is said about the arms."""
    sentences = [check.sentence for check in checks.all]
    reason = checks.withheld
    if reason is not None:
        sentences.append(f"{why_withheld(reason)} The tables below are a record of what was run.")
    else:
        sentences += [*findings(analysis), *left_out(results)]
    return [*sentences, *short_runs(results), scope(results)]


def why_withheld(reason: str) -> str:
    """Why no statement about the arms is made."""
    return f"Every statement about mixing and every compute multiplier is withheld, because {reason}."


def findings(analysis: Analysis) -> list[str]:
    """Every arm against the baseline, and the controls against the hybrids. Not for results whose statements are withheld."""
    sentences = [_comparison(one, analysis) for one in analysis.comparisons if not isinstance(one.multiplier, Refused)]
    if not sentences:
        sentences = [
            f"No compute multiplier can be given: no arm besides {analysis.baseline} has enough runs (10 or more, of 3 or more "
            "sizes). Comparisons at single sizes follow."
        ]
    sentences += [_control(one, analysis) for one in at_anchor(analysis.controls)]
    return sentences + [_pair(one, analysis) for one in at_anchor(analysis.pairs)]


def at_anchor(pairs: Sequence[PairView]) -> list[PairView]:
    """One view per arm, at the size with the most arms."""
    counted: dict[str, int] = {}
    for pair in pairs:
        counted[pair.size] = counted.get(pair.size, 0) + 1
    if not counted:
        return []
    anchor = max(counted, key=lambda size: counted[size])
    return [pair for pair in pairs if pair.size == anchor]


def verdict(interval: Interval | None, no_difference: float) -> str:
    """better, worse, or no difference shown: for an interval of which smaller values are better."""
    if interval is None:
        return "noise unknown"
    if interval.low <= no_difference <= interval.high:
        return "no difference shown"
    return "better" if interval.high < no_difference else "worse"


def shown(interval: Interval | Refused | None, digits: int = 3) -> str:
    """A value with its interval, or the reason why there is none."""
    if interval is None:
        return "noise unknown"
    if isinstance(interval, Refused):
        return f"refused: {interval.reason}"
    return f"{interval.value:.{digits}g} ({interval.low:.{digits}g} to {interval.high:.{digits}g})"


def arm_in_words(arm: str) -> str:
    """What a ladder's arm is; empty for other names."""
    base = next((name for name in _ENCODERS if arm == name or arm.startswith(f"{name}_")), "")
    parts, rest = [_ENCODERS.get(base, "")], arm[len(base) + 1 :]
    for name, text in _VARIANTS.items():
        if rest == name or rest.startswith(f"{name}_"):
            parts, rest = [*parts, text], rest[len(name) + 1 :]
    return "" if rest or not base else ", ".join(parts)


def flops(value: float) -> str:
    """FLOPs with two digits, as 2.5e12."""
    return f"{value:.2g}".replace("e+", "e")


def percent(interval: Interval | None) -> str:
    if interval is None:
        return "noise unknown"
    return f"{100 * interval.value:+.2f} % ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"


def limits(results: ResultSet, analysis: Analysis) -> Iterator[str]:
    """The limits of the report, from its own numbers."""
    points = results.checked.points
    low, high = min(point.num_parameters for point in points), max(point.num_parameters for point in points)
    yield (
        f"Sizes from {_parameters(low)} to {_parameters(high)} parameters. The best architecture changes with scale (Tay et "
        "al. 2022, arXiv:2207.10551): these results do not extend beyond this range."
    )
    yield (
        "The ends of one run share its plateau, so its budgets are not independent, but the intervals of surfaces assume that "
        "they are. Runs of one seed read the same text in the same order in all arms."
    )
    yield (
        "FLOPs are model FLOPs: the Fourier transform counts 2.5 N D (log2 N + log2 D), causal attention in full. Seconds are "
        "the times of the runs on their machine, with its other load."
    )
    if any(isinstance(fit.surface, Refused) for fit in analysis.fits):
        yield "Arms with one size are compared at that size only, at the learning rate of their own sweep."
    yield "Held-out loss is a weak proxy for quality after fine-tuning (Tay et al. 2021, arXiv:2109.10686)."


def _comparison(found: Comparison, analysis: Analysis) -> str:
    assert not isinstance(found.multiplier, Refused)
    value = found.multiplier
    kind = verdict(value, 1.0)
    said = {
        "better": f"{found.arm} needs less compute than {analysis.baseline}",
        "worse": f"{found.arm} needs more compute than {analysis.baseline}",
        "no difference shown": f"no difference in compute between {found.arm} and {analysis.baseline} is shown",
    }[kind]
    text = (
        f"At equal loss and each at its best size, {said}: {value.value:.2f} times (95 % interval {value.low:.2f} to "
        f"{value.high:.2f}) what {analysis.baseline} needs, at {flops(found.flops)} FLOPs a run."
    )
    if isinstance(found.multiplier_of_minima, Refused):
        return text + f" The second method gives no result: {found.multiplier_of_minima.reason}."
    second = found.multiplier_of_minima
    agrees = second.low <= value.high and value.low <= second.high
    return text + (
        f" The second method, which assumes no form of the loss, gives {second.value:.2f} ({second.low:.2f} to "
        f"{second.high:.2f})" + ("." if agrees else ": the two disagree, so neither is reliable.")
    )


def _control(pair: PairView, analysis: Analysis) -> str:
    """The comparison of a control with a hybrid: the effect of the one thing in which they differ."""
    text = _pair(pair, analysis)
    if pair.arm not in NO_MIXING or pair.difference is None or verdict(pair.difference, 0.0) == "worse":
        return text
    return f"{text} So these results do not show that Fourier mixing helps."


def _pair(pair: PairView, analysis: Analysis) -> str:
    kind = verdict(pair.difference, 0.0)
    many = f"as many parameters as {pair.against}"
    relation = many if pair.has_equal_parameters else f"{pair.parameters_ratio:.2f} x {pair.against}'s parameters"
    budget, value, seeds = pair.by_budget[-1]
    largest = f"{100 * value:+.2f} %"
    if pair.difference is None:
        found = f"{largest}, without an interval, because no place has two seeds,"
    else:
        found = f"{kind}, {percent(pair.difference)}"
        if budget != pair.budget:
            found += f", and {largest} at {flops(budget)} ({seeds} seed{'s' if seeds > 1 else ''}),"
    place = f"at {pair.size} and equal FLOPs ({flops(pair.budget)}; {relation})"
    return f"{pair.arm} against {pair.against} {place}: {found} in {analysis.measure.split(' of ')[0]}."


def left_out(results: ResultSet) -> list[str]:
    early = before_order(results)
    if not early:
        return []
    arms = list(dict.fromkeys(one.point.arm for one in results.results if one.point.run in early))
    return [
        f"{len(early)} of {len(results.results)} results ({', '.join(arms)}) were taken before their model read the order of "
        "its input, and are left out of all fits."
    ]


def short_runs(results: ResultSet) -> list[str]:
    short = [one for one in results.results if one.is_short]
    if not short:
        return []
    arms = list(dict.fromkeys(f"{one.point.arm} {one.point.size}" for one in short))
    return [
        f"{len(short)} of {len(results.results)} results are of short runs, with under {FEWEST_STEPS:,} steps, "
        f"{FEWEST_WARMUP} steps of warm-up or {FEWEST_TOKENS:g} raw tokens a parameter ({', '.join(arms)}): they say little "
        "about what an arm can do."
    ]


def scope(results: ResultSet) -> str:
    points = results.checked.points
    runs = len({point.run for point in points})
    tokens = max(point.tokens for point in points)
    return (
        f"These are {runs} results of {len({point.arm for point in points})} arms, with up to "
        f"{_parameters(max(point.num_parameters for point in points))} parameters and {tokens / 1e6:,.1f} M tokens. They do "
        "not extend to other sizes, budgets or text."
    )


def _parameters(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
