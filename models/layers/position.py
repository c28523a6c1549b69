"""Position information: T5's relative bias, learnt vectors, or rotations (or none).

Relative bias: a learnt scalar per head and bucket of distance (Raffel et al. 2020, section 2.1). The layers of a stack share
one table. The tables are part of the state between pieces, so pipeline stages send them on. Rotations: Su et al. 2021
(arXiv:2104.09864).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.layers.factory import LayerFactory
from models.layers.initialization import normal_parameter


def relative_bucket(distance: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket (int64) of each key-minus-query distance (int64).

    Half of the buckets hold one distance each, the width of the others grows logarithmically up to `max_distance`. A
    bidirectional stack has half of all buckets for each direction; a causal one puts every future key into bucket 0.
    """
    bucket = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        bucket = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    num_exact = num_buckets // 2
    # clamp: no result of log(0) is used, but it must not be computed
    growth = torch.log(distance.clamp(min=1).float() / num_exact) / math.log(max_distance / num_exact)
    logarithmic = (num_exact + (growth * (num_buckets - num_exact)).long()).clamp(max=num_buckets - 1)
    return bucket + torch.where(distance < num_exact, distance, logarithmic)


def relative_bias(table: Tensor, num_queries: int, num_keys: int, *, bidirectional: bool, max_distance: int) -> Tensor:
    """Bias (1, H, num_queries, num_keys) from a (num_buckets, H) table; the last query has the position of the last key."""
    # One look-up per distance and not per pair: the rows of the bias are overlapping windows of the values by distance.
    bucket = relative_bucket(
        torch.arange(1 - num_keys, num_queries, device=table.device),
        bidirectional=bidirectional,
        num_buckets=table.shape[0],
        max_distance=max_distance,
    )  # (Q + K - 1,)
    windows = table.t()[:, bucket].unfold(-1, num_keys, 1)  # (H, Q, K): window 0 belongs to the last query
    return windows.flip(1).unsqueeze(0)


class RelativeBiasTables(nn.Module):
    """The tables of a model: first the encoder's (if an encoder layer attends), then the decoder's."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        std = config.std(config.d_model**-0.5)
        self.encoder: nn.Parameter | None = None
        self.decoder: nn.Parameter | None = None
        if config.encoder_has_bias_table:
            self.encoder = factory.head_table(config.num_buckets, config.num_heads, std)
        if config.decoder_has_bias_table:
            self.decoder = factory.head_table(config.num_buckets, config.num_heads, std)

    def forward(self, like: Tensor) -> Tensor:
        """(S, num_buckets, H): the decoder's table is the last, the encoder's the first.

        One tensor for both, because a pipeline stage must use every float tensor that it receives, and a stage of decoder
        layers does not use the encoder's table. Without any table: integers, which need no gradient.
        """
        tables: list[Tensor] = [table for table in (self.encoder, self.decoder) if table is not None]
        return torch.stack(tables) if tables else torch.zeros(1, dtype=torch.int64, device=like.device)


class LearnedPositions(nn.Module):
    """A learnt vector per position, `max_length` of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = normal_parameter((config.max_length, config.d_model), config.std(config.d_model**-0.5))

    def forward(self, num_tokens: int) -> Tensor:
        """(1, N, D). Raises ValueError beyond max_length."""
        self.check(num_tokens)
        return self.weight[None, :num_tokens]

    def at(self, positions: Tensor) -> Tensor:
        """(B, N) int64 → (B, N, D)."""
        return self.weight[positions]

    def check(self, num_tokens: int) -> None:
        if num_tokens > self.weight.shape[0]:
            raise ValueError(
                f"the input has {num_tokens} tokens, model.max_length is {self.weight.shape[0]}: "
                "shorten the input, or build the model with a larger model.max_length"
            )


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotate the feature pairs (i, i + E/2) of x (B, H, N, E) by position · base^(-2i/E); positions (B or 1, N) int64."""
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (
        positions[:, None, :, None].float() * rates
    )  # (B or 1, 1, N, E/2), fp32: bf16 does not hold all integers beyond 256
    cosines, sines = angles.cos(), angles.sin()
    first, second = x.float().split(half, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1).to(x.dtype)
