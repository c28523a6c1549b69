"""The tables of a report, as plain cells: one source for the page, for Markdown and for CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.sizes import shape_of
from pipeline.scaling.analysis import Analysis, ArmFit, PairView, Refused, SurfaceFit
from pipeline.scaling.fit.points import Excluded
from pipeline.scaling.ladder.ladder import Ladder
from pipeline.scaling.ladder.learning_rates import Check, read_check, read_optimum
from pipeline.scaling.ladder.planned_runs import FEWEST_STEPS, FEWEST_TOKENS, FEWEST_WARMUP
from pipeline.scaling.report.words import WITHHELD, at_anchor, percent, shown, verdict, why_withheld
from pipeline.scaling.results import ResultSet


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Shapes = Mapping[tuple[str, str], str]
"""Layers x width and heads by (arm, size), as the runs' configurations hold them."""


def run_table(results: ResultSet) -> Table:
    rows = []
    for one in results.results:
        point = one.point
        rows.append(
            (
                one.name,
                point.arm,
                point.size,
                one.shape,
                str(point.seed),
                one.objective,
                f"{point.num_parameters / 1e6:.3f} ({one.non_embedding / 1e6:.3f})",
                f"{point.tokens / 1e6:.2f}",
                f"{one.target_tokens / 1e6:.2f}",
                f"{point.flops:.3g}",
                f"{point.loss:.4f}",
                f"{one.own_loss:.4f}",
                f"{one.steps:,} x {one.rows}",
                f"{one.learning_rate:.3g}",
                f"{point.seconds / 60:.1f}",
                f"{point.epochs:.2f}",
            )
        )
    columns = (
        *(
            "run",
            "arm",
            "size",
            "shape",
            "seed",
            "objective",
            "M parameters (without embedding)",
            "M raw tokens",
            "M target tokens",
        ),
        *("FLOPs", results.measure, "own validation loss, nats", "steps x rows", "learning rate", "minutes", "epochs"),
    )
    note = "Everything that fits and comparisons read. The CSV beside this page has it unrounded, with more columns."
    return Table(title="Runs", note=note, columns=columns, rows=tuple(rows))


def fit_tables(analysis: Analysis) -> Iterator[Table]:
    rows: list[tuple[str, ...]] = []
    for fit in analysis.fits:
        surface = fit.surface
        if isinstance(surface, SurfaceFit):
            constants = tuple(shown(surface.constants[name]) for name in ("E", "A", "alpha", "B", "beta"))
            quality = f"{100 * surface.deviation:.2f} %", f"{surface.starts_agreeing:.0%}", f"{100 * surface.cost_error:.1f} %"
            rows.append((fit.arm, str(fit.num_runs), *constants, *quality))
    if rows:
        columns = ("arm", "runs", "E", "A", "alpha", "B", "beta", "scatter", "starts that agree", "worst error of cost")
        note = (
            "L = E + A / N^alpha + B / D^beta, with 95 % intervals. E, A and B lie in a long valley: do not interpret them one "
            "by one; scatter is of the measure around the surface, lack of fit included."
        )
        yield Table(title="Loss surfaces (approach 3)", note=note, columns=columns, rows=tuple(rows))
    yield _exponents(analysis.fits)
    held: list[tuple[str, ...]] = [
        (
            fit.arm,
            f"{one.num_parameters / 1e6:.2f} M",
            f"{one.tokens / 1e6:.2f} M",
            f"{one.loss:.4f}",
            f"{one.predicted.value:.4f} ({one.predicted.low:.4f} to {one.predicted.high:.4f})",
            f"{100 * one.error:+.2f} %",
        )
        for fit in analysis.fits
        if not isinstance(fit.held_out, Refused)
        for one in fit.held_out
    ]
    if held:
        note = "The surface fitted without the largest size, and its prediction for that size: does the law extrapolate?"
        heads = ("arm", "parameters", "tokens", "measured", "predicted, with the interval of a new run", "error")
        yield Table(title="The largest size, held out and predicted", note=note, columns=heads, rows=tuple(held))


def _exponents(fits: Sequence[ArmFit]) -> Table:
    rows: list[tuple[str, ...]] = []
    for fit in fits:
        found = {"1, envelope": fit.envelope, "2, isoFLOP minima": fit.minima, "3, surface": fit.surface}
        if isinstance(fit.surface, Refused):  # the others rest on it
            rows.append((fit.arm, "all three", "refused", fit.surface.reason))
            continue
        for name, one in found.items():
            if isinstance(one, Refused):
                rows.append((fit.arm, name, "refused", one.reason))
            else:
                rows.append((fit.arm, name, shown(one.n_exponent), shown(one.d_exponent)))
    note = (
        "N_opt ~ C^a and D_opt ~ C^b. In the intervals of approaches 1 and 2 their bias in this design is subtracted "
        "(docs/scaling.md)."
    )
    return Table(
        title="How size and tokens should grow with compute", note=note, columns=("arm", "approach", "a", "b"), rows=tuple(rows)
    )


