"""Texts to words and n-gram hashes for decontamination, vectorised in numpy.

Words as in GPT-3 (arXiv 2005.14165, appendix C): lower case, without punctuation, split at white space. Every character of
a Unicode category P or S (punctuation, symbols) is removed, also inside words: "well-known" becomes "wellknown".

The hash of an n-gram is that of its words joined by one space: a polynomial mod 2^64 over a table of random values. It is
computed from prefix sums, so each byte is processed once for all n-grams that contain it.
"""

import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_prep.splitmix64 import mix64, outputs

Hashes = npt.NDArray[np.uint64]

# A byte that never occurs in UTF-8. It is inserted as a word between texts, so that n-grams across texts match nothing.
_BETWEEN = b"\xff"
_SPACE = 0x20
_REMOVED = 0xFE

_CHUNK = 1 << 15  # the arrays of one chunk fit the processor's cache
_BASE = 0xD1342543DE82EF95  # odd, so that it has an inverse mod 2^64
_BASE_INVERSE = pow(_BASE, -1, 2**64)


def ngram_hashes(texts: Sequence[bytes], n: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """The hashes of all n-grams of texts (UTF-8), in order, and the number of words of each text, int64 (texts,).

    N-grams across a boundary between texts are included; they equal no n-gram within a text. See `within_texts`.
    """
    words = _normalized(texts)
    spaces = np.flatnonzero(words == _SPACE)
    starts, ends = np.concatenate([[0], spaces + 1]), np.concatenate([spaces, [len(words)]])
    between = np.flatnonzero(words[starts] == _BETWEEN[0])  # one before each text and one after the last
    return _hashes(words, starts, ends, n), np.diff(between) - 1


def within_texts(num_words: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.bool_]:
    """Which of the hashes belong to n-grams within one text: bool, one per hash."""
    boundaries = np.concatenate([[0], np.cumsum(num_words + 1)])
    places = np.arange(max(0, boundaries[-1] + 2 - n))
    return boundaries[np.searchsorted(boundaries, places)] >= places + n


def text_of_ngram(ngrams: npt.NDArray[np.int64], num_words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of the text in which each n-gram starts; `ngrams` are indices of hashes."""
    boundaries = np.cumsum(num_words + 1)  # the index among the words of the boundary after each text
    return np.searchsorted(boundaries, ngrams, side="left")


def _normalized(texts: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """The words of all texts joined by one space, with a boundary before and after each text: uint8."""
    lowered = [text.lower() if text.isascii() else _lower(text) for text in texts]
    joined = (b" " + _BETWEEN + b" ").join([b"", *lowered, b""])
    data = _ascii_table()[np.frombuffer(joined, dtype=np.uint8)]
    data = data[data != _REMOVED]
    is_space = data == _SPACE
    keep = ~is_space
    keep[1:] |= keep[:-1] & is_space[1:]  # the first space after a word is kept
    return data[keep][:-1]


def _lower(text: bytes) -> bytes:
    """Lower case, without non-ASCII punctuation, and with a space for non-ASCII white space."""
    codes = np.frombuffer(text.decode("utf-8").lower().encode("utf-32-le"), dtype="<u4")
    kinds = _kinds()[codes]
    if kinds.any():
        codes = np.where(kinds == _SPACE, _SPACE, codes)[kinds != _REMOVED].astype("<u4")
    return codes.tobytes().decode("utf-32-le").encode("utf-8")


@lru_cache(maxsize=1)
def _ascii_table() -> npt.NDArray[np.uint8]:
    """The replacement of each byte: itself, a space, or `_REMOVED`."""
    table = np.arange(256, dtype=np.uint8)
    kinds = _kinds()[:128]
    table[:128] = np.where(kinds == 0, table[:128], kinds)
    return table


@lru_cache(maxsize=1)
def _kinds() -> npt.NDArray[np.uint8]:
    """By code point: `_SPACE` for white space, `_REMOVED` for punctuation and symbols, else 0."""
    kinds = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if character.isspace():
            kinds[code] = _SPACE
        elif unicodedata.category(character)[0] in "PS":
            kinds[code] = _REMOVED
    return kinds


def _hashes(words: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], n: int) -> Hashes:
    if len(starts) < n:
        return np.empty(0, dtype=np.uint64)
    before_start, before_end = _prefix_sums(words, starts, ends)
    firsts = starts[: len(starts) - n + 1]
    hashes = before_end[n - 1 :] - before_start[: len(firsts)]
    # Divided by base^start, so that the hash does not depend on the position.
    shift = _powers(_BASE_INVERSE)
    hashes *= shift[firsts % _CHUNK]
    chunk_powers = np.array([pow(_BASE_INVERSE, chunk * _CHUNK, 2**64) for chunk in range(len(words) // _CHUNK + 1)], np.uint64)
    hashes *= chunk_powers[firsts // _CHUNK]
    return mix64(hashes)


def _prefix_sums(
    words: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[Hashes, Hashes]:
    """The sums of value * base^position over all bytes before each start and each end, mod 2^64, chunk by chunk."""
    before_start, before_end = np.empty(len(starts), np.uint64), np.empty(len(ends), np.uint64)
    values, powers = _values(), _powers(_BASE)
    sums = np.zeros(_CHUNK + 1, dtype=np.uint64)
    begins = np.arange(0, len(words) + 1, _CHUNK)
    bounds = [*begins.tolist(), len(words) + 1]
    start_bounds, end_bounds = np.searchsorted(starts, bounds), np.searchsorted(ends, bounds)
    total = np.zeros(1, dtype=np.uint64)
    for chunk, begin in enumerate(begins.tolist()):
        data = words[begin : begin + _CHUNK]
        np.cumsum(values[data] * powers[: len(data)], out=sums[1 : len(data) + 1])
        factor = np.uint64(pow(_BASE, begin, 2**64))
        for places, before, edges in ((starts, before_start, start_bounds), (ends, before_end, end_bounds)):
            mine = slice(edges[chunk], edges[chunk + 1])
            before[mine] = sums[places[mine] - begin] * factor + total
        total += sums[len(data) : len(data) + 1] * factor
    return before_start, before_end


@lru_cache(maxsize=2)
def _powers(base: int) -> Hashes:
    """base^0 … base^(chunk - 1), mod 2^64."""
    powers = np.full(_CHUNK, base, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


@lru_cache(maxsize=1)
def _values() -> Hashes:
    """A random value for each byte: the first 256 outputs of SplitMix64 with seed 0."""
    return outputs(np.zeros(1, dtype=np.uint64), np.arange(256))
