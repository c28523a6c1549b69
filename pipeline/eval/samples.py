"""Text that a model writes while it trains, on whatever mesh it trains: greedy, on validation rows, without leaving the mesh.

Every new token is one forward pass of a whole micro-batch through the pipeline, as validation runs it: slow for a text,
cheap for a glimpse.

Shapes: B rows of a micro-batch, M decoder positions, L positions of a text, V vocabulary, t tensor-parallel degree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data.batches import PipelineBatch
from pipeline.distributed.tensor_parallel import gather_shards
from pipeline.training.engine import Engine


def write_samples(engine: Engine, batch: PipelineBatch, num_samples: int, num_tokens: int) -> list[tuple[list[int], list[int]]]:
    """What the model makes of the first rows of a micro-batch that is the same on every rank: a collective.

    Returns the tokens given and written, on every rank; nothing for an encoder alone, which does not write.
    """
    config = engine.config.model
    if config.is_encoder_only:
        return []
    inputs, (targets, weights) = batch
    *fixed, written = (inputs[1], inputs[0]) if config.is_decoder_only else (inputs[0], inputs[1], inputs[2])
    written = written.clone()
    begin = _begin(weights > 0, config.is_decoder_only)  # (B,)
    rows = torch.arange(len(begin))
    last = written.shape[1] - 1
    for step in range(num_tokens):
        at = (begin + step).clamp(max=last)
        tensors = (written, *fixed) if config.is_decoder_only else (*fixed, written)
        chosen = _next(engine, (tensors, (targets, weights)), at)
        into = at + 1
        inside = into <= last
        written[rows[inside], into[inside]] = chosen[inside]
    result = []
    for row in range(min(num_samples, len(begin))):
        start = int(begin[row])
        given = written[row, 1 : start + 1] if config.is_decoder_only else fixed[0][row][fixed[1][row] > 0]
        new = written[row, start + 1 : start + 1 + num_tokens]
        result.append((given.tolist(), new.tolist()))
    return result


def _begin(taken: Tensor, is_text: bool) -> Tensor:
    """(B,) the position of the first target; in a text whose every token is a target, the middle."""
    first = taken.int().argmax(dim=1)
    return torch.where(first == 0, taken.shape[1] // 2, first) if is_text else torch.zeros_like(first)


def _next(engine: Engine, batch: PipelineBatch, at: Tensor) -> Tensor:
    """(B,) the likeliest token behind position `at` of each row, the same on every rank."""
    mesh = engine.mesh
    logits = engine.logits(batch)
    chosen = torch.zeros(len(at), dtype=torch.int64, device=mesh.device)
    is_last_stage = mesh.pipeline_rank == mesh.pipeline_parallel - 1
    if is_last_stage and logits is not None:
        here = logits[torch.arange(len(at)), at.to(logits.device)].float().contiguous()  # (B, V / t)
        whole = gather_shards(here, dim=-1)[:, : engine.config.model.vocab_size]
        if mesh.tensor_rank == 0 and mesh.data_rank == 0:
            chosen = whole.argmax(dim=-1)
    torch.distributed.all_reduce(chosen)  # one rank's numbers, zeros from all others
    return chosen.cpu()
