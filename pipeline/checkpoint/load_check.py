"""The load check: logits stored with a checkpoint are computed again from what was loaded, and compared.

A checkpoint whose files are all intact can still be loaded wrongly: by another version of the model, with shards joined in the
wrong order, or on a device with a faulty kernel. GPT-NeoX introduced the check (`checkpoint_validation_with_forward_pass`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.data.batches import PipelineBatch
from pipeline.distributed.tensor_parallel import gather_shards
from pipeline.engine.engine import Engine

LOAD_CHECK_FILE = "probe.safetensors"
_POSITIONS = 3
# Relative to the largest logit. Other meshes sum in another order; a wrongly loaded weight changes logits by their own size.
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


def selected_logits(engine: Engine, batch: PipelineBatch) -> Tensor | None:
    """Logits (_POSITIONS, V), fp32, of the first row of replica 0, on its last stage; None elsewhere. A collective."""
    logits = engine.logits(batch)
    mesh = engine.mesh
    if mesh.pipeline_rank < mesh.pipeline_parallel - 1 or mesh.data_rank > 0 or logits is None:
        return None
    row = logits[0]
    chosen = row[torch.linspace(0, row.shape[0] - 1, _POSITIONS).long()].float().contiguous()
    return gather_shards(chosen, dim=-1).cpu()


def write_logits(folder: Path, logits: Tensor) -> Path:
    """Store the selected logits in the state folder of a checkpoint; returns the file."""
    path = folder / LOAD_CHECK_FILE
    save_file({"logits": logits.contiguous()}, path)
    return path


def holds_not_finite(folder: Path) -> bool:
    """Whether the logits stored in a state folder are not finite: the run had diverged when it was saved."""
    path = folder / LOAD_CHECK_FILE
    return path.is_file() and not bool(load_file(path)["logits"].isfinite().all())


def check_logits(folder: Path, engine: Engine, batch: PipelineBatch) -> None:
    """Compare the logits of `batch` with those stored: a collective. Raises ValueError on every rank if they differ."""
    if not (folder / LOAD_CHECK_FILE).is_file():
        return
    if holds_not_finite(folder):
        raise ValueError(
            f"{folder.parent} holds a model that computes values which are not finite: the run had diverged when it was saved; "
            "take an earlier checkpoint"
        )
    logits = selected_logits(engine, batch)
    difference = torch.zeros(1, device=engine.mesh.device)
    if logits is not None:
        stored: Any = load_file(folder / LOAD_CHECK_FILE)["logits"]
        same_shape = stored.shape == logits.shape
        ratio = (logits - stored).abs().max() / stored.abs().max() if same_shape else torch.tensor(float("inf"))
        difference[0] = ratio.nan_to_num(nan=float("inf"))  # the maximum over ranks would drop a NaN
    torch.distributed.all_reduce(difference, op=torch.distributed.ReduceOp.MAX)
    tolerance = _TOLERANCE[engine.config.train.precision]
    if float(difference) > tolerance:
        raise ValueError(
            f"{folder.parent}: after loading, the model computes other logits than those stored with it (they differ by "
            f"{float(difference):.2g} of the largest, {tolerance} is allowed). The model code has changed, or the device is "
            "faulty: use the version that wrote the checkpoint, or another device"
        )
