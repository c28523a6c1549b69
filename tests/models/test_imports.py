"""`models/` imports torch and numpy alone; the files that go out with an export import torch and transformers alone."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import models

FOLDER = Path(models.__file__).parent


def imported(path: Path) -> set[str]:
    """First parts of every module that a file imports beside Python's own, inside functions too; "." is its own folder."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names


def test_models_imports_torch_and_numpy_alone() -> None:
    files = [path for path in FOLDER.rglob("*.py") if "exported" not in path.parts]
    assert len(files) > 30
    for path in files:
        assert imported(path) <= {"torch", "numpy", "models"}, path


def test_exported_code_imports_nothing_of_ours() -> None:
    for path in (FOLDER / "huggingface" / "exported").glob("*.py"):
        assert imported(path) <= {"torch", "transformers", "."}, path
