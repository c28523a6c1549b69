"""A fast backend that gives wrong ids: the run starts over with the reference, and goes on with it after an interruption."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import verify
from data_prep.executor.workers import WorkerPool
from data_prep.files import sha256_file
from data_prep.prepare import prepare
from data_prep.tokenization.backends import FastBackend
from data_prep.units.job import Job
from data_prep.units.job_progress import Progress
from tests.helpers.inline_ray import inline_ray

_WRONG = b"fox"


@pytest.fixture(autouse=True)
def _in_this_process(tmp_path: Path) -> Any:
    """Workers in other processes would have the right backend."""
    with inline_ray(tmp_path):
        yield


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Small files, which are bundled, two larger ones, and one whose texts the fast backend gets wrong."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(20):
        records = [json.dumps({"text": f"small {number} {i} " * 3}) for i in range(3)]
        (folder / f"{number:02}.jsonl").write_text("\n".join(records))
    for name, word in (("a", "dog"), ("b", "cat"), ("z", _WRONG.decode())):
        records = [json.dumps({"text": f"a {word} number {i} of {name} " * 9}) for i in range(100)]
        (folder / f"{name}.jsonl").write_text("\n".join(records))
    return folder


def _config(raw: Path, output: str, **kwargs: Any) -> PrepareConfig:
    fields = {"input": [f"{raw}/*"], "output": raw.parent / output, "tokenizer": "bytes", "unit_bytes": 8000, "workers": 2}
    return PrepareConfig.model_validate({**fields, **kwargs})


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


def _break(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = FastBackend.encode

    def wrong(self: FastBackend, texts: list[bytes]) -> Any:
        ids, lengths = encode(self, texts)
        return (ids + 1 if any(_WRONG in text for text in texts) else ids), lengths

    monkeypatch.setattr(FastBackend, "encode", wrong)


def test_a_wrong_id_makes_the_run_start_over_with_the_reference(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prepare(_config(raw, "reference", engine="reference"))
    _break(monkeypatch)
    seen: list[Progress] = []
    manifest = prepare(_config(raw, "data"), seen.append)
    assert _hashes(raw.parent / "data") == _hashes(raw.parent / "reference")
    assert manifest.engine.name == expected.engine.name == "tokenizers"
    assert manifest.engine.note is not None
    assert "and tokenizers differ on b'a fox number" in manifest.engine.note
    assert any(progress.note and progress.note.endswith("starting over with the slow reference") for progress in seen)
    # Nothing is counted twice.
    assert seen[-1].total.documents == manifest.records == 360
    assert seen[-1].units_done == seen[-1].num_units
    assert manifest.units == expected.units
    assert verify(raw.parent / "data") == []


def test_units_that_are_running_are_not_committed_after_the_others_were_discarded(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of the fast backend. After a kill at this moment a resumed run would take them for the reference's."""
    _break(monkeypatch)
    left: list[set[str]] = []
    fall_back = Job.fall_back

    def watched(self: Job, reason: str) -> None:
        fall_back(self, reason)
        left.append({path.name for path in self.store.folder.iterdir()})
        assert not pools[0]._running

    pools: list[WorkerPool] = []
    begin = WorkerPool.__init__

    def kept(self: WorkerPool, *arguments: Any, **kwargs: Any) -> None:
        begin(self, *arguments, **kwargs)
        pools.append(self)

    monkeypatch.setattr(Job, "fall_back", watched)
    monkeypatch.setattr(WorkerPool, "__init__", kept)
    prepare(_config(raw, "data"))
    assert left == [set()]


@pytest.mark.parametrize("num_units", [1, 4, 25])
def test_after_an_interruption_it_goes_on_with_the_reference(raw: Path, num_units: int) -> None:
    """Also if the fast backend gives no wrong id this time: some units are committed already, and others were wrong."""
    prepare(_config(raw, "reference", engine="reference"))
    config = _config(raw, "data")
    fell_back = False

    def interrupt(progress: Progress) -> None:
        nonlocal fell_back
        fell_back |= bool(progress.note and "starting over" in progress.note)
        if fell_back and num_units <= progress.units_done < num_units + 20:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        _break(patch)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, interrupt)
    manifest = prepare(config)
    assert manifest.engine.name == "tokenizers"
    assert _hashes(config.output) == _hashes(raw.parent / "reference")
