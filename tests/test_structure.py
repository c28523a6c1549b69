"""The structure of the project: allowed imports between folders, and limits on sizes and names."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("launch", "pipeline", "models", "data_prep")
MAX_ENTRIES = 16


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the four packages and the import contracts, in which tests plant imports."""
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_import_contracts_are_kept(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "6 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("pipeline/run_folder.py", "import launch.local", "launch imports pipeline"),
        ("models/config.py", "from pipeline.config import RunConfig", "launch imports pipeline"),
        ("data_prep/files.py", "def read():\n    import models.config", "launch imports pipeline"),
        ("models/layers/norm.py", "import deepspeed", "models knows nothing distributed"),
        ("data_prep/readers/records.py", "import torch", "data_prep imports no torch"),
        ("pipeline/scaling/fit/surface.py", "from pipeline.training.trainer import train", "fits of scaling laws"),
        ("pipeline/optim/lr_schedule.py", "from pipeline.engine.engine import Engine", "no folder imports in a circle"),
        ("pipeline/objectives/prefix_lm.py", "from pipeline.distributed.mesh import Mesh", "objectives make batches"),
    ],
)
def test_a_planted_import_breaks_its_contract(copy: Path, file: str, planted: str, broken: str) -> None:
    path = copy / file
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(f"{before}\n{planted}\n", encoding="utf-8")
        done = lint_imports(copy)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1
    assert any(line.startswith(broken) and line.endswith("BROKEN") for line in done.stdout.splitlines()), done.stdout


def test_no_folder_has_too_many_entries() -> None:
    folders = [
        folder
        for package in PACKAGES
        for folder in (ROOT / package, *(ROOT / package).rglob("*"))
        if folder.is_dir() and folder.name != "__pycache__"
    ]
    assert len(folders) > 40
    for folder in folders:
        entries = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
        assert len(entries) <= MAX_ENTRIES, f"{folder.relative_to(ROOT)} holds {len(entries)} entries: {', '.join(entries)}"


# Module names that occur twice outside of launch/cli (a command's file has the command's name) and of hooks/ (a hook's file has
# the name of what it runs), each with the reason.
SHARED_MODULE_NAMES = {
    "config.py": "each package has the typed configuration of its own part",
    "attention.py": "the layer, and the mixing that wraps it",
    "checkpoint.py": "the module that pipeline/checkpoint/ is named after, and `fnet-t5 checkpoint`",
    "identity.py": "the mixing's name in FNet's terms, and the check that `launch` is ours",
    "page.py": "the page that the demo shows, and the page of a report",
}


def test_no_two_modules_share_a_name_without_a_reason() -> None:
    found = defaultdict(list)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).parts
            if path.name != "__init__.py" and parts[:2] != ("launch", "cli") and "hooks" not in parts:
                found[path.name].append("/".join(parts))
    assert len(found) > 200
    shared = {name: paths for name, paths in found.items() if len(paths) > 1}
    unexplained = {name: paths for name, paths in shared.items() if name not in SHARED_MODULE_NAMES}
    assert not unexplained


def test_no_two_public_classes_share_a_name() -> None:
    """Files of an export are copied into folders without this package, so their classes repeat the names of layers."""
    found = defaultdict(list)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "exported" not in path.parts:
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                        found[node.name].append(str(path.relative_to(ROOT)))
    assert len(found) > 200
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


def test_no_function_has_more_than_60_lines() -> None:
    lines = [
        (node.end_lineno - node.lineno, f"{path.relative_to(ROOT)}: {node.name}")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    assert len(lines) > 1000
    assert not [name for number, name in lines if number >= 60]
