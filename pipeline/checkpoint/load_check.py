"""A self-check of loading: some logits, stored with the checkpoint, are computed again from what was loaded.

A checkpoint whose files are all intact can still be read wrongly: by another version of the model, by shards put together in
the wrong order, on a device with a faulty kernel. GPT-NeoX introduced the check (`checkpoint_validation_with_forward_pass`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.data.batches import PipelineBatch
from pipeline.distributed.tensor_parallel import gather_shards
from pipeline.training.engine import Engine

FILE = "probe.safetensors"
_POSITIONS = 3
# Other meshes and devices add up in another order; a wrongly read weight moves logits by their own size.
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


def probe_logits(engine: Engine, batch: PipelineBatch) -> Tensor | None:
    """Logits (positions, V) of the first row of replica 0: on its last stage's ranks, None elsewhere. A collective."""
    logits = engine.logits(batch)
    mesh = engine.mesh
    if mesh.pipeline_rank < mesh.pipeline_parallel - 1 or mesh.data_rank > 0 or logits is None:
        return None
    row = logits[0]
    chosen = row[torch.linspace(0, row.shape[0] - 1, _POSITIONS).long()].float().contiguous()
    return gather_shards(chosen, dim=-1).cpu()


def save_probe(folder: Path, engine: Engine, batch: PipelineBatch) -> None:
    """Store the probe's logits in a checkpoint's folder: a collective."""
    logits = probe_logits(engine, batch)
    if logits is not None and engine.mesh.tensor_rank == 0:
        save_file({"logits": logits.contiguous()}, folder / FILE)


def check_probe(folder: Path, engine: Engine, batch: PipelineBatch) -> None:
    """Compare with the stored logits: a collective. Raises ValueError, on every rank, where they differ."""
    if not (folder / FILE).is_file():
        return
    logits = probe_logits(engine, batch)
    difference = torch.zeros(1, device=engine.mesh.device)
    if logits is not None:
        stored: Any = load_file(folder / FILE)["logits"]
        same_shape = stored.shape == logits.shape
        ratio = (logits - stored).abs().max() / stored.abs().max() if same_shape else torch.tensor(float("inf"))
        difference[0] = ratio.nan_to_num(nan=float("inf"))  # a maximum over ranks would lose a NaN
    torch.distributed.all_reduce(difference, op=torch.distributed.ReduceOp.MAX)
    tolerance = _TOLERANCE[engine.config.train.precision]
    if float(difference) > tolerance:
        raise ValueError(
            f"{folder.parent} was loaded, but its stored logits come out different (by {float(difference):.2g} of the largest, "
            f"{tolerance} is allowed): the model's code or the device computes something else than when it was written"
        )
