"""Tables of results: what a report writes can be read again, by this version and by pandas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas
import pytest

from pipeline.scaling.input_checks import input_checks
from pipeline.scaling.results import ResultSet, collect
from pipeline.scaling.run_table import COLUMNS, curves_parquet, table_csv, table_parquet


def write(folder: Path, sets: tuple[ResultSet, ...]) -> Path:
    shown = [(one.name, one.measure, one.results) for one in sets]
    (folder / "runs.csv").write_text(table_csv(shown))
    (folder / "runs.parquet").write_bytes(table_parquet(shown))
    (folder / "curves.parquet").write_bytes(curves_parquet(shown))
    return folder / "runs.csv"


def test_results_read_from_a_table_are_those_of_the_run_folders(ladder_folder: Path, tmp_path: Path) -> None:
    sets = collect([ladder_folder]).sets
    table = write(tmp_path, sets)
    again = collect([table]).sets
    assert len(again) == len(sets) == 1
    for one, other in zip(sets[0].results, again[0].results, strict=True):
        assert replace(one.point, run="") == replace(other.point, run="")
        assert one.measurements is not None
        assert replace(one.measurements, slices=()) == other.measurements
        assert one.curve == other.curve
        assert (one.shape, one.sources, one.steps, one.non_embedding) == (
            other.shape,
            other.sources,
            other.steps,
            other.non_embedding,
        )
    assert input_checks(sets[0]) == input_checks(again[0])
    (tmp_path / "second").mkdir()
    assert write(tmp_path / "second", again).read_bytes() == table.read_bytes()


def test_pandas_reads_every_column(ladder_folder: Path, tmp_path: Path) -> None:
    (results,) = collect([ladder_folder]).sets
    write(tmp_path, (results,))
    runs, curves = (pandas.read_parquet(tmp_path / name) for name in ("runs.parquet", "curves.parquet"))
    assert list(runs.columns) == ["set", "measured", *(column.name for column in COLUMNS)]
    assert runs["measure"].tolist() == [one.point.loss for one in results.results]
    assert (runs["shuffled_loss"] - runs["text_loss"])[runs["arm"] == "t5"].round(6).unique().tolist() == [0.5]
    assert runs["shuffled_loss"].isna().tolist() == (runs["arm"] == "gpt2").tolist()
    assert len(curves) == 3 * len(runs)
    assert set(curves["run"]) == set(runs["run"])


def test_what_a_table_lacks_is_not_known(ladder_folder: Path, tmp_path: Path) -> None:
    """A table of an earlier version has 24 columns; the rest is absent, not zero."""
    table = write(tmp_path, collect([ladder_folder]).sets)
    (tmp_path / "curves.parquet").unlink()
    frame = pandas.read_csv(table, dtype=str, keep_default_na=False)
    kept = [name for name in frame.columns[: 2 + 26] if name != "shape"]
    frame[kept].to_csv(table, index=False)
    (results,) = collect([table]).sets
    assert all(one.measurements is None and one.shuffle_cost is None and one.text_loss is None for one in results.results)
    checks = input_checks(results)
    assert checks.order.holds is None
    assert checks.floor.holds is None
    assert checks.control.holds is True  # it needs losses and tokens only


def test_other_files_are_refused_with_the_place(ladder_folder: Path, tmp_path: Path) -> None:
    table = write(tmp_path, collect([ladder_folder]).sets)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"notes\.csv is no table of results"):
        collect([tmp_path / "notes.csv"])
    lines = table.read_text().splitlines()
    cells = lines[3].split(",")
    cells[lines[0].split(",").index("steps")] = "many"
    table.write_text("\n".join([*lines[:3], ",".join(cells)]) + "\n")
    with pytest.raises(ValueError, match=r"runs\.csv line 4: ValueError"):
        collect([table])
