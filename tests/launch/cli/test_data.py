"""The data commands: prepare, inspect, verify, merge."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from launch.cli import main
from tests.helpers.datasets import tales
from tests.helpers.inline_ray import inline_ray

Command = Callable[..., int]
ErrorLine = Callable[[], str]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder made by `fnet-t5 prepare`, called with an expanded glob as from a shell."""
    folder = tmp_path_factory.mktemp("dataset")
    for number in range(3):
        records = [{"text": text, "meta": {"pile_set_name": source}} for text, source in tales(number)]
        (folder / f"{number}.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    (folder / "data.yaml").write_text("vocab_size: 420\npacking:\n  lengths: [64]\n")
    inputs = [str(folder / f"{number}.jsonl") for number in range(2)]
    arguments = ["prepare", "--input", *inputs, "--val", str(folder / "2.jsonl"), "--output", str(folder / "made")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fnet-t5", *arguments, "--config", str(folder / "data.yaml"), "packing.lengths=[64,640]"])
        with pytest.raises(SystemExit) as exit_info:
            main()
    assert not exit_info.value.code
    return folder / "made"


def test_prepare_writes_the_requested_dataset(prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in prepared.glob("*.npy")) == [
        f"{split}.{name}.npy" for split in ("train", "val") for name in ("rows_64", "rows_640", "sources")
    ]
    assert command("data", "stats", prepared) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "Songs 30",
        "Tales 30",
        "all 60",
        "640 tokens val",
        "420 ids",
        "Rejected: nothing",
        "Made by: fnet-t5 prepare --input",
    ):
        assert text in shown


def test_files_are_added_to_a_finished_dataset(
    prepared: Path, command: Command, error_line: ErrorLine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    records = [{"text": text, "meta": {"pile_set_name": "Poems"}} for text, _ in tales(7)]
    (tmp_path / "more.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    arguments = ("prepare", "--base", prepared, "--input", tmp_path / "more.jsonl", "--val", prepared.parent / "2.jsonl")
    arguments += ("--output", tmp_path / "new", "packing.lengths=[64,640]")
    with inline_ray(tmp_path):
        assert command(*arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"which begins with the documents of {prepared}; only inputs that are not in it are read;" in shown
    assert f"with the tokenizer of {prepared}, in rows of 64 and 640 tokens" in shown
    assert "1 file with 30 train documents" in shown
    assert command("data", "stats", tmp_path / "new") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("Poems 30", "Songs 30", "all 90", "Added to made at 20", "1 file with 30 train documents"):
        assert text in shown
    assert command("data", "verify", tmp_path / "new") == 0
    capsys.readouterr()
    assert command(*arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert command(*arguments, "--output", prepared) == 1
    assert "itself: give another folder" in error_line()


def test_inspect_shows_the_text(prepared: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("data", "inspect", prepared, "--split", "val", "--rows", 2, "--row-length", 64) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("tokens") >= 2
    assert "of a king and of the sea" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--split", "vall"), "has no split 'vall'; it has train, val"),
        (("--row-length", 7), "has no rows of 7 tokens; it has 64, 640"),
    ],
)
def test_inspect_names_the_valid_choices(
    arguments: tuple[object, ...], expected: str, prepared: Path, command: Command, error_line: ErrorLine
) -> None:
    assert command("data", "inspect", prepared, *arguments) == 1
    assert error_line().endswith(expected)


@pytest.mark.parametrize(
    ("objective", "arguments", "expected"),
    [
        ("prefix_lm", (), "64 encoder and 128 decoder positions and 128 targets (0.333, 0.667 and 0.667 per raw token)"),
        ("span_corruption", ("noise_density=0.5", "repeat_sentinels=true"), "<extra_id_0>"),
        ("text_infilling", (), "the token stream (there are no packed rows of this length)"),
        ("ul2", ("mode_tokens=false",), "decoder:"),
        ("masked_lm", (), "[MASK]"),
        ("causal_lm", ("--decoder-length", 576), "causal_lm on packed rows: 640 raw tokens"),
        ("span_corruption", ("--architecture", "gpt2"), "writes: <extra_id_0>"),
    ],
)
def test_inspect_shows_inputs_and_targets_of_a_model(
    objective: str,
    arguments: tuple[object, ...],
    expected: str,
    prepared: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "4000")
    options = ("--objective", objective, "--encoder-length", 64, "--rows", 2)
    assert command("data", "inspect", prepared, *arguments, *options) == 0
    shown = capsys.readouterr().out
    assert expected in shown
    assert "king" in shown


def test_inspect_shows_spans_in_colours(
    prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sentinel and its span are bright red (SGR 91) in inputs and targets."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "4000")
    assert command("data", "inspect", prepared, "--objective", "span_corruption", "--encoder-length", 64, "--rows", 1) == 0
    shown = capsys.readouterr().out
    assert shown.count("\x1b[1;91m<extra_id_0>") == 2
    assert "\x1b[91m" in shown.partition("decoder:")[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--objective", "span_coruption"), "(did you mean span_corruption?)"),
        (("noise_densty=0.5", "--objective", "span_corruption"), "did you mean objective.noise_density?"),
        (("noise_density=0.5",), "noise_density=0.5 are settings of an objective: add --objective"),
        (
            ("--objective", "causal_lm", "--architecture", "t5"),
            "take prefix_lm, span_corruption, text_infilling, ul2 or mixture",
        ),
    ],
)
def test_inspect_refuses_an_unknown_objective(
    arguments: tuple[object, ...], expected: str, prepared: Path, command: Command, error_line: ErrorLine
) -> None:
    assert command("data", "inspect", prepared, *arguments) == 1
    assert error_line().endswith(expected)


def test_verify_finds_a_changed_byte(
    prepared: Path, command: Command, capsys: pytest.CaptureFixture[str], error_line: ErrorLine
) -> None:
    assert command("data", "verify", prepared) == 0
    assert "all checksums match" in capsys.readouterr().out
    file = prepared / "val.bin"
    good = file.read_bytes()
    try:
        file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        assert command("data", "verify", prepared) == 1
        assert error_line() == f"error: {file}: its bytes changed since it was written"
    finally:
        file.write_bytes(good)


def test_prepare_without_input_names_the_option(command: Command, error_line: ErrorLine, tmp_path: Path) -> None:
    assert command("prepare", "--output", tmp_path / "x") == 1
    assert error_line() == "error: the command line: input is missing; give --input, or input=VALUE"


def test_tokenizer_train_writes_a_tokenizer(prepared: Path, command: Command, error_line: ErrorLine, tmp_path: Path) -> None:
    from data_prep.tokenization.tokenizer import load_tokenizer, num_ids

    output = tmp_path / "new" / "tokenizer.json"
    inputs = [prepared.parent / f"{number}.jsonl" for number in range(2)]
    assert command("tokenizer", "train", "--input", *inputs, "--vocab-size", 400, "--output", output) == 0
    assert num_ids(load_tokenizer(output)) == 400
    assert command("tokenizer", "train", "--input", *inputs, "--vocab-size", 400, "--output", output) == 1
    assert "exists, and datasets may depend on it" in error_line()


def test_tokenizer_bytes_writes_the_byte_tokenizer(command: Command, error_line: ErrorLine, tmp_path: Path) -> None:
    from data_prep.tokenization.tokenizer import load_tokenizer, read_given_tokenizer

    output = tmp_path / "new" / "bytes.json"
    assert command("tokenizer", "bytes", "--output", output) == 0
    assert load_tokenizer(output).encode("é").ids == [3 + 0xC3, 3 + 0xA9]
    assert output.read_bytes() == read_given_tokenizer("bytes")
    assert command("tokenizer", "bytes", "--output", output) == 1
    assert "delete it or give another --output" in error_line()


def test_damaged_folders_are_not_merged(prepared: Path, command: Command, error_line: ErrorLine, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    data = bytearray((copy / "train.bin").read_bytes())
    data[7] ^= 1
    (copy / "train.bin").write_bytes(data)
    assert command("data", "merge", prepared, copy, "--output", tmp_path / "both") == 1
    assert f"{copy}/train.bin: its bytes changed since it was written" in error_line()
    assert not (tmp_path / "both").exists()
