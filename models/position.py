"""T5's relative position bias: a learnt scalar per head and bucket of distance (Raffel et al. 2020, section 2.1).

One table a stack, shared by its layers. The tables travel from piece to piece (and so from pipeline stage to stage) and each
attending layer looks its biases up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.layers import LayerFactory


def relative_bucket(distance: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket (int64) of each key-minus-query distance (int64).

    Half of the buckets hold one distance each, the other half grow logarithmically up to `max_distance`; a bidirectional
    stack spends one half of all buckets on each direction, a causal one puts every future key into bucket 0.
    """
    bucket = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        bucket = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    num_exact = num_buckets // 2
    # clamp: log(0) is never used, but must not be computed
    growth = torch.log(distance.clamp(min=1).float() / num_exact) / math.log(max_distance / num_exact)
    logarithmic = (num_exact + (growth * (num_buckets - num_exact)).long()).clamp(max=num_buckets - 1)
    return bucket + torch.where(distance < num_exact, distance, logarithmic)


def relative_bias(table: Tensor, num_queries: int, num_keys: int, *, bidirectional: bool, max_distance: int) -> Tensor:
    """Bias (1, H, num_queries, num_keys) from a (num_buckets, H) table; the last query stands at the last key's position."""
    queries = torch.arange(num_keys - num_queries, num_keys, device=table.device)
    keys = torch.arange(num_keys, device=table.device)
    bucket = relative_bucket(
        keys[None, :] - queries[:, None],
        bidirectional=bidirectional,
        num_buckets=table.shape[0],
        max_distance=max_distance,
    )  # (num_queries, num_keys)
    return table[bucket].permute(2, 0, 1).unsqueeze(0)


class RelativeBiasTables(nn.Module):
    """The tables of a model: the encoder's, where some encoder layer attends, then the decoder's."""

    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        std = config.d_model**-0.5
        self.encoder: nn.Parameter | None = None
        if config.encoder_has_attention:
            self.encoder = factory.head_table(config.num_buckets, config.num_heads, std)
        self.decoder = factory.head_table(config.num_buckets, config.num_heads, std)

    def forward(self) -> Tensor:
        """(S, num_buckets, H): the decoder's table is the last, the encoder's (if any) the first.

        One tensor for both, because a pipeline stage must use every float tensor that it receives, and decoder stages would
        have no use for an encoder table of its own.
        """
        return torch.stack([table for table in (self.encoder, self.decoder) if table is not None])
