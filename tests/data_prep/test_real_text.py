"""Real text: read by Megatron-core and compared with the reference tokenizer; a run on a one-gigabyte frame killed at 80 %."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import zstandard

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import Manifest, load_manifest, verify
from data_prep.files import sha256_file
from data_prep.prepare import prepare
from data_prep.readers.records import Document, read_records
from data_prep.tokenization.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

_GIGABYTE = 10**9
_WORKERS = 2


@pytest.fixture(scope="module")
def minipile(test_data: Path, real_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `minipile`, prepared with GPT-2's tokenizer and minipile's own validation file."""
    output = tmp_path_factory.mktemp("minipile") / "data"
    fields = {"input": [f"{test_data}/minipile/train/*.zst"], "val": [f"{test_data}/minipile/val.jsonl.zst"]}
    fields |= {"output": output, "tokenizer": test_data / "tokenizers" / "gpt2.json", "workers": _WORKERS}
    prepare(PrepareConfig.model_validate(fields))
    return output


def _documents(*paths: Path) -> list[Document]:
    records = [record for path in paths for record in read_records(path, path.name, 256 * 2**20)]
    assert all(isinstance(record, Document) for record in records)
    return [record for record in records if isinstance(record, Document)]


def _kept(manifest: Manifest) -> int:
    return sum(record.total.documents for record in manifest.splits.values())


def test_every_document_equals_the_reference_tokenization(minipile: Path, test_data: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    manifest = load_manifest(minipile)
    assert "gigatoken" in manifest.engine.name
    tokenizer = load_tokenizer(test_data / "tokenizers" / "gpt2.json")
    end = tokenizer.token_to_id("<|endoftext|>")
    files = {"train": sorted((test_data / "minipile" / "train").iterdir()), "val": [test_data / "minipile" / "val.jsonl.zst"]}
    for split, paths in files.items():
        documents = _documents(*paths)
        dataset = IndexedDataset(str(minipile / split))
        assert len(dataset) == len(documents)
        for begin in range(0, len(documents), 1000):
            texts = [document.text for document in documents[begin : begin + 1000]]
            for number, encoding in enumerate(tokenizer.encode_batch_fast(texts, add_special_tokens=False), start=begin):
                assert np.array_equal(dataset[number], [*encoding.ids, end]), f"{split} document {number}"
        found = Counter(document.source for document in documents)
        assert {source: counts.documents for source, counts in manifest.splits[split].sources.items()} == found
        assert manifest.splits[split].total.bytes == sum(len(document.text.encode()) for document in documents)
        assert manifest.splits[split].total.tokens == TokenFile(minipile / split).lengths.sum(dtype=np.int64)
    assert manifest.records == _kept(manifest)
    assert verify(minipile) == []


def test_every_dropped_record_is_accounted_for(minipile: Path, test_data: Path, real_ray: None, tmp_path: Path) -> None:
    fields = {"input": [f"{test_data}/minipile/*/*.zst", f"{test_data}/minipile/*.zst"], "output": tmp_path / "data"}
    fields |= {"tokenizer": test_data / "tokenizers" / "gpt2.json", "deduplicate": True, "exclude_sources": ["IMDB"]}
    manifest = prepare(PrepareConfig.model_validate(fields))
    paths = [*sorted((test_data / "minipile" / "train").iterdir()), test_data / "minipile" / "val.jsonl.zst"]
    documents = _documents(*paths)
    excluded = [document for document in documents if document.source == "IMDB"]
    distinct = {document.text for document in documents if document.source != "IMDB"}
    assert manifest.records == len(documents)
    assert manifest.dropped["source IMDB"] == len(excluded)
    assert _kept(manifest) == len(distinct)
    assert manifest.dropped["duplicate"] == len(documents) - len(excluded) - len(distinct)
    assert manifest.records == _kept(manifest) + sum(manifest.rejected.values()) + sum(manifest.dropped.values())


@pytest.fixture(scope="module")
def one_frame(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single zstd frame of more than a gigabyte of raw lines, like the shards of The Pile."""
    folder = tmp_path_factory.mktemp("frame")
    lines = b"".join(
        zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True).read()
        for path in sorted((test_data / "minipile" / "train").iterdir())
    )
    copies = -(-_GIGABYTE // len(lines))
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=copies * len(lines))
    with open(folder / "00.jsonl.zst", "wb") as file:
        for _ in range(copies):
            file.write(compressor.compress(lines))
        file.write(compressor.flush())
    return folder / "00.jsonl.zst"


def test_a_run_on_a_one_gigabyte_frame_resumes_after_a_kill_at_80_percent(
    real_ray: None, one_frame: Path, test_data: Path, tmp_path: Path
) -> None:
    def arguments(output: Path, workers: int) -> dict[str, object]:
        fields = {"input": [str(one_frame)], "output": output, "workers": workers}
        return fields | {"tokenizer": test_data / "tokenizers" / "gpt2.json"}

    config = PrepareConfig.model_validate(arguments(tmp_path / "killed", _WORKERS))
    program = "import sys; from data_prep.config import PrepareConfig; from data_prep.prepare import prepare; "
    program += "prepare(PrepareConfig.model_validate_json(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen([sys.executable, "-c", program, config.model_dump_json()], env=environment)
    raw_bytes = int(zstandard.get_frame_parameters(one_frame.read_bytes()[:64]).content_size)
    num_units = -(-raw_bytes // config.unit_bytes)
    while process.poll() is None and len(list((config.output / ".work" / "units").glob("*.json"))) < 0.8 * num_units:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        child.kill()
    assert not (config.output / "manifest.json").exists()
    manifest = prepare(config)
    assert manifest.units == num_units >= 16
    assert manifest.retokenized_units <= 2 * _WORKERS
    prepare(PrepareConfig.model_validate(arguments(tmp_path / "alone", 1)))
    for path in (tmp_path / "alone").iterdir():
        if path.name != "manifest.json":
            assert sha256_file(path) == sha256_file(config.output / path.name), path.name
