"""Whether a finished folder is what a run would make: same settings, same inputs, undamaged files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import InputRecord, Manifest, load_manifest
from data_prep.files import sha256_bytes
from data_prep.readers.input_files import InputFile
from data_prep.readers.locations import sha256_location
from data_prep.tokenization.tokenizer import read_given_tokenizer
from data_prep.units.job import PrepareError, different_keys
from data_prep.units.reader import FileEnd


def input_record(file: InputFile, end: FileEnd) -> InputRecord:
    """The manifest's record of an input that was read to its end."""
    # The version of a local file is its modification time, which changes when it is copied.
    version = None if isinstance(file.path, Path) else file.version
    return InputRecord(name=file.name, split=file.split or "hash", bytes=end.bytes, sha256=end.sha256, version=version)


def is_same_input(file: InputFile, there: InputRecord) -> bool:
    """Whether a file is the input of a finished folder, for the same split."""
    if (file.split or "hash") != there.split or (file.bytes and file.bytes != there.bytes):
        return False
    if file.version == there.version != "":
        return True  # a remote file is not downloaded again
    return sha256_location(file.path) == there.sha256


def up_to_date(
    config: PrepareConfig, decisions: Mapping[str, Any], files: list[InputFile], output: Path, base_sha256: str | None = None
) -> Manifest:
    """The manifest of a finished folder, if this run would make the same folder: from `files` and the dataset `base_sha256`.

    Raises PrepareError, naming all differences, if it would not.
    """
    manifest = load_manifest(output)
    keys = different_keys(manifest.config, decisions)
    differences = [f"{key} is {manifest.config.get(key)!r} there and {decisions.get(key)!r} here" for key in keys]
    if config.tokenizer and sha256_bytes(read_given_tokenizer(config.tokenizer)) != manifest.tokenizer.sha256:
        differences.append(f"its tokenizer is not {config.tokenizer}")
    there = {record.name: record for record in manifest.inputs}
    if manifest.appends and base_sha256:
        there = {name: there[name] for name in manifest.appends[-1].inputs}
    if base_sha256 != (manifest.appends[-1].base_sha256 if manifest.appends else None):
        differences.append(_other_base(config, manifest))
    here = {file.name: file for file in files if file.name not in manifest.skipped_inputs}
    differences += [f"input {name} is only there" for name in sorted(there.keys() - here.keys())]
    differences += [f"input {name} is only here" for name in sorted(here.keys() - there.keys())]
    for name in sorted(there.keys() & here.keys()):
        if not is_same_input(here[name], there[name]):
            differences.append(f"input {name} has other bytes or another split")
    differences += [
        f"{name} is damaged there"
        for name, record in manifest.files.items()
        if not (output / name).is_file() or (output / name).stat().st_size != record.bytes
    ]
    if keys == ["packing"] and len(differences) == 1:
        lengths = " ".join(map(str, config.packing.lengths))
        raise PrepareError(
            f"{output} is packed differently ({differences[0]}). Add row lengths with `fnet-t5 data pack {output} {lengths} "
            f"--method {config.packing.method}`, give another --output, or delete it"
        )
    if differences:
        remedy = "Give another --output or delete it"
        if here.keys() > there.keys() and not (config.base or config.deduplicate or config.mixture):
            remedy += f". To add files without reading the others again: --base {output} and another --output"
        raise PrepareError(f"{output} has another dataset: {'; '.join(differences)}. {remedy}")
    return manifest


def _other_base(config: PrepareConfig, manifest: Manifest) -> str:
    there = f"it begins with the documents of {manifest.appends[-1].base}" if manifest.appends else "it has no base"
    return f"{there}, and this run has " + (f"the base {config.base}" if config.base else "no base")
