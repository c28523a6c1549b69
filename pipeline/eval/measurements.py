"""What is measured of a finished run of a comparison, by one load of its model, and kept in its run folder:

    suffix_bpb.json      suffix bits per byte by source (`suffix_bpb`)
    measurements.json    loss on text targets, the same with other encoder inputs, n-gram floors, slices
    losses.parquet       the loss of every scored token (`row_losses`)

Runs that are trained on prefix_lm or causal_lm are scored on the suffixes of suffix bits per byte. Other objectives are scored
on rows of the same documents that their own objective makes, the same for all arms. All losses in measurements.json are nats
per target token of text.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.files import canonical_json, write_json_atomically
from data_prep.tokenization.tokenizer import num_ids, start_id
from pipeline.data.batches import objective_of
from pipeline.data.rows import ChosenRows
from pipeline.eval.evaluate import LoadedRun, load_run, nll_of
from pipeline.eval.evaluation_sets import evaluation_sets
from pipeline.eval.floors import Floors, floors_on
from pipeline.eval.input_probes import text_ids
from pipeline.eval.row_losses import LossSlice, slice_losses, write_losses
from pipeline.eval.scored_rows import ProbeLosses, ScoredRows, probe_losses, scored_rows, target_nats
from pipeline.eval.suffix_bpb import ALL, Nll, Score, overall, score, suffix_bpb_file, suffix_bpb_objective, write_suffix_bpb
from pipeline.objectives.interface import VALIDATION_SEED, AnyBatch

MEASUREMENTS_FILE = "measurements.json"
SUFFIX_OBJECTIVES = ("prefix_lm", "causal_lm")
"""Objectives whose runs are compared by the suffixes of the same rows."""
_SPLIT = "val"


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The content of measurements.json."""

    rows: str
    """What was scored, in words."""
    text_sha256: str
    """Of the scored text: measurements with equal digests are of the same rows."""
    num_rows: int
    num_documents: int
    text_tokens: int
    text_loss: float
    """Nats per target token of text."""
    input_use: ProbeLosses | None
    """None for a model of one stack."""
    floors: Floors | None
    slices: tuple[LossSlice, ...]

    @property
    def shuffle_cost(self) -> float | None:
        """Nats per text target token that the loss rises by if the order of the encoder's text is lost."""
        return None if self.input_use is None else self.input_use.shuffled_loss - self.text_loss


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Which rows are scored."""

    prefix: int
    """Tokens of the prefix, for suffix bits per byte."""
    suffix: int
    """Tokens of the suffix."""
    rows_per_source: int


def measure_run(run: Path, extent: Extent, floors_folder: Path | None = None) -> Score:
    """Measure a run's latest checkpoint, write the three files, and return suffix bits per byte of all sources together.

    n-gram tables are counted once for equal rows if `floors_folder` is given: it keeps them. The file of suffix bits per
    byte is written last, so a run that has it has the others.
    Raises ValueError for a run without a checkpoint, for an encoder alone, for losses that are not finite, and for a run that
    was measured on other text before: a ladder's report may rest on that.
    """
    loaded = load_run(run)
    data, batch_size = loaded.config.data, loaded.config.train.micro_batch_size
    start = start_id(loaded.tokenizer)
    objective = suffix_bpb_objective(loaded.config.model.architecture, data.encoder_length, extent.prefix, extent.suffix, start)
    length = extent.prefix + extent.suffix
    sets = evaluation_sets(data.path, _SPLIT, length, extent.rows_per_source, shortest=extent.prefix + 1)
    nll = nll_of(loaded.model)
    recorded: list[NDArray[np.floating]] = []

    def recording(batch: AnyBatch) -> NDArray[np.floating]:
        found = nll(batch)
        recorded.append(found[batch.losses[0][1] > 0])
        return found

    scores = score(sets, objective, recording, loaded.byte_lengths, batch_size)
    if not all(math.isfinite(one.nll) for one in scores.values()):
        raise ValueError(f"{run} has a loss on held-out text that is not finite: it has diverged")
    _check_text(run, extent, scores)
    is_text_id = text_ids(loaded.vocabulary, loaded.config.model.vocab_size)
    if data.objective.name in SUFFIX_OBJECTIVES:
        words = f"{extent.suffix} tokens given {extent.prefix} tokens"
        rows = scored_rows(sets, data, _SPLIT, objective, is_text_id, batch_size)
        nats = np.concatenate(recorded)
    else:
        words = f"targets of {canonical_json(data.objective.model_dump(mode='json')).decode()}"
        own = objective_of(loaded.config, VALIDATION_SEED, loaded.vocabulary)
        rows = scored_rows(_objective_sets(loaded, extent), data, _SPLIT, own, is_text_id, batch_size)
        nats = target_nats(rows.own, nll)
    found = _measurements(loaded, rows, words, nats=nats, nll=nll, floors_folder=floors_folder)
    write_json_atomically(run / MEASUREMENTS_FILE, asdict(found))
    write_suffix_bpb(run, extent.prefix, extent.suffix, scores)
    return overall(scores)


def _check_text(run: Path, extent: Extent, scores: dict[str, Score]) -> None:
    path = suffix_bpb_file(run)
    if path is None:
        return
    kept = json.loads(path.read_bytes())
    text = kept["sources"][ALL]["text_sha256"]
    if (kept["prefix"], kept["suffix"], text) != (extent.prefix, extent.suffix, overall(scores).text_sha256):
        raise ValueError(
            f"{path} evaluates this run on other text ({kept['suffix']} tokens given {kept['prefix']}, text {text[:8]}), "
            "on which a ladder's report may rest: give the same --prefix, --suffix and --rows, or delete the file first"
        )


def _measurements(
    loaded: LoadedRun,
    rows: ScoredRows,
    words: str,
    *,
    nats: NDArray[np.floating],
    nll: Nll,
    floors_folder: Path | None,
) -> Measurements:
    follows = loaded.config.data.objective.name in SUFFIX_OBJECTIVES
    losses = rows.losses(nats, follows)
    if not losses.is_text.any():
        raise ValueError(f"the targets of {loaded.run} on held-out text hold no text: prepare longer documents")
    write_losses(loaded.run, losses)
    sha256 = rows.sha256
    return Measurements(
        rows=words,
        text_sha256=sha256,
        num_rows=len(rows.document_of_row),
        num_documents=len(np.unique(rows.document_of_row)),
        text_tokens=int(losses.is_text.sum()),
        text_loss=losses.text_loss,
        input_use=probe_losses(rows, nll, loaded.vocabulary.end) if loaded.has_two_stacks else None,
        floors=_floors(loaded, rows, follows, None if floors_folder is None else floors_folder / f"{sha256[:16]}.json"),
        slices=slice_losses(losses),
    )


def _objective_sets(loaded: LoadedRun, extent: Extent) -> dict[str, ChosenRows]:
    """Windows of a row's length inside one document: of half a row or more if there are such documents, else of any length."""
    data = loaded.config.data
    half = max(2, data.row_length // 2)
    found = evaluation_sets(data.path, _SPLIT, data.row_length, extent.rows_per_source, shortest=half, required=False)
    return found or evaluation_sets(data.path, _SPLIT, data.row_length, extent.rows_per_source, shortest=2)


def _floors(loaded: LoadedRun, rows: ScoredRows, follows_prefix: bool, kept: Path | None) -> Floors:
    if kept is not None and kept.is_file():
        return Floors(**json.loads(kept.read_bytes()))
    # One seed for all runs: with other seeds an objective cuts other targets from the training text.
    train = loaded.config.train.model_copy(update={"seed": 0})
    config = loaded.config.model_copy(update={"train": train})
    size = num_ids(loaded.tokenizer)
    floors = floors_on(rows.contexts(follows_prefix), config, size, vocabulary=loaded.vocabulary)
    if kept is not None:
        kept.parent.mkdir(exist_ok=True)
        write_json_atomically(kept, asdict(floors))
    return floors


def read_measurements(run: Path) -> Measurements | None:
    """What was measured of a run; None if it was not. Raises ValueError for a damaged file."""
    path = run / MEASUREMENTS_FILE
    if not path.is_file():
        return None
    try:
        values = dict(json.loads(path.read_bytes()))
        use, floors = values.pop("input_use"), values.pop("floors")
        return Measurements(
            input_use=None if use is None else ProbeLosses(**use),
            floors=None if floors is None else Floors(**floors),
            slices=tuple(LossSlice(**one) for one in values.pop("slices")),
            **values,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it and measure the run again") from error
