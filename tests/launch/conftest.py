"""What the tests of `launch` share: the checkout's folder, an environment that imports from it, and the command in-process."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
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


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The only line on stderr since the last look."""

    def read() -> str:
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "Traceback" not in message
        return message.strip()

    return read


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder made by `fnet-t5 prepare`, called as a shell calls it that has expanded a glob."""
    folder = tmp_path_factory.mktemp("dataset")
    for number in range(3):
        texts = [
            f"File {number} tells story {line} of a king and of the sea that he could not command. " * 9 for line in range(30)
        ]
        records = [{"text": text, "meta": {"pile_set_name": "Tales" if number else "Songs"}} for text in texts]
        (folder / f"{number}.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    (folder / "data.yaml").write_text("vocab_size: 420\npacking:\n  lengths: [64]\n")
    inputs = [str(folder / f"{number}.jsonl") for number in range(2)]
    arguments = ["prepare", "--input", *inputs, "--val", str(folder / "2.jsonl"), "--output", str(folder / "made")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fnet-t5", *arguments, "--config", str(folder / "data.yaml"), "packing.lengths=[64,640]"])
        with pytest.raises(SystemExit) as exit_info:
            main()
    assert not exit_info.value.code
    return folder / "made"
