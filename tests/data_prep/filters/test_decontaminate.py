"""13-gram overlap compared with sets of words in plain Python, and in a complete preparation."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.files import sha256_file
from data_prep.filters.decontaminate import DecontaminationError, References, build, notes, reference_files
from data_prep.filters.ngrams import ngram_hashes, within_texts
from data_prep.prepare import PrepareError, prepare
from data_prep.units.job_progress import Progress

_WORDS = st.sampled_from(["a", "b", "A", "é", "É", "“b”", "b.", "-", "…", "a-b", "東京", "İ", "ß", "́", "x\xa0y", "a\x1cb"])
_GAPS = st.sampled_from([" ", "  ", "\n", "\t \r\n", "\u3000", "\u2028", "\x85"])
_TEXT = st.lists(st.tuples(_WORDS, _GAPS).map("".join), max_size=12).map("".join)


def _words(text: str) -> list[str]:
    """Words by GPT-3's definition, character by character."""
    return "".join(character for character in text.lower() if unicodedata.category(character)[0] not in "PS").split()


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = _words(text)
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


@given(st.lists(_TEXT, max_size=6), st.integers(1, 4))
def test_hashes_are_equal_exactly_for_equal_words(texts: list[str], n: int) -> None:
    hashes, num_words = ngram_hashes([text.encode() for text in texts], n)
    assert num_words.tolist() == [len(_words(text)) for text in texts]
    by_ngram: dict[tuple[str, ...], int] = {}
    starts = np.cumsum(np.concatenate([[1], num_words + 1]))[:-1]
    within = {start + place for text, start in zip(texts, starts, strict=True) for place in range(len(_ngrams(text, n)))}
    assert set(np.flatnonzero(within_texts(num_words, n))) == within
    for text, start in zip(texts, starts.tolist(), strict=True):
        for place, ngram in enumerate(_ngrams(text, n)):
            assert by_ngram.setdefault(ngram, int(hashes[start + place])) == hashes[start + place]
    assert len(set(by_ngram.values())) == len(by_ngram)


@settings(max_examples=25)
@given(st.lists(_TEXT, min_size=1, max_size=4), st.lists(_TEXT, max_size=8), st.integers(1, 3))
def test_found_documents_equal_a_search_with_sets_of_ngrams(
    tmp_path_factory: pytest.TempPathFactory, references: list[str], texts: list[str], n: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "references"
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(references):
        (folder / f"{number}.jsonl").write_bytes(orjson.dumps({"text": text or " "}) + b"\n")
    files = reference_files([f"{folder}/{number}.jsonl" for number in range(len(references))])
    sets = [set(_ngrams(text, n)) for text in references]
    if not any(sets):
        with pytest.raises(DecontaminationError, match=f"no reference record has {n} words"):
            build(files, n, 1 << 20, folder / "built")
        return
    found = build(files, n, 1 << 20, folder / "built")
    assert [(file.records, file.short) for file in found] == [(1, int(len(_words(text)) < n)) for text in references]
    expected = {}
    for number, text in enumerate(texts):
        first = next((ngram for ngram in _ngrams(text, n) if any(ngram in ngrams for ngrams in sets)), None)
        if first is not None:
            expected[number] = f"{next(i for i, ngrams in enumerate(sets) if first in ngrams)}.jsonl"
    assert References(folder / "built").matches([text.encode() for text in texts]) == expected


def test_a_hash_does_not_depend_on_the_position_in_a_long_text() -> None:
    ngram = b"the needle of thirteen words that lies somewhere in a very long haystack"
    needle, _ = ngram_hashes([ngram], 13)
    for before in (0, 1, 32_767, 32_768, 100_003):
        hashes, num_words = ngram_hashes([b"x" * before + b" " + ngram + b" y" * 50_000, b"", ngram], 13)
        assert (hashes == needle[1]).sum() == 2
        assert num_words.tolist() == [13 + 50_000 + bool(before), 0, 13]


def _lines(texts: list[str]) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)


@pytest.fixture
def corpus_and_references(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(2000)]
    texts = [" ".join(rng.choice(words, size=60).tolist()) for _ in range(2000)]
    for number in range(0, 2000, 100):  # with another spelling, in the middle
        shared = texts[number].split()[20:40]
        texts[number + 1] = f"Before: {', '.join(shared).upper()}! After."
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "0.jsonl").write_bytes(_lines(texts[1000:]))
    (tmp_path / "raw" / "1.jsonl").write_bytes(_lines([text for i, text in enumerate(texts[:1000]) if i % 100]))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "quiz.jsonl").write_bytes(_lines([*texts[0:500:100], "too short"]))
    (tmp_path / "tests" / "exam.jsonl").write_bytes(_lines(texts[500:1000:100]))
    return tmp_path


