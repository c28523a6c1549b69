"""Fixtures of data preparation: a small corpus with every irregularity that it must handle, and where it is prepared."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from tokenizers import Tokenizer

from data_prep.executor.ray_session import ray_session
from data_prep.tokenization.tokenizer import save_tokenizer, train_tokenizer
from data_prep.units import job_progress
from tests.helpers.inline_ray import inline_ray

_TEXT = "the quick brown fox jumps over a lazy dog while seven wizards box on café tables in 東京 🙂"
_WORDS = _TEXT.split()


def _texts(num: int, salt: int) -> list[str]:
    """Deterministic texts of very different lengths. Their numbers give enough merges for every vocabulary in these tests."""
    return [
        " ".join(f"{_WORDS[(i * i + salt + j * (i + 3)) % len(_WORDS)]} {i * j % 997}" for j in range((i * 37) % 200))
        + f"text {salt}.{i}\n"
        for i in range(num)
    ]


def _record(text: str, source: str) -> bytes:
    return json.dumps({"text": text, "meta": {"pile_set_name": source}}).encode() + b"\n"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 120 documents: zst in two frames with a bad line, gz, and plain; sources "even" and "odd"."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [[_record(text, "odd" if i % 2 else "even") for i, text in enumerate(_texts(120, salt))] for salt in (1, 2, 3)]
    lines[0].insert(60, b"{not json\n")
    lines[0].append(_record("a literal </s> and <extra_id_0> and <|endoftext|>, line\u2028separator", "even"))
    compress = zstandard.ZstdCompressor().compress
    (folder / "0.jsonl.zst").write_bytes(compress(b"".join(lines[0][:50])) + compress(b"".join(lines[0][50:])))
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[1])))
    (folder / "2.jsonl").write_bytes(b"".join(lines[2]))
    return folder


@pytest.fixture(scope="session")
def big_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One zstd frame and one plain file, about 1.2 MB each, with a few bad lines."""
    folder = tmp_path_factory.mktemp("big")
    generator = random.Random(7)
    words = [f"word{i}" for i in range(3000)]
    for name in ("a.jsonl.zst", "b.jsonl"):
        lines = []
        for i in range(3000):
            text = " ".join(generator.choices(words, k=generator.randrange(1, 100)))
            lines.append(_record(text, f"s{i % 3}") if i % 1000 else b"{bad\n")
        data = b"".join(lines)
        (folder / name).write_bytes(zstandard.ZstdCompressor().compress(data) if name.endswith("zst") else data)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(_texts(200, 9), 600)


@pytest.fixture(scope="session")
def tokenizer_file(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(tokenizer, path)
    return path


@pytest.fixture(scope="session")
def real_ray() -> Iterator[None]:
    """One Ray session with two CPUs for all tests that need processes."""
    with ray_session(2):
        yield


@pytest.fixture(scope="module", params=["inline", pytest.param("processes", marks=pytest.mark.slow)])
def ray(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For tests that prepare data: in this process, and in the slow tests on Ray's processes too."""
    if request.param == "processes":
        request.getfixturevalue("real_ray")
        yield
    else:
        with inline_ray(tmp_path_factory.mktemp("empty")):
            yield


@pytest.fixture(autouse=True)
def _all_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests act on single events, which a user is not told that often."""
    monkeypatch.setattr(job_progress, "_SECONDS_BETWEEN", 0)
