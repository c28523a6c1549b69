"""A run folder as a point of a scaling fit, or the reason why it is excluded. Reads only JSON: no weights, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.dataset.manifest import ManifestError, load_manifest
from data_prep.files import canonical_json, sha256_file
from data_prep.tokenization.tokenizer import TOKENIZER_FILE
from models.config import ModelConfig
from models.cost.parameters import num_parameters
from pipeline.scaling.fit.points import Excluded, Point
from pipeline.tracking.metrics import read_metrics

ARCHIVED_FILE = "archived.json"
"""In a run folder of an archive: what the tokenizer and the data, which are not there, would say."""
_CONFIG, _METRICS, _STATUS, _ALL = "config.json", "metrics.jsonl", "STATUS", "all"
_RISEN = 1.05
"""A run that ends this much above its own lowest validation loss has diverged, even if its numbers are finite."""


def read_run(
    folder: Path, *, arm: str, budget: float, size: str | None = None, train_tokens: int | None = None
) -> Point | Excluded:
    """The end of a run: its last validation loss over all sources, and the tokens, FLOPs and seconds until then.

    `size` is its name on the ladder (default: model.size). `train_tokens` is the number of distinct tokens of the training
    text, for runs whose data folder is gone (default: from the folder's manifest). A missing or unfinished part gives an
    `Excluded` that names it. Raises ValueError for files that exist but cannot be read.
    """
    try:
        config = _read_json(folder / _CONFIG)
        status = _read_status(folder)
        rows = _validations(folder)
        fingerprint = str(_read_json(_latest(folder) / "state" / "position.json")["dataset_fingerprint"])
        last, archived = rows[-1], folder / ARCHIVED_FILE
        if archived.is_file():
            stored = _read_json(archived)
            tokenizer, distinct = str(stored["tokenizer_sha256"]), float(stored["distinct_tokens"])
        else:
            tokenizer = sha256_file(_existing(folder / TOKENIZER_FILE))
            distinct = float(train_tokens or _distinct_tokens(config["data"]))
        epochs = float(last["raw_tokens"]) / distinct
    except _MissingError as missing:
        return Excluded(str(folder), str(missing))
    loss = last.get("validation_loss")
    return Point(
        run=str(folder),
        arm=arm,
        size=size or config["model"]["size"],
        budget=budget,
        seed=int(config["train"]["seed"]),
        num_parameters=num_parameters(ModelConfig(**config["model"])),
        tokens=float(last["raw_tokens"]),
        flops=float(last["flops"]),
        loss=float("nan") if loss is None else float(loss),
        seconds=float(last["seconds"]),
        measure=_measure(config["data"]),
        data=fingerprint,
        tokenizer=tokenizer,
        epochs=epochs,
        problem=_problem(status, int(last["step"]), int(config["train"]["steps"]), rows),
    )


class _MissingError(Exception):
    """A file or value that a result needs is missing."""


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise _MissingError(f"missing file: {path.name}")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(_existing(path).read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it, or leave this run out") from error
    return values


def _read_status(folder: Path) -> str:
    return _existing(folder / _STATUS).read_text().strip()


def _validations(folder: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_metrics(_existing(folder / _METRICS)) if row.get("source") == _ALL]
    if not rows:
        raise _MissingError("metrics.jsonl holds no validation loss")
    return rows


def _latest(folder: Path) -> Path:
    checkpoints = folder / "checkpoints"
    name = _existing(checkpoints / "latest").read_text().strip()
    if not (checkpoints / name).is_dir():
        raise _MissingError(f"missing checkpoint: {name}, which checkpoints/latest names")
    return checkpoints / name


def _measure(data: Mapping[str, Any]) -> str:
    """What, besides the data, decides which target tokens a validation loss is the mean of."""
    objective = canonical_json(data["objective"]).decode()
    lengths = f"{data['encoder_length']}+{data['decoder_length']}"
    return f"nats per target token of {objective} at {lengths} on {data['validation_rows']} rows"


def _problem(status: str, step: int, steps: int, rows: list[dict[str, Any]]) -> str | None:
    losses = [row.get("validation_loss") for row in rows]
    finite = [loss for loss in losses if loss is not None]
    if losses[-1] is None:
        return f"diverged: no finite validation loss at step {step}"
    if losses[-1] > _RISEN * min(finite):
        return f"diverged: validation loss {losses[-1]:.4f} at its end, {min(finite):.4f} before"
    if status != "finished":
        return f"its status is {status}, at step {step} of {steps}: resume it first"
    if step != steps:
        return f"its last validation is of step {step}, not of its last step {steps}"
    return None


def _distinct_tokens(data: Mapping[str, Any]) -> float:
    try:
        return distinct_tokens(data)
    except ManifestError as error:
        raise _MissingError(f"how often it repeats its data is unknown ({error}); or give its train_tokens") from error


def distinct_tokens(data: Mapping[str, Any]) -> float:
    """Tokens after which a run of this `data` section has read a text once: the text that is repeated most often, among a
    blend's folders and the sources that `prepare` repeated. Raises ManifestError if a folder is gone."""
    parts = [(part["path"], part["weight"]) for part in data["blend"]] or [(data["path"], 1.0)]
    total = sum(weight for _, weight in parts)
    found = []
    for path, weight in parts:
        manifest = load_manifest(path)
        repeated = max([1.0, *manifest.epochs.values()])
        found.append(manifest.splits["train"].total.tokens / repeated * total / weight)
    return min(found)
