"""Two tokenizer backends with one interface: the Hugging Face reference, and gigatoken, which is faster.

gigatoken replaces added tokens in a text by their ids and has no option to prevent it. With an empty list of added tokens
it gives the same ids as the reference with `encode_special_tokens`. This is checked on difficult strings when a job starts,
and in every unit on sampled documents.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

HARD_TEXTS = (
    "",
    " ",
    "\x00 \x00",
    "a\r\n\r\n\tb\u2028c\u0085d\u00a0 e\u3000f",
    "don't we'll I'VE it's '",
    "1234567890 12,345.67 ½ ² ٣",
    "e\u0301 é \u1e9b\u0323 ﬁ 한국어 日本語テキスト ไทย עברית",
    "🙂🏳️‍🌈👩‍👩‍👧 \U0010ffff \ufffd \ufeff",
    "<|endoftext|></s><pad><unk><extra_id_0>[MASK]",
    "    indented\n\n\n        code = {'a': [1]}  # !!!???",
    "x" * 3000 + " " * 300 + "=" * 300,
)


class BackendMismatchError(ValueError):
    """The fast backend and the reference give different ids for a text."""


class Backend(Protocol):
    """Converts texts in UTF-8 to token ids."""

    name: str

    def encode(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The ids of all texts, concatenated without EOS: (tokens,), and the number of ids of each: int64 (texts,)."""
        ...


class ReferenceBackend:
    """Hugging Face `tokenizers`, the definition of correct ids."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        encodings = self._tokenizer.encode_batch_fast([text.decode("utf-8") for text in texts], add_special_tokens=False)
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        ids = np.empty(int(lengths.sum()), dtype=np.uint32)
        end = 0
        for encoding, length in zip(encodings, lengths.tolist(), strict=True):
            ids[end : end + length] = encoding.ids
            end += length
        return ids, lengths


class FastBackend:
    """gigatoken, on the calling thread only, because every worker uses one core."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import gigatoken  # imported late: only needed for tokenizers that it supports

        self.name = f"gigatoken {version('gigatoken')}"
        description = json.loads(tokenizer.to_str())
        description["added_tokens"] = []
        self._tokenizer = gigatoken.Tokenizer.from_json(json.dumps(description))

    def encode(self, texts: Sequence[bytes]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        layout = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)


def why_not_fast(tokenizer: Tokenizer) -> str | None:
    """Why gigatoken cannot replace this tokenizer; None if it can. It supports byte-level BPE without normalization."""
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    if model["type"] != "BPE":
        return f"its model is {model['type']}, not BPE"
    steps = description["pre_tokenizer"] or {}
    kinds = [step["type"] for step in steps.get("pretokenizers", [steps]) if "type" in step]
    if not kinds or kinds[-1] != "ByteLevel":
        return "it is not byte-level"
    if description["normalizer"]:
        return "it normalizes text"
    if model.get("dropout"):
        return "its merges are random (dropout)"
    plain = [token["content"] for token in description["added_tokens"] if not token["special"]]
    if plain:
        return f"added tokens like {plain[0]!r} are not special and must be matched in text"
    try:
        fast = FastBackend(tokenizer)
        check_same_ids(fast, ReferenceBackend(tokenizer), [text.encode("utf-8") for text in HARD_TEXTS])
    except ImportError:
        return "gigatoken is not installed"
    except BackendMismatchError as error:
        return str(error)
    except Exception as error:  # the library's errors have no common class
        return f"gigatoken does not accept it ({error})"
    return None


def check_same_ids(backend: Backend, reference: Backend, texts: Sequence[bytes]) -> None:
    """Raise BackendMismatchError, which shows the text, if the backends give different ids for one of `texts`."""
    ids, lengths = backend.encode(texts)
    expected, expected_lengths = reference.encode(texts)
    if np.array_equal(lengths, expected_lengths) and np.array_equal(ids, expected):
        return
    if len(texts) > 1:
        for text in texts:
            check_same_ids(backend, reference, [text])
    raise BackendMismatchError(f"{backend.name} and {reference.name} differ on {texts[0][:100]!r}")
