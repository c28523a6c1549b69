"""What is added to attention scores: relative bias, padding, causality, documents. Made once a forward pass, not once a layer.

Masks are integers: 0 padding, 1 a token, and beyond that document numbers (encoder) or 2 for the bidirectional prefix
(decoder-only). Shapes: B batch, H heads on this rank, Q queries, K keys, S bias tables.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.layers.position import relative_bias

Reach = Literal["all", "documents", "causal", "prefix"]


class ScoreBias(NamedTuple):
    """How `scaled_dot_product_attention` is told: a float tensor broadcastable to (B, H, Q, K), or None; or plainly causal."""

    added: Tensor | None = None
    is_causal: bool = False


_remembers = ContextVar("remembers", default=True)


@contextmanager
def made_anew() -> Iterator[None]:
    """Within the block every layer makes its own bias, as it must where it will be run again by itself for its gradients."""
    token = _remembers.set(False)
    try:
        yield
    finally:
        _remembers.reset(token)


class ScoreBiasOf:
    """The bias of one kind of attention in a model, remembered for the layers that ask with the same tables and mask.

    What is remembered dies with the tensors that it was made from, so nothing of a finished pass is kept alive.
    """

    def __init__(self, reach: Reach, table: int | None = None, max_distance: int = 128, bidirectional: bool = True) -> None:
        """`table`: index into the bias tables; None adds no relative bias."""
        self.reach, self.table = reach, table
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self._key: tuple[object, ...] = ()
        self._made: ScoreBias | None = None
        self._sources: list[Callable[[], Tensor | None]] = []

    def __call__(self, tables: Tensor, mask: Tensor | None, num_queries: int, num_keys: int, dtype: torch.dtype) -> ScoreBias:
        """tables (S, num_buckets, H), mask (B, K) int64 of the keys or None where all are tokens; the queries are the last
        ones."""
        sources = [tables] if mask is None else [tables, mask]
        # the compiler merges equal expressions by itself; inference tensors do not tell when they are changed in place
        if torch.compiler.is_compiling() or not _remembers.get() or any(source.is_inference() for source in sources):
            return self._make(tables, mask, num_queries, num_keys, dtype)
        key = (num_queries, num_keys, dtype, torch.is_grad_enabled(), *(source._version for source in sources))
        same = self._key == key and len(sources) == len(self._sources)
        if self._made is None or not same or any(a() is not b for a, b in zip(self._sources, sources, strict=True)):
            self._made = self._make(tables, mask, num_queries, num_keys, dtype)
            self._key, self._sources = key, [weakref.ref(source, self._forget) for source in sources]
        return self._made

    def _forget(self, _: object) -> None:
        self._made = None

    def _make(self, tables: Tensor, mask: Tensor | None, num_queries: int, num_keys: int, dtype: torch.dtype) -> ScoreBias:
        hidden = self._hidden(mask, num_queries, num_keys, tables.device)  # bool, True where a query must not look
        is_causal = self.reach in ("causal", "prefix") and hidden is None and num_queries > 1
        if self.table is None:
            if hidden is None:
                return ScoreBias(None, is_causal)
            return ScoreBias(_hide(torch.zeros((), dtype=dtype, device=tables.device), hidden))
        bias = relative_bias(
            tables[self.table], num_queries, num_keys, bidirectional=self.bidirectional, max_distance=self.max_distance
        ).to(dtype)
        if is_causal:
            hidden = _future(num_queries, num_keys, tables.device)
        # contiguous: the bias is a view of overlapping windows, which every layer would read with strides
        return ScoreBias(bias.contiguous() if hidden is None else _hide(bias, hidden))

    def _hidden(self, mask: Tensor | None, num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
        """None where nothing is hidden, or what `is_causal` says in full."""
        whole = mask is None or _is_whole(mask)
        if self.reach in ("all", "documents"):
            if whole or mask is None:
                return None
            padding = (mask == 0)[:, None, None, :]
            return padding if self.reach == "all" else padding | (mask[:, None, :, None] != mask[:, None, None, :])
        if whole and num_queries in (1, num_keys):
            return None
        future = _future(num_queries, num_keys, device)
        if mask is None:
            return future
        if self.reach == "prefix":
            prefix = mask == 2
            future = future & ~(prefix[:, None, -num_queries:, None] & prefix[:, None, None, :])
        return future | (mask == 0)[:, None, None, :]


def _is_whole(mask: Tensor) -> bool:
    """Whether every position is an ordinary token. Looked at on the CPU only: on a GPU the answer would cost a wait."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool((mask == 1).all())


def _future(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).triu(num_keys - num_queries + 1)


def _hide(bias: Tensor, hidden: Tensor) -> Tensor:
    # The lowest finite number rather than -inf: a row without any token then attends evenly instead of giving NaN.
    return bias.masked_fill(hidden, torch.finfo(bias.dtype).min)
