"""Tables on the use of the input: what they show of a made-up ladder is computed here from the files that were written."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.eval.row_losses import RowLosses, write_losses
from pipeline.scaling.analysis import analyse
from pipeline.scaling.input_checks import seed_noise
from pipeline.scaling.ladder.run_configs import runs_of
from pipeline.scaling.report.input_tables import input_tables
from pipeline.scaling.report.page import ReportedSet, opening
from pipeline.scaling.report.tables import Table
from pipeline.scaling.results import collect

AHEAD = {"fnet_t5": 0.25, "ff_only": -0.125}


@pytest.fixture
def planted(ladder_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ladder_folder, tmp_path / "ladder"))


def tables(folder: Path) -> dict[str, Table]:
    (results,) = collect([folder]).sets
    return {table.title: table for table in input_tables(results, "t5")}


def losses(ahead: float) -> RowLosses:
    """40 documents of 6 tokens; every other token lies in a bigram of the prefix, where nothing is gained."""
    document, position = np.repeat(np.arange(40), 6), np.tile(np.arange(6), 40)
    in_prefix = position % 2 == 0
    nats = 2.0 + 0.01 * (document % 7) + np.where(in_prefix, 0.0, ahead)
    return RowLosses(
        row=document.astype(np.int32),
        document=document.astype(np.int32),
        source=np.array(["Songs", "Tales"], dtype=object)[document % 2],
        position=position.astype(np.int16),
        nats=nats.astype(np.float32),
        is_text=position < 5,
        in_prefix=in_prefix,
    )


def test_differences_are_shown_by_part_of_the_text(planted: Path) -> None:
    for arm, ahead in {"t5": 0.0, **AHEAD}.items():
        write_losses(runs_of(planted) / f"{arm}-d64-seed0-b3", losses(ahead))
    table = tables(planted)["Differences by part of the text"]
    assert table.columns == ("tokens", "number", "t5", *AHEAD)
    rows = {row[0]: row for row in table.rows}
    assert rows["all text"][1] == "200"
    share = 2 / 5  # places 1 and 3 of the five that are text
    for number, ahead in enumerate(AHEAD.values()):
        assert rows["all text"][3 + number].startswith(f"{share * ahead:+.4f} (")
        assert rows["bigram occurs in the prefix"][3 + number].startswith("+0.0000 (")
        assert rows["bigram does not occur in the prefix"][3 + number].startswith(f"{ahead:+.4f} (")
        assert rows["first 4 target tokens"][3 + number].startswith(f"{0.5 * ahead:+.4f} (")
        assert rows["later target tokens"][3 + number].startswith("+0.0000 (")
    # runs that were scored on other rows are not compared
    other = losses(0.0)
    write_losses(runs_of(planted) / "ff_only-d64-seed0-b3", replace(other, document=other.document + 1))
    assert tables(planted)["Differences by part of the text"].columns == ("tokens", "number", "t5", "fnet_t5")


def test_the_table_of_jumps_has_the_crossing_of_each_run(planted: Path) -> None:
    """Shuffling costs nothing at a quarter of a run, and 0.5 nats from its half on."""
    table = tables(planted)["When order is read"]
    (results,) = collect([planted]).sets
    noise = seed_noise(results.checked.points)
    assert noise is not None
    rows = {tuple(row[:2]): dict(zip(table.columns, row, strict=True)) for row in table.rows if row[3] == "0"}
    metrics = [json.loads(line) for line in (runs_of(planted) / "t5-d32-seed0-b3" / "metrics.jsonl").read_text().splitlines()]
    least = max(0.02, 3 * noise * metrics[-1]["text_loss"])
    flops = metrics[0]["flops"] + least / 0.5 * (metrics[1]["flops"] - metrics[0]["flops"])
    assert math.isclose(float(rows["t5", "d32"]["FLOPs"]), flops, rel_tol=0.01)
    assert rows["ff_only", "d64"]["FLOPs"] == "not by the end"
    assert ("gpt2", "d64") in rows  # the made-up file has the probe for it, too
    assert "3 of 41 results were taken before that" in table.note


def test_the_use_of_the_input_is_shown_as_differences(planted: Path) -> None:
    table = tables(planted)["Use of the input, and floors"]
    row = next(dict(zip(table.columns, row, strict=True)) for row in table.rows if row[:2] == ("t5", "d96"))
    assert (row["another row's input"], row["input shuffled"], row["no input"]) == ("+2.0000", "+0.5000", "+2.5000")
    assert row["trigram floor"] == "40.000"
    gpt2 = next(dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == "gpt2")
    assert gpt2["input shuffled"] == ""


def test_with_several_objectives_each_answer_is_named(planted: Path) -> None:
    (results,) = collect([planted]).sets
    one = ReportedSet.of(results, analyse(results, "t5", num_draws=40))
    other = ReportedSet.of(replace(results, name="span_corruption"), one.analysis)
    said = opening([one, other])
    assert said[0].startswith("prefix_lm: T5 uses the order of its input")
    assert said[len(said) // 2].startswith("span_corruption: T5 uses the order")
    assert opening([one])[0].startswith("T5 uses")
