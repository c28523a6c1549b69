"""What is added to attention scores: the relative bias, and the lowest number at keys that a query may not read.

Every layer of one kind of attention adds the same tensor, so a pass makes it once: the first layer that needs it makes it
from the bias tables, and the layers after it find it in the state (`architectures/pieces.py`).

Masks are integers: 0 padding, 1 a token. Beyond that they number the documents of a row (encoder), or mark a token of the
bidirectional prefix with 2 (decoder-only). Shapes: B batch, H heads on this rank, Q queries, K keys, S bias tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.config import ModelConfig
from models.layers.position import relative_bias

MaskKind = Literal["all", "documents", "causal", "prefix"]
"""Which keys a query may read: all tokens, those of its document, those up to itself, or the prefix and those up to itself."""


class ScoreBias(NamedTuple):
    """The mask arguments of `scaled_dot_product_attention`."""

    added: Tensor | None = None
    """A float tensor that broadcasts to (B, H, Q, K)."""
    is_causal: bool = False
    """Causal attention without any other bias, for which no tensor is made."""


@dataclass(frozen=True, kw_only=True)
class ScoreBiasRule:
    """How one kind of attention makes its bias. It holds choices only, no tensors."""

    mask_kind: MaskKind
    table: int | None = None
    """Index into the bias tables; None adds no relative bias."""
    max_distance: int = 128
    bidirectional: bool = True

    def make(self, tables: Tensor, mask: Tensor | None, num_queries: int, num_keys: int, dtype: torch.dtype) -> ScoreBias:
        """tables (S, num_buckets, H), mask (B, K) int64 of the keys, or None if all are tokens. The queries are the last
        `num_queries` of the keys where queries and keys are of one stack. `dtype` is that of the queries."""
        forbidden = self._forbidden(mask, num_queries, num_keys, tables.device)  # bool, True where a query must not read
        is_causal = self.mask_kind in ("causal", "prefix") and forbidden is None and num_queries > 1
        if self.table is None:
            if forbidden is None:
                return ScoreBias(None, is_causal)
            return ScoreBias(_forbid(torch.zeros((), dtype=dtype, device=tables.device), forbidden))
        bias = relative_bias(
            tables[self.table], num_queries, num_keys, bidirectional=self.bidirectional, max_distance=self.max_distance
        ).to(dtype)
        if is_causal:
            forbidden = _future(num_queries, num_keys, tables.device)
        # contiguous: the bias is a view of overlapping windows, and every layer would read it with strides
        return ScoreBias(bias.contiguous() if forbidden is None else _forbid(bias, forbidden))

    def _forbidden(self, mask: Tensor | None, num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
        """None if every key may be read, or if `is_causal` is enough."""
        no_padding = mask is None or _has_only_tokens(mask)
        if self.mask_kind in ("all", "documents"):
            if no_padding or mask is None:
                return None
            padding = (mask == 0)[:, None, None, :]
            return padding if self.mask_kind == "all" else padding | (mask[:, None, :, None] != mask[:, None, None, :])
        if no_padding and num_queries in (1, num_keys):
            return None
        future = _future(num_queries, num_keys, device)
        if mask is None:
            return future
        if self.mask_kind == "prefix":
            prefix = mask == 2
            future = future & ~(prefix[:, None, -num_queries:, None] & prefix[:, None, None, :])
        return future | (mask == 0)[:, None, None, :]


CROSS_ATTENTION = ScoreBiasRule(mask_kind="all")
"""T5 has no relative bias between its two stacks."""


def encoder_bias_rule(config: ModelConfig) -> ScoreBiasRule:
    """For the encoder layers that attend."""
    return ScoreBiasRule(
        mask_kind="documents" if config.mix_within_documents else "all",
        table=0 if config.encoder_has_bias_table else None,
        max_distance=config.max_distance,
    )


def decoder_bias_rule(config: ModelConfig) -> ScoreBiasRule | None:
    """For the decoder's self-attention; None with causal Fourier mixing."""
    if config.decoder_mixing != "attention":
        return None
    is_prefix = config.architecture == "prefix_decoder"
    return ScoreBiasRule(
        mask_kind="prefix" if is_prefix else "causal",
        table=-1 if config.decoder_has_bias_table else None,  # the last table: see `RelativeBiasTables`
        max_distance=config.max_distance,
        bidirectional=is_prefix,  # a prefix is read in both directions, so its distances have both signs
    )


def _has_only_tokens(mask: Tensor) -> bool:
    """Whether every position is an ordinary token. Tested on the CPU only: on a GPU the test would wait for the device."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool((mask == 1).all())


def _future(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).triu(num_keys - num_queries + 1)


def _forbid(bias: Tensor, forbidden: Tensor) -> Tensor:
    # the lowest finite number rather than -inf: a row without any token then attends evenly instead of giving NaN
    return bias.masked_fill(forbidden, torch.finfo(bias.dtype).min)
