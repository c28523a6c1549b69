"""A report on disk: one self-contained HTML page, the same as Markdown, every run as CSV and Parquet, every fit as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import atomic_write
from pipeline.scaling.analysis import Analysis
from pipeline.scaling.fit.points import Excluded
from pipeline.scaling.input_checks import InputChecks, input_checks
from pipeline.scaling.ladder.ladder import EXCLUSION_RULES, Ladder, planned_at, stored_sha256
from pipeline.scaling.report.figures import figures
from pipeline.scaling.report.fit_figures import multiplier_figures
from pipeline.scaling.report.fit_tables import joint_tables
from pipeline.scaling.report.headline import carrying_figure, question, short_answer
from pipeline.scaling.report.honesty import honesty_box
from pipeline.scaling.report.input_figures import check_figure, input_figures
from pipeline.scaling.report.input_tables import input_tables
from pipeline.scaling.report.render_page import Opening, ReportPage, ReportSection, html_page, markdown_page
from pipeline.scaling.report.tables import (
    Table,
    comparison_table,
    excluded_table,
    fit_tables,
    length_table,
    pair_tables,
    run_table,
    source_table,
    speed_table,
    sweep_table,
)
from pipeline.scaling.report.words import answer, findings, left_out, limits
from pipeline.scaling.results import Collected, ResultSet
from pipeline.scaling.run_table import CURVES, curves_parquet, table_csv, table_parquet

PAGE, MARKDOWN, RUNS, FITS, TABLE = "index.html", "report.md", "runs.csv", "fits.json", "runs.parquet"


@dataclass(frozen=True)
class ReportedSet:
    """One set of results, what was computed of it, and whether it can say anything about mixing."""

    results: ResultSet
    analysis: Analysis
    checks: InputChecks

    @classmethod
    def of(cls, results: ResultSet, analysis: Analysis) -> ReportedSet:
        return cls(results, analysis, input_checks(results))


def opening(reported: Sequence[ReportedSet]) -> list[str]:
    """The checks and the statements of every set; with several sets, each begins with the name of its objective."""
    sentences = []
    for one in reported:
        found = answer(one.results, one.analysis, one.checks)
        sentences += [f"{one.results.name}: {found[0]}", *found[1:]] if len(reported) > 1 else found
    return sentences


def write_report(
    output: Path,
    collected: Collected,
    reported: Sequence[ReportedSet],
    command: str,
    extra: Sequence[ReportSection] = (),
) -> list[Path]:
    """Write the files into `output` and return them. `extra` sections come before the excluded runs."""
    names = ", ".join(ladder.recipe.name for _, ladder in collected.ladders)
    title = "Compute-matched comparison" + (f": {names}" if names else "")
    openings = tuple(_opening(one, collected.excluded, len(reported) > 1) for one in reported)
    page = ReportPage(title=title, openings=openings, sections=tuple(_sections(collected, reported, command, extra)))
    output.mkdir(parents=True, exist_ok=True)
    sets = [(one.name, one.measure, one.results) for one in collected.sets]
    texts = {
        PAGE: html_page(page).encode(),
        MARKDOWN: markdown_page(page).encode(),
        RUNS: table_csv(sets).encode(),
        TABLE: table_parquet(sets),
        CURVES: curves_parquet(sets),
        FITS: json.dumps([_fits(one) for one in reported], indent=1).encode() + b"\n",
    }
    for name, text in texts.items():
        with atomic_write(output / name) as file:
            file.write(text)
    return [output / name for name in texts]


def _opening(one: ReportedSet, excluded: Sequence[Excluded], is_named: bool) -> Opening:
    results, analysis, checks = one.results, one.analysis, one.checks
    return Opening(
        name=results.name if is_named else "",
        question=question(analysis),
        answer=tuple(short_answer(analysis, checks)),
        figure=carrying_figure(results, analysis, checks),
        box=honesty_box(results, analysis, checks, excluded),
    )


def _fits(one: ReportedSet) -> dict[str, Any]:
    """All numbers of a set, and what is said of them. `withheld` is why they say nothing about mixing; null if they do."""
    plain: dict[str, Any] = _plain(one.analysis)
    said = {
        "question": question(one.analysis),
        "short_answer": short_answer(one.analysis, one.checks),
        "answer": answer(one.results, one.analysis, one.checks),
    }
    return {**plain, "input_checks": _plain(one.checks), "withheld": one.checks.withheld, **said}


def _sections(
    collected: Collected, reported: Sequence[ReportedSet], command: str, extra: Sequence[ReportSection]
) -> list[ReportSection]:
    sections = []
    if collected.ladders:
        sections.append(_plan_section(collected.ladders))
    for one in reported:
        sections += _set_sections(one, f" ({one.results.name})" if len(reported) > 1 else "")
    sections += extra
    sweeps = sweep_table(collected.ladders)
    is_archived = all(one.folder is None for group in collected.sets for one in group.results)
    text = (
        "The table that this report was made from does not have the sweeps."
        if is_archived
        else "Each run has that of its recipe."
    )
    sections.append(
        ReportSection(title="Learning rates", tables=(sweeps,))
        if sweeps
        else ReportSection(title="Learning rates", texts=(text,))
    )
    sections.append(ReportSection(title="Excluded runs", tables=(excluded_table(collected.excluded),)))
    sections += [ReportSection(title="Runs", tables=tuple(run_table(results) for results in collected.sets))]
    return [*sections, _provenance(collected, command)]


def _set_sections(one: ReportedSet, where: str) -> Iterator[ReportSection]:
    results, analysis, withheld = one.results, one.analysis, one.checks.withheld
    sources = source_table(results, analysis)
    tables = [
        comparison_table(analysis, withheld),
        *joint_tables(analysis, withheld),
        *pair_tables(results, analysis, withheld),
        *fit_tables(analysis),
        length_table(results),
        speed_table(results),
    ]
    if withheld is None:
        yield ReportSection(title=f"Findings{where}", texts=(*findings(analysis), *left_out(results)))
    checked = None if withheld else check_figure(results, one.checks)
    yield ReportSection(
        title=f"Is the input used?{where}",
        texts=tuple(check.sentence for check in one.checks.all),
        tables=tuple(input_tables(results, analysis.baseline)),
        figures=(*([checked] if checked else []), *input_figures(results)),
    )
    multipliers = [] if withheld else multiplier_figures(analysis)
    yield ReportSection(title=f"Losses, fits and costs{where}", figures=(*multipliers, *figures(results, analysis)))
    yield ReportSection(
        title=f"Tables{where}",
        texts=(f"Measure: {results.measure}.",),
        tables=tuple(tables + ([sources] if sources else [])),
    )
    yield ReportSection(title=f"Limits{where}", texts=tuple(limits(results, analysis)))


def _plan_section(ladders: Sequence[tuple[Path, Ladder]]) -> ReportSection:
    texts = []
    for folder, ladder in ladders:
        recipe = ladder.recipe
        texts.append(
            f"{recipe.name} was planned on {planned_at(folder)}, before its runs; SHA-256 of the plan {stored_sha256(folder)}."
        )
        texts += recipe.hypotheses
        if ladder.detectable is not None and recipe.assumed is not None:
            texts.append(
                f"The design was expected to show a compute multiplier below {ladder.detectable:.3f} or above "
                f"{1 / ladder.detectable:.3f} with a power of 80 %, assuming {recipe.assumed.source}."
            )
    texts.append("Excluded, by rules fixed in advance: " + "; ".join(EXCLUSION_RULES) + ".")
    return ReportSection(title="What was planned", texts=tuple(texts))


def _provenance(collected: Collected, command: str) -> ReportSection:
    results = [one for group in collected.sets for one in group.results]
    rows = []
    for name, values in (
        ("code revisions", {one.provenance.get("revision", "unknown") for one in results}),
        ("training data (fingerprint)", {one.point.data for one in results}),
        ("tokenizer (SHA-256)", {one.point.tokenizer for one in results}),
        *((f"{package}", {one.provenance.get(package, "unknown") for one in results}) for package in ("torch", "deepspeed")),
    ):
        rows.append((name, ", ".join(sorted(values))))
    table = Table(title="Code and data", note="Of all runs in this report.", columns=("what", "value"), rows=tuple(rows))
    commands = [
        f"fnet-t5 scaling plan RECIPE.yaml --output {folder}\nfnet-t5 scaling run {folder}" for folder, _ in collected.ladders
    ]
    configs = {one.point.arm: one.config["model"] for one in results if one.config}
    models = "\n".join(f"{arm}: {json.dumps(model)}" for arm, model in configs.items())
    recipes = [json.dumps(_portable(ladder), indent=1) for _, ladder in collected.ladders]
    return ReportSection(
        title="Configurations and commands",
        tables=(table,),
        code=tuple(block for block in (*commands, command, models, *recipes) if block),
    )


def _portable(ladder: Ladder) -> dict[str, Any]:
    """The recipe without folders of this machine: the fingerprint identifies the data."""
    recipe: dict[str, Any] = ladder.recipe.model_dump(mode="json")
    recipe["data"]["path"] = Path(recipe["data"]["path"]).name
    return recipe


def _plain(value: Any) -> Any:
    """Dataclasses and arrays as JSON values. Infinity and NaN, which JSON does not have, become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {"refused": True} if type(value).__name__ == "Refused" else {}
        return {**kind, **{field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}}
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
