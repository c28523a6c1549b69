"""The optimizers: AdamW, and AdamW whose update of each tensor is scaled by that tensor's root mean square.

The second is nanoT5's best (Nawrot 2023, arXiv:2309.02373, `AdamWScale`), which takes the scale from Adafactor (Shazeer & Stern
2018, arXiv:1804.04235, section 8): learning rates are relative to the weights. With r = max(1e-3, rms(p)) and AdamW's update u:

    p = p - lr * weight_decay * p - lr * r * u
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.cost.parameters import is_decayed
from pipeline.config import OptimizerConfig
from pipeline.distributed.pipeline_stages import CanonicalParameter
from pipeline.optim.zero_fragments import Fragment

_SMALLEST_RMS = 1e-3


def build_optimizer(parameters: Iterable[CanonicalParameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer. Weight decay applies to matrices inside layers only: not to norms, the embedding or bias tables.

    Both groups exist on every rank, in the same order, because ZeRO flattens each group separately.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for entry in parameters:
        (decayed if is_decayed(entry.name, entry.parameter) else plain).append(entry.parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    kind = RMSScaledAdamW if config.name == "adamw_rms" else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


class RMSScaledAdamW(torch.optim.AdamW):
    """AdamW whose update is scaled by each tensor's root mean square, also where ZeRO gives it fragments of many tensors.

    `bind` tells which segment of a flat tensor belongs to which parameter. The mean square of a parameter is taken over all of
    its fragments, on all replicas and tensor ranks.
    """

    def bind(self, fragments: Sequence[Fragment], mean_squares: Callable[[int], Tensor], indices: dict[str, int]) -> None:
        """`mean_squares(group)`: fp64 (num_parameters,), at the indices that `indices` gives by name; a collective."""
        self._segments: dict[Tensor, list[tuple[slice, int]]] = defaultdict(list)
        for fragment in fragments:
            self._segments[fragment.flat].append((fragment.flat_slice, indices[fragment.entry.name]))
        self._mean_squares = mean_squares
        self._group_of = {id(group): number for number, group in enumerate(self.param_groups)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            mean_squares = self._mean_squares(self._group_of[id(group)])
            scales = mean_squares.sqrt().clamp(min=_SMALLEST_RMS).tolist()
            for flat in group["params"]:
                if flat.grad is not None:
                    self._update(flat, flat.grad, scales, group)

    def _update(self, flat: Tensor, gradient: Tensor, scales: list[float], group: dict[str, Any]) -> None:
        state = self.state[flat]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(flat), exp_avg_sq=torch.zeros_like(flat))
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        flat.mul_(1 - group["lr"] * group["weight_decay"])
        values, averages, denominators = flat.view(-1), state["exp_avg"].view(-1), denominator.view(-1)
        for segment, index in self._segments[flat]:
            values[segment].addcdiv_(
                averages[segment], denominators[segment], value=-group["lr"] * scales[index] / (1 - beta1**step)
            )
