"""Random mixing: linear mixing with two fixed random matrices (FNet's RANDOM, arXiv:2105.03824, section 3.4).

A control for what learning the mixing adds. The matrices depend only on the number of the layer and the sizes, so all ranks and
later processes have the same ones, and no checkpoint holds them. Entries are N(0, 1/fan_in): f_net's lecun_normal, without its
truncation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.attention_bias import ScoreBias
from models.mixing.linear import mix_by_matrices

_SEED = 20210509  # an arbitrary number: FNet's date on arXiv


class RandomMixing(nn.Module):
    over_tokens: Tensor
    over_features: Tensor

    def __init__(self, max_length: int, d_model: int, layer: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_SEED + layer)
        for name, size in (("over_tokens", max_length), ("over_features", d_model)):
            device = torch.get_default_device()
            if device.type == "meta":  # no values
                matrix = torch.empty(size, size)
            else:
                matrix = torch.randn(size, size, generator=generator, device="cpu").to(device) * size**-0.5
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, hidden: Tensor, mask: Tensor, score_bias: ScoreBias | None = None) -> Tensor:
        return mix_by_matrices(hidden, mask, self.over_tokens, self.over_features)
