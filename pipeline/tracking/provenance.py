"""What a run was made with: the revision of the code and the versions of the packages that affect its numbers."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_prep.files import write_json_atomically

PROVENANCE = "provenance.json"
_PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "tokenizers", "mlflow")


def revision() -> str | None:
    """The git commit of this code, with `+changes` if files differ from it; None outside of a repository."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no") else commit


def read_provenance(run: Path) -> dict[str, str]:
    """What provenance.json of a run folder holds."""
    values: dict[str, str] = json.loads((run / PROVENANCE).read_bytes())
    return values


def write_provenance(run: Path) -> None:
    """Write provenance.json, which describes the latest start of a run."""
    values = {"python": platform.python_version()}
    commit = revision()
    if commit is not None:
        values["revision"] = commit
    for package in _PACKAGES:
        try:
            values[package] = version(package)
        except PackageNotFoundError:
            continue
    write_json_atomically(run / PROVENANCE, values)
