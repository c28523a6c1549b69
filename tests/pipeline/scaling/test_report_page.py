"""The page as a browser reads it: its parts in order, nothing loaded, tables and figures that every reader can use."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launch.scaling.report import make_report
from pipeline.scaling.analysis import analyse
from pipeline.scaling.report.drawing import SMALL, Figure, Plot, draw, logarithmic
from pipeline.scaling.report.honesty import CheckRow, HonestyBox
from pipeline.scaling.report.render_page import Opening, ReportPage, ReportSection, html_page, markdown_page
from pipeline.scaling.report.tables import Table

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "source", "track", "base", "embed"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "source", "track", "base", "form", "image"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parents: tuple[Element, ...]
    text: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


class Reader(HTMLParser):
    """Elements in the order of the document, each with its parents. Fails for tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        assert not self._open, f"not closed: {[one.tag for one in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, tuple(self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}, tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text.append(data)

    def all(self, tag: str) -> list[Element]:
        return [one for one in self.elements if one.tag == tag]

    def place(self, **wanted: str) -> int:
        """Where the first element with this tag, class or id is."""
        return next(
            number
            for number, one in enumerate(self.elements)
            if one.tag == wanted.get("tag", one.tag)
            and wanted.get("name", "") in ("", *one.classes)
            and one.attributes.get("id", "") == wanted.get("id", one.attributes.get("id", ""))
        )


