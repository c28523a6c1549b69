"""A ladder whose runs are written from known loss surfaces: 4 sizes x 3 budgets, and no training."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dataset.manifest import load_manifest, write_manifest
from data_prep.files import write_json_atomically
from launch.config import write_resolved
from pipeline.run_folder import write_status
from pipeline.scaling.ladder.ladder import End, Ladder, PlannedRun, make_ladder, write_ladder
from pipeline.scaling.ladder.recipe import LadderRecipe
from pipeline.scaling.ladder.run_configs import run_config, runs_of
from pipeline.scaling.ladder.states import state_of
from pipeline.tracking.metrics import Counters, MetricsFile
from tests.helpers.datasets import write_dataset

MULTIPLIER = 0.8
"""Compute that the made-up hybrid needs over its T5, at every loss."""
SOURCES = {"ArXiv": 1.1, "Github": 0.9}


def loss_of(run: PlannedRun, end: End) -> float:
    """One law in size and compute for all arms; every arm except t5 has its compute multiplied by one factor."""
    compute = end.flops if run.arm == "t5" else end.flops / MULTIPLIER
    tokens = compute / (9.0 * run.num_parameters)
    penalty = {"ff_only": 1.05, "ff_only_positions": 1.05, "gpt2": 1.1}.get(run.arm, 1.0)
    return float((1.0 + 120 / run.num_parameters**0.36 + 200 / tokens**0.37) * penalty)


def write_run(ladder: Ladder, folder: Path, run: PlannedRun, end: End, name: str, noise: np.random.Generator) -> None:
    path = runs_of(folder) / name
    write_resolved(run_config(ladder, run, end, 0.004, None), path)
    shutil.copy(ladder.recipe.data.path / "tokenizer.json", path / "tokenizer.json")
    loss = loss_of(run, end) * float(np.exp(0.002 * noise.standard_normal()))
    metrics = MetricsFile(path / "metrics.jsonl", 0)
    for share in (0.25, 0.5, 1.0):
        names = ("raw_tokens", "encoder_tokens", "decoder_tokens", "target_tokens")
        tokens = {name: int(part * end.tokens * share) for name, part in zip(names, (1, 2 / 3, 1 / 3, 1 / 3), strict=True)}
        spent = asdict(Counters(**tokens, flops=end.flops * share, seconds=100 * share))
        step = max(1, round(end.steps * share))
        probed = {
            "text_loss": 3 * loss / share**0.1,
            "shuffled_text_loss": 3 * loss / share**0.1 + shuffle_cost(run) * (share > 0.3),
        }
        metrics.write({"step": step, "validation_loss": loss / share**0.1, "source": "all", **probed, **spent})
    metrics.close()
    state = path / "checkpoints" / f"step_{end.steps:08d}" / "state"
    state.mkdir(parents=True)
    (state / "position.json").write_text(json.dumps({"dataset_fingerprint": "abc"}))
    (path / "checkpoints" / "latest").write_text(f"step_{end.steps:08d}\n")
    write_status(path, "finished")
    write_json_atomically(path / "suffix_bpb.json", suffix_bpb(loss))
    write_json_atomically(path / "measurements.json", measurements(run, 3 * loss))


def shuffle_cost(run: PlannedRun) -> float:
    """Nats. An encoder without mixing and positions cannot read order; decoders alone have no encoder input."""
    return 0.0 if run.arm == "ff_only" else 0.5


def measurements(run: PlannedRun, text_loss: float) -> dict[str, Any]:
    changed = {"swapped_loss": 2.0, "shuffled_loss": shuffle_cost(run), "far_half_shuffled_loss": 0.1, "no_input_loss": 2.5}
    return {
        "rows": "8 tokens given 16 tokens",
        "text_sha256": "c" * 64,
        "num_rows": 20,
        "num_documents": 20,
        "text_tokens": 160,
        "text_loss": text_loss,
        "input_use": None if run.arm == "gpt2" else {name: text_loss + cost for name, cost in changed.items()},
        "floors": {"unigram_loss": 60.0, "bigram_loss": 50.0, "trigram_loss": 40.0, "counted_tokens": 1000},
        "slices": [{"kind": "text", "name": "all", "tokens": 160, "text_loss": text_loss}],
    }


def suffix_bpb(loss: float, text: str = "a" * 64) -> dict[str, Any]:
    def one(value: float) -> dict[str, Any]:
        return {"bits_per_byte": value, "nll": value * math.log(2), "target_tokens": 1, "target_bytes": 1, "text_sha256": text}

    return {"prefix": 16, "suffix": 8, "sources": {**{name: one(f * loss) for name, f in SOURCES.items()}, "all": one(loss)}}


def write_made_up_ladder(base: Path) -> Path:
    """A folder in `base`: t5 and fnet_t5 at all sizes, with 3 seeds at one, and three other arms at that size."""
    data = write_dataset(base / "data", [list(range(300))] * 10, row_lengths=(24,))
    manifest = load_manifest(data)
    split = manifest.splits["train"]
    sources = {name: counts.model_copy(update={"tokens": 10**9}) for name, counts in split.sources.items()}
    write_manifest(data, manifest.model_copy(update={"splits": {"train": split.model_copy(update={"sources": sources})}}))
    stacks = {"num_encoder_layers": 3, "num_decoder_layers": 2, "tie_embeddings": False, "d_kv": 16}
    sizes = {
        f"d{width}": {"micro_batch_size": 4, "model": {"d_model": width, "d_ff": 2 * width, "num_heads": width // 16, **stacks}}
        for width in (32, 64, 96, 144)
    }
    recipe = {
        "name": "made-up",
        "data": {"path": str(data), "encoder_length": 16, "decoder_length": 8},
        "objectives": ["prefix_lm"],
        "sizes": sizes,
        "arms": {
            "t5": {},
            "fnet_t5": {},
            "ff_only": {"sizes": ["d64"]},
            "ff_only_positions": {"sizes": ["d64"]},
            "gpt2": {"sizes": ["d64"]},
        },
        "budgets": [1e12, 2.5e12, 6e12],
        "learning_rate": {"values": [0.001, 0.002, 0.004], "sizes": ["d32", "d64", "d96"], "budget": 1e11, "check_arms": []},
        "seeds": {"size": "d64", "count": 3, "arms": ["t5", "fnet_t5"], "budgets": 2},
        "batch": {"tokens": 960, "exponent": 0},
        "schedule": {"warmup": 0.1, "allow_short": True},
        "hypotheses": ["H1: the hybrid is <cheaper>."],
        "device": {"flops_per_second": 1e9},
        "tracking": {"enabled": False},
    }
    ladder = make_ladder(LadderRecipe.model_validate(recipe))
    folder = base / "ladder"
    write_ladder(ladder, folder)
    noise = np.random.default_rng(3)
    for run in ladder.runs:
        if run.phase == "main":
            for end, name in run.folders():
                write_run(ladder, folder, run, end, name, noise)
    assert {state_of(folder, ladder, run).state for run in ladder.runs if run.phase == "main"} == {"complete"}
    return folder
