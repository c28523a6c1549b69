"""The fast backend compared with the reference, and the tokenizers that it does not support."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from data_prep.tokenization.backends import (
    HARD_TEXTS,
    BackendMismatchError,
    FastBackend,
    ReferenceBackend,
    check_same_ids,
    why_not_fast,
)

_TEXTS = st.lists(
    st.lists(
        st.one_of(st.text(max_size=30), st.sampled_from(["</s>", "<extra_id_0>", "<pad>", "  ", "\r\n", " the", "🙂"]))
    ).map("".join),
    max_size=8,
)


@given(_TEXTS)
def test_both_backends_give_the_ids_of_the_tokenizers_library(tokenizer: Tokenizer, texts: list[str]) -> None:
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    for backend in (FastBackend(tokenizer), ReferenceBackend(tokenizer)):
        ids, lengths = backend.encode([text.encode() for text in texts])
        assert lengths.tolist() == [len(document) for document in expected]
        assert ids.tolist() == [token for document in expected for token in document]


def test_special_tokens_in_text_are_encoded_as_text(tokenizer: Tokenizer) -> None:
    ids, _ = FastBackend(tokenizer).encode([b"</s><extra_id_7><pad>"])
    assert ids.min() > 2
    assert ids.max() < 500


def test_a_difference_between_backends_is_found_and_shown(tokenizer: Tokenizer) -> None:
    class Wrong(ReferenceBackend):
        name = "wrong"

        def encode(self, texts):  # type: ignore[no-untyped-def]
            ids, lengths = super().encode(texts)
            return np.where(ids == ids.max(initial=0), 3, ids) if any(b"fox" in text for text in texts) else ids, lengths

    reference = ReferenceBackend(tokenizer)
    check_same_ids(Wrong(tokenizer), reference, [b"quick", b"dog"])
    with pytest.raises(BackendMismatchError, match=r"wrong and tokenizers differ on b'a fox'"):
        check_same_ids(Wrong(tokenizer), reference, [b"quick", b"a fox", b"dog"])


def test_difficult_texts_round_trip_in_byte_level_bpe(tokenizer: Tokenizer) -> None:
    ids, lengths = ReferenceBackend(tokenizer).encode([text.encode() for text in HARD_TEXTS])
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == "".join(HARD_TEXTS)
    assert lengths[0] == 0


def test_unsupported_tokenizers_are_named_with_the_reason(tokenizer: Tokenizer) -> None:
    assert why_not_fast(tokenizer) is None
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    assert "Unigram" in str(why_not_fast(unigram))
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert "WordPiece" in str(why_not_fast(words))
    spaces = Tokenizer(models.BPE({"a": 0}, []))
    spaces.pre_tokenizer = pre_tokenizers.Whitespace()
    assert "not byte-level" in str(why_not_fast(spaces))
    lower = Tokenizer.from_str(tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    assert "normalizes" in str(why_not_fast(lower))
    added = Tokenizer.from_str(tokenizer.to_str())
    added.add_tokens([AddedToken("plain", special=False)])
    assert "'plain' are not special" in str(why_not_fast(added))
