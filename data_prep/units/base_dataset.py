"""A finished dataset that a run adds files to: its documents come first, unchanged and not tokenized again.

The result is a new folder. The finished one is only read, so neither a kill nor a full disk can damage it, and training runs
that use it go on with the same rows. Both have the same settings, so the new files have the bytes of a run over all inputs
in this order: first those of the base, then the added ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep.config import PackingConfig, PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.joined import SourceNumbers, joined_source_numbers, summed_counts, summed_histograms
from data_prep.dataset.manifest import (
    AppendRecord,
    EngineRecord,
    InputRecord,
    Manifest,
    SourceCounts,
    SplitRecord,
    load_manifest,
    sources_file,
)
from data_prep.files import sha256_bytes, sha256_file
from data_prep.readers.input_files import InputFile, InputPlan, Split
from data_prep.readers.locations import sha256_location
from data_prep.tokenization.tokenizer import TOKENIZER_FILE, read_given_tokenizer
from data_prep.units.assemble import SplitContent
from data_prep.units.job import PrepareError, different_keys
from data_prep.units.notes import missing_sources, unknown_source_names
from data_prep.units.up_to_date import is_same_input

_CHUNK_BYTES = 1 << 20
# Settings that act on all documents at once: what the base would need for them is not in a finished folder.
_OF_ALL_DOCUMENTS = ("deduplicate", "mixture")
_TOKENIZER_KEYS = ("tokenizer", "vocab_size")
_SHARES = ("val_share", "test_share")
_INHERITED = ("seed", "packing", "max_record_bytes", "include_sources", "exclude_sources", *_SHARES)


def with_settings_of_base(config: PrepareConfig) -> PrepareConfig:
    """The settings of a run with `base`: those that were not given are the ones of the base. The filters must be given.

    Raises ManifestError if the base is not a finished folder.
    """
    assert config.base is not None, "a run without a base"
    there = load_manifest(config.base).config
    update = {key: there[key] for key in _INHERITED if key in there and key not in config.model_fields_set}
    if "packing" in update:
        update["packing"] = PackingConfig.model_validate(update["packing"])
    return config.model_copy(update=update)


class BaseDataset:
    """The folder `config.base`. `decisions`: the settings of the run that outputs depend on.

    Raises PrepareError if the run has other settings than the base, if one of them cannot be applied to old and new documents
    together, or if `output` is the base itself; ManifestError if the base is not a finished folder.
    """

    def __init__(self, config: PrepareConfig, decisions: Mapping[str, Any]) -> None:
        assert config.base is not None, "a run without a base"
        self.folder = config.base.absolute()
        self.manifest = load_manifest(self.folder)
        self.sha256 = self.manifest.content_sha256()
        self._config = config
        # The held-out files of the base need not exist any more: without any, all added files are training files.
        self._is_training_only = (
            self.manifest.config.get("split") == "files" and config.splits_by_hash and not config.model_fields_set & {*_SHARES}
        )
        self._validate_settings(decisions)
        self._validate_files()

    @property
    def decisions(self) -> dict[str, Any]:
        """The settings that outputs depend on, the origin of the tokenizer included."""
        return self.manifest.config

    @property
    def num_documents(self) -> int:
        """The documents of all splits."""
        return sum(record.total.documents for record in self.manifest.splits.values())

    def _validate_settings(self, decisions: Mapping[str, Any]) -> None:
        config, folder, there = self._config, self.folder, self.manifest.config
        if config.output.resolve() == folder.resolve():
            raise PrepareError(
                f"--output is {folder} itself: give another folder. The base is not changed, because training runs that use "
                "it need the same rows; delete it when no run needs it any more"
            )
        if "merged" in there:
            raise PrepareError(
                f"{folder} was merged from folders that may have different settings: prepare the added files into a folder "
                "of their own, and use `fnet-t5 data merge`"
            )
        for key in _OF_ALL_DOCUMENTS:
            if decisions.get(key) or there.get(key):
                raise PrepareError(
                    f"{key} needs all documents at once, and {folder} has no texts to compare: prepare all files in one run, "
                    f"or add files to a dataset without {key}"
                )
        here = {key: value for key, value in decisions.items() if key not in _TOKENIZER_KEYS}
        here |= {key: there[key] for key in _TOKENIZER_KEYS if key in there}
        if "vocab_size" in config.model_fields_set and "vocab_size" in there and not config.tokenizer:
            here["vocab_size"] = config.vocab_size
        if self._is_training_only:
            here = {key: value for key, value in here.items() if key not in _SHARES} | {"split": "files"}
        keys = different_keys(there, here)
        differences = [f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in keys]
        if config.tokenizer and sha256_bytes(read_given_tokenizer(config.tokenizer)) != self.manifest.tokenizer.sha256:
            differences.append(f"its tokenizer is not {config.tokenizer}")
        if differences:
            what = "these settings, and --val and --test," if "split" in keys else "these settings"
            remedy = f"Leave {what} out, or give those of the base"
            raise PrepareError(
                f"{folder} was made with other settings: {'; '.join(differences)}. {remedy}, or prepare all files in one run"
            )

    def _validate_files(self) -> None:
        for name, record in self.manifest.files.items():
            path = self.folder / name
            if ".rows_" not in name and (not path.is_file() or path.stat().st_size != record.bytes):
                raise PrepareError(f"{path}: missing or of another size than in the manifest; restore it or prepare it again")

    def added(self, plan: InputPlan) -> InputPlan:
        """The inputs that the base does not have, numbered from 0.

        Raises PrepareError if there are none, if one has the name of an input of the base and other bytes, or if one was
        prepared for another split.
        """
        if self._is_training_only:
            plan = InputPlan([replace(file, split="train") for file in plan.files], plan.notes)
        by_name = {record.name: record for record in self.manifest.inputs}
        by_size: dict[int, list[InputRecord]] = {}
        for record in self.manifest.inputs:
            by_size.setdefault(record.bytes, []).append(record)
        new = [file for file in plan.files if not self._has(file, by_name.get(file.name), by_size.get(file.bytes, []))]
        if not new:
            raise PrepareError(f"all {len(plan.files)} inputs are in {self.folder} already: there is nothing to add")
        num_known = len(plan.files) - len(new)
        notes = [f"{num_known} of {len(plan.files)} inputs are in {self.folder} already and are not read again"]
        files = [replace(file, index=index) for index, file in enumerate(new)]
        return InputPlan(files, [*plan.notes, *(notes if num_known else [])])

    def _has(self, file: InputFile, named: InputRecord | None, same_size: Sequence[InputRecord]) -> bool:
        split = file.split or "hash"
        if named is not None and is_same_input(file, named):
            return True
        # Names are paths below the folder that all inputs share: another one, and the same files have other names.
        found = next((record for record in same_size if _has_same_bytes(file, record)), None)
        if found is not None and found.split != split:
            raise PrepareError(
                f"{file}, given for {split}, has the bytes of {found.name}, which {self.folder} has for {found.split}; "
                "leave it out"
            )
        if found is None and named is not None:
            raise PrepareError(
                f"{file} has other bytes or another split than the input {file.name} of {self.folder}. If it was changed, "
                "prepare all files in one run. If it is another file, rename it, or give the old files too: then names have "
                "the folders by which they differ"
            )
        return found is not None

    def begin(self, split: Split, content: SplitContent) -> SplitContent:
        """The split with the documents of the base before those of `content`."""
        record = self.manifest.splits.get(split)
        if record is None:
            return content
        for name in (f"{split}.idx", sources_file(split)):
            if sha256_file(self.folder / name) != self.manifest.files[name].sha256:
                raise self._changed(name)
        lengths = np.array(TokenFile(self.folder / split).lengths)
        num_tokens = int(lengths.sum(dtype=np.int64))
        numbers = [
            SourceNumbers(sorted(record.sources), np.load(self.folder / sources_file(split))),
            SourceNumbers(sorted(content.sources), content.source_of),
        ]
        return SplitContent(
            lengths=np.concatenate([lengths, content.lengths]),
            source_of=joined_source_numbers(numbers),
            copies=[replace(copy, offset=copy.offset + num_tokens) for copy in content.copies],
            sources=summed_counts([record.sources, content.sources]),
            histogram=summed_histograms([record.length_histogram, content.histogram]),
        )

    def copy(self, name: str, target: BinaryIO) -> None:
        """Write the file `name`, if the base has it, to `target`. Raises PrepareError if it is not what the manifest says."""
        if name not in self.manifest.files:
            return
        digest = sha256()
        with open(self.folder / name, "rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != self.manifest.files[name].sha256:
            raise self._changed(name)

    def read_tokenizer(self) -> bytes:
        """The bytes of the tokenizer. Raises PrepareError if they are not what the manifest says."""
        data = (self.folder / TOKENIZER_FILE).read_bytes()
        if sha256_bytes(data) != self.manifest.tokenizer.sha256:
            raise self._changed(TOKENIZER_FILE)
        return data

    def _changed(self, name: str) -> PrepareError:
        return PrepareError(
            f"{self.folder / name}: its bytes changed since it was written; restore it and rerun the same command to resume"
        )

    def joined(self, added: Manifest) -> Manifest:
        """The manifest of the whole folder. `added` has its splits and files; all else in it is of the added inputs."""
        before = self.manifest
        read_now = {record.name for record in added.inputs}
        skipped = {name: why for name, why in before.skipped_inputs.items() if name not in read_now}
        remarks = (missing_sources, unknown_source_names)
        replaced = {note for remark in remarks for note in remark(self._config, before.splits, before.dropped)}
        notes = [*(note for note in before.notes if note not in replaced), *added.notes]
        record = AppendRecord(
            base=self.folder.name,
            base_sha256=self.sha256,
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=added.command,
            inputs=[record.name for record in added.inputs],
            splits=_added_counts(before.splits, added.splits),
            records=added.records,
            rejected=sum(added.rejected.values()),
            dropped=sum(added.dropped.values()),
        )
        update = {
            "inputs": [*before.inputs, *added.inputs],
            "records": before.records + added.records,
            "rejected": dict(Counter(before.rejected) + Counter(added.rejected)),
            "dropped": dict(Counter(before.dropped) + Counter(added.dropped)),
            "blank_lines": before.blank_lines + added.blank_lines,
            "skipped_inputs": {**skipped, **added.skipped_inputs},
            "notes": list(dict.fromkeys(notes)),
            "engine": _joined_engine(before.engine, added.engine),
            "units": before.units + added.units,
            "retokenized_units": before.retokenized_units + added.retokenized_units,
            "appends": [*before.appends, record],
        }
        return added.model_copy(update=update)


def _has_same_bytes(file: InputFile, record: InputRecord) -> bool:
    """Whether a file has the bytes of an input with another name. Of a remote file only the server's token is compared."""
    if isinstance(file.path, Path):
        return sha256_location(file.path) == record.sha256
    return bool(file.version) and file.version == record.version


def _added_counts(before: Mapping[str, SplitRecord], after: Mapping[str, SplitRecord]) -> dict[str, SourceCounts]:
    added = {}
    for split, record in after.items():
        old = before[split].total if split in before else SourceCounts()
        new = record.total
        counts = SourceCounts(
            documents=new.documents - old.documents, tokens=new.tokens - old.tokens, bytes=new.bytes - old.bytes
        )
        if counts.documents:
            added[split] = counts
    return added


def _joined_engine(before: EngineRecord, added: EngineRecord) -> EngineRecord:
    names = dict.fromkeys([*before.name.split(" and "), added.name])
    return EngineRecord(
        name=" and ".join(names),
        note=added.note or before.note,
        checked_documents=before.checked_documents + added.checked_documents,
    )
