"""Text that a model generates while it trains: greedy decoding of validation rows on the mesh that trains it.

Every new token is one forward pass of a whole micro-batch through the pipeline, without a cache: enough for a few short
samples, too slow for more.

Shapes: B rows of a micro-batch, M decoder positions, L positions of a text, V vocabulary, t tensor-parallel degree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data.batches import PipelineBatch
from pipeline.distributed.tensor_parallel import gather_shards
from pipeline.engine.engine import Engine


def generate_samples(
    engine: Engine, batch: PipelineBatch, num_samples: int, num_tokens: int
) -> list[tuple[list[int], list[int]]]:
    """Continue the first `num_samples` rows of a micro-batch that is the same on every rank: a collective.

    Returns pairs of prompt tokens and generated tokens, the same on every rank; none for an encoder alone, which generates no
    text.
    """
    config = engine.config.model
    if config.is_encoder_only:
        return []
    inputs, (targets, weights) = batch
    *fixed, decoded = (inputs[1], inputs[0]) if config.is_decoder_only else (inputs[0], inputs[1], inputs[2])
    decoded = decoded.clone()
    begin = _begin(weights > 0, config.is_decoder_only)  # (B,)
    rows = torch.arange(len(begin))
    last = decoded.shape[1] - 1
    for step in range(num_tokens):
        at = (begin + step).clamp(max=last)
        tensors = (decoded, *fixed) if config.is_decoder_only else (*fixed, decoded)
        chosen = _next(engine, (tensors, (targets, weights)), at)
        into = at + 1
        inside = into <= last
        decoded[rows[inside], into[inside]] = chosen[inside]
    result = []
    for row in range(min(num_samples, len(begin))):
        start = int(begin[row])
        prompt = decoded[row, 1 : start + 1] if config.is_decoder_only else fixed[0][row][fixed[1][row] > 0]
        generated = decoded[row, start + 1 : start + 1 + num_tokens]
        result.append((prompt.tolist(), generated.tolist()))
    return result


def _begin(taken: Tensor, is_text: bool) -> Tensor:
    """(B,) the position of the first target; the middle, if every token of a text is a target."""
    first = taken.int().argmax(dim=1)
    return torch.where(first == 0, taken.shape[1] // 2, first) if is_text else torch.zeros_like(first)


def _next(engine: Engine, batch: PipelineBatch, at: Tensor) -> Tensor:
    """(B,) the most likely token after position `at` of each row, the same on every rank."""
    mesh = engine.mesh
    logits = engine.logits(batch)
    chosen = torch.zeros(len(at), dtype=torch.int64, device=mesh.device)
    is_last_stage = mesh.pipeline_rank == mesh.pipeline_parallel - 1
    if is_last_stage and logits is not None:
        here = logits[torch.arange(len(at)), at.to(logits.device)].float().contiguous()  # (B, V / t)
        whole = gather_shards(here, dim=-1)[:, : engine.config.model.vocab_size]
        if mesh.tensor_rank == 0 and mesh.data_rank == 0:
            chosen = whole.argmax(dim=-1)
    torch.distributed.all_reduce(chosen)  # one rank has the tokens, all others zeros
    return chosen.cpu()
