"""The byte tokenizer: ByT5's ids, exact round trips, a prepared folder with one token a byte, and 8 bits a byte if uniform."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import verify
from data_prep.files import sha256_file
from data_prep.prepare import prepare
from data_prep.tokenization.backends import HARD_TEXTS, FastBackend, ReferenceBackend, why_not_fast
from data_prep.tokenization.tokenizer import (
    byte_tokenizer,
    eos_id,
    load_tokenizer,
    num_ids,
    save_tokenizer,
    start_id,
    token_byte_lengths,
)
from data_prep.units.job import PrepareError
from pipeline.data.rows import Rows
from pipeline.eval.suffix_bpb import score, suffix_bpb_objective
from pipeline.objectives.interface import VALIDATION_SEED, AnyBatch, Objective
from pipeline.objectives.span_corruption import SpanCorruptionConfig
from pipeline.objectives.vocabulary import Vocabulary
from tests.helpers.datasets import write_text_dataset

_TEXT = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["</s>", "<extra_id_0>", "<pad>", "  ", "\r\n", "🙂"]))).map(
    "".join
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    save_tokenizer(byte_tokenizer(), path)
    return path


@pytest.fixture(scope="module")
def loaded(file: Path) -> Tokenizer:
    return load_tokenizer(file)


def test_special_pieces_stand_at_their_ids(loaded: Tokenizer) -> None:
    assert num_ids(loaded) == loaded.get_vocab_size() == 3 + 256 + 100
    assert [loaded.id_to_token(token) for token in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert [loaded.token_to_id(f"<extra_id_{99 - number}>") for number in range(100)] == list(range(259, 359))
    assert {token for token, added in loaded.get_added_tokens_decoder().items() if added.special} == {0, 1, 2, *range(259, 359)}
    assert (eos_id(loaded), start_id(loaded)) == (1, 0)
    vocabulary = Vocabulary.of(loaded)
    assert vocabulary.sentinels == tuple(range(358, 263, -1))  # five of the 100 stand for other papers' tokens
    assert vocabulary.ordinary.tolist() == list(range(3, 259))


def test_pieces_are_those_of_gpt2_in_the_order_of_bytes(loaded: Tokenizer) -> None:
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    symbols = convert.bytes_to_unicode()
    assert [loaded.id_to_token(3 + byte) for byte in range(256)] == [symbols[byte] for byte in range(256)]


@given(_TEXT)
def test_every_text_round_trips_in_one_token_a_byte(loaded: Tokenizer, text: str) -> None:
    ids = loaded.encode(text, add_special_tokens=False).ids
    assert ids == [3 + byte for byte in text.encode()]
    assert loaded.decode(ids, skip_special_tokens=False) == text
    assert token_byte_lengths(loaded)[ids].sum() == len(text.encode())


def test_ids_are_those_of_byt5(loaded: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.ByT5Tokenizer()
    text = "naïve café, 東京 🙂\x00\r\n\t end"
    assert [*loaded.encode(text, add_special_tokens=False).ids, eos_id(loaded)] == peer(text).input_ids


def test_both_backends_give_bytes(loaded: Tokenizer) -> None:
    assert why_not_fast(loaded) is None
    texts = [text.encode() for text in HARD_TEXTS]
    for backend in (FastBackend(loaded), ReferenceBackend(loaded)):
        ids, lengths = backend.encode(texts)
        assert lengths.tolist() == [len(text) for text in texts]
        assert np.array_equal(ids, 3 + np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64))


@pytest.mark.parametrize("infilling", [False, True])
def test_a_model_uniform_over_bytes_needs_eight_bits_a_byte(loaded: Tokenizer, tmp_path: Path, infilling: bool) -> None:
    """Scored as evaluation does, for a suffix and for a gap: log(256) nats for each byte, nothing for ends and sentinels."""
    texts = ["café 東京 🙂\n" * 20, "plain text, " * 30]
    folder = write_text_dataset(tmp_path / "data", {"train": [(text, "one") for text in texts]}, [32], tokenizer=loaded)
    if infilling:
        config = SpanCorruptionConfig(num_spans=1, ends_with_span=False)
        objective: Objective = config.build(32, *config.needs(32), Vocabulary.of(loaded), VALIDATION_SEED)
    else:
        objective = suffix_bpb_objective("t5", 24, 24, 8, start_id(loaded))

    def uniform(batch: AnyBatch) -> np.ndarray:
        targets = batch.losses[0][0]
        return np.where((targets >= 3) & (targets < 259), math.log(256), 0.0)

    sets = {"one": Rows(folder, "train", 32)}
    found = score(sets, objective, uniform, token_byte_lengths(load_tokenizer(folder / "tokenizer.json")), 4)["one"]
    assert found.target_bytes > 100
    assert found.bits_per_byte == pytest.approx(math.log2(256), rel=1e-12)


def test_prepare_takes_the_name_and_the_file_for_the_same_folder(ray: None, file: Path, tmp_path: Path) -> None:
    texts = [f"Text {number}: café, 東京, </s> 🙂" for number in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shas = {}
    for name, given_tokenizer in (("name", "bytes"), ("path", file)):
        config = PrepareConfig.model_validate(
            {
                "input": [f"{tmp_path}/in.jsonl"],
                "output": tmp_path / name,
                "tokenizer": given_tokenizer,
                "val_share": 0,
                "test_share": 0,
            }
        )
        manifest = prepare(config)
        assert manifest.engine.name.startswith("gigatoken")
        assert manifest.splits["train"].total.tokens == sum(len(text.encode()) + 1 for text in texts)
        assert manifest.splits["train"].total.bytes == sum(len(text.encode()) for text in texts)
        data = TokenFile(tmp_path / name / "train")
        assert [data[number].tolist() for number in range(len(data))] == [[*(3 + b for b in t.encode()), 1] for t in texts]
        assert verify(tmp_path / name) == []
        assert prepare(config).splits == manifest.splits  # a finished folder is recognised
        shas[name] = [sha256_file(tmp_path / name / part) for part in ("tokenizer.json", "train.bin")]
    assert shas["name"] == shas["path"]
    trained = config.model_copy(update={"output": tmp_path / "name", "tokenizer": None})
    with pytest.raises(PrepareError, match="tokenizer is 'given' there and 'trained' here"):
        prepare(trained)


def test_the_name_given_as_a_path_is_the_name() -> None:
    made = PrepareConfig.model_validate({"input": ["x"], "output": "y", "tokenizer": Path("bytes")})
    assert made.tokenizer == "bytes"
    made = PrepareConfig.model_validate({"input": ["x"], "output": "y", "tokenizer": "bytes.json"})
    assert made.tokenizer == Path("bytes.json")
