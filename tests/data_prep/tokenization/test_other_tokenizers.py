"""Small tokenizers of the kinds that T5, FNet and BERT use, trained here, in a complete preparation."""

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import verify
from data_prep.prepare import prepare
from data_prep.tokenization.tokenizer import eos_id, load_tokenizer, start_id
from data_prep.units.job_progress import Progress

_LITERAL = "a literal </s> and <pad>, <extra_id_0>x<extra_id_0>, [SEP], [PAD] and [MASK]"
_TEXTS = [
    *(f"The quick brown fox no. {i} jumps over {i * i} lazy dogs — café, ﬁne “quotes”, 東京, İ!\n" for i in range(300)),
    "don't   stop\t\r\n\u2028 🙂🏳️‍🌈 " + "x" * 500,
    _LITERAL,
]


def _t5() -> Tokenizer:
    """Unigram, like the converted SentencePiece files of T5."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    specials = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in range(3))]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_TEXTS[:-1], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def _fnet() -> Tokenizer:
    """Unigram with BERT's special tokens, like FNet's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "[CLS]", "[SEP]", "<pad>", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_TEXTS[:-1], trainer)
    return tokenizer


def _bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        _TEXTS[:-1], trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)
    return tokenizer


@pytest.mark.parametrize(
    ("make", "eos", "start", "model"),
    [(_t5, "</s>", "<pad>", "Unigram"), (_fnet, "[SEP]", "<pad>", "Unigram"), (_bert, "[SEP]", "[PAD]", "WordPiece")],
)
def test_ids_equal_the_reference_for_every_document(
    ray: None, tmp_path: Path, make: Callable[[], Tokenizer], eos: str, start: str, model: str
) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "0.jsonl").write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in _TEXTS))
    config = PrepareConfig.model_validate(
        {
            "input": [f"{tmp_path}/0.jsonl"],
            "output": tmp_path / "data",
            "tokenizer": tmp_path / "tokenizer.json",
            "val_share": 0,
            "test_share": 0,
        }
    )
    seen: list[Progress] = []
    manifest = prepare(config, seen.append)
    why = f"its model is {model}, not BPE"
    assert (manifest.engine.name, manifest.engine.note) == ("tokenizers", why)
    assert f"tokenizing with the slow reference: {why}" in {progress.note for progress in seen}

    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    reference.encode_special_tokens = True
    end = reference.token_to_id(eos)
    assert manifest.tokenizer.eos_id == end == eos_id(reference)
    assert start_id(reference) == reference.token_to_id(start)
    data = TokenFile(tmp_path / "data" / "train")
    written = [data[i].tolist() for i in range(len(data))]
    assert written[:-1] == [[*reference.encode(text, add_special_tokens=False).ids, end] for text in _TEXTS[:-1]]
    # The last text contains names of special tokens. They are encoded as text, also by the stored tokenizer.
    loaded = load_tokenizer(tmp_path / "data" / "tokenizer.json")
    assert written[-1] == [*loaded.encode(_LITERAL, add_special_tokens=False).ids, end]
    unknown = {reference.token_to_id(name) for name in ("<unk>", "[UNK]")}
    specials = set(reference.get_added_tokens_decoder()) - unknown
    assert not specials & {token for document in written for token in document[:-1]}
    assert verify(tmp_path / "data") == []