def _config(folder: Path, tokenizer_file: Path, **kwargs: object) -> PrepareConfig:
    fields = {
        "input": [f"{folder}/raw/*"],
        "output": folder / "data",
        "tokenizer": tokenizer_file,
        "val_share": 0.2,
        "test_share": 0,
        "unit_bytes": 50_000,
        "workers": 2,
        "decontaminate": {"against": [f"{folder}/tests/*.jsonl"]},
    }
    return PrepareConfig.model_validate({**fields, **kwargs})


@pytest.mark.usefixtures("ray")
def test_contaminated_training_documents_are_dropped_and_counted(
    corpus_and_references: Path, tokenizer_file: Path, tokenizer: Tokenizer
) -> None:
    folder = corpus_and_references
    config = _config(folder, tokenizer_file)
    ngrams = {
        name: {
            ngram
            for line in (folder / "tests" / f"{name}.jsonl").read_bytes().splitlines()
            for ngram in _ngrams(orjson.loads(line)["text"], 13)
        }
        for name in ("exam", "quiz")
    }

    def interrupt(progress: Progress) -> None:
        if progress.units_done == 2:
            raise KeyboardInterrupt

    seen: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    manifest = prepare(config, seen.append)
    everything = prepare(_config(folder, tokenizer_file, decontaminate=None, output=folder / "all"))
    kept, before = (
        [tokenizer.decode(list(file[i][:-1])) for i in range(len(file))]
        for file in (TokenFile(config.output / "train"), TokenFile(folder / "all" / "train"))
    )
    dirty = {name: [text for text in before if set(_ngrams(text, 13)) & found] for name, found in ngrams.items()}
    assert kept == [text for text in before if text not in dirty["exam"] + dirty["quiz"]]
    assert manifest.dropped == {f"contaminated by {name}.jsonl": len(texts) for name, texts in dirty.items()}
    assert all(len(texts) > 1 for texts in dirty.values())
    for suffix in ("bin", "idx"):  # held-out splits are unchanged
        assert sha256_file(config.output / f"val.{suffix}") == sha256_file(folder / "all" / f"val.{suffix}")
    assert manifest.records == sum(s.total.documents for s in manifest.splits.values()) + sum(manifest.dropped.values())
    (note,) = manifest.notes
    assert note == "decontaminate: 1 of 6 records of quiz.jsonl have fewer than 13 words and are not compared"
    assert note in {progress.note for progress in seen}
    assert everything.notes == []
    alone = prepare(_config(folder, tokenizer_file, output=folder / "alone", workers=1, unit_bytes=9000))
    assert {path.name: sha256_file(path) for path in (folder / "alone").glob("*.[bi]*")} == {
        path.name: sha256_file(path) for path in config.output.glob("*.[bi]*")
    }
    assert alone.config == manifest.config
    (folder / "tests" / "exam.jsonl").write_bytes(_lines(["other words " * 20]))
    with pytest.raises(PrepareError, match=r"another dataset: decontaminate is .*exam\.jsonl"):
        prepare(config)


def test_damaged_references_are_refused(corpus_and_references: Path, tokenizer_file: Path) -> None:
    path = corpus_and_references / "tests" / "quiz.jsonl"
    path.write_bytes(path.read_bytes() + b"{broken\n")
    files = reference_files([str(path)])
    with pytest.raises(DecontaminationError, match=r"quiz\.jsonl line 7: invalid JSON; fix it"):
        build(files, 13, 1 << 20, corpus_and_references / "built")
    assert notes([], 13) == []


@pytest.mark.slow
def test_overlap_of_real_text_equals_sets_of_ngrams(test_data: Path, tmp_path: Path) -> None:
    from data_prep.readers.records import Document, read_records

    read = read_records(test_data / "minipile" / "val.jsonl.zst", "val", 1 << 28)
    texts = [record.text for record in read if isinstance(record, Document)]
    (tmp_path / "some.jsonl").write_bytes(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts[:50]))
    build(reference_files([str(tmp_path / "some.jsonl")]), 13, 1 << 28, tmp_path / "built")
    ngrams = {ngram for text in texts[:50] for ngram in _ngrams(text, 13)}
    expected = {number for number, text in enumerate(texts) if not ngrams.isdisjoint(_ngrams(text, 13))}
    assert set(References(tmp_path / "built").matches([text.encode() for text in texts])) == expected
