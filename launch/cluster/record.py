"""What was launched: the rendered files, and a record by which `launch status`, `cancel` and `logs` find the job.

A run and a ladder keep both in `launch/` of their own folder. A dataset keeps them in `<folder>.launch/` next to it, because
its manifest lists every file of the dataset folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.files import atomic_write

RECORD = "record.json"


class LaunchRecord(BaseModel):
    """A submitted job. Keys other than the declared ones belong to its platform: see `details`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str | None] = Field(init=False)

    platform: str
    what: Literal["train", "prepare", "scaling"]
    name: str
    file: Path
    """The rendered script or manifest."""
    folder: Path
    """The run, ladder or dataset."""
    job_id: str
    """SLURM's number, the object's name in Kubernetes, Ray's submission id."""
    logs: str = ""
    """Glob of the job's log files; empty if the platform keeps the logs."""
    submitted: str
    """UTC, in ISO format."""

    @property
    def details(self) -> Mapping[str, str | None]:
        """What the platform needs to find the job again, besides its id."""
        return self.model_extra or {}


def launch_folder(folder: Path, kind: str) -> Path:
    """Where the files of a launch of this run, ladder or dataset are kept."""
    return folder.with_name(f"{folder.name}.launch") if kind == "prepare" else folder / "launch"


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write each file atomically into `folder`, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())


def now() -> str:
    """The time in UTC, in ISO format."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_record(folder: Path, record: LaunchRecord) -> None:
    """Write the record into a launch folder, in place of an earlier one."""
    write_files(folder, {RECORD: record.model_dump_json(indent=2) + "\n"})


def find_record(folder: Path) -> LaunchRecord | None:
    """The record in a launch folder, None if there is none. Raises ValueError for a damaged one."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return LaunchRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{path} is not a record of a launch ({error.error_count()} problems): remove it and launch again"
        ) from error


def read_record(folder: Path) -> LaunchRecord:
    """The latest launch of a run, ladder or dataset folder. Raises ValueError if there was none."""
    for kind in ("train", "prepare"):
        if record := find_record(launch_folder(folder, kind)):
            return record
    raise ValueError(f"{folder} was not launched on a cluster: it has no {launch_folder(folder, 'train') / RECORD}")
