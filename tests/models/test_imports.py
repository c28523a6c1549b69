"""`models/` imports only torch and numpy; the files that are copied into an export import only torch and transformers."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import models

FOLDER = Path(models.__file__).parent


def imported(path: Path) -> set[str]:
    """Top-level names of all imported modules outside of the standard library, also in functions. "." is the file's folder."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names


def test_models_imports_only_torch_and_numpy() -> None:
    files = [path for path in FOLDER.rglob("*.py") if "exported" not in path.parts]
    assert len(files) > 30
    for path in files:
        assert imported(path) <= {"torch", "numpy", "models"}, path


def test_exported_code_imports_nothing_of_this_project() -> None:
    files = list((FOLDER / "huggingface" / "exported").glob("*.py"))
    assert files
    for path in files:
        assert imported(path) <= {"torch", "transformers", "."}, path
