"""Writing text with an encoder-decoder: greedy or sampled, one token at a time, with caches.

The prefix is padded to the encoder length of the training run, because the Fourier basis depends on it.
Shapes: B batch, N encoder tokens, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.seq2seq import Seq2Seq


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 keep the whole distribution."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}: it must be 0 (greedy) or positive")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: it must be 0 (off) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must lie in (0, 1]")


def pad_prefixes(prefixes: Sequence[Sequence[int]], encoder_length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of B prefixes → ids and mask (B, N), both int64. A longer prefix keeps its last N tokens."""
    ids = torch.full((len(prefixes), encoder_length), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prefix in enumerate(prefixes):
        kept = torch.as_tensor(list(prefix)[-encoder_length:], dtype=torch.int64)
        ids[row, : len(kept)] = kept
        mask[row, : len(kept)] = 1
    return ids, mask


@torch.no_grad()
def generate(
    model: Seq2Seq, encoder_ids: Tensor, encoder_mask: Tensor, *, start_id: int, eos_id: int, sampling: Sampling
) -> Iterator[Tensor]:
    """Yield the next token (B,) of every row until all have written `eos_id` or `max_new_tokens` are out.

    A row that has finished yields `eos_id` from then on. Ids beyond the tokenizer's vocabulary are never chosen.
    """
    generator = torch.Generator(device=encoder_ids.device).manual_seed(sampling.seed)
    encoded = model.encode(encoder_ids, encoder_mask)
    token = torch.full((encoder_ids.shape[0],), start_id, dtype=torch.int64, device=encoder_ids.device)
    finished = torch.zeros_like(token, dtype=torch.bool)
    for _ in range(sampling.max_new_tokens):
        logits = model.decode(token.unsqueeze(1), encoded)[:, -1, : model.config.vocab_size]  # (B, V)
        token = choose(logits, sampling, generator).masked_fill(finished, eos_id)
        finished |= token == eos_id
        yield token
        if bool(finished.all()):
            return


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token (B,) from logits (B, V)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        worst_kept = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < worst_kept, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        # keep the smallest set whose mass reaches top_p: drop where the mass *before* a token already does
        dropped = ordered.cumsum(-1) - ordered >= sampling.top_p
        logits = logits.masked_fill(dropped.gather(-1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
