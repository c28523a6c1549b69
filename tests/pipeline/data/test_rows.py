"""Reading rows: stream rows compared with slices of the file, joined sources, errors, and changed folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dataset.manifest import load_manifest
from data_prep.dataset.packing import pack
from pipeline.config import DataConfig
from pipeline.data.batches import DataShard, TrainingBatches, training_rows
from pipeline.data.rows import NO_ROW, JoinedRows, Rows, RowSource, StreamRows, read_packed
from pipeline.objectives.causal_lm import CausalLM
from tests.helpers.datasets import numbered_documents, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("rows") / "data", numbered_documents(30, 50), (16, 24))


def test_stream_rows_are_fixed_length_slices_of_the_file(folder: Path) -> None:
    tokens = np.fromfile(folder / "train.bin", dtype="<i4")
    rows = StreamRows(folder, "train", 16)
    assert len(rows) == -(-len(tokens) // 16)
    assert len(tokens) % 16  # so the last row is short
    ids, lengths = rows.read(np.array([0, len(rows) - 1, NO_ROW, 3]))
    assert lengths.tolist() == [16, len(tokens) % 16, 0, 16]
    assert ids[0].tolist() == tokens[:16].tolist()
    assert ids[1, : lengths[1]].tolist() == tokens[-int(lengths[1]) :].tolist()
    assert not ids[1, lengths[1] :].any()
    assert not ids[2].any()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_packed_rows_match_the_packing_algorithm(data: st.DataObject) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=30)))
    packed = pack(lengths, data.draw(st.integers(1, 17)), data.draw(st.sampled_from(["best_fit", "concatenate", "document"])))
    tokens = np.arange(1, lengths.sum() + 1).astype("<u2")
    rows = np.array(data.draw(st.lists(st.integers(NO_ROW, packed.num_rows - 1), max_size=8)), dtype=np.int64)
    ids, found = read_packed(packed, tokens, rows)
    assert ids.dtype == found.dtype == np.int64
    assert ids.shape == (len(rows), packed.row_length)
    for place, row in enumerate(rows.tolist()):
        spans = [] if row == NO_ROW else zip(*packed.pieces(row), strict=True)
        expected = [token for start, size in spans for token in tokens[start : start + size].tolist()]
        assert ids[place].tolist() == expected + [0] * (packed.row_length - len(expected))
        assert found[place] == len(expected)


def test_joined_rows_are_the_rows_of_the_parts(folder: Path) -> None:
    parts: list[RowSource] = [Rows(folder, "train", 16), StreamRows(folder, "train", 16)]
    joined = JoinedRows(parts)
    numbers = np.array([len(parts[0]), NO_ROW, 0, len(joined) - 1, len(parts[0]) - 1])
    ids, lengths = joined.read(numbers)
    assert np.array_equal(joined.lengths(numbers), lengths)
    for place, (part, row) in enumerate([(1, 0), (0, NO_ROW), (0, 0), (1, len(parts[1]) - 1), (0, len(parts[0]) - 1)]):
        alone = parts[part].read(np.array([row]))
        assert np.array_equal(ids[place], alone[0][0])
        assert lengths[place] == alone[1][0]
    with pytest.raises(ValueError, match="different lengths"):
        JoinedRows([parts[0], Rows(folder, "train", 24)])


def test_missing_rows_error_lists_every_remedy(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has 16, 24.*fnet-t5 data pack .* 640.*packing.lengths=\[640\].*data.layout=stream"):
        Rows(folder, "train", 640)
    with pytest.raises(ValueError, match="no val split"):
        StreamRows(folder, "val", 16)


def test_a_file_that_differs_from_the_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with (copy / "train.bin").open("ab") as file:
        file.write(b"\0" * 4)
    with pytest.raises(ValueError, match=r"train\.bin is not the file .*`fnet-t5 data verify "):
        StreamRows(copy, "train", 16)


def test_fingerprints_differ_by_folder_length_layout_and_blend(folder: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", numbered_documents(30, 50, first=1001), (16,))
    rows, stream = Rows(folder, "train", 16), StreamRows(folder, "train", 16)
    assert rows.fingerprint == load_manifest(folder).fingerprint(16)  # the fingerprint in checkpoints of earlier runs
    found = [rows, Rows(folder, "train", 24), stream, StreamRows(folder, "train", 24), Rows(other, "train", 16)]
    fingerprints = {source.fingerprint for source in found}

    def blend(*weights: float) -> str:
        sources: list[RowSource] = [rows, Rows(other, "train", 16)]
        return TrainingBatches(sources, CausalLM(16, 0), DataShard(1), 1, 0, weights).fingerprint

    fingerprints |= {blend(1, 1), blend(1, 2)}
    assert len(fingerprints) == 7
    assert blend(1, 2) == blend(0.5, 1.0)
    assert TrainingBatches(rows, CausalLM(16, 0), DataShard(1), 1, 0).fingerprint == rows.fingerprint


def test_a_blend_opens_and_a_different_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    documents = numbered_documents(10, 30)
    second = write_dataset(tmp_path / "second", documents, (16,))
    foreign = write_dataset(tmp_path / "foreign", documents, (16,), tokenizer_sha256="ff")

    def data(other: Path) -> DataConfig:
        blend = [{"path": folder, "weight": 3}, {"path": other, "weight": 1}]
        return DataConfig.model_validate({"path": folder, "blend": blend, "encoder_length": 8, "decoder_length": 8})

    sources, weights = training_rows(data(second))
    assert [len(source) for source in sources] == [len(Rows(path, "train", 16)) for path in (folder, second)]
    assert weights == [3, 1]
    with pytest.raises(ValueError, match="foreign was prepared with another tokenizer"):
        training_rows(data(foreign))


def test_rows_must_have_the_length_of_the_objective(folder: Path) -> None:
    with pytest.raises(ValueError, match="rows of 24 tokens, but the objective takes 16"):
        TrainingBatches(Rows(folder, "train", 24), CausalLM(16, 0), DataShard(1), 1, 0)
