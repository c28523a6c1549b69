"""The table of all results of a report, one row a result: runs.csv, runs.parquet, and curves.parquet with every validation.

`read_table` makes results from a runs.csv again, so that an archived table can be reported by a later version. What the table
lacks, because an earlier version wrote it, is not known then: it is neither guessed nor computed from other columns.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.files import sha256_file
from pipeline.eval.floors import Floors
from pipeline.eval.measurements import Measurements
from pipeline.eval.scored_rows import ProbeLosses
from pipeline.scaling.curves import ValidationPoint
from pipeline.scaling.fit.points import Excluded, Point
from pipeline.scaling.run_result import RunResult

CURVES = "curves.parquet"
Kind = Literal["text", "integer", "number"]
_TYPES = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64()}
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunColumn:
    """One column of the table, with its value of a result; None where it is not known."""

    name: str
    kind: Kind
    value: Callable[[RunResult], Any]


def _measured(name: str) -> Callable[[RunResult], Any]:
    return lambda one: getattr(one.measurements, name, None)


def _probe(name: str) -> Callable[[RunResult], Any]:
    return lambda one: getattr(one.measurements and one.measurements.input_use, name, None)


def _floor(name: str) -> Callable[[RunResult], Any]:
    return lambda one: getattr(one.measurements and one.measurements.floors, name, None)


COLUMNS = (
    RunColumn("run", "text", lambda one: one.name),
    RunColumn("arm", "text", lambda one: one.point.arm),
    RunColumn("size", "text", lambda one: one.point.size),
    RunColumn("shape", "text", lambda one: one.shape),
    RunColumn("seed", "integer", lambda one: one.point.seed),
    RunColumn("objective", "text", lambda one: one.objective),
    RunColumn("budget", "number", lambda one: one.point.budget),
    RunColumn("parameters", "integer", lambda one: one.point.num_parameters),
    RunColumn("non_embedding", "integer", lambda one: one.non_embedding),
    RunColumn("raw_tokens", "number", lambda one: one.point.tokens),
    RunColumn("encoder_tokens", "number", lambda one: one.encoder_tokens),
    RunColumn("decoder_tokens", "number", lambda one: one.decoder_tokens),
    RunColumn("target_tokens", "number", lambda one: one.target_tokens),
    RunColumn("flops", "number", lambda one: one.point.flops),
    RunColumn("measure", "number", lambda one: one.point.loss),
    RunColumn("own_loss", "number", lambda one: one.own_loss),
    RunColumn("steps", "integer", lambda one: one.steps),
    RunColumn("rows", "integer", lambda one: one.rows),
    RunColumn("learning_rate", "number", lambda one: one.learning_rate),
    RunColumn("hours", "number", lambda one: one.point.seconds / 3600),
    RunColumn("tokens_per_second", "number", lambda one: one.point.tokens / one.point.seconds),
    RunColumn("flops_per_second", "number", lambda one: one.point.flops / one.point.seconds),
    RunColumn("memory_gb", "number", lambda one: one.memory_gb),
    RunColumn("epochs", "number", lambda one: one.point.epochs),
    RunColumn("revision", "text", lambda one: one.provenance.get("revision")),
    RunColumn("data", "text", lambda one: one.point.data),
    RunColumn("tokenizer", "text", lambda one: one.point.tokenizer),
    RunColumn("seconds", "number", lambda one: one.point.seconds),
    RunColumn("warmup_steps", "integer", lambda one: one.warmup_steps),
    RunColumn("needed_flops", "number", lambda one: one.needed_flops),
    RunColumn("bits_per_byte_by_source", "text", lambda one: json.dumps(one.sources) if one.sources else None),
    RunColumn("text_loss", "number", lambda one: one.text_loss),
    RunColumn("shuffle_cost", "number", lambda one: one.shuffle_cost),
    *(RunColumn(name, "number", _probe(name)) for name in ProbeLosses.__dataclass_fields__),
    *(RunColumn(name, "number", _floor(name)) for name in ("unigram_loss", "bigram_loss", "trigram_loss")),
    RunColumn("counted_tokens", "integer", _floor("counted_tokens")),
    RunColumn("scored", "text", _measured("rows")),
    RunColumn("scored_sha256", "text", _measured("text_sha256")),
    RunColumn("scored_rows", "integer", _measured("num_rows")),
    RunColumn("scored_documents", "integer", _measured("num_documents")),
    RunColumn("scored_text_tokens", "integer", _measured("text_tokens")),
)


def table_csv(sets: Sequence[tuple[str, str, Sequence[RunResult]]]) -> str:
    """All results, unrounded: sets as (name, measure, results)."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("set", "measured", *(column.name for column in COLUMNS)))
    for name, measure, results in sets:
        for one in results:
            cells = (column.value(one) for column in COLUMNS)
            writer.writerow((name, measure, *("" if cell is None else str(cell) for cell in cells)))
    return out.getvalue()


