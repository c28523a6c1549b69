"""Tokenizers: training byte-level BPE with T5's sentinels, loading any `tokenizer.json`, and the meaning of ids.

Ids of a trained tokenizer: <pad> 0, </s> 1, <unk> 2, the 256 bytes, the merges, then <extra_id_99> … <extra_id_0>, so that
the first sentinel has the highest id, as in T5.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.files import atomic_write
from data_prep.readers.input_files import InputFile, expand, input_files
from data_prep.readers.records import Document, read_records

TOKENIZER_FILE = "tokenizer.json"
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
NUM_SENTINELS = 100
VOCABULARY_MULTIPLE = 128

# Also the names in other vocabularies: GPT-2's, and those of BERT and FNet.
_EOS_NAMES = (EOS, "<|endoftext|>", "[SEP]")
_PAD_NAMES = (PAD, "[PAD]")
_BYTE_ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())
SMALLEST_VOCABULARY = 3 + len(_BYTE_ALPHABET) + NUM_SENTINELS


class TokenizerError(ValueError):
    """A tokenizer that cannot be read, or that lacks a token that the pipeline needs."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on `texts`; the same texts in the same order give the same tokenizer.

    The vocabulary has `vocab_size` ids, specials and sentinels included, or fewer if the texts have too few repeated pairs.
    Raises TokenizerError if `vocab_size` is too small for the bytes, specials and sentinels.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small: 3 specials, 256 bytes and {NUM_SENTINELS} sentinels "
            f"already need {SMALLEST_VOCABULARY}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SENTINELS,
        min_frequency=2,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in (PAD, EOS, UNK)],
        initial_alphabet=sorted(_BYTE_ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(NUM_SENTINELS))]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in sentinels])
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path | str) -> None:
    """Write `tokenizer` in the Hugging Face `tokenizer.json` format, atomically."""
    with atomic_write(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode("utf-8"))


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json` for encoding corpora: texts are not truncated or padded, and never contain special tokens.

    A literal "</s>" in a text stays text; only the pipeline inserts special ids. Models like T5's (Unigram) have their
    specials as pieces that any text can match. For these models such strings are split before the model sees them, so only
    texts that contain one get other ids than with the unchanged file. Raises TokenizerError for a file that is missing or
    does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise TokenizerError(f"{path}: no such tokenizer file; make one with `fnet-t5 tokenizer train --output {path}`")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every error
        raise TokenizerError(f"{path}: not a Hugging Face tokenizer.json ({error}); copy it again or train one") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    reachable = [token.content for token in _specials(tokenizer) if _is_reachable(tokenizer, token.content)]
    if reachable:
        cuts = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in reachable)
        apart = pre_tokenizers.Split(Regex(cuts), "isolated")
        before = tokenizer.pre_tokenizer
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([before, apart]) if before is not None else apart
    return tokenizer


def _specials(tokenizer: Tokenizer) -> list[AddedToken]:
    """Special tokens that can be split: one of a single character cannot be distinguished from text."""
    return [token for token in tokenizer.get_added_tokens_decoder().values() if token.special and len(token.content) > 1]


def _is_reachable(tokenizer: Tokenizer, special: str) -> bool:
    return tokenizer.token_to_id(special) in tokenizer.encode(f"a {special} b{special}", add_special_tokens=False).ids


def num_ids(tokenizer: Tokenizer) -> int:
    """The highest id plus one, the number of embedding rows; larger than the vocabulary if ids have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def padded_vocab_size(vocab_size: int, multiple: int = VOCABULARY_MULTIPLE) -> int:
    """`vocab_size` rounded up to a multiple, so that the embedding divides evenly over tensor-parallel ranks."""
    return -(-vocab_size // multiple) * multiple


def eos_id(tokenizer: Tokenizer) -> int:
    """The id that ends every document: "</s>", "<|endoftext|>" (GPT-2) or "[SEP]" (BERT, FNet). Raises TokenizerError."""
    token = _first_of(tokenizer, _EOS_NAMES)
    if token is None:
        raise TokenizerError(f"the tokenizer has none of {', '.join(_EOS_NAMES)}; add one as a special token")
    return token


def start_id(tokenizer: Tokenizer) -> int:
    """The id that a decoder starts from: "<pad>" (T5), "[PAD]" (BERT) or, without a pad (GPT-2), the end of a document."""
    token = _first_of(tokenizer, _PAD_NAMES)
    return eos_id(tokenizer) if token is None else token


def _first_of(tokenizer: Tokenizer, names: Iterable[str]) -> int | None:
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((int(token) for token in ids if token is not None), None)


def token_byte_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """The number of UTF-8 bytes of each id: int32 (num_ids,), 0 for specials and unused ids.

    The sum over an encoded text is the text's length in bytes, the denominator of bits per byte. Raises TokenizerError for
    a tokenizer that is not byte-level, because the sum would differ.
    """
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    kinds = {step["type"] for step in decoder.get("decoders", [decoder]) if "type" in step}
    if "ByteLevel" not in kinds:
        raise TokenizerError(
            f"bytes per token need a byte-level tokenizer, but this one decodes with {sorted(kinds) or 'nothing'}"
        )
    added = tokenizer.get_added_tokens_decoder()
    lengths = np.zeros(num_ids(tokenizer), dtype=np.int32)
    for piece, token in tokenizer.get_vocab(with_added_tokens=True).items():
        if token in added:
            lengths[token] = 0 if added[token].special else len(piece.encode("utf-8"))
        elif _BYTE_ALPHABET.issuperset(piece):
            lengths[token] = len(piece)
        else:
            raise TokenizerError(f"token {token} ({piece!r}) is not written in the byte alphabet of byte-level BPE")
    return lengths


SAMPLE_BYTES = 200_000_000


def sample_texts(
    files: Sequence[InputFile],
    max_record_bytes: int,
    sample_bytes: int = SAMPLE_BYTES,
    keep: Callable[[Document, bytes], bool] = lambda document, text: True,
) -> Iterator[str]:
    """The first texts of every file, about `sample_bytes` of UTF-8 in total.

    A corpus is often one file per source, so files share the budget evenly; what small files do not use goes to larger
    ones. `keep` gets a document and its text in UTF-8, and is false for documents that are not trained on.
    """
    smallest_first = sorted(files, key=lambda file: (file.bytes, file.index))
    for position, file in enumerate(smallest_first):
        share = sample_bytes // (len(smallest_first) - position)
        # A file that cannot be read is reported or skipped by the run itself.
        with suppress(OSError):
            for record in read_records(file.path, file.name, max_record_bytes):
                if share <= 0:
                    break
                if isinstance(record, Document):
                    text = record.text.encode("utf-8")
                    if keep(record, text):
                        share -= len(text)
                        sample_bytes -= len(text)
                        yield record.text


def train_tokenizer_on_files(
    globs: Sequence[str], vocab_size: int, output: Path, max_record_bytes: int = 256 * 2**20
) -> Tokenizer:
    """Train a tokenizer on a sample of the files that `globs` match, and write it to `output`.

    Raises InputError and TokenizerError.
    """
    paths = expand(globs)
    files = input_files(paths, [None] * len(paths))
    tokenizer = train_tokenizer(sample_texts(files, max_record_bytes), vocab_size)
    save_tokenizer(tokenizer, output)
    return tokenizer
