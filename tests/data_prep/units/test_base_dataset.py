"""Files added to a finished dataset: the bytes of one run over all files, and the dataset that they are added to is intact."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import PrepareConfig
from data_prep.dataset.indexed_dataset import TokenFile
from data_prep.dataset.manifest import Manifest, ManifestError, load_manifest, verify
from data_prep.dataset.merge import merge
from data_prep.dataset.repack import pack_folder
from data_prep.files import sha256_file
from data_prep.prepare import prepare
from data_prep.tokenization.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from data_prep.units.job import PrepareError
from data_prep.units.job_progress import Progress

pytestmark = pytest.mark.usefixtures("ray")

# What an append may change in the manifest of one run over all files: times, and who made what when.
_OWN = {"command", "stage_seconds", "retokenized_units", "manifest_sha256", "appends", "notes", "engine"}


def _config(folder: Path, output: str, tokenizer_file: Path | None, **kwargs: Any) -> PrepareConfig:
    fields = {
        "input": [f"{folder}/raw/*"],
        "output": folder / output,
        "tokenizer": tokenizer_file,
        "val_share": 0.1,
        "test_share": 0.05,
        "max_bad_share": 0.1,
        "unit_bytes": 9000,
        "packing": {"lengths": [64, 640]},
    }
    return PrepareConfig.model_validate({**fields, **kwargs})


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


def _state(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, sha256_file(p)) for p in folder.rglob("*") if p.is_file()}


def _facts(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(exclude=_OWN)


def _texts(folder: Path, split: str) -> list[str]:
    tokenizer, file = load_tokenizer(folder / "tokenizer.json"), TokenFile(folder / split)
    return [tokenizer.decode(file[i].tolist()[:-1]) for i in range(len(file))]


def _write(path: Path, num: int, source: str, word: str = "word") -> None:
    path.parent.mkdir(exist_ok=True)
    records = [{"text": f"{path.name} {word} {i} " * (1 + i % 9), "meta": {"pile_set_name": source}} for i in range(num)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(corpus: Path, tmp_path: Path, tokenizer_file: Path) -> Path:
    """`raw/` with the corpus, and `old/`, made from all of it but the last file."""
    shutil.copytree(corpus, tmp_path / "raw")
    prepare(_config(tmp_path, "old", tokenizer_file, input=[f"{tmp_path}/raw/[01]*"]), command="the first")
    return tmp_path


def test_the_bytes_are_those_of_one_run_over_all_files(folder: Path, tokenizer_file: Path) -> None:
    before = _state(folder / "old")
    config = _config(folder, "new", tokenizer_file, base=folder / "old")
    seen: list[Progress] = []
    manifest = prepare(config, seen.append, command="the second")
    fresh = prepare(_config(folder, "fresh", tokenizer_file))
    assert _hashes(folder / "new") == _hashes(folder / "fresh")
    assert _facts(manifest) == _facts(fresh)
    assert manifest.fingerprint() == fresh.fingerprint() != load_manifest(folder / "old").fingerprint()
    assert manifest.engine.name == fresh.engine.name
    assert manifest.rejected == {"invalid JSON": 1}
    assert verify(folder / "new") == []
    assert _state(folder / "old") == before
    # Only the added file was read and tokenized.
    old = load_manifest(folder / "old")
    assert seen[-1].units_done == manifest.units - old.units
    assert f"2 of 3 inputs are in {folder / 'old'} already and are not read again" in {progress.note for progress in seen}
    (record,) = manifest.appends
    assert (record.base, record.command, record.inputs) == ("old", "the second", ["2.jsonl"])
    for split, counts in record.splits.items():
        total = fresh.splits[split].total
        assert counts.documents + old.splits[split].total.documents == total.documents
        assert counts.tokens + old.splits[split].total.tokens == total.tokens
        assert counts.bytes + old.splits[split].total.bytes == total.bytes
    assert sum(counts.documents for counts in record.splits.values()) == record.records == 120
    assert record.time.endswith("+00:00")


def test_the_same_again_has_nothing_to_do_and_another_base_is_refused(folder: Path, tokenizer_file: Path) -> None:
    config = _config(folder, "new", tokenizer_file, base=folder / "old")
    manifest = prepare(config)
    before = _state(folder / "new")
    assert prepare(config) == manifest
    # Also if the old inputs are gone, and after rows of another length were added to the base.
    pack_folder(folder / "old", [32])
    only_new = config.model_copy(update={"input": [f"{folder}/raw/2*"]})
    assert prepare(only_new) == manifest
    assert _state(folder / "new") == before
    expected = (
        r"another dataset: it begins with the documents of old, and this run has no base\. Give another --output or delete it$"
    )
    with pytest.raises(PrepareError, match=expected):
        prepare(_config(folder, "new", tokenizer_file))
    prepare(_config(folder, "other", tokenizer_file, input=[f"{folder}/raw/0*"]))
    with pytest.raises(PrepareError, match=r"it begins with the documents of old, and this run has the base .*other"):
        prepare(_config(folder, "new", tokenizer_file, base=folder / "other"))
    with pytest.raises(PrepareError, match=rf"all 2 inputs are in {folder}/old already: there is nothing to add"):
        prepare(_config(folder, "newer", tokenizer_file, base=folder / "old", input=[f"{folder}/raw/[01]*"]))
    assert not (folder / "newer").exists()
    # A run over more files than a finished folder has names the way to add them.
    with pytest.raises(PrepareError, match=rf"input 2\.jsonl is only here\. .*--base {folder}/old and another --output"):
        prepare(_config(folder, "old", tokenizer_file))
    assert _state(folder / "new") == before


def test_several_additions_with_new_sources_and_held_out_files_equal_one_run(tmp_path: Path, tokenizer_file: Path) -> None:
    """Sources are numbered by name: new ones come before, between and after the old ones, and a split is only in one part."""
    sources = {"a": "m", "b": "c", "c": "x", "d": "m"}
    for name, source in sources.items():
        _write(tmp_path / "raw" / f"{name}.jsonl", 40 + ord(name), source)
    for name in ("p", "q"):
        _write(tmp_path / "val" / f"{name}.jsonl", 20, "held out" if name == "p" else "a")
    _write(tmp_path / "quiz.jsonl", 30, "quiz")

    def config(output: str, names: str, val: str, **kwargs: Any) -> PrepareConfig:
        files = {"input": [f"{tmp_path}/raw/[{names}].jsonl"], "val": [f"{tmp_path}/val/[{val}].jsonl"]}
        return _config(tmp_path, output, tokenizer_file, **files, expected_sources=["x", "y"], **kwargs)

    fresh = prepare(config("fresh", "abcd", "pq", test=[f"{tmp_path}/quiz.jsonl"]))
    assert prepare(config("one", "ab", "p")).notes == ["2 of 2 expected sources are missing: x, y"]
    two = prepare(config("two", "abc", "p", base=tmp_path / "one"))
    assert "1 of 2 expected sources are missing: y" in two.notes
    assert not any("2 of 2 expected" in note for note in two.notes)
    three = prepare(config("three", "d", "pq", test=[f"{tmp_path}/quiz.jsonl"], base=tmp_path / "two"))
    assert _hashes(tmp_path / "three") == _hashes(tmp_path / "fresh")
    assert three.splits == fresh.splits
    assert [record.inputs for record in three.appends] == [["raw/c.jsonl"], ["raw/d.jsonl", "val/q.jsonl", "quiz.jsonl"]]
    assert set(three.appends[1].splits) == {"train", "val", "test"}
    assert (three.records, three.units) == (fresh.records, fresh.units)


def test_added_documents_come_last_whatever_their_names(folder: Path, tokenizer_file: Path) -> None:
    _write(folder / "raw" / "-first.jsonl", 50, "new")
    prepare(_config(folder, "alone", tokenizer_file, input=[f"{folder}/raw/-first*"]))
    prepare(_config(folder, "new", tokenizer_file, input=[f"{folder}/raw/-first*"], base=folder / "old"))
    for split in ("train", "val"):
        assert _texts(folder / "new", split) == _texts(folder / "old", split) + _texts(folder / "alone", split)


@pytest.mark.parametrize("stage", ["tokenizer", "tokenize", "assemble val", "pack train", "checksums"])
def test_an_interruption_leaves_the_base_and_resumes(folder: Path, tokenizer_file: Path, stage: str) -> None:
    before = _state(folder / "old")
    config = _config(folder, "new", tokenizer_file, base=folder / "old")

    def interrupt(progress: Progress) -> None:
        if progress.stage == stage and (stage != "tokenize" or progress.units_done == 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    assert not (folder / "new" / "manifest.json").exists()
    assert _state(folder / "old") == before
    manifest = prepare(config)
    prepare(_config(folder, "fresh", tokenizer_file))
    assert _hashes(folder / "new") == _hashes(folder / "fresh")
    assert manifest.retokenized_units == 0 or stage == "tokenize"
    assert _state(folder / "old") == before


def test_an_unfinished_addition_is_resumed_only_with_its_own_base(folder: Path, tokenizer_file: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "assemble train":
            raise KeyboardInterrupt

    added = {"input": [f"{folder}/raw/2*"]}
    with pytest.raises(KeyboardInterrupt):
        prepare(_config(folder, "new", tokenizer_file, base=folder / "old", **added), interrupt)
    prepare(_config(folder, "other", tokenizer_file, input=[f"{folder}/raw/0*"]))
    with pytest.raises(PrepareError, match=r"unfinished work of another run: --base is not the dataset that it was begun with"):
        prepare(_config(folder, "new", tokenizer_file, base=folder / "other", **added))
    with pytest.raises(PrepareError, match=r"--base is not the dataset that it was begun with"):
        prepare(_config(folder, "new", tokenizer_file, **added))
    # Where it is does not matter.
    (folder / "old").rename(folder / "moved")
    assert prepare(_config(folder, "new", tokenizer_file, base=folder / "moved", **added)).retokenized_units == 0


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["train.bin", "val.idx", "train.sources.npy", "quarantine.jsonl", "tokenizer.json"])
def test_a_damaged_base_is_found_and_the_work_is_kept(folder: Path, tokenizer_file: Path, name: str) -> None:
    path = folder / "old" / name
    before = path.read_bytes()
    _flip(path)
    config = _config(folder, "new", tokenizer_file, base=folder / "old")
    with pytest.raises(PrepareError, match=rf"old/{name}: its bytes changed since it was written; restore it and rerun"):
        prepare(config)
    assert not (folder / "new" / "manifest.json").exists()
    path.write_bytes(before[:-1])
    with pytest.raises(PrepareError, match=rf"old/{name}: missing or of another size than in the manifest"):
        prepare(config)
    path.write_bytes(before)
    assert prepare(config).retokenized_units == 0
    assert verify(folder / "new") == []


def test_an_old_input_is_known_by_its_bytes(folder: Path, tokenizer_file: Path) -> None:
    config = _config(folder, "new", tokenizer_file, base=folder / "old")
    before = (folder / "raw" / "1.jsonl.gz").read_bytes()
    _flip(folder / "raw" / "1.jsonl.gz")
    with pytest.raises(PrepareError, match=r"raw/1\.jsonl\.gz has other bytes or another split than the input 1\.jsonl\.gz"):
        prepare(config)
    assert not (folder / "new").exists()
    (folder / "raw" / "1.jsonl.gz").write_bytes(before)
    # Another time, another name, and other names because an added file is in another folder: the same input.
    os.utime(folder / "raw" / "0.jsonl.zst", ns=(1, 1))
    (folder / "raw" / "1.jsonl.gz").rename(folder / "raw" / "renamed.jsonl.gz")
    _write(folder / "more" / "0.jsonl", 60, "more")
    manifest = prepare(
        _config(folder, "new", tokenizer_file, base=folder / "old", input=[f"{folder}/raw/*", f"{folder}/more/*"])
    )
    assert manifest.appends[0].inputs == ["more/0.jsonl", "raw/2.jsonl"]
    assert manifest.records == 362 + 60
    # A further file with the name of an old one, given alone, needs the old ones for a name of its own.
    _write(folder / "third" / "2.jsonl", 10, "third")
    shutil.copy(folder / "raw" / "2.jsonl", folder / "second.jsonl")
    with_two = prepare(_config(folder, "two", tokenizer_file, base=folder / "old", input=[f"{folder}/raw/2.jsonl"]))
    assert with_two.inputs[-1].name == "2.jsonl"
    with pytest.raises(PrepareError, match=r"third/2\.jsonl has other bytes .* give the old files too: then names have"):
        prepare(_config(folder, "three", tokenizer_file, base=folder / "two", input=[f"{folder}/third/2.jsonl"]))
    both = [f"{folder}/third/2.jsonl", f"{folder}/second.jsonl"]
    three = prepare(_config(folder, "three", tokenizer_file, base=folder / "two", input=both))
    assert three.appends[-1].inputs == ["third/2.jsonl"]


def test_text_of_the_base_is_not_added_to_another_split(tmp_path: Path, tokenizer_file: Path) -> None:
    for name in ("a", "b", "v"):
        _write(tmp_path / "raw" / f"{name}.jsonl", 40, "s")
    held_out = {"val": [f"{tmp_path}/raw/v.jsonl"]}
    prepare(_config(tmp_path, "old", tokenizer_file, input=[f"{tmp_path}/raw/a.jsonl"], **held_out))
    shutil.copy(tmp_path / "raw" / "v.jsonl", tmp_path / "raw" / "train.jsonl")
    added = {"input": [f"{tmp_path}/raw/train.jsonl"], "val": [f"{tmp_path}/raw/b.jsonl"]}
    with pytest.raises(
        PrepareError, match=r"train\.jsonl, given for train, has the bytes of v\.jsonl, which .*old has for val"
    ):
        prepare(_config(tmp_path, "new", tokenizer_file, base=tmp_path / "old", **added))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"seed": 3},
            r"seed is 0 there and 3 here\. Leave these settings out, or give those of the base, or prepare all files",
        ),
        ({"val_share": 0.2}, r"val_share is 0\.1 there and 0\.2 here"),
        ({"packing": {"lengths": [64]}}, r"packing is .*640.* there and .* here"),
        ({"exclude_sources": ["odd"]}, r"exclude_sources is \[\] there and \['odd'\] here"),
        ({"language": {"keep": ["en"]}}, r"language is None there and"),
        ({"max_record_bytes": 7}, r"max_record_bytes is"),
        (
            {"val": ["raw/0.jsonl.zst"]},
            r"split is 'hash' there and 'files' here.*Leave these settings, and --val and --test, out",
        ),
        ({"deduplicate": True}, r"deduplicate needs all documents at once, and .*old has no texts to compare"),
        ({"mixture": {"epochs": {"odd": 2}}}, r"mixture needs all documents at once"),
        ({"tokenizer_file": "bytes"}, r"its tokenizer is not bytes"),
        ({"output": "old"}, r"--output is .*old itself: give another folder\. The base is not changed, because training runs"),
        ({"output": "raw/../old"}, r"--output is .*old itself"),
    ],
)
def test_other_settings_are_refused_by_key_before_anything_is_read(
    folder: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(folder)
    before = _state(folder)
    with pytest.raises(PrepareError, match=words):
        prepare(_config(folder, **{"output": "new", "tokenizer_file": tokenizer_file, "base": folder / "old", **changes}))
    assert _state(folder) == before


def test_the_base_must_be_finished_and_not_merged(folder: Path, tokenizer_file: Path) -> None:
    with pytest.raises(ManifestError, match=r"raw/manifest\.json: no manifest, so this is no finished dataset"):
        prepare(_config(folder, "new", tokenizer_file, base=folder / "raw"))
    config = _config(folder, "more", tokenizer_file, input=[f"{folder}/raw/2*"])
    prepare(config)
    merge([folder / "old", folder / "more"], folder / "both", config.packing)
    with pytest.raises(PrepareError, match=r"both was merged from folders .* use `fnet-t5 data merge`"):
        prepare(_config(folder, "new", tokenizer_file, base=folder / "both"))


def test_a_trained_tokenizer_is_that_of_the_base(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "raw")
    trained = {"vocab_size": 500}
    prepare(_config(tmp_path, "old", None, input=[f"{tmp_path}/raw/[01]*"], **trained))
    manifest = prepare(_config(tmp_path, "new", None, base=tmp_path / "old", **trained))
    assert manifest.tokenizer == load_manifest(tmp_path / "old").tokenizer
    assert (tmp_path / "new" / "tokenizer.json").read_bytes() == (tmp_path / "old" / "tokenizer.json").read_bytes()
    # One run with this tokenizer given.
    prepare(_config(tmp_path, "fresh", tmp_path / "old" / "tokenizer.json"))
    assert _hashes(tmp_path / "new") == _hashes(tmp_path / "fresh")
    # The settings of the tokenizer need not be repeated; other ones are refused.
    prepare(_config(tmp_path, "newer", None, base=tmp_path / "old"))
    assert _hashes(tmp_path / "newer") == _hashes(tmp_path / "fresh")
    prepare(_config(tmp_path, "given", tmp_path / "old" / "tokenizer.json", base=tmp_path / "old"))
    assert _hashes(tmp_path / "given") == _hashes(tmp_path / "fresh")
    with pytest.raises(PrepareError, match="vocab_size is 500 there and 600 here"):
        prepare(_config(tmp_path, "other", None, base=tmp_path / "old", vocab_size=600))
    save_tokenizer(train_tokenizer(["other text"] * 3, 400), tmp_path / "other.json")
    with pytest.raises(PrepareError, match=r"its tokenizer is not .*other\.json"):
        prepare(_config(tmp_path, "other", tmp_path / "other.json", base=tmp_path / "old"))


def test_a_file_that_was_skipped_is_added_when_it_can_be_read(folder: Path, tokenizer_file: Path) -> None:
    def vanish(progress: Progress) -> None:
        if progress.stage == "tokenizer":
            (folder / "raw" / "2.jsonl").unlink(missing_ok=True)

    data = (folder / "raw" / "2.jsonl").read_bytes()
    config = _config(folder, "partly", tokenizer_file, on_unreadable="skip")
    assert list(prepare(config, vanish).skipped_inputs) == ["2.jsonl"]
    (folder / "raw" / "2.jsonl").write_bytes(data)
    manifest = prepare(_config(folder, "new", tokenizer_file, base=folder / "partly"))
    assert manifest.skipped_inputs == {}
    prepare(_config(folder, "fresh", tokenizer_file))
    assert _hashes(folder / "new") == _hashes(folder / "fresh")


def test_a_manifest_without_additions_has_the_bytes_of_earlier_versions(folder: Path) -> None:
    fields = json.loads((folder / "old" / "manifest.json").read_bytes())
    assert "appends" not in fields
    assert load_manifest(folder / "old").appends == []


def test_bad_records_are_counted_against_the_added_files(folder: Path, tokenizer_file: Path) -> None:
    (folder / "raw" / "3.jsonl").write_bytes(b'{"text": "good"}\n{broken\n{broken\n')
    added = {"input": [f"{folder}/raw/3*"], "base": folder / "old"}
    with pytest.raises(PrepareError, match=r"2 of 3 records are bad, above max_bad_share 0\.1: 3\.jsonl line 2"):
        prepare(_config(folder, "new", tokenizer_file, **added))
    manifest = prepare(_config(folder, "new", tokenizer_file, **added, max_bad_share=1))
    assert manifest.rejected == {"invalid JSON": 3}
    lines = [json.loads(line) for line in (folder / "new" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"]) for line in lines] == [("0.jsonl.zst", 61), ("3.jsonl", 2), ("3.jsonl", 3)]


def test_settings_that_are_not_given_are_those_of_the_base(folder: Path, tokenizer_file: Path) -> None:
    given = {"base": folder / "old", "input": [f"{folder}/raw/2*"], "output": folder / "new", "max_bad_share": 0.1}
    prepare(PrepareConfig.model_validate(given))
    prepare(_config(folder, "fresh", tokenizer_file))
    assert _hashes(folder / "new") == _hashes(folder / "fresh")


def test_added_files_are_training_files_where_the_held_out_ones_are_gone(folder: Path, tokenizer_file: Path) -> None:
    for name in ("val", "more"):
        _write(folder / "held" / f"{name}.jsonl", 30, "s")
    by_files = {"val": [f"{folder}/held/val.jsonl"], "packing": {"lengths": [64]}, "max_bad_share": 0.1}
    first = {"input": [f"{folder}/raw/[01]*"], "output": folder / "by_files", "tokenizer": tokenizer_file, **by_files}
    base = prepare(PrepareConfig.model_validate(first))
    (folder / "held" / "val.jsonl").unlink()
    added = {"base": folder / "by_files", "input": [f"{folder}/held/more.jsonl"], "output": folder / "new"}
    manifest = prepare(PrepareConfig.model_validate(added))
    assert manifest.splits["val"] == base.splits["val"]
    assert manifest.splits["train"].total.documents == base.splits["train"].total.documents + 30
    assert set(manifest.splits) == {"train", "val"}
    assert _texts(folder / "new", "train")[-30:] == [f"more.jsonl word {i} " * (1 + i % 9) for i in range(30)]
    with pytest.raises(PrepareError, match=r"val_share is None there and 0\.5 here"):
        prepare(PrepareConfig.model_validate({**added, "output": folder / "other", "val_share": 0.5}))
