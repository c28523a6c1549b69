"""Which files of a folder this program made: only these are ever deleted or replaced.

`.work/made_by_fnet_t5` marks a work folder as ours. `.work/outputs` lists the files that a run is about to write into the
dataset folder, one name a line; a name is added before its file exists. After a crash exactly the listed files are deleted.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from data_prep.config import PackingConfig
from data_prep.dataset.manifest import MANIFEST_FILE, QUARANTINE_FILE, sources_file
from data_prep.dataset.packing import rows_file
from data_prep.files import fsync_folder
from data_prep.readers.input_files import SPLITS, Split
from data_prep.tokenization.tokenizer import TOKENIZER_FILE

WORK_FOLDER = ".work"
_MARKER = "made_by_fnet_t5"
_LIST = "outputs"
_JOB = "job.json"  # its presence marks the work folders of versions without a marker
_OUTPUT = re.compile(
    rf"({'|'.join(SPLITS)})\.(bin|idx|(rows_\d+|sources)\.npy)|{re.escape(QUARANTINE_FILE)}|{re.escape(TOKENIZER_FILE)}"
)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.[0-9a-f]{8}\.tmp")


class ForeignFilesError(ValueError):
    """A folder that holds files which this program would replace and did not make."""


def split_files(split: Split, packing: PackingConfig) -> list[str]:
    """The names of a split's files in a dataset folder."""
    rows = [rows_file(split, length) for length in packing.lengths]
    return [f"{split}.bin", f"{split}.idx", sources_file(split), *rows]


class OutputFolder:
    """A dataset folder that is being written, and its work folder.

    `same`: names of files that may be there, because the run would write the same bytes.
    """

    def __init__(self, folder: Path, same: Collection[str] = ()) -> None:
        self.folder = folder
        self.work = folder / WORK_FOLDER
        self._same = frozenset(same)

    def validate(self) -> None:
        """Raise ForeignFilesError if the folder has files of our names that are not ours. Nothing is changed."""
        if self.work.is_symlink() or (self.work.exists() and not self.work.is_dir()):
            raise ForeignFilesError(f"{self.work} is no folder; move it away or give another --output")
        if self.work.is_dir() and any(self.work.iterdir()) and not self.is_ours(self.work):
            raise ForeignFilesError(
                f"{self.work} holds files that this program did not make; move them away or give another --output"
            )
        foreign = sorted(self._present() - self._claimed() - self._same)
        if foreign:
            raise ForeignFilesError(
                f"{self.folder} holds {', '.join(foreign)}, which this program did not make and would replace; move them "
                "away or give another --output"
            )

    def begin(self) -> None:
        """Make the work folder if it is missing and delete what an interrupted run left in the dataset folder."""
        self.validate()
        if not self.is_ours(self.work):
            self.work.mkdir(exist_ok=True)
            (self.work / _MARKER).write_text("Work of a run that is not finished. Without it the run starts over.\n", "utf-8")
            fsync_folder(self.work)
        claimed = self._claimed()
        for name in claimed - self._same:
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            temporary = _TEMPORARY.fullmatch(path.name)
            if temporary and temporary["name"] in {*claimed, MANIFEST_FILE}:
                path.unlink(missing_ok=True)

    def claim(self, names: Iterable[str]) -> None:
        """Record that this run is about to write the files `names`. Raises ForeignFilesError if one of them is not ours."""
        names = [name for name in names if name not in self._claimed()]
        foreign = sorted(name for name in names if name not in self._same and os.path.lexists(self.folder / name))
        if foreign:
            raise ForeignFilesError(
                f"{self.folder}: {', '.join(foreign)} appeared during the run, and this program did not make it; move it "
                "away and rerun the same command to resume"
            )
        with open(self.work / _LIST, "ab") as file:
            file.write(b"".join(name.encode() + b"\n" for name in names))
            file.flush()
            os.fsync(file.fileno())

    def empty_work_folder(self) -> None:
        """Delete everything in the work folder but its marker and the list of outputs."""
        for path in self.work.iterdir():
            if path.name not in (_MARKER, _LIST):
                _remove(path)

    def end(self) -> None:
        """Delete the work folder if it is ours."""
        if self.work.is_dir() and not self.work.is_symlink() and (self.is_ours(self.work) or not any(self.work.iterdir())):
            shutil.rmtree(self.work, ignore_errors=True)

    @staticmethod
    def is_ours(work: Path) -> bool:
        """Whether `work` is a work folder that this program made."""
        return (work / _MARKER).is_file() or ((work / _JOB).is_file() and (work / "units").is_dir())

    def _present(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if _OUTPUT.fullmatch(path.name)}

    def _claimed(self) -> set[str]:
        try:
            lines = (self.work / _LIST).read_text("utf-8").splitlines()
        except FileNotFoundError:
            return set()
        # After a power cut the last line may be incomplete: such a name matches nothing.
        return {name for name in lines if _OUTPUT.fullmatch(name)}


def is_own_output(path: Path) -> bool:
    """True for a file of a dataset folder, finished or begun: it is no input, even if a glob matches it."""
    if path.name != MANIFEST_FILE and not _OUTPUT.fullmatch(path.name):
        return False
    return (path.parent / MANIFEST_FILE).is_file() or OutputFolder.is_ours(path.parent / WORK_FOLDER)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
