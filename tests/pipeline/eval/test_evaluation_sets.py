"""Evaluation sets and suffix bits per byte: fixed rows by source, and the same bytes for every kind of model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.eval.evaluation_sets import ALL, evaluation_sets
from pipeline.eval.suffix_bpb import overall, score, suffix_bpb_objective
from pipeline.objectives.interface import AnyBatch
from tests.helpers.datasets import numbered_documents, write_dataset

SOURCES = ["books", "code", "books", "mail"] * 12


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    return numbered_documents(len(SOURCES), 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, documents: list) -> Path:
    return write_dataset(tmp_path_factory.mktemp("evaluation") / "data", documents, split="val", sources=SOURCES)


def test_each_set_holds_windows_of_one_source(folder: Path, documents: list[list[int]]) -> None:
    sets = evaluation_sets(folder, "val", 20, rows_per_source=1000)
    assert list(sets) == ["books", "code", "mail"]
    for name, rows in sets.items():
        ids, lengths = rows.read(np.arange(len(rows)))
        found = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        expected = [
            document[start : start + 20]
            for document, source in zip(documents, SOURCES, strict=True)
            if source == name
            for start in range(0, len(document), 20)
        ]
        assert found == expected


def test_a_smaller_set_is_a_fixed_sample(folder: Path) -> None:
    whole = evaluation_sets(folder, "val", 20, 1000, shortest=11)
    few, again = (evaluation_sets(folder, "val", 20, 7, shortest=11) for _ in range(2))
    assert list(few) == list(whole) == ["books", "code", "mail"]
    for name, rows in few.items():
        assert len(rows) == 7
        assert rows.fingerprint == again[name].fingerprint != whole[name].fingerprint
        chosen = {tuple(row) for row in rows.read(np.arange(7))[0].tolist()}
        assert chosen < {tuple(row) for row in whole[name].read(np.arange(len(whole[name])))[0].tolist()}
        assert rows.lengths(np.arange(7)).min() >= 11


def test_without_the_record_of_sources_there_is_one_set(tmp_path: Path, documents: list) -> None:
    folder = write_dataset(tmp_path / "data", documents, split="val", sources=SOURCES)
    (folder / "val.sources.npy").unlink()
    assert list(evaluation_sets(folder, "val", 20, 5)) == [ALL]
    single = write_dataset(tmp_path / "single", documents, split="val")
    assert list(evaluation_sets(single, "val", 20, 5)) == ["one"]
    np.save(folder / "val.sources.npy", np.zeros(3, dtype=np.uint16))
    with pytest.raises(ValueError, match="does not number the sources of 48 documents"):
        evaluation_sets(folder, "val", 20, 5)
    with pytest.raises(ValueError, match="no document"):
        evaluation_sets(single, "val", 20, 5, shortest=21)


def unigram_nll(batch: AnyBatch) -> np.ndarray:
    """Losses of a unigram model, whose score must not depend on how the text is split into rows."""
    return np.log(batch.losses[0][0] + 2.0)


@pytest.mark.parametrize("architecture", ["fnet_t5", "t5", "gpt2", "prefix_decoder"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_every_architecture_is_scored_on_the_same_bytes(folder: Path, architecture: str, batch_size: int) -> None:
    prefix, suffix = 12, 8
    sets = evaluation_sets(folder, "val", prefix + suffix, 10, shortest=prefix + 1)
    byte_lengths = np.arange(5000) % 7
    objective = suffix_bpb_objective(architecture, 16, prefix, suffix, start_id=0)
    found = score(sets, objective, unigram_nll, byte_lengths, batch_size)
    assert list(found) == list(sets) == ["books", "code", "mail"]
    assert all(one.target_tokens > 0 for one in found.values())
    for name, rows in sets.items():
        ids, lengths = rows.read(np.arange(len(rows)))
        suffixes = [token for row, length in zip(ids, lengths, strict=True) for token in row[prefix:length].tolist()]
        one = found[name]
        assert one.nll == pytest.approx(sum(np.log(token + 2.0) for token in suffixes), rel=1e-12)
        assert one.target_tokens == len(suffixes)
        assert one.target_bytes == sum(token % 7 for token in suffixes)
        assert one.bits_per_byte == pytest.approx(one.nll / np.log(2) / one.target_bytes)
    reference = score(sets, suffix_bpb_objective("t5", 16, prefix, suffix, 0), unigram_nll, byte_lengths, 3)
    assert {name: one.text_sha256 for name, one in found.items()} == {name: one.text_sha256 for name, one in reference.items()}
    together = overall(found)
    assert together.target_bytes == sum(one.target_bytes for one in found.values())
    assert together.text_sha256 == overall(reference).text_sha256


def test_the_prefix_is_not_scored(folder: Path) -> None:
    rows = evaluation_sets(folder, "val", 20, 1, shortest=20)["books"]
    ids = rows.read(np.arange(1))[0]
    pair = suffix_bpb_objective("t5", 16, 12, 8, 0)(ids, np.array([20]), np.arange(1))
    assert pair.inputs[0][0].tolist() == [*ids[0, :12].tolist(), 0, 0, 0, 0]
    text = suffix_bpb_objective("gpt2", 16, 12, 8, 0)(ids, np.array([20]), np.arange(1))
    assert text.inputs[0][0, 1:20].tolist() == ids[0, :19].tolist()
    assert text.losses[0][1][0].tolist() == [0] * 12 + [1] * 8


def test_models_that_do_not_generate_text_have_no_suffix_bpb() -> None:
    with pytest.raises(ValueError, match="bert writes no text"):
        suffix_bpb_objective("bert", 16, 12, 8, 0)
    with pytest.raises(ValueError, match=r"exceeds data\.encoder_length 16"):
        suffix_bpb_objective("t5", 16, 17, 8, 0)
