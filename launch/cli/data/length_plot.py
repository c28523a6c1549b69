"""A plot of document lengths: one line per source, over powers of two of tokens."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.dataset.manifest import Manifest


def draw_lengths(manifest: Manifest, path: Path) -> None:
    """Plot the lengths of training documents to a .png or .svg file; the y axis is the share of the source's documents."""
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sources = manifest.splits[split].length_histogram
    for number, (source, bins) in enumerate(sorted(sources.items(), key=lambda item: -sum(item[1]))):
        first = next(i for i, count in enumerate(bins) if count)
        shares = [count / sum(bins) for count in bins[first:]]
        lengths = [2.0**i for i in range(first, len(bins))]
        label, line = f"{source} ({sum(bins):,})", ("-", "--", ":")[number // 10 % 3]
        axes.plot(lengths, shares, marker="o", markersize=3, color=f"C{number % 10}", linestyle=line, label=label)
    for row_length in [record.row_length for record in manifest.splits[split].packing]:
        axes.axvline(row_length, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"row {row_length}", (row_length, 1), xycoords=("data", "axes fraction"), fontsize=8, rotation=90, va="top"
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens in a document, from 2^i to 2^(i+1) - 1")
    axes.set_ylabel(f"share of the source's {split} documents")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
