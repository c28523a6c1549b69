import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dataset.indexed_dataset import (
    TokenFile,
    TokenFileError,
    TokenFileWriter,
    sequence_offsets,
    token_dtype,
    write_index,
)


def _write(prefix: Path, sequences: list[list[int]], dtype: str = "<u2") -> Path:
    with TokenFileWriter(prefix, np.dtype(dtype)) as writer:
        for sequence in sequences:
            writer.add(np.array(sequence, dtype=dtype))
    return prefix


def test_megatrons_golden_pair_is_reproduced_byte_for_byte(test_data: Path, tmp_path: Path) -> None:
    golden = test_data / "megatron_golden" / "meg-gpt2-openwebtext_text_document"
    original = TokenFile(golden)
    assert (len(original), len(original.tokens), original.lengths.max()) == (1000, 1_361_845, 21_809)
    with TokenFileWriter(tmp_path / "copy", original.dtype) as writer:
        for i in range(500):
            writer.add(original[i])
        writer.add(original.tokens[original.starts[500] :], original.lengths[500:])
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"copy{suffix}").read_bytes() == golden.with_name(golden.name + suffix).read_bytes()


@given(st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=9), min_size=1, max_size=20), st.booleans())
def test_megatron_reads_what_we_write(tmp_path_factory: pytest.TempPathFactory, sequences: list[list[int]], wide: bool) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    prefix = _write(tmp_path_factory.getbasetemp() / "some.name", sequences, "<i4" if wide else "<u2")
    theirs, ours = IndexedDataset(str(prefix)), TokenFile(prefix)
    assert [list(theirs[i]) for i in range(len(theirs))] == sequences
    assert [list(ours[i]) for i in range(len(ours))] == sequences
    assert list(ours.tokens) == [token for sequence in sequences for token in sequence]
    assert theirs.document_indices.tolist() == list(range(len(sequences) + 1))


def test_dtype_changes_at_the_same_vocabulary_size_as_megatron() -> None:
    from megatron.core.datasets.indexed_dataset import DType

    for vocab_size in (300, 65_499, 65_500, 65_536, 128_256):
        assert token_dtype(vocab_size) == np.dtype(DType.optimal_dtype(vocab_size))


def test_offsets_beyond_two_gibibytes(tmp_path: Path) -> None:
    lengths = np.full(3_000_000, 2_000, dtype=np.int32)  # 12 GB of uint16 tokens, more than one block of the index
    write_index(tmp_path / "big.idx", lengths, np.dtype("<u2"))
    data = (tmp_path / "big.idx").read_bytes()
    offsets = np.frombuffer(data, "<i8", len(lengths), 34 + 4 * len(lengths))
    assert np.array_equal(offsets, np.arange(len(lengths)) * 4_000)
    assert np.frombuffer(data, "<i8", offset=34 + 12 * len(lengths)).tolist() == list(range(len(lengths) + 1))
    assert sequence_offsets(np.array([2**31 - 1] * 3, dtype=np.int32)).tolist() == [0, 2**31 - 1, 2 * (2**31 - 1)]


def test_a_file_without_sequences_is_valid(tmp_path: Path) -> None:
    file = TokenFile(_write(tmp_path / "empty", []))
    assert len(file) == len(file.tokens) == len(file.starts) == 0
    assert (tmp_path / "empty.idx").stat().st_size == 42


def test_an_exception_leaves_no_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TokenFileWriter(tmp_path / "x", np.dtype("<u2")) as writer:
            writer.add(np.array([1], dtype="<u2"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_tokens_and_lengths_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(TokenFileError, match="70000 does not fit uint16"),
        TokenFileWriter(tmp_path / "x", np.dtype("<u2")) as writer,
    ):
        writer.add(np.array([70_000]))
    with pytest.raises(TokenFileError, match="lengths sum to 3"), TokenFileWriter(tmp_path / "x", np.dtype("<u2")) as writer:
        writer.add(np.array([1, 2], dtype="<u2"), np.array([1, 2]))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "x", [[1, 2], [3]])
    good_bin, good_idx = (tmp_path / "x.bin").read_bytes(), (tmp_path / "x.idx").read_bytes()

    def expect(message: str, bin_bytes: bytes = good_bin, idx_bytes: bytes = good_idx) -> None:
        (tmp_path / "x.bin").write_bytes(bin_bytes)
        (tmp_path / "x.idx").write_bytes(idx_bytes)
        with pytest.raises(TokenFileError, match=message):
            TokenFile(prefix)

    expect(r"x\.bin: 5 bytes, but x\.idx describes 6", bin_bytes=good_bin[:-1])
    expect(r"x\.idx: .* cut", idx_bytes=good_idx[:-1])
    expect("header", idx_bytes=good_idx[:20])
    expect("not a Megatron index", idx_bytes=b"X" + good_idx[1:])
    expect("version 2", idx_bytes=good_idx[:9] + struct.pack("<Q", 2) + good_idx[17:])
    expect("dtype code 7", idx_bytes=good_idx[:17] + b"\x07" + good_idx[18:])
    (tmp_path / "x.idx").unlink()
    with pytest.raises(TokenFileError, match=r"x\.idx: no such file"):
        TokenFile(prefix)
