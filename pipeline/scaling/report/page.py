"""A report on disk: one self-contained HTML page, the same as Markdown, every run as CSV, every fit as JSON."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import atomic_write
from pipeline.scaling.analysis import Analysis
from pipeline.scaling.ladder.ladder import EXCLUSION_RULES, Ladder, planned_at, stored_sha256
from pipeline.scaling.report.figures import Figure, figures
from pipeline.scaling.report.tables import (
    RUN_COLUMNS,
    Table,
    comparison_table,
    excluded_table,
    fit_tables,
    pair_tables,
    run_row,
    run_table,
    source_table,
    speed_table,
    sweep_table,
)
from pipeline.scaling.report.words import answer, limits
from pipeline.scaling.results import Collected, ResultSet

PAGE, MARKDOWN, RUNS, FITS = "index.html", "report.md", "runs.csv", "fits.json"
NOTICE = "notice.txt"
"""A file written by hand beside the page, with what readers must know first, such as that its answer is withdrawn."""
_TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    code: tuple[str, ...] = ()


def write_report(
    output: Path, collected: Collected, analyses: Sequence[Analysis], command: str, extra: Sequence[ReportSection] = ()
) -> list[Path]:
    """Write the four files into `output` and return them. `extra` sections come before the excluded runs.

    A `notice.txt` in `output` (UTF-8, paragraphs separated by blank lines) opens the page and its Markdown.
    """
    opening = answer(collected.sets[0], analyses[0])
    sections = list(_sections(collected, analyses, command, extra))
    names = ", ".join(ladder.recipe.name for _, ladder in collected.ladders)
    title = "Compute-matched comparison" + (f": {names}" if names else "")
    output.mkdir(parents=True, exist_ok=True)
    notice = _notice(output / NOTICE)
    texts = {
        PAGE: _html(title, opening, sections, notice),
        MARKDOWN: _markdown(title, opening, sections, notice),
        RUNS: _csv(collected.sets),
        FITS: json.dumps(_plain(list(analyses)), indent=1) + "\n",
    }
    for name, text in texts.items():
        with atomic_write(output / name) as file:
            file.write(text.encode())
    return [output / name for name in texts]


def _sections(
    collected: Collected, analyses: Sequence[Analysis], command: str, extra: Sequence[ReportSection]
) -> list[ReportSection]:
    sections = []
    if collected.ladders:
        sections.append(_plan_section(collected.ladders))
    for results, analysis in zip(collected.sets, analyses, strict=True):
        where = f" ({results.name})" if len(collected.sets) > 1 else ""
        sources = source_table(results, analysis)
        tables = [comparison_table(analysis), *pair_tables(results, analysis), *fit_tables(analysis), speed_table(results)]
        sections += [
            ReportSection(
                title=f"Results{where}",
                texts=(f"Measure: {results.measure}.",),
                tables=tuple(tables + ([sources] if sources else [])),
            ),
            ReportSection(title=f"Figures{where}", figures=tuple(figures(results, analysis))),
            ReportSection(title=f"Limits{where}", texts=tuple(limits(results, analysis))),
        ]
    sections += extra
    sweeps = sweep_table(collected.ladders)
    sections.append(
        ReportSection(title="Learning rates", tables=(sweeps,))
        if sweeps
        else ReportSection(title="Learning rates", texts=("Each run has the one of its recipe.",))
    )
    sections.append(ReportSection(title="Excluded runs", tables=(excluded_table(collected.excluded),)))
    sections += [ReportSection(title="Runs", tables=tuple(run_table(results) for results in collected.sets))]
    return [*sections, _provenance(collected, command)]


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
    configs = {one.point.arm: one.config["model"] for one in results}
    models = "\n".join(f"{arm}: {json.dumps(model)}" for arm, model in configs.items())
    recipes = [json.dumps(_portable(ladder), indent=1) for _, ladder in collected.ladders]
    return ReportSection(
        title="Configurations and commands",
        tables=(table,),
        code=(*commands, command, models, *recipes),
    )


def _portable(ladder: Ladder) -> dict[str, Any]:
    """The recipe without folders of this machine: the fingerprint identifies the data."""
    recipe: dict[str, Any] = ladder.recipe.model_dump(mode="json")
    recipe["data"]["path"] = Path(recipe["data"]["path"]).name
    return recipe


def _notice(path: Path) -> list[str]:
    """The paragraphs of the notice, each on one line; none if there is no such file."""
    if not path.is_file():
        return []
    paragraphs = (" ".join(block.split()) for block in path.read_text(encoding="utf-8").split("\n\n"))
    return [paragraph for paragraph in paragraphs if paragraph]


def _html(title: str, opening: Sequence[str], sections: Sequence[ReportSection], notice: Sequence[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(_TEMPLATE.read_text())
    return template.render(title=title, answer=opening, sections=sections, notice=notice)


def _markdown(title: str, opening: Sequence[str], sections: Sequence[ReportSection], notice: Sequence[str]) -> str:
    lines = [line for paragraph in notice for line in (f"> {paragraph}", ">")][:-1]
    lines += [""] if notice else []
    lines += [f"# {title}", "", *(line for sentence in opening for line in (sentence, ""))]
    for section in sections:
        lines += [f"## {section.title}", "", *(line for text in section.texts for line in (text, ""))]
        for table in section.tables:
            lines += [f"### {table.title}", "", table.note, ""]
            if table.rows:
                lines += [_row(table.columns), "|" + " --- |" * len(table.columns), *map(_row, table.rows), ""]
        lines += [line for figure in section.figures for line in (f"Figure: {figure.title}. {figure.caption}", "")]
        lines += [line for block in section.code for line in ("```", block, "```", "")]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv(sets: Sequence[ResultSet]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("set", "measured", *RUN_COLUMNS))
    for results in sets:
        for one in results.results:
            writer.writerow((results.name, results.measure, *run_row(one)))
    return out.getvalue()


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