def table_parquet(sets: Sequence[tuple[str, str, Sequence[RunResult]]]) -> bytes:
    """The same with types; what is not known is null."""
    rows = [(name, measure, one) for name, measure, results in sets for one in results]
    arrays: dict[str, pa.Array] = {
        "set": pa.array([name for name, _, _ in rows], pa.string()),
        "measured": pa.array([measure for _, measure, _ in rows], pa.string()),
    }
    for column in COLUMNS:
        arrays[column.name] = pa.array([column.value(one) for _, _, one in rows], _TYPES[column.kind])
    return _parquet(arrays)


def curves_parquet(sets: Sequence[tuple[str, str, Sequence[RunResult]]]) -> bytes:
    """Every validation of every result, one row each: spent so far, and the losses."""
    rows = [(one, point) for _, _, results in sets for one in results for point in one.curve]
    arrays: dict[str, pa.Array] = {
        column.name: pa.array([column.value(one) for one, _ in rows], _TYPES[column.kind])
        for column in COLUMNS
        if column.name in ("run", "arm", "size", "seed", "objective", "budget", "parameters")
    }
    values = [asdict(point) for _, point in rows]
    for name in ValidationPoint.__dataclass_fields__:
        arrays[name] = pa.array([value[name] for value in values], pa.int64() if name == "step" else pa.float64())
    return _parquet(arrays)


def _parquet(arrays: Mapping[str, pa.Array]) -> bytes:
    out = BytesIO()
    pq.write_table(pa.table(dict(arrays)), out, compression="zstd")
    return out.getvalue()


def read_table(path: Path) -> Iterator[RunResult | Excluded]:
    """The results of a runs.csv, with the curves of the curves.parquet beside it if there is one.

    Raises ValueError if it is no such table.
    """
    curves = _read_curves(path.with_name(CURVES))
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"run", "arm", "size", "seed", "measure", "flops", "raw_tokens"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path} is no table of results: it lacks the columns {', '.join(sorted(missing))}. Give a runs.csv"
            )
        rows = list(reader)
    place = sha256_file(path)[:8]
    for number, row in enumerate(rows, start=2):
        try:
            yield _result(row, f"{row['run']} of {path.name} {place}", curves.get(row["run"], ()))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} line {number}: {type(error).__name__}: {error}; restore the file") from error


def _result(row: Mapping[str, str], run: str, curve: tuple[ValidationPoint, ...]) -> RunResult:
    def number(name: str) -> float:
        return float(row[name])

    def maybe(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    point = Point(
        run=run,
        arm=row["arm"],
        size=row["size"],
        budget=number("budget"),
        seed=int(row["seed"]),
        num_parameters=int(row["parameters"]),
        tokens=number("raw_tokens"),
        flops=number("flops"),
        loss=number("measure"),
        seconds=maybe("seconds") or 3600 * number("hours"),
        measure=row["measured"],
        data=row["data"],
        tokenizer=row.get("tokenizer") or _UNKNOWN,
        epochs=number("epochs"),
    )
    return RunResult(
        point=point,
        name=row["run"],
        folder=None,
        objective=row["objective"],
        own_loss=number("own_loss"),
        sources=json.loads(row.get("bits_per_byte_by_source") or "{}"),
        steps=int(row["steps"]),
        warmup_steps=int(row["warmup_steps"]) if row.get("warmup_steps") else None,
        rows=int(row["rows"]),
        learning_rate=number("learning_rate"),
        encoder_tokens=number("encoder_tokens"),
        decoder_tokens=number("decoder_tokens"),
        target_tokens=number("target_tokens"),
        memory_gb=maybe("memory_gb"),
        non_embedding=int(row["non_embedding"]),
        needed_flops=maybe("needed_flops"),
        shape=row.get("shape") or "",
        config={},
        provenance={"revision": row["revision"]} if row.get("revision") else {},
        measurements=_measurements(row),
        curve=curve,
    )


def _measurements(row: Mapping[str, str]) -> Measurements | None:
    """What was measured; None if the table was written by a version that did not measure it, or the run was not measured."""
    if not row.get("scored_sha256"):
        return None
    probes = {name: row[name] for name in ProbeLosses.__dataclass_fields__}
    floors = {name: row[name] for name in Floors.__dataclass_fields__}
    known = {name: float(value) for name, value in floors.items() if name != "counted_tokens" and value}
    return Measurements(
        rows=row["scored"],
        text_sha256=row["scored_sha256"],
        num_rows=int(row["scored_rows"]),
        num_documents=int(row["scored_documents"]),
        text_tokens=int(row["scored_text_tokens"]),
        text_loss=float(row["text_loss"]),
        input_use=ProbeLosses(**{name: float(value) for name, value in probes.items()}) if all(probes.values()) else None,
        floors=Floors(**known, counted_tokens=int(floors["counted_tokens"])) if all(floors.values()) else None,
        slices=(),
    )


def _read_curves(path: Path) -> dict[str, tuple[ValidationPoint, ...]]:
    if not path.is_file():
        return {}
    try:
        rows = pq.read_table(path).to_pylist()
        found: dict[str, tuple[ValidationPoint, ...]] = {}
        for row in rows:
            point = ValidationPoint(**{name: row[name] for name in ValidationPoint.__dataclass_fields__})
            found[row["run"]] = (*found.get(row["run"], ()), point)
    except (pa.ArrowException, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): restore or delete it") from error
    return found
