"""What was launched, kept beside it: the rendered file, and a record by which `launch status` and others find the job.

A run and a ladder keep both in their own folder, under `launch/`; a dataset in `<folder>.launch/` beside it, because its
manifest names every file in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.files import atomic_write

RECORD = "record.json"


class LaunchRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    platform: Literal["slurm", "kubernetes", "ray"]
    what: Literal["train", "prepare", "scaling"]
    name: str
    file: Path
    """The rendered script or manifest."""
    folder: Path
    """The run, ladder or dataset."""
    job_id: str
    """SLURM's number, the object's name in Kubernetes, Ray's submission id."""
    logs: str = ""
    """Glob of the job's log files; empty where the platform keeps them."""
    kind: str = ""
    namespace: str = ""
    context: str | None = None
    address: str = ""
    auth_mode: str = ""
    submitted: str


def launch_folder(folder: Path, what: str) -> Path:
    """Where the files of a launch of this run, ladder or dataset are kept."""
    return folder.with_name(f"{folder.name}.launch") if what == "prepare" else folder / "launch"


def keep(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write each file whole into `folder`, made where it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content.encode() if isinstance(content, str) else content)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_record(folder: Path, record: LaunchRecord) -> None:
    keep(folder, {RECORD: record.model_dump_json(indent=2) + "\n"})


def read_record(folder: Path) -> LaunchRecord:
    """The latest launch of a run, ladder or dataset folder. Raises ValueError where there was none."""
    for what in ("train", "prepare"):
        path = launch_folder(folder, what) / RECORD
        if path.is_file():
            try:
                return LaunchRecord.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise ValueError(f"{path} is no record of a launch ({error.error_count()} problems): launch again") from error
    raise ValueError(f"{folder} was not launched on a cluster: it has no {launch_folder(folder, 'train') / RECORD}")
