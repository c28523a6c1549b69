"""The complete preparation of a small corpus, read with Megatron's reader."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import Manifest, load_manifest, verify
from data_prep.dataset.packing import PackedRows
from data_prep.dataset.preview import sample_rows, source_table
from data_prep.files import sha256_file
from data_prep.prepare import PrepareError, prepare
from data_prep.readers.input_files import HashSplit, plan
from data_prep.readers.records import Document, read_records
from data_prep.tokenization.tokenizer import token_byte_lengths
from data_prep.units.job_progress import Progress

pytestmark = pytest.mark.usefixtures("ray")


def _config(corpus: Path, output: Path, **kwargs: object) -> PrepareConfig:
    fields = {
        "input": [f"{corpus}/*.jsonl*"],
        "output": output,
        "vocab_size": 500,
        "val_share": 0.1,
        "test_share": 0.05,
        "max_bad_share": 0.01,
        "packing": {"lengths": [64, 640]},
    }
    return PrepareConfig.model_validate({**fields, **kwargs})


@pytest.fixture(scope="module")
def prepared(ray: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(_config(corpus, folder), command="fnet-t5 prepare …")
    return folder


def _data_hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


def _assert_reconciled(manifest: Manifest) -> None:
    kept = sum(split.total.documents for split in manifest.splits.values())
    assert manifest.records == kept + sum(manifest.rejected.values()) + sum(manifest.dropped.values())
    for split in manifest.splits.values():
        for source, bins in split.length_histogram.items():
            assert sum(bins) == split.sources[source].documents


def _documents(config: PrepareConfig) -> list[Document]:
    records = [record for unit in plan(config) for record in read_records(unit.path, unit.name, 1 << 28)]
    return [record for record in records if isinstance(record, Document)]


def test_megatron_reads_every_document_as_the_tokenizer_encodes_it(corpus: Path, prepared: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    split_of = HashSplit(0.1, 0.05, seed=0)
    documents = _documents(_config(corpus, prepared))
    assert len(documents) == 361
    for split in ("train", "val", "test"):
        expected = [
            [*tokenizer.encode(document.text).ids, 1] for document in documents if split_of(document.text.encode()) == split
        ]
        dataset = IndexedDataset(str(prepared / split))
        assert len(expected) > 0
        assert [dataset[i].tolist() for i in range(len(dataset))] == expected


def test_counts_agree_with_the_files(corpus: Path, prepared: Path) -> None:
    manifest = load_manifest(prepared)
    documents = _documents(_config(corpus, prepared))
    assert sum(split.total.documents for split in manifest.splits.values()) == len(documents)
    assert sum(split.total.bytes for split in manifest.splits.values()) == sum(len(d.text.encode()) for d in documents)
    lengths = token_byte_lengths(Tokenizer.from_file(str(prepared / "tokenizer.json")))
    for name, split in manifest.splits.items():
        file = TokenFile(prepared / name)
        assert split.total.tokens == len(file.tokens)
        assert split.total.documents == len(file)
        assert split.total.bytes == lengths[file.tokens].sum()
        assert set(split.sources) <= {"even", "odd"}
        assert [record.row_length for record in split.packing] == [64, 640]
        for record in split.packing:
            rows = PackedRows.load(prepared / f"{name}.rows_{record.row_length}.npy")
            assert rows.num_rows == record.rows
            assert record.padding_share == pytest.approx(1 - len(file.tokens) / (rows.num_rows * rows.row_length))
            spans = zip(rows.start.tolist(), rows.length.tolist(), strict=True)
            ids = np.concatenate([file.tokens[start : start + size] for start, size in spans])
            valid = rows.lengths_of(np.arange(rows.num_rows))
            assert valid.sum() == np.count_nonzero(ids) == len(file.tokens)  # no text contains <pad>
    assert [(record.name, record.split) for record in manifest.inputs] == [
        ("0.jsonl.zst", "hash"),
        ("1.jsonl.gz", "hash"),
        ("2.jsonl", "hash"),
    ]
    assert manifest.inputs[0].sha256 == sha256_file(corpus / "0.jsonl.zst")
    assert manifest.command == "fnet-t5 prepare …"
    assert manifest.records == 362
    _assert_reconciled(manifest)
    assert manifest.engine.name.startswith("gigatoken")
    assert manifest.engine.checked_documents >= 3


@pytest.mark.parametrize(
    ("unit_bytes", "engine"), [(2000, "auto"), (9000, "reference"), pytest.param(60, "auto", marks=pytest.mark.slow)]
)
def test_output_is_the_same_for_other_units_and_the_other_engine(
    corpus: Path, prepared: Path, tmp_path: Path, unit_bytes: int, engine: str
) -> None:
    manifest = prepare(_config(corpus, tmp_path / "data", workers=2, unit_bytes=unit_bytes, engine=engine))
    # a compressed file has one unit per cell in which a line begins
    assert manifest.units > 250_000 // unit_bytes // 2 or unit_bytes == 60
    assert _data_hashes(tmp_path / "data") == _data_hashes(prepared)
    _assert_reconciled(manifest)
    assert (manifest.engine.note is None) == (engine == "auto")


def test_sources_are_chosen_and_counted(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    manifest = prepare(_config(corpus, tmp_path / "a", exclude_sources=["odd"], tokenizer=tokenizer_file))
    assert manifest.dropped == {"source odd": 180}
    assert {source for split in manifest.splits.values() for source in split.sources} == {"even"}
    _assert_reconciled(manifest)
    manifest = prepare(_config(corpus, tmp_path / "b", include_sources=["odd"], tokenizer=tokenizer_file))
    assert manifest.dropped == {"source even": 181}
    _assert_reconciled(manifest)


def test_duplicates_are_dropped_from_the_less_held_out_split(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        shutil.copy(corpus / "2.jsonl", tmp_path / name)
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'{"text": "only here"}\n' * 3)
    config = _config(
        tmp_path,
        tmp_path / "data",
        input=[f"{tmp_path}/a.jsonl"],
        val=[f"{tmp_path}/b.jsonl"],
        tokenizer=tokenizer_file,
        deduplicate=True,
        unit_bytes=3000,
    )
    manifest = prepare(config)
    texts = [document.text for document in _documents(config) if document.file == "b.jsonl"]
    assert manifest.dropped == {"duplicate": 122 + 120 - len(set(texts))}
    assert {name: split.total.documents for name, split in manifest.splits.items()} == {"train": 1, "val": len(set(texts))}
    _assert_reconciled(manifest)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    val = TokenFile(tmp_path / "data" / "val")
    assert [val[i].tolist() for i in range(len(val))] == [[*tokenizer.encode(text).ids, 1] for text in dict.fromkeys(texts)]
    assert tokenizer.decode(TokenFile(tmp_path / "data" / "train")[0].tolist()) == "only here"


def test_rejected_records_are_written_to_quarantine(prepared: Path) -> None:
    assert load_manifest(prepared).rejected == {"invalid JSON": 1}
    lines = (prepared / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "0.jsonl.zst", "line": 61, "reason": "invalid JSON", "first_bytes": "{not json"}
    ]


def test_output_is_the_same_for_two_workers_in_another_folder(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "moved")
    manifest = prepare(_config(tmp_path / "moved", tmp_path / "data", workers=2), command="another")
    assert _data_hashes(tmp_path / "data") == _data_hashes(prepared)
    varying = {"command", "stage_seconds", "retokenized_units", "manifest_sha256"}
    assert manifest.model_dump(exclude=varying) == load_manifest(prepared).model_dump(exclude=varying)
    assert manifest.fingerprint() == load_manifest(prepared).fingerprint()
    assert not [path for path in (tmp_path / "data").iterdir() if path.name.startswith(".")]


def test_given_files_determine_the_split(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    config = _config(
        corpus,
        tmp_path / "data",
        input=[f"{corpus}/0*"],
        val=[f"{corpus}/1*", f"{corpus}/2*"],
        tokenizer=tokenizer_file,
    )
    manifest = prepare(config, seen.append)
    assert {name: split.total.documents for name, split in manifest.splits.items()} == {"train": 121, "val": 240}
    assert not (tmp_path / "data" / "test.bin").exists()
    assert (tmp_path / "data" / "tokenizer.json").read_bytes() == tokenizer_file.read_bytes()
    assert seen[-1].units_done == seen[-1].num_units == 3
    assert seen[-1].total.documents == 361
    assert seen[-1].rejected == 1


def test_a_finished_folder_is_unchanged_or_refused(corpus: Path, prepared: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    assert prepare(_config(corpus, prepared, workers=2)) == load_manifest(prepared)
    with pytest.raises(PrepareError, match=r"another dataset: seed is 0 there and 3 here\."):
        prepare(_config(corpus, prepared, seed=3))
    with pytest.raises(PrepareError, match=r"input 2\.jsonl is only there"):
        prepare(_config(corpus, prepared, input=[f"{corpus}/[01]*"]))
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


def test_too_many_bad_records_fail_until_the_share_is_raised(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match=r"1 of 362 records are bad.*0\.jsonl\.zst line 61: invalid JSON '{not json'"):
        prepare(_config(corpus, tmp_path / "data", max_bad_share=0.001, tokenizer=tokenizer_file))
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".work"]
    # With a higher threshold nothing is tokenized again.
    manifest = prepare(_config(corpus, tmp_path / "data", max_bad_share=0.01, tokenizer=tokenizer_file))
    assert (manifest.units, manifest.retokenized_units) == (3, 0)
    assert verify(tmp_path / "data") == []


def test_a_corpus_without_training_documents_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_bytes(b"\n\n")
    with pytest.raises(PrepareError, match="no document for the train split"):
        prepare(_config(tmp_path, tmp_path / "data", input=[f"{tmp_path}/*.jsonl"], tokenizer=tokenizer_file))


def test_an_interrupted_run_resumes_only_with_the_same_settings(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "pack val":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(_config(corpus, tmp_path), interrupt)
    assert (tmp_path / "train.rows_64.npy").exists()
    assert not (tmp_path / "manifest.json").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PrepareError, match=r"unfinished work of another run: seed was 0 and is 5\."):
        prepare(_config(corpus, tmp_path, seed=5))
    with pytest.raises(PrepareError, match=r"unit_bytes was 64000000 and is 5000"):
        prepare(_config(corpus, tmp_path, unit_bytes=5000))
    with pytest.raises(PrepareError, match=r"input 0\.jsonl\.zst is gone"):
        prepare(_config(corpus, tmp_path, input=[f"{corpus}/[12]*"]))
    manifest = prepare(_config(corpus, tmp_path))
    assert manifest.retokenized_units == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "notes.txt").unlink()
    assert _data_hashes(tmp_path) == _data_hashes(prepared)


def test_verify_finds_every_kind_of_change(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    assert verify(folder) == []
    assert {path.name for path in folder.iterdir()} == {*load_manifest(folder).files, "manifest.json"}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for position in {0, len(data) // 3, len(data) - 1}:
            changed = bytearray(data)
            changed[position] ^= 0x10
            path.write_bytes(changed)
            problems = verify(folder)
            assert len(problems) == 1, path.name
            assert path.name in problems[0]
        path.write_bytes(data)
    (folder / "train.bin").write_bytes(b"short")
    (folder / "val.bin").unlink()
    (folder / "extra.npy").touch()
    assert [problem.split(": ")[1].split()[-1] for problem in verify(folder)] == [
        str((prepared / "train.bin").stat().st_size),
        "missing",
        "manifest",
    ]
    (folder / "manifest.json").unlink()
    assert "fnet-t5 prepare" in verify(folder)[0]


def test_a_change_of_any_byte_of_the_manifest_is_found(prepared: Path, tmp_path: Path) -> None:
    data = (prepared / "manifest.json").read_bytes()
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] = 0x20 if changed[position] != 0x20 else 0x0A
        (tmp_path / "manifest.json").write_bytes(changed)
        assert "manifest.json" in verify(tmp_path)[0]


def test_fingerprint_of_a_row_length_ignores_other_lengths(prepared: Path) -> None:
    manifest: Manifest = load_manifest(prepared)
    fewer = {name: record for name, record in manifest.files.items() if "rows_64." not in name}
    without = manifest.model_copy(update={"files": fewer})
    assert without.fingerprint(640) == manifest.fingerprint(640)
    assert without.fingerprint() != manifest.fingerprint()
    assert manifest.fingerprint(64) != manifest.fingerprint(640)


def test_table_and_samples(prepared: Path, corpus: Path) -> None:
    table = source_table(load_manifest(prepared))
    assert [row.split for row in table][:2] == ["train", "train"]
    assert sum(row.token_share for row in table if row.split == "train") == pytest.approx(1)
    texts = {document.text for document in _documents(_config(corpus, prepared))}
    samples = sample_rows(prepared, "train", 640, count=5)
    assert len(samples) == 5
    whole = [piece.removesuffix("</s>") for sample in samples for piece in sample.pieces if piece.endswith("</s>")]
    assert whole
    assert all(any(text.endswith(piece) for text in texts) for piece in whole)


def test_a_given_output_may_be_relative(
    corpus: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = Path(os.path.relpath(tokenizer_file, tmp_path))
    manifest = prepare(_config(corpus, Path("here/data"), input=[f"{corpus}/2.jsonl"], tokenizer=tokenizer))
    assert verify(tmp_path / "here" / "data") == []
    assert manifest.inputs[0].name == "2.jsonl"
