"""The dataset folders that other tests write without Ray equal those that `prepare` makes of the same texts."""

from pathlib import Path

import orjson
import pytest

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import load_manifest, verify
from data_prep.files import sha256_file
from data_prep.prepare import prepare
from data_prep.tokenization.tokenizer import load_tokenizer
from tests.helpers.datasets import numbered_documents, tales, write_dataset, write_text_dataset

TEXTS = {"train": [*tales(0), *tales(1)], "val": [*tales(0)[:5], *tales(2)]}


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("given_tokenizer", [False, True])
def test_files_equal_those_of_prepare(tokenizer_file: Path, tmp_path: Path, given_tokenizer: bool) -> None:
    for split, pairs in TEXTS.items():
        records = [{"text": text, "meta": {"pile_set_name": source}} for text, source in pairs]
        (tmp_path / f"{split}.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    fields = {
        **{"input": [f"{tmp_path}/train.jsonl"], "val": [f"{tmp_path}/val.jsonl"], "output": tmp_path / "prepared"},
        **{"vocab_size": 420, "workers": 1, "packing": {"lengths": [24, 64]}},
        "tokenizer": tokenizer_file if given_tokenizer else None,
    }
    prepare(PrepareConfig.model_validate(fields))
    tokenizer = load_tokenizer(tokenizer_file) if given_tokenizer else None
    written = write_text_dataset(tmp_path / "written", TEXTS, [24, 64], vocab_size=420, tokenizer=tokenizer)
    expected, found = load_manifest(tmp_path / "prepared"), load_manifest(written)
    assert {*expected.files} - {*found.files} == {"quarantine.jsonl"}
    assert {name: sha256_file(written / name) for name in found.files} == {
        name: record.sha256 for name, record in expected.files.items() if name in found.files
    }
    assert found.tokenizer == expected.tokenizer
    assert found.token_dtype == expected.token_dtype
    assert found.records == expected.records
    for split, record in expected.splits.items():
        assert found.splits[split].sources == record.sources
        assert found.splits[split].packing == record.packing


def test_a_folder_of_numbered_tokens_passes_verify(tmp_path: Path) -> None:
    documents = numbered_documents(20, 30)
    folder = write_dataset(tmp_path / "data", documents, (16,), sources=["a", "b"] * 10)
    assert verify(folder) == []
    assert load_manifest(folder).splits["train"].total.tokens == sum(map(len, documents))
