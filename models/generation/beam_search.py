"""Beam search: keep the most likely unfinished texts of each row; rank finished ones by log-probability / length^penalty.

The rules are those of `transformers.generate`, so that results agree. Each step takes the 2K most likely continuations of K
beams. Those among the first K that end are candidates for the result. A row is done when its best running beam, at its current
length, does not score better than its worst finished text. Length normalisation: Wu et al. 2016 (arXiv:1609.08144), with the
length itself.

Shapes: B rows, K beams, C candidates, V vocabulary, T tokens written so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.architectures.single_process import SingleProcessModel
from models.generation.decode import DecodingSession
from models.generation.sampling import Sampling, stop_set

_NEVER = -1e9  # below every sum of log-probabilities, but finite


@dataclass(frozen=True)
class Hypothesis:
    """A finished text: its tokens, with the stop token if one was generated, and its score."""

    tokens: list[int]
    score: float


@torch.no_grad()
def beam_search(
    model: SingleProcessModel,
    ids: Tensor,
    mask: Tensor,
    *,
    start_id: int,
    eos_id: int | Sequence[int],
    sampling: Sampling,
    early_stopping: bool = False,
) -> list[list[Hypothesis]]:
    """The K best texts of every row, best first. ids and mask (B, N) as `DecodingSession` takes them.

    `early_stopping`: a row ends as soon as it has K finished texts.
    """
    stops = torch.tensor(stop_set(eos_id), device=ids.device)
    num_rows, num_beams = ids.shape[0], sampling.num_beams
    num_candidates = max(2, 1 + len(stops)) * num_beams
    session = DecodingSession(model, ids, mask, start_id)
    session.reorder(torch.arange(num_rows, device=ids.device).repeat_interleave(num_beams), same_sample=False)
    offset = torch.arange(num_rows, device=ids.device)[:, None] * num_beams  # (B, 1)

    running = torch.zeros(num_rows, num_beams, 0, dtype=torch.int64, device=ids.device)  # (B, K, T)
    # the K beams of a row start as the same text: only the first may be continued
    scores = torch.full((num_rows, num_beams), _NEVER, device=ids.device)
    scores[:, 0] = 0
    finished = _Finished(num_rows, num_beams)
    open_rows = torch.ones(num_rows, dtype=torch.bool, device=ids.device)
    for length in range(1, sampling.max_new_tokens + 1):
        log_probabilities = session.logits.float().log_softmax(-1).unflatten(0, (num_rows, num_beams))  # (B, K, V)
        total = (log_probabilities + scores.unsqueeze(-1)).flatten(1)
        candidate_scores, index = total.topk(num_candidates)  # (B, C)
        beam, token = index // log_probabilities.shape[-1], index % log_probabilities.shape[-1]
        texts = torch.cat([_take(running, beam), token.unsqueeze(-1)], dim=-1)  # (B, C, T)
        ends = torch.isin(token, stops) if length < sampling.max_new_tokens else torch.ones_like(token, dtype=torch.bool)

        finished.add(texts, candidate_scores / length**sampling.length_penalty, ends, open_rows, early_stopping)
        scores, kept = (candidate_scores + ends * _NEVER).topk(num_beams)  # (B, K)
        running = _take(texts, kept)
        open_rows &= finished.can_improve(scores[:, 0] / length**sampling.length_penalty)
        done = not open_rows.any() or bool(ends.all()) or (early_stopping and finished.is_full())
        if done or length == sampling.max_new_tokens:
            break
        session.reorder((beam.gather(1, kept) + offset).flatten(), same_sample=True)
        session.write(running[:, :, -1].flatten())
    return finished.best


class _Finished:
    """The K best finished texts of every row so far."""

    def __init__(self, num_rows: int, num_beams: int) -> None:
        self.num_beams = num_beams
        self.best: list[list[Hypothesis]] = [[] for _ in range(num_rows)]

    def add(self, texts: Tensor, scores: Tensor, ends: Tensor, open_rows: Tensor, early_stopping: bool) -> None:
        for row, best in enumerate(self.best):
            if not open_rows[row] or (early_stopping and len(best) == self.num_beams):
                continue
            # candidates after the first K exist only so that K unfinished ones remain
            for candidate in range(self.num_beams):
                if ends[row, candidate]:
                    best.append(Hypothesis(texts[row, candidate].tolist(), float(scores[row, candidate])))
            best.sort(key=lambda hypothesis: -hypothesis.score)  # stable: of equal scores the earlier one stays first
            del best[self.num_beams :]

    def can_improve(self, best_running: Tensor) -> Tensor:
        """(B,) bool: whether a running text with score `best_running` (B,) would still enter the row's list."""
        worst = [best[-1].score if len(best) == self.num_beams else _NEVER for best in self.best]
        return best_running > torch.tensor(worst, device=best_running.device)

    def is_full(self) -> bool:
        return all(len(best) == self.num_beams for best in self.best)


def _take(texts: Tensor, beams: Tensor) -> Tensor:
    """texts (B, K, T) and beams (B, C) → (B, C, T)."""
    return texts.gather(1, beams.unsqueeze(-1).expand(-1, -1, texts.shape[-1]))
