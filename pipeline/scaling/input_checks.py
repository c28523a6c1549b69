"""Whether a comparison can say anything about mixing: three checks of its baseline encoder, T5's attention.

1. T5 uses the order of its input: shuffling the encoder's text costs it more than 3 x the noise between seeds.
2. T5 beats tables of counted trigrams on the same targets.
3. T5 is ahead of the encoder without mixing, but with positions, at equal text by 3 x the noise.

Encoders whose order nobody reads, or whose order is worth nothing beyond what positions alone give, cannot be told apart by
what they do to order. So where a check fails, or was not made, the report makes no statement about mixing or a multiplier.
Each check must hold at the largest budget of every size at which T5 was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.scaling.curves import TIMES_NOISE, threshold
from pipeline.scaling.equal_text import lead
from pipeline.scaling.fit.noise import noise_floor
from pipeline.scaling.fit.points import Point
from pipeline.scaling.results import ResultSet
from pipeline.scaling.run_result import RunResult

REFERENCE = "t5"
CONTROLS = ("ff_only_positions", "ff_only")
"""Encoders without mixing; the first that was trained is the control."""


@dataclass(frozen=True)
class InputCheck:
    """One check: whether it holds (None: not measured), and what was found, in a sentence."""

    holds: bool | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class InputChecks:
    """The three checks of one set of results."""

    order: InputCheck
    floor: InputCheck
    control: InputCheck

    @property
    def all(self) -> tuple[InputCheck, ...]:
        return self.order, self.floor, self.control

    @property
    def withheld(self) -> str | None:
        """Why nothing is said about mixing and multipliers; None if all checks hold."""
        short = {
            "that T5 uses the order of its input": self.order.holds,
            "that T5 beats the trigram floor": self.floor.holds,
            "that T5 is ahead of an encoder without mixing at equal text": self.control.holds,
        }
        missing = [name for name, holds in short.items() if holds is None]
        failed = [name for name, holds in short.items() if holds is False]
        if not missing and not failed:
            return None
        parts = [f"it is not the case {_and(failed)}"] if failed else []
        parts += [f"it was not measured {_and(missing).replace('that T5', 'whether T5')}"] if missing else []
        return "; ".join(parts)


def input_checks(results: ResultSet) -> InputChecks:
    """The checks of a set of results."""
    noise = seed_noise(results.checked.points)
    top = _top([one for one in results.results if one.point.arm == REFERENCE])
    return InputChecks(order=_order(top, noise), floor=_floor(top), control=_control(results, top, noise))


def seed_noise(points: Sequence[Point]) -> float | None:
    """Standard deviation of log loss between seeds; None if no place has two.

    Of each arm and size the largest budget with several seeds counts: the ends of one run share its noise.
    """
    kept: list[Point] = []
    for arm, size in dict.fromkeys((point.arm, point.size) for point in points):
        here = [point for point in points if (point.arm, point.size) == (arm, size)]
        several = [point.budget for point in here if sum(one.budget == point.budget for one in here) > 1]
        kept += [point for point in here if several and point.budget == max(several)]
    try:
        return noise_floor(kept).deviation
    except ValueError:
        return None


def before_order(results: ResultSet) -> dict[str, str]:
    """The results that were taken before their model read order, by the name of the point's run, each with the reason.

    Models of one stack, and results whose shuffle cost is not known, are not among them.
    """
    noise = seed_noise(results.checked.points)
    found = {}
    for one in results.results:
        cost, loss = one.shuffle_cost, one.text_loss
        if cost is None or loss is None:
            continue
        least = threshold(loss, noise)
        if cost < least:
            found[one.point.run] = f"before it reads order: shuffling costs {cost:.4f} nats, less than {least:.3f}"
    return found


def _top(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """The results at the largest budget of each size, of all seeds there; sizes by ascending parameters."""
    found: dict[str, list[RunResult]] = {}
    for one in sorted(results, key=lambda one: one.point.num_parameters):
        found.setdefault(one.point.size, []).append(one)
    largest = {size: max(one.point.budget for one in here) for size, here in found.items()}
    return {size: [one for one in here if one.point.budget == largest[size]] for size, here in found.items()}


def _order(top: dict[str, list[RunResult]], noise: float | None) -> InputCheck:
    question = "Whether T5 uses the order of its input was not measured"
    if not top:
        return InputCheck(None, f"{question}: there is no result of T5 (arm {REFERENCE}).")
    costs = {size: [(one.shuffle_cost, one.text_loss) for one in here] for size, here in top.items()}
    unknown = [size for size, found in costs.items() if any(cost is None or loss is None for cost, loss in found)]
    if unknown:
        return InputCheck(
            None,
            f"{question}: the loss with shuffled input is not known at {', '.join(unknown)}. `fnet-t5 scaling measure` "
            "measures it where the checkpoints still exist.",
        )
    if noise is None:
        return InputCheck(None, f"{question}: the noise is not known, because no place has two seeds.")
    shown, failing = [], []
    for size, found in costs.items():
        cost, loss = np.mean([[cost or 0.0, loss or 0.0] for cost, loss in found], axis=0)
        shown.append(f"{cost:.4f} at {size} ({TIMES_NOISE:g} x the noise is {TIMES_NOISE * noise * loss:.4f})")
        failing += [size] if cost <= TIMES_NOISE * noise * loss else []
    costing = f"shuffling it costs, in nats per text token, {'; '.join(shown)}."
    if failing:
        return InputCheck(False, f"T5 does not use the order of its input{_at(failing, costs)}: {costing}")
    return InputCheck(True, f"T5 uses the order of its input: {costing}")


def _floor(top: dict[str, list[RunResult]]) -> InputCheck:
    question = "Whether T5 beats the trigram floor was not measured"
    if not top:
        return InputCheck(None, f"{question}: there is no result of T5 (arm {REFERENCE}).")
    shown, failing = [], []
    for size, here in top.items():
        found = [one.measurements for one in here]
        pairs = [(one.text_loss, one.floors.trigram_loss) for one in found if one is not None and one.floors is not None]
        if len(pairs) < len(here):
            return InputCheck(None, f"{question}: no tables of n-grams were counted for T5 at {size}.")
        loss, floor = np.mean(pairs, axis=0)
        shown.append(f"{loss:.3f} against {floor:.3f} at {size}")
        failing += [size] if loss >= floor else []
    against = f"its loss is, in nats per text token, {'; '.join(shown)}."
    if failing:
        return InputCheck(False, f"T5 does not beat a table of counted trigrams{_at(failing, top)}: {against}")
    return InputCheck(True, f"T5 beats a table of counted trigrams: {against}")


def _control(results: ResultSet, top: dict[str, list[RunResult]], noise: float | None) -> InputCheck:
    question = "Whether T5 is ahead of an encoder without mixing at equal text was not measured"
    if not top:
        return InputCheck(None, f"{question}: there is no result of T5 (arm {REFERENCE}).")
    arms = {one.point.arm for one in results.results}
    control = next((arm for arm in CONTROLS if arm in arms), None)
    if control is None:
        return InputCheck(None, f"{question}: neither of the arms {' and '.join(CONTROLS)} was trained.")
    name = control if control == CONTROLS[0] else f"{control} (without positions: {CONTROLS[0]} was not trained)"
    if noise is None:
        return InputCheck(None, f"{question}: the noise is not known, because no place has two seeds.")
    shown, verdicts = [], {}
    for size, here in top.items():
        theirs = [one for one in results.results if (one.point.arm, one.point.size) == (control, size)]
        if theirs:
            found = lead(here, theirs, noise, TIMES_NOISE)
            verdicts[size] = found.is_above(TIMES_NOISE)
            least = f"{TIMES_NOISE:g} x the noise is {100 * math.expm1(TIMES_NOISE * found.noise):.2f} %"
            shown.append(f"{100 * math.expm1(found.log_lead):+.2f} % at {size}{found.note} ({least})")
    ahead = f"the loss of {name}, relative to T5's, is {'; '.join(shown)}."
    failing = [size for size, holds in verdicts.items() if holds is False]
    if failing:
        return InputCheck(False, f"T5 is not ahead of an encoder without mixing at equal text{_at(failing, verdicts)}: {ahead}")
    if not verdicts or None in verdicts.values():
        reason = ahead if verdicts else f"{control} was trained at no size of T5."
        return InputCheck(None, f"{question}: {reason}")
    return InputCheck(True, f"T5 is ahead of an encoder without mixing at equal text: {ahead}")


def _at(failing: Sequence[str], sizes: Mapping[str, object]) -> str:
    return "" if len(failing) == len(sizes) else f" at {', '.join(failing)}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, nor {parts[-1]}"
