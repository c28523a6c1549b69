"""A foreign `models` package earlier on the path is refused before it is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.identity import ForeignPackageError, check_identity


def test_this_checkout_is_accepted() -> None:
    check_identity()


def test_an_absent_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ForeignPackageError, match=r"'fnet_t5_no_such' cannot be imported: install the project"):
        check_identity(tmp_path, ("fnet_t5_no_such",))


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    """Start the command with `tmp_path` before this checkout on the path."""
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    program = "from launch.cli import main; import sys; sys.argv = ['fnet-t5', 'train', 'no_such.yaml']; main()"

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("name", ["models/__init__.py", "pipeline.py"])
def test_a_foreign_package_is_refused_before_its_import(
    name: str, tmp_path: Path, start: Callable[[], "subprocess.CompletedProcess[str]"]
) -> None:
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("raise SystemExit('a foreign package was imported')")
    done = start()
    assert done.returncode == 1
    assert f"would be imported from {foreign.parent if foreign.name == '__init__.py' else foreign}" in done.stderr
    assert "remove that folder from PYTHONPATH" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_without_init_hides_nothing(tmp_path: Path, start: Callable[[], "subprocess.CompletedProcess[str]"]) -> None:
    (tmp_path / "data_prep").mkdir()
    assert "no_such.yaml does not exist" in start().stderr
