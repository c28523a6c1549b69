"""Generation with any generative model: greedy or sampled (for beams see `beam_search.py`).

Shapes: B rows, N prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.architectures.single_process import SingleProcessModel
from models.generation.decode import DecodingSession, pad_prefixes, pad_prompts

__all__ = ["Sampling", "decode", "generate", "pad_prefixes", "pad_prompts", "sample_token", "stop_set"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k 0 and top_p 1 keep the whole distribution.

    num_beams above 1 is beam search (`beam_search.py`), which has no temperature.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    """Scores of beams are divided by length^length_penalty: a value above 0 favours longer texts."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}: it must be 0 (greedy) or positive")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: it must be 0 (off) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must lie in (0, 1]")
        if self.num_beams < 1:
            raise ValueError(f"num_beams is {self.num_beams}: it must be at least 1")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"num_beams is {self.num_beams} and temperature {self.temperature}: beam search does not sample, give 0"
            )


@torch.no_grad()
def generate(
    model: SingleProcessModel, ids: Tensor, mask: Tensor, *, start_id: int, eos_id: int | Sequence[int], sampling: Sampling
) -> Iterator[Tensor]:
    """Yield the next token (B,) of every row until all rows have a stop token or `max_new_tokens`.

    ids and mask (B, N) as `DecodingSession` takes them. `eos_id`: one stop token, or several; the first pads rows that have
    finished. Ids beyond the tokenizer's vocabulary are never sampled. Raises ValueError for beams: see `beam_search`.
    """
    if sampling.num_beams > 1:
        raise ValueError(f"num_beams is {sampling.num_beams}: the texts of beams are known only at the end, use beam_search")
    stops = stop_set(eos_id)
    yield from decode(DecodingSession(model, ids, mask, start_id), stops=stops, sampling=sampling)


@torch.no_grad()
def decode(session: DecodingSession, *, stops: Sequence[int], sampling: Sampling) -> Iterator[Tensor]:
    """`generate` with a session of the caller, who may inspect its caches between two tokens."""
    device = session.logits.device
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    finished = torch.zeros(session.batch_size, dtype=torch.bool, device=device)
    for count in range(1, sampling.max_new_tokens + 1):
        token = sample_token(session.logits, sampling, generator).masked_fill(finished, stops[0])
        finished |= torch.isin(token, torch.tensor(stops, device=device))
        yield token
        if bool(finished.all()) or count == sampling.max_new_tokens:
            return
        session.write(token)


def stop_set(eos_id: int | Sequence[int]) -> list[int]:
    """Stop tokens as a list. Raises ValueError for an empty one."""
    stops = [eos_id] if isinstance(eos_id, int) else list(eos_id)
    if not stops:
        raise ValueError("no stop token is given: give at least the end-of-text token")
    return stops


def sample_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token (B,) from logits (B, V)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        worst_kept = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < worst_kept, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        # keep the smallest set whose mass reaches top_p: drop a token if the mass *before* it already does
        dropped = ordered.cumsum(-1) - ordered >= sampling.top_p
        logits = logits.masked_fill(dropped.gather(-1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
