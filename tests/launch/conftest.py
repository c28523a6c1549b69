"""What the tests of `launch` share: the checkout's folder, an environment that imports from it, and the command in-process."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import main

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def environment() -> dict[str, str]:
    """Environment of a process that imports this checkout, wherever it starts, and that is no rank of anything."""
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