def comparison_table(analysis: Analysis, withheld: str | None) -> Table:
    """The multipliers; where they are withheld the reason alone."""
    title = f"Compute multipliers over {analysis.baseline}"
    if withheld is not None:
        return Table(title=title, note=why_withheld(withheld), columns=(), rows=())
    rows = []
    for one in analysis.comparisons:
        if isinstance(one.multiplier, Refused) and isinstance(one.multiplier_of_minima, Refused):
            rows.append((one.arm, "refused", one.multiplier.reason, "", "", ""))
            continue
        meets = one.crossover
        crossing = meets.reason if isinstance(meets, Refused) else "none inside" if meets is None else f"{meets:.3g}"
        found = (
            *(shown(one.multiplier), shown(one.multiplier_of_surfaces)),
            *(shown(one.multiplier_of_minima), shown(one.n_exponent_difference)),
        )
        rows.append((one.arm, *found, crossing))
    note = (
        f"Compute that an arm needs for the same loss, divided by that of {analysis.baseline}, each at its best size; below 1 "
        "the arm is cheaper. Three methods: from the joint fit at the largest compute that both cover (the one that counts), "
        "from a surface of each arm by itself at the largest budget, between isoFLOP minima over the losses that both reach."
    )
    columns = (
        "arm",
        "multiplier, joint fit",
        "separate surfaces",
        "minima",
        "difference of a",
        "budget at which the better one changes",
    )
    return Table(title=title, note=note, columns=columns, rows=tuple(rows))


def pair_tables(results: ResultSet, analysis: Analysis, withheld: str | None) -> Iterator[Table]:
    """Differences at one size. Where statements are withheld the verdicts are, too."""
    shapes = {(one.point.arm, one.point.size): one.shape for one in results.results}
    rows = _pair_rows(analysis.pairs, shapes, withheld)
    floor = (
        "the noise floor is not known: no place has two seeds"
        if analysis.smallest is None or isinstance(analysis.noise, Refused)
        else f"the noise floor is {100 * analysis.noise.deviation:.2f} % ({analysis.noise.dof} degrees of freedom); single "
        f"runs of two arms show {100 * analysis.smallest:.2f} % and more 4 times in 5"
    )
    note = f"Difference of the measure from {analysis.baseline} at the same size, FLOPs and seeds, below 0 is better; {floor}."
    columns = ("arm", "size", "shape", "ratio of parameters", "by budget (seeds)", "95 % interval", "verdict")
    yield Table(title="Equal FLOPs", note=note, columns=columns, rows=tuple(rows))
    equal = tuple(row for row, pair in zip(rows, analysis.pairs, strict=True) if pair.has_equal_parameters)
    if equal:
        yield Table(
            title="Equal parameters and equal FLOPs",
            note="Those of the above with as many parameters, within 3 %.",
            columns=columns,
            rows=equal,
        )
    if analysis.controls:
        note = (
            "The same from a hybrid: ff_only has no mixing in its encoder, fnet_t5_top2 attention in its two last layers; arms "
            "with `positions` have learnt positions. Fourier mixing brings positions, so ff_only differs from fnet_t5 in "
            "positions, too."
        )
        listed = zip(analysis.controls, _pair_rows(analysis.controls, shapes, withheld), strict=True)
        found = tuple((row[0], pair.against, *row[1:]) for pair, row in listed)
        if withheld is not None:
            note, found = why_withheld(withheld), ()
        yield Table(title="What mixing is worth", note=note, columns=("arm", "against", *columns[1:]), rows=found)
    note = (
        f"At the seconds that {analysis.baseline}'s runs took, read between the arm's own budgets (in logarithms); nothing "
        "is extrapolated. On a machine with other load they are unreliable."
    )
    yield from _readings(
        "Equal wall-clock", note, [(pair, pair.equal_seconds) for pair in analysis.pairs], lambda at: f"{at:,.0f} s", shapes
    )
    note = (
        f"At the raw tokens that {analysis.baseline}'s runs read, interpolated in the same way: the "
        "difference if the cheaper arm gets no more text."
    )
    yield from _readings(
        "Equal text", note, [(pair, pair.equal_tokens) for pair in analysis.pairs], lambda at: f"{at / 1e6:,.1f} M", shapes
    )


def _readings(
    title: str,
    note: str,
    pairs: Sequence[tuple[PairView, Sequence[tuple[float, float]]]],
    shown_at: Callable[[float], str],
    shapes: Shapes,
) -> Iterator[Table]:
    """A table of the differences that were read at what the baseline spent; none where nothing could be read."""
    rows = [
        (
            pair.arm,
            pair.size,
            shapes[pair.arm, pair.size],
            "; ".join(f"{shown_at(at)}: {100 * value:+.2f} %" for at, value in found),
        )
        for pair, found in pairs
        if found
    ]
    if rows:
        yield Table(title=title, note=note, columns=("arm", "size", "shape", "difference"), rows=tuple(rows))


