"""Tables of the joint fit: multipliers by compute, without single sizes, verdicts with their family, sharing and residuals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.scaling.analysis import Analysis, Comparison, JointSurfaces, PairView, Refused
from pipeline.scaling.fit.equivalence import EffectTest
from pipeline.scaling.fit.joint.by_compute import MultiplierBand
from pipeline.scaling.fit.joint.sharing import LEVEL
from pipeline.scaling.report.tables import Table
from pipeline.scaling.report.words import percent, shown, why_withheld

_SHOWN = 5
"""Budgets of a band in a table; fits.json has all."""


def joint_tables(analysis: Analysis, withheld: str | None) -> Iterator[Table]:
    """What the joint fit says. Where statements are withheld, only how well it fits is shown."""
    if withheld is None:
        yield from (_band(one, analysis) for one in analysis.comparisons)
        yield _without_sizes(analysis)
        yield _verdicts(analysis)
    else:
        titles = "Multiplier by compute, multiplier without single sizes, verdicts"
        yield Table(title=titles, note=why_withheld(withheld), columns=(), rows=())
    if isinstance(analysis.joint, Refused):
        yield Table(title="Joint fit", note=f"Refused: {analysis.joint.reason}.", columns=(), rows=())
        return
    yield _constants(analysis, analysis.joint)
    yield _sharing(analysis.joint)
    yield _residuals(analysis.joint)


def _band(one: Comparison, analysis: Analysis) -> Table:
    title = f"Multiplier by compute: {one.arm} over {analysis.baseline}"
    band = one.band
    if isinstance(band, Refused):
        return Table(title=title, note=f"Refused: {band.reason}.", columns=(), rows=())
    chosen = np.linspace(0, len(band.flops) - 1, _SHOWN).round().astype(int).tolist()
    rows = tuple(
        (
            f"{band.flops[number]:.3g}",
            f"{band.arm_flops[number]:.3g}",
            f"{band.value[number]:.3f}",
            f"{band.low[number]:.3f} to {band.high[number]:.3f}",
        )
        for number in chosen
    )
    columns = (f"FLOPs of {analysis.baseline}", f"FLOPs of {one.arm} to the same loss", "multiplier", "95 % interval")
    return Table(title=title, note=_band_note(band, analysis), columns=columns, rows=rows)


def _band_note(band: MultiplierBand, analysis: Analysis) -> str:
    note = "From the joint fit, each arm at its best size; an interval holds at its own compute."
    if analysis.regrets:
        note += " Intervals include what the learning rates may have cost."
    for part in band.not_covered:
        note += f" Refused for {part.arm} from {part.low:.3g} to {part.high:.3g} FLOPs: {part.reason}."
    if band.beyond_sizes:
        note += f" The best size of {' and '.join(band.beyond_sizes)} lies beyond the trained ones at some of these: add sizes."
    return note


def _without_sizes(analysis: Analysis) -> Table:
    rows = [
        (one.arm, part.size, shown(part.multiplier) if part.multiplier is not None else f"refused: {part.refused}")
        for one in analysis.comparisons
        for part in one.without_size
    ]
    return Table(
        title="Multiplier without each size",
        note="The joint fit again without the runs of one size, at the largest compute of the table above.",
        columns=("arm", "without", "multiplier"),
        rows=tuple(rows),
    )


def _verdicts(analysis: Analysis) -> Table:
    rows = []
    for one in analysis.comparisons:
        if one.test is not None and not isinstance(one.loss_difference, Refused):
            place = f"{one.arm} against {analysis.baseline}, best sizes, joint fit"
            rows.append((place, percent(one.loss_difference), *_tested(one.test)))
    rows += [row for pair in (*analysis.pairs, *analysis.controls) if (row := _pair(pair)) is not None]
    margin = (
        "The plan states no margin of equivalence (`equivalence_margin`), so no pair can be called equivalent."
        if analysis.margin is None
        else f"Equivalent: within {100 * analysis.margin:.2g} %, the margin of the plan, by two one-sided tests."
    )
    size = max((int(row[-2]) for row in rows), default=0)
    note = (
        f"Relative difference of the measure at equal FLOPs, below 0 is better. {margin} The {size} differences are one "
        "family: p values are shown as they are and corrected by Holm's method; the verdict is by the corrected ones."
    )
    columns = ("pair", "difference (95 % interval)", "p, no difference", "p, beyond the margin", "family", "verdict")
    return Table(title="Different, equivalent or undecided", note=note, columns=columns, rows=tuple(rows))


def _pair(pair: PairView) -> tuple[str, ...] | None:
    if pair.test is None:
        return None
    return f"{pair.arm} against {pair.against}, {pair.size}, {pair.budget:.2g}", percent(pair.difference), *_tested(pair.test)


def _tested(test: EffectTest) -> tuple[str, ...]:
    different = f"{test.p_different:.3g}, corrected {test.corrected_different:.3g}"
    equivalent = (
        ""
        if test.p_equivalent is None or test.corrected_equivalent is None
        else f"{test.p_equivalent:.3g}, corrected {test.corrected_equivalent:.3g}"
    )
    return different, equivalent, str(test.family), test.verdict


def _constants(analysis: Analysis, joint: JointSurfaces) -> Table:
    names = ("A", "B", "E", "alpha", "beta", "kappa")
    rows = [(arm, *(f"{joint.constants[arm][name]:.4g}" for name in names)) for arm in joint.arms]
    note = (
        "L = E + A / N^alpha + B r^-kappa / D^beta by least squares on log losses; r is the cost of a token over "
        f"{analysis.baseline}'s at the same size, less its mean. {joint.num_runs} results at {joint.num_places} places (arm, "
        "size, budget), each the mean of its seeds. Standard deviation around the surfaces "
        f"{100 * joint.deviation:.2f} %. Shared by all arms: {', '.join(joint.shared) or 'nothing'}. "
        f"{_left_out(analysis)} are left out of all fits."
    )
    note += "".join(f" Not fitted: {arm}, {reason}." for arm, reason in joint.not_fitted)
    return Table(title="Joint fit", note=note, columns=("arm", *names), rows=tuple(rows))


def _left_out(analysis: Analysis) -> str:
    reasons: dict[str, int] = {}
    for _, reason in analysis.left_out:
        kind = reason.split(":")[0]
        reasons[kind] = reasons.get(kind, 0) + 1
    listed = ", ".join(f"{count} {kind}" for kind, count in reasons.items())
    return f"{len(analysis.left_out)} results" + (f" ({listed})" if listed else "")


def _sharing(joint: JointSurfaces) -> Table:
    rows = tuple(
        (
            ", ".join(test.shared),
            f"{test.f:.2f}",
            f"{test.dof[0]}, {test.dof[1]}",
            f"{test.p:.3g}",
            f"{test.p_clusters:.3g}",
            "refused" if test.is_refused else "not refused",
        )
        for test in joint.tests
    )
    note = (
        "Nested models: a fit that shares these constants against one that shares none. The F distribution assumes independent "
        f"errors; the last p is by a wild bootstrap of arm and size, and sharing is refused below {LEVEL}."
        if joint.untested is None
        else f"All constants are shared, and this was not tested: {joint.untested}."
    )
    columns = ("shared", "F", "degrees of freedom", "p of F", "p, clusters", "sharing")
    return Table(title="Which constants the arms share", note=note, columns=columns, rows=rows)


def _residuals(joint: JointSurfaces) -> Table:
    sizes = list(dict.fromkeys(size for _, size, _, _ in joint.residuals))
    rows = []
    for arm in joint.arms:
        of_sizes = [
            " ".join(f"{100 * error:+.2f}" for name, size, _, error in joint.residuals if (name, size) == (arm, at))
            for at in sizes
        ]
        rows.append((arm, *of_sizes))
    note = "Measured / fitted loss - 1 in percent, by ascending budget as planned. Runs of signs are lack of fit, not noise."
    return Table(title="What the joint fit leaves", note=note, columns=("arm", *sizes), rows=tuple(rows))
