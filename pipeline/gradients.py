"""What DeepSpeed's pipeline engine leaves undone between the last backward pass and the reduction over replicas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def local_gradient(parameter: nn.Parameter) -> Tensor | None:
    """This rank's accumulated gradient: fp32 beside a bf16 parameter (BF16_Optimizer), or the parameter's own."""
    high_precision: Tensor | None = getattr(parameter, "_hp_grad", None)
    return parameter.grad if high_precision is None else high_precision


def sum_partial_gradients(parameters: Sequence[nn.Parameter], group: torch.distributed.ProcessGroup) -> None:
    """Add up the ranks' parts of replicated parameters' gradients, in place: one all-reduce for all of them."""
    gradients = [gradient for gradient in map(local_gradient, parameters) if gradient is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat, group=group)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