def _pair_rows(pairs: Sequence[PairView], shapes: Shapes, withheld: str | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for pair in pairs:
        budgets = "; ".join(f"{budget:.2g}: {100 * value:+.2f} % ({seeds})" for budget, value, seeds in pair.by_budget)
        found = verdict(pair.difference, 0.0) if withheld is None else WITHHELD
        ratio, interval = f"{pair.parameters_ratio:.3f}", percent(pair.difference)
        if withheld is not None:
            interval = WITHHELD
        rows.append((pair.arm, pair.size, shapes[pair.arm, pair.size], ratio, budgets, interval, found))
    return rows


def length_table(results: ResultSet) -> Table:
    """How long each arm trained, by size and budget."""
    rows = []
    for arm, size in dict.fromkeys((one.point.arm, one.point.size) for one in results.results):
        here = [one for one in results.results if (one.point.arm, one.point.size) == (arm, size) and one.point.seed == 0]
        for one in here:
            warmup = "" if one.warmup_steps is None else f"{one.warmup_steps:,}"
            cells = f"{one.point.budget:.3g}", f"{one.steps:,}", warmup, f"{one.point.tokens / 1e6:,.2f}"
            ratio, short = f"{one.tokens_per_parameter:,.1f}", "short" if one.is_short else ""
            rows.append((arm, size, one.shape, *cells, ratio, short))
    note = (
        f"Seed 0. At equal FLOPs an arm that is cheaper a token reads more text. Short: under {FEWEST_STEPS:,} steps, "
        f"{FEWEST_WARMUP} steps of warm-up, or {FEWEST_TOKENS:g} raw tokens a parameter."
    )
    columns = ("arm", "size", "shape", "budget", "steps", "of warm-up", "M raw tokens", "raw tokens a parameter", "")
    return Table(title="Length of training", note=note, columns=columns, rows=tuple(rows))


def speed_table(results: ResultSet) -> Table:
    rows = []
    for arm, size in dict.fromkeys((one.point.arm, one.point.size) for one in results.results):
        here = [one for one in results.results if (one.point.arm, one.point.size) == (arm, size) and one.point.seed == 0]
        longest = max(here, key=lambda one: one.point.seconds)
        point = longest.point
        memory = "" if longest.memory_gb is None else f"{longest.memory_gb:.2f}"
        cells = f"{point.tokens / point.seconds:,.0f}", f"{point.flops / point.seconds:.3g}", memory
        rows.append(
            (arm, size, longest.shape, f"{point.num_parameters / 1e6:.3f}", f"{point.flops / point.tokens:.3g}", *cells)
        )
    columns = (
        "arm",
        "size",
        "shape",
        "M parameters",
        "FLOPs a raw token",
        "raw tokens a second",
        "model FLOP/s",
        "peak memory, GB",
    )
    return Table(
        title="Throughput and memory", note="Of the longest run of each place, steps alone.", columns=columns, rows=tuple(rows)
    )


def source_table(results: ResultSet, analysis: Analysis) -> Table | None:
    """Bits per byte by source at the anchor, of the largest budget that all arms there share."""
    pairs = at_anchor(analysis.pairs)
    chosen = [
        one for one in results.results if one.sources and one.point.seed == 0 and pairs and one.point.size == pairs[0].size
    ]
    if not chosen:
        return None
    top = max(one.point.budget for one in chosen)
    chosen = [one for one in chosen if one.point.budget == top]
    names = sorted({name for one in chosen for name in one.sources})
    rows = tuple((name, *(f"{one.sources[name]:.3f}" if name in one.sources else "" for one in chosen)) for name in names)
    note = f"At {chosen[0].point.size} and {top:.3g} FLOPs, seed 0. A source is a small sample: read rows, not cells."
    return Table(
        title="Bits per byte by source",
        note=note,
        columns=("source", *(f"{one.point.arm} ({one.shape})" for one in chosen)),
        rows=rows,
    )


def sweep_table(ladders: Sequence[tuple[Path, Ladder]]) -> Table | None:
    rows = []
    for folder, ladder in ladders:
        for run in ladder.runs:
            if run.phase == "main":
                continue
            found = read_optimum(folder, run) if run.phase == "sweep" else read_check(folder, run)
            if found is not None:
                tries = "; ".join(
                    f"{rate}: {'diverged' if loss is None else f'{loss:.4f}'}" for rate, loss in found.tries.items()
                )
                place = f"{run.ends[-1].budget:.3g}" + (" (check)" if run.phase == "check" else "")
                optimum = f"{found.optimum if isinstance(found, Check) else found.rate:.3g}"
                rows.append((run.arm, run.size, shape_of(run.model), place, optimum, tries))
    if not rows:
        return None
    note = (
        "Last validation loss by learning rate; the optimum is the vertex of the parabola through the best and its neighbours. "
        "Every best one of a sweep lies inside. Runs take the power law through the optima of their arm. A check tries half "
        "and twice the rate of the law at the largest budget, beside the ladder's own run."
    )
    columns = ("arm", "size", "shape", "FLOPs", "optimum", "tries")
    return Table(title="Learning rates", note=note, columns=columns, rows=tuple(rows))


def excluded_table(excluded: Sequence[Excluded]) -> Table:
    rows = tuple((one.run, one.reason) for one in excluded)
    return Table(
        title="Excluded runs",
        note="No run was left out." if not rows else "Read by no fit.",
        columns=("run", "reason"),
        rows=rows,
    )
