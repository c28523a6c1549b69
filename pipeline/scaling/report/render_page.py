"""A report as one HTML page and as Markdown: the same parts in the same order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from pipeline.scaling.report.drawing import Figure, Panel
from pipeline.scaling.report.honesty import TITLE, HonestyBox
from pipeline.scaling.report.tables import Table

_TEMPLATE, _STYLE = Path(__file__).with_name("page.html.j2"), Path(__file__).with_name("page.css")
_NUMBER = re.compile(r"[-+≤≥]?\s?[\d,]*\.?\d+(e[-+]?\d+)?( %| M| s)?( x \d+)?( \([\d.]+\))?")


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    code: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What stands first, of one set of results: its name if there are several sets, the answer, the figure, the box."""

    name: str
    question: str
    answer: tuple[str, ...]
    figure: Figure | None
    box: HonestyBox


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """A whole report, before it is written in a format."""

    title: str
    openings: tuple[Opening, ...]
    sections: tuple[ReportSection, ...]


def html_page(page: ReportPage) -> str:
    """One page that loads nothing: style and figures are inside."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["inline"] = lambda text: Markup(_inline(text))
    environment.filters["shown"] = _without_empty_columns
    environment.filters["numeric"] = _numeric_columns
    number = iter(range(1, 10_000))
    environment.globals["drawn"] = lambda panel: Markup(_with_own_ids(panel, next(number)))
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(page=page, box_title=TITLE, style=Markup(_STYLE.read_text(encoding="utf-8")))


def _inline(text: str) -> str:
    """Plain text with `code` and links to arXiv."""
    text = str(escape(_plain_numbers(text)))
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', text)


def _plain_numbers(text: str) -> str:
    """8e12 instead of 8e+12."""
    return re.sub(r"(?<=\d)e\+(?=\d)", "e", text)


def _without_empty_columns(table: Table) -> Table:
    """Tables of earlier versions lack some values; a column of which nothing is known is left out."""
    kept = [number for number in range(len(table.columns)) if any(row[number] for row in table.rows)]
    rows = tuple(tuple(row[number] for number in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[number] for number in kept), rows=rows) if rows else table


def _numeric_columns(table: Table) -> list[bool]:
    """Columns of numbers, other than the first one, are set flush right."""
    columns = zip(*table.rows, strict=True)
    return [number > 0 and all(not cell or _NUMBER.fullmatch(cell) for cell in one) for number, one in enumerate(columns)]


def _with_own_ids(panel: Panel, number: int) -> str:
    """The SVG with ids that no other panel has, and its alternative text."""
    prefix = f"p{number}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', panel.svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    svg = svg.replace("url(#", f"url(#{prefix}")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(panel.alt)}"', 1)


def markdown_page(page: ReportPage) -> str:
    """The same parts; of figures their captions and what they show."""
    lines = [f"# {page.title}", ""]
    for one in page.openings:
        where = f": {one.name}" if one.name else ""
        lines += [f"**Question{where}.** {one.question}", "", f"## Answer{where}", ""]
        lines += [line for sentence in one.answer for line in (sentence, "")]
        lines += [*(_figure(one.figure) if one.figure else ()), f"## {TITLE}{where}", ""]
        rows = [(row.needed, row.result, row.found) for row in one.box.checks]
        lines += _rows(("check", "result", "found"), rows)
        lines += [*(f"- {subject}: {text}" for subject, text in one.box.remarks), ""]
    for section in page.sections:
        lines += [f"## {section.title}", "", *(line for text in section.texts for line in (text, ""))]
        for table in map(_without_empty_columns, section.tables):
            lines += [*([f"### {table.title}", ""] if table.title != section.title else []), table.note, ""]
            if table.rows:
                lines += _rows(table.columns, table.rows)
        lines += [line for figure in section.figures for line in _figure(figure)]
        lines += [line for block in section.code for line in ("```", block, "```", "")]
    return _plain_numbers("\n".join(lines))


def _figure(figure: Figure) -> list[str]:
    alts: list[Any] = [f"- {panel.alt}" for panel in figure.panels if panel.alt]
    return [f"Figure: {figure.title}. {figure.caption}", "", *alts, ""]


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(columns), "|" + " --- |" * len(columns), *map(_row, rows), ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
