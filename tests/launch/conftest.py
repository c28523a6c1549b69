"""Fixtures of the tests of `launch`: the checkout's folder, an environment that imports from it, and the command in-process."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import main
from tests.helpers.datasets import tales, write_text_dataset

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def environment() -> dict[str, str]:
    """Environment of a process that imports this checkout from any folder and has no variables of a distributed job."""
    return {**{key: value for key, value in os.environ.items() if key != "RANK"}, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `fnet-t5 ARGUMENTS` in this process and return its exit code."""
    monkeypatch.delenv("RANK", raising=False)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["fnet-t5", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        return int(exit_info.value.code or 0)

    return run


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The only line on stderr since the last call."""

    def read() -> str:
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "Traceback" not in message
        return message.strip()

    return read


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset folder with rows of 64 and 640 tokens, written without `prepare`, which would start Ray."""
    texts = {"train": [*tales(0), *tales(1)], "val": tales(2)}
    return write_text_dataset(tmp_path_factory.mktemp("dataset") / "made", texts, [64, 640])