@pytest.fixture(scope="module")
def folder(ladder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the made-up ladder, with all its figures."""
    output = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.scaling.report.analyse", partial(analyse, num_draws=40))
        make_report([ladder_folder], output, None, None, "fnet-t5 scaling report")
    return output


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    return Reader((folder / "index.html").read_text(encoding="utf-8"))


def test_question_answer_figure_and_box_come_first(page: Reader, folder: Path) -> None:
    order = [
        page.place(tag="h1"),
        page.place(name="question"),
        page.place(name="answer"),
        page.place(tag="figure"),
        page.place(name="box"),
        page.place(tag="nav"),
        page.place(id="section-1"),
    ]
    assert order == sorted(order)
    assert "needs less compute than t5: 0.8" in page.elements[order[2]].words
    checks = [one for one in page.elements if "result" in one.classes]
    assert [one.words for one in checks] == ["✓ holds"] * 3
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    places = [
        markdown.index(text) for text in ("**Question.**", "## Answer", "\nFigure: ", "## What was checked", "## Findings")
    ]
    assert places == sorted(places)


def test_the_page_loads_nothing(page: Reader) -> None:
    assert not {one.tag for one in page.elements} & LOADING
    for one in page.elements:
        assert not {name for name in one.attributes if name in ("src", "srcset", "data", "poster") or name.startswith("on")}
        for name in ("href", "xlink:href"):
            target = one.attributes.get(name, "#")
            assert target.startswith("#") or (one.tag == "a" and target.startswith("https://arxiv.org/abs/"))
    styles = " ".join(one.words for one in page.all("style")) + " ".join(
        one.attributes.get("style", "") for one in page.elements
    )
    assert "@import" not in styles
    assert not re.findall(r"url\((?!#)", styles)
    assert not re.findall(r"url\((?!#)", " ".join(" ".join(one.attributes.values()) for one in page.elements))


def test_headings_language_and_size_are_set(page: Reader) -> None:
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    assert page.all("title")[0].words == page.all("h1")[0].words == "Compute-matched comparison: made-up"
    assert any(one.attributes.get("name") == "viewport" for one in page.all("meta"))
    levels = [int(one.tag[1]) for one in page.elements if re.fullmatch(r"h[1-6]", one.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    targets = {one.attributes["id"] for one in page.elements if "id" in one.attributes}
    for link in page.all("nav"):
        assert link.words
    assert all(one.attributes["href"][1:] in targets for one in page.all("a") if one.attributes["href"].startswith("#"))


def test_wide_tables_scroll_in_their_own_box(page: Reader) -> None:
    tables = page.all("table")
    assert len(tables) > 15
    for table in tables:
        if "checks" not in table.classes:
            box = table.parents[-1]
            assert "wide" in box.classes
            assert (box.attributes["tabindex"], box.attributes["role"]) == ("0", "region")
            assert box.attributes["aria-label"]
    assert all(one.attributes.get("scope") in ("col", "row") for one in page.all("th"))
    style = page.all("style")[0].words
    assert re.search(r"\.wide \{ overflow-x: auto; \}", style)
    printed = style[style.index("@media print") :]
    assert ".wide { overflow: visible; }" in printed
    assert 'a[href^="http"]::after { content: " (" attr(href) ")"; }' in printed


def test_figures_have_their_own_ids_and_words(page: Reader) -> None:
    figures = [one for one in page.all("svg") if "panel" in one.parents[-1].classes]
    assert len(figures) > 20
    assert all(one.attributes["role"] == "img" and len(one.attributes["aria-label"]) > 15 for one in figures)
    ids = [one.attributes["id"] for one in page.elements if "id" in one.attributes]
    assert len(set(ids)) == len(ids)
    known = set(ids)
    for one in page.elements:
        used = re.findall(r"url\(#([^)]+)\)", " ".join(one.attributes.values()))
        used += [one.attributes[name][1:] for name in ("href", "xlink:href") if one.attributes.get(name, "").startswith("#")]
        assert set(used) <= known


def tick_labels(svg: str, axis: str) -> list[str]:
    part = svg[svg.index(f'id="matplotlib.axis_{axis}"') :]
    return re.findall(r">([^<>]+)</text>", part.split('id="matplotlib.axis_2"' if axis == "1" else 'id="patch_')[0])


def lines(low: float, high: float) -> Plot:
    def paint(axis: Any) -> None:
        axis.plot([low, high], [low, high])
        logarithmic(axis, "x")

    return Plot(paint=paint, alt="a line")


def test_panels_that_share_axes_have_the_same_ticks() -> None:
    plots = lines(1, 10), lines(100, 1000)
    apart, shared = draw(plots, SMALL), draw(plots, SMALL, "xy")
    for axis in ("1", "2"):
        assert tick_labels(apart[0].svg, axis) != tick_labels(apart[1].svg, axis)
        assert tick_labels(shared[0].svg, axis) == tick_labels(shared[1].svg, axis) != []


def test_the_panels_of_arms_share_their_axes(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    for title in (
        "When order is read, by compute",
        "Loss during training, prefix_lm",
        "isoFLOP curves",
        "Loss by wall-clock time",
    ):
        figure = text[text.index(f'<figure aria-label="{title}"') :].split("</figure>")[0]
        svgs = [part.replace('id="p', 'id="').replace("</svg>", "") for part in figure.split("<svg")[1:]]
        svgs = [re.sub(r'id="\d+-', 'id="', svg) for svg in svgs]
        assert len(svgs) > 1
        for axis in ("1", "2"):
            assert len({tuple(tick_labels(svg, axis)) for svg in svgs}) == 1, title


def small_page(**changes: Any) -> ReportPage:
    rows = (("t5 <b>", "8e+12", "", "1.5"), ("gpt2", "2e+12", "", "+20.25"))
    table = Table(
        title="A table", note="see `fits.json`, arXiv:2207.10551", columns=("arm", "FLOPs", "shape", "loss"), rows=rows
    )
    box = HonestyBox(checks=(CheckRow(needed="a|b", result="does not hold", found="x < y"),), remarks=(("Noise", "0.3 %"),))
    opening = Opening(name="", question="Why?", answer=("No.",), figure=None, box=box)
    sections = (ReportSection(title="First", tables=(table,)),)
    return ReportPage(**{"title": "T & U", "openings": (opening,), "sections": sections, **changes})


def test_cells_are_escaped_and_numbers_are_plain() -> None:
    text = html_page(small_page())
    page = Reader(text)
    assert "t5 &lt;b&gt;" in text
    assert "x &lt; y" in text
    assert "<title>T &amp; U</title>" in text
    assert "✗ does not hold" in [one.words for one in page.all("td")]
    heads = {
        one.words: one.classes for one in page.all("th") if one.attributes["scope"] == "col" and one.parents[-2].tag == "thead"
    }
    assert "shape" not in heads  # nothing is known of it
    assert (heads["FLOPs"], heads["loss"], heads["arm"]) == (["n"], ["n"], [])
    assert "8e12" in text
    assert "e+12" not in text
    assert '<a href="https://arxiv.org/abs/2207.10551">arXiv:2207.10551</a>' in text
    assert "<code>fits.json</code>" in text
    markdown = markdown_page(small_page())
    assert "| t5 <b> | 8e12 | 1.5 |" in markdown
    assert "| a\\|b | does not hold | x < y |" in markdown
    assert "- Noise: 0.3 %" in markdown


def test_several_objectives_have_an_opening_each() -> None:
    (one,) = small_page().openings
    page = Reader(
        html_page(small_page(openings=(Opening(**{**vars(one), "name": "a"}), Opening(**{**vars(one), "name": "b"}))))
    )
    heads = [one.words for one in page.all("h2")]
    assert heads[:4] == [
        "Answer: a",
        "What was checked, and what is withheld: a",
        "Answer: b",
        "What was checked, and what is withheld: b",
    ]


def test_the_same_report_has_the_same_bytes() -> None:
    panels = draw([lines(1, 10)], SMALL)
    figure = Figure(title="A figure", caption="What it shows.", panels=panels)
    assert panels == draw([lines(1, 10)], SMALL)
    page = small_page(sections=(ReportSection(title="First", figures=(figure, figure)),))
    text = html_page(page)
    assert text == html_page(page)
    assert 'class="single"' in text
    assert "Figure: A figure. What it shows." in markdown_page(page)
