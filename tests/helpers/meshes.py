"""What `mesh_worker.py` trains, saves and resumes, and the tolerance for the losses of two meshes."""

from __future__ import annotations

from dataclasses import dataclass

from tests.helpers.parity import Training


@dataclass(frozen=True)
class Setting:
    """A training, and the largest relative difference of losses between two meshes that counts as equal."""

    training: Training
    tolerance: float


SETTINGS = {
    "fp32": Setting(Training(optimizer={"name": "adamw_rms", "learning_rate": 0.02}), tolerance=1e-4),
    # bf16 rounds products differently on every mesh; its losses here are near 5
    "bf16": Setting(Training(precision="bf16"), tolerance=2e-2),
}
SAVED_AT, STEPS = 3, 6
# (tensor, pipeline) by number of processes; the first mesh of 4 saves the checkpoint
MESHES = {4: [(2, 2), (4, 1), (1, 2), (1, 1), (2, 1), (1, 4)], 2: [(1, 1), (2, 1), (1, 2)], 1: [(1, 1)]}


def result_name(setting: str, tensor: int, pipeline: int, data: int) -> str:
    """The key in `reshard_<processes>.json` of the losses of a setting resumed on a mesh."""
    return f"{setting}_{tensor}_{pipeline}_{data}"
