import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from data_prep.tokenization.tokenizer import (
    LONGEST_WORD,
    TokenizerError,
    eos_id,
    load_tokenizer,
    num_ids,
    padded_vocab_size,
    token_byte_lengths,
    train_tokenizer,
    without_long_words,
)

# Characters of 1 to 4 bytes, spaces and special tokens next to each other, where round trips usually fail.
_TEXT = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["</s>", "<extra_id_0>", "<pad>", "  ", "\r\n", "🙂"])))


def test_special_ids_of_a_trained_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == num_ids(tokenizer) == 600
    assert [tokenizer.id_to_token(token) for token in (0, 1, 2)] == ["<pad>", "</s>", "<unk>"]
    assert [tokenizer.id_to_token(500 + i) for i in range(100)] == [f"<extra_id_{99 - i}>" for i in range(100)]
    assert eos_id(tokenizer) == 1


def test_training_does_not_depend_on_process_and_threads() -> None:
    program = (
        "import hashlib; from data_prep.tokenization.tokenizer import train_tokenizer\n"
        "texts = [f'{i % 7} cat{i % 13} dog{i % 11}s ran {i * i % 97}' for i in range(3000)]\n"
        "print(hashlib.sha256(train_tokenizer(texts, 500).to_str().encode()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"), ("3", "4"))
    }
    assert len(hashes) == 1


def test_a_too_small_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"358 is too small.*359"):
        train_tokenizer(["a"], 358)


@given(_TEXT)
def test_text_round_trips_and_gives_no_special_tokens(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode())
    assert all(3 <= token < 500 for token in ids)


def test_a_loaded_tokenizer_gives_no_special_tokens_for_text(tokenizer: Tokenizer, tokenizer_file: Path) -> None:
    loaded = load_tokenizer(tokenizer_file)
    text = "end </s> of <extra_id_0><pad>"
    assert loaded.encode(text).ids == tokenizer.encode(text).ids
    assert loaded.decode(loaded.encode(text).ids) == text
    assert not {0, 1, 599} & set(loaded.encode(text).ids)


def test_a_loaded_tokenizer_does_not_truncate_or_pad(tokenizer_file: Path, tmp_path: Path) -> None:
    cutting = Tokenizer.from_file(str(tokenizer_file))
    cutting.enable_truncation(4)
    cutting.enable_padding(length=8)
    cutting.save(str(tmp_path / "cutting.json"))
    text = "the quick brown fox jumps over the lazy dog, twice"
    assert load_tokenizer(tmp_path / "cutting.json").encode(text).ids == load_tokenizer(tokenizer_file).encode(text).ids


def test_gpt2_tokenizer(test_data: Path) -> None:
    tokenizer = load_tokenizer(test_data / "tokenizers" / "gpt2.json")
    assert eos_id(tokenizer) == 50256
    assert padded_vocab_size(num_ids(tokenizer)) == 50304  # as Megatron pads it
    assert len(tokenizer.encode("<|endoftext|>").ids) == 7
    lengths = token_byte_lengths(tokenizer)
    assert lengths.dtype == np.int32
    assert lengths[50256] == 0
    text = "naïve café 東京 🙂\r\n\u2028 <|endoftext|>"
    assert lengths[tokenizer.encode(text).ids].sum() == len(text.encode())


def test_errors_name_the_file_and_the_problem(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"none\.json.*fnet-t5 tokenizer train"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"bad\.json.*not a Hugging Face tokenizer\.json"):
        load_tokenizer(tmp_path / "bad.json")
    word_level = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(TokenizerError, match=r"none of </s>, <\|endoftext\|>, \[SEP\]; add one"):
        eos_id(word_level)
    with pytest.raises(TokenizerError, match="byte-level"):
        token_byte_lengths(word_level)


@pytest.mark.parametrize("letter", ["a", "語", "7", "=", " ", "é", "_"])
def test_words_of_a_megabyte_are_cut_for_training(letter: str) -> None:
    """Base64, DNA, logs, CJK: the time of BPE training grows with the square of a word's length."""
    word = letter * 1_000_000
    pieces = list(without_long_words(f"before {word} after"))
    assert "".join(pieces) == f"before {word} after"
    assert max(map(len, pieces)) <= LONGEST_WORD + len(" before ")
    assert num_ids(train_tokenizer([word, "some text, some text"], 400)) <= 400


@given(st.text(), st.integers(0, 3 * LONGEST_WORD))
def test_cutting_keeps_the_text_and_leaves_ordinary_words_alone(text: str, length: int) -> None:
    assert "".join(without_long_words(text + "x" * length + text)) == text + "x" * length + text
    short = " ".join(text.split()[:5])
    assert list(without_long_words(short)) == [short]


def test_a_tokenizer_trained_on_ordinary_text_is_not_changed_by_the_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"word{i % 50} and {'long' * (i % 60)} {'x' * (i % 250)}" for i in range(300)]
    trained = train_tokenizer(texts, 500).to_str()
    monkeypatch.setattr("data_prep.tokenization.tokenizer.without_long_words", lambda text: [text])
    assert train_tokenizer(texts, 500).to_str() == trained
