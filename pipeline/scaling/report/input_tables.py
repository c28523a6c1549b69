"""Tables of a report on what models read from their input: other inputs, floors, when order is read, parts of the text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.eval.row_losses import RowLosses, paired_difference, read_losses, slices_of
from pipeline.scaling.curves import LEAST_SHUFFLE_COST, TIMES_NOISE, jump_of, threshold
from pipeline.scaling.input_checks import before_order, seed_noise
from pipeline.scaling.report.tables import Table
from pipeline.scaling.results import ResultSet
from pipeline.scaling.run_result import RunResult

_SEED = 0
_KINDS = ("text", "place", "recall", "source")


def input_tables(results: ResultSet, baseline: str) -> Iterator[Table]:
    """All tables that the results allow."""
    yield from _probe_table(results)
    yield from _jump_table(results)
    yield from _slice_table(results, baseline)


def longest_runs(results: ResultSet) -> list[RunResult]:
    """The result of the largest budget of each arm, size and seed."""
    found: dict[tuple[str, str, int], RunResult] = {}
    for one in results.results:
        place = one.point.arm, one.point.size, one.point.seed
        if place not in found or one.point.budget > found[place].point.budget:
            found[place] = one
    return list(found.values())


def _probe_table(results: ResultSet) -> Iterator[Table]:
    top = [one for one in longest_runs(results) if one.measurements is not None]
    rows = []
    for arm, size in dict.fromkeys((one.point.arm, one.point.size) for one in top):
        here = [one for one in top if (one.point.arm, one.point.size) == (arm, size)]
        budget = max(one.point.budget for one in here)
        here = [one for one in here if one.point.budget == budget]
        found = [one.measurements for one in here if one.measurements is not None]
        loss = float(np.mean([one.text_loss for one in found]))
        uses = [one.input_use for one in found if one.input_use is not None]
        names = ("swapped_loss", "shuffled_loss", "far_half_shuffled_loss", "no_input_loss")
        costs = [f"{np.mean([getattr(use, name) for use in uses]) - loss:+.4f}" if uses else "" for name in names]
        floors = [one.floors for one in found if one.floors is not None]
        above = [f"{np.mean([getattr(floor, name) for floor in floors]):.3f}" if floors else "" for name in _FLOORS]
        rows.append((arm, size, here[0].shape, f"{budget:.3g} ({len(here)})", f"{loss:.4f}", *costs, *above))
    if not rows:
        return
    note = (
        "Nats per text token at the largest budget, means over its seeds: the loss, what it rises by with another encoder "
        "input, and the losses of tables of counted n-grams on the same tokens. An arm with one stack has no encoder input to "
        "change."
    )
    columns = (
        *("arm", "size", "shape", "budget (seeds)", "loss", "another row's input", "input shuffled", "its first half shuffled"),
        *("no input", "unigram floor", "bigram floor", "trigram floor"),
    )
    yield Table(title="Use of the input, and floors", note=note, columns=columns, rows=tuple(rows))


_FLOORS = ("unigram_loss", "bigram_loss", "trigram_loss")


def _jump_table(results: ResultSet) -> Iterator[Table]:
    noise = seed_noise(results.checked.points)
    rows = []
    for one in longest_runs(results):
        probed = [point for point in one.curve if point.shuffle_cost is not None]
        if not probed:
            continue
        last = probed[-1]
        assert last.text_loss is not None
        least = threshold(last.text_loss, noise)
        jump = jump_of(one.curve, least)
        if jump is None:
            when = ("not by the end", "", "")
        else:
            sign = "≤ " if jump.is_at_first else ""
            when = (f"{sign}{jump.flops:.3g}", f"{sign}{jump.raw_tokens / 1e6:.2f}", f"{sign}{jump.step:,.0f}")
        cells = f"{least:.3f}", f"{last.shuffle_cost:+.4f}", f"{last.text_loss:.4f}", f"{last.flops:.3g}"
        rows.append((one.point.arm, one.point.size, one.shape, str(one.point.seed), *when, *cells))
    if not rows:
        return
    early = before_order(results)
    note = (
        f"A run reads order from when on shuffling the encoder's text costs {LEAST_SHUFFLE_COST} nats per text token and "
        f"{TIMES_NOISE:g} x the noise between seeds for the rest of the run (on a few validation rows, interpolated between "
        f"validations). {len(early)} of {len(results.results)} results were taken before that and are left out of all fits."
    )
    columns = (
        *("arm", "size", "shape", "seed", "FLOPs", "M raw tokens", "step", "threshold", "shuffle cost at the end"),
        *("loss at the end", "FLOPs at the end"),
    )
    yield Table(title="When order is read", note=note, columns=columns, rows=tuple(rows))


def _slice_table(results: ResultSet, baseline: str) -> Iterator[Table]:
    """Differences token by token at the size with the most arms, at its largest budget and seed 0."""
    pairs = _paired(results, baseline)
    if not pairs:
        return
    base = pairs[0][1]
    rows = []
    for kind, name, chosen in slices_of(base):
        if kind not in _KINDS or not chosen.any():
            continue
        cells = []
        for _, _, losses in pairs:
            try:
                found = paired_difference(base, losses, chosen, np.random.default_rng(_SEED))
                cells.append(f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})")
            except ValueError:
                cells.append(f"{(losses.nats[chosen].mean() - base.nats[chosen].mean()):+.4f}")
        label = {"text": "all text", "source": f"source {name}"}.get(kind, name)
        rows.append((label, f"{int(chosen.sum()):,}", f"{base.nats[chosen].mean(dtype=np.float64):.4f}", *cells))
    place = pairs[0][0].point
    note = (
        f"At {place.size} and {place.budget:.3g} FLOPs, seed 0: nats per text token of {baseline}, and by how much the arm's "
        "are higher, on the same tokens. 95 % intervals by a bootstrap over documents, where there are 10 or more: they are "
        "those of other text, not of other seeds."
    )
    columns = ("tokens", "number", baseline, *(one.point.arm for one, _, _ in pairs))
    yield Table(title="Differences by part of the text", note=note, columns=columns, rows=tuple(rows))


def _paired(results: ResultSet, baseline: str) -> list[tuple[RunResult, RowLosses, RowLosses]]:
    """Arms at the size with the most of them: the result, the baseline's losses and its own on the same rows."""
    top = [one for one in longest_runs(results) if one.point.seed == 0 and one.folder is not None]
    bases = [one for one in top if one.point.arm == baseline]
    found: list[tuple[RunResult, RowLosses, RowLosses]] = []
    for base in bases:
        losses = read_losses(base.folder) if base.folder else None
        if losses is None:
            continue
        others = [one for one in top if one is not base and one.point.size == base.point.size]
        others = [one for one in others if one.point.budget == base.point.budget]
        read = [(one, read_losses(one.folder)) for one in others if one.folder]
        here = [(one, losses, own) for one, own in read if own is not None and losses.is_on_rows_of(own)]
        found = here if len(here) > len(found) else found
    return found
