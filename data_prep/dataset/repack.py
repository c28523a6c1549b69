"""Adds row indexes of further lengths to a finished dataset folder; the tokens are not changed."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.config import PackingConfig, PackingMethod
from data_prep.dataset.manifest import FileRecord, Manifest, ManifestError, load_manifest, write_manifest
from data_prep.dataset.output_files import OutputFolder
from data_prep.dataset.packing import rows_file
from data_prep.dataset.row_index import pack_split
from data_prep.files import only_writer, sha256_file


def pack_folder(folder: Path, lengths: Sequence[int], method: PackingMethod = "best_fit") -> Manifest:
    """Write `<split>.rows_<length>.npy` for every split and new length, then the manifest; return the manifest.

    A length that already exists with the same method is skipped. Raises ManifestError if it exists with another method,
    ForeignFilesError for a row index that is not ours, and TokenFileError for damaged tokens.
    """
    with only_writer(folder):
        manifest = load_manifest(folder)
        splits, files = dict(manifest.splits), dict(manifest.files)
        output = OutputFolder(folder, same=files)
        output.begin()
        for split, record in manifest.ordered_splits:
            index = folder / f"{split}.idx"
            if sha256_file(index) != files[index.name].sha256:
                raise ManifestError(f"{index}: its bytes changed since it was written; restore it or prepare again")
            there = {packed.row_length: packed.method for packed in record.packing}
            for length in lengths:
                if there.get(length, method) != method:
                    raise ManifestError(
                        f"{folder}: rows of {length} tokens exist already, packed by {there[length]}; for {method}, prepare "
                        "another folder"
                    )
            new = [length for length in sorted(set(lengths)) if length not in there]
            if not new:
                continue
            output.claim(rows_file(split, length) for length in new)
            packing = [*record.packing, *pack_split(folder, split, PackingConfig(lengths=new, method=method))]
            splits[split] = record.model_copy(update={"packing": sorted(packing, key=lambda packed: packed.row_length)})
            for length in new:
                path = folder / rows_file(split, length)
                files[path.name] = FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        packed = write_manifest(folder, manifest.model_copy(update={"splits": splits, "files": files}))
        output.end()
        return packed
