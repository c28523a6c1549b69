"""Readers and workers that die in the middle: what was given is not given again, and nothing is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from data_prep.config import PrepareConfig
from data_prep.executor.workers import WorkerError, _Worker
from data_prep.files import sha256_file
from data_prep.prepare import prepare
from data_prep.units.scheduler import _ReaderActor
from tests.helpers.inline_ray import inline_ray


@pytest.fixture(autouse=True)
def _in_this_process(tmp_path: Path) -> Iterator[None]:
    with inline_ray(tmp_path):
        yield


def _config(corpus: Path, output: Path, tokenizer_file: Path, **kwargs: Any) -> PrepareConfig:
    fields = {"input": [f"{corpus}/[01]*"], "output": output, "tokenizer": tokenizer_file, "unit_bytes": 6000, "workers": 2}
    return PrepareConfig.model_validate({**fields, "max_bad_share": 0.01, **kwargs})


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


def _dying(method: Callable[..., Any], deaths: set[int]) -> Callable[..., Any]:
    """`method`, whose actor dies in the calls with the numbers `deaths`."""
    calls = 0

    def call(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in deaths:
            raise ray.exceptions.ActorDiedError()
        return method(self, *arguments)

    return call


@pytest.mark.parametrize("deaths", [{1}, {4}, {2, 9}, {30, 31}])
def test_a_reader_that_dies_is_replaced_and_gives_no_block_twice(
    corpus: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: set[int]
) -> None:
    alone = prepare(_config(corpus, tmp_path / "alone", tokenizer_file))
    assert alone.units > 25
    monkeypatch.setattr(_ReaderActor, "next", _dying(_ReaderActor.next, deaths))
    manifest = prepare(_config(corpus, tmp_path / "data", tokenizer_file))
    assert _hashes(tmp_path / "data") == _hashes(tmp_path / "alone")
    assert (manifest.units, manifest.retokenized_units) == (alone.units, 0)


def test_a_reader_that_always_dies_fails_the_job_and_names_the_file(
    corpus: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ReaderActor, "next", _dying(_ReaderActor.next, {*range(1000)}))
    with pytest.raises(WorkerError, match=r"0\.jsonl\.zst: its reader died 3 times \(ActorDiedError\).*smaller unit_bytes"):
        prepare(_config(corpus, tmp_path / "data", tokenizer_file))


@pytest.mark.parametrize("deaths", [{1}, {7, 8}])
def test_a_worker_that_dies_is_replaced_and_its_unit_is_done_again(
    corpus: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: set[int]
) -> None:
    prepare(_config(corpus, tmp_path / "alone", tokenizer_file))
    monkeypatch.setattr(_Worker, "call", _dying(_Worker.call, deaths))
    manifest = prepare(_config(corpus, tmp_path / "data", tokenizer_file))
    assert _hashes(tmp_path / "data") == _hashes(tmp_path / "alone")
    assert manifest.retokenized_units == len(deaths)
