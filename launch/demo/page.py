"""The page of results of the demo, and its loss curve."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from data_prep.dataset.manifest import load_manifest
from launch.demo.steps import STAGES, Demo, Result
from pipeline.config import RunConfig
from pipeline.run_folder import METRICS
from pipeline.tracking.metrics import read_metrics
from pipeline.tracking.mlflow_session import tracking_uri

PAGE_FILE, CURVE_FILE = "page.txt", "loss.png"
_ORIGINAL_SHOWN = 240


def show(demo: Demo, result: Result, console: Console) -> None:
    """Print the page, and write it as text, and the loss curve as PNG, to the demo's folder."""
    draw_loss_curve(demo.run / METRICS, result, demo.folder / CURVE_FILE)
    with (demo.folder / PAGE_FILE).open("w") as file:
        for target in (console, Console(file=file, width=110)):
            target.print(Group(*_page(demo, result)))
            target.print(_what_next(demo), soft_wrap=True)  # commands must survive copying from a narrow terminal


def draw_loss_curve(metrics: Path, result: Result, path: Path) -> None:
    """Plot training and validation loss over steps, and the loss of the unigram model for reference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(metrics)
    trained = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validated = [(row["step"], row["validation_loss"]) for row in rows if row.get("source") == "all"]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=130)
    axes.plot(*zip(*trained, strict=True), color="0.6", linewidth=1, label="training")
    axes.plot(*zip(*validated, strict=True), color="tab:blue", marker="o", markersize=4, label="validation")
    axes.axhline(result.unigram_loss, color="tab:orange", linestyle="--", linewidth=1, label="unigram model, validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per target token)")
    axes.set_title("FNet encoder, attention decoder: prefix-LM loss of the demo run")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _page(demo: Demo, result: Result) -> list[RenderableType]:
    config = RunConfig.load(demo.run)
    return [
        Text("\nFNet-T5 demo", style="bold"),
        Text(_what_was_done(config, result)),
        _sources(demo),
        _losses(config, result),
        Text(_what_it_took(result)),
        _written(result),
        _files(demo),
    ]


def _what_was_done(config: RunConfig, result: Result) -> str:
    model, data, mesh = config.model, config.data, config.mesh
    return (
        "Text of this machine's Python installation was tokenized and packed by Ray. An FNet-T5 of "
        f"{result.num_parameters / 1e6:.1f} M parameters "
        f"({model.num_encoder_layers} {model.mixing.capitalize()} encoder layers, "
        f"{model.num_decoder_layers} attention decoder layers, width {model.d_model}) read the first {data.encoder_length} "
        f"tokens of each row and learnt to generate the next {data.decoder_length}, on {_num_processes(config)} processes "
        f"(tensor parallel {mesh.tensor_parallel} x pipeline parallel {mesh.pipeline_parallel}, "
        f"ZeRO-{config.train.zero_stage}). "
        "One process then loaded the checkpoint, evaluated it on held-out text, and generated text."
    )


def _what_it_took(result: Result) -> str:
    stages = ", ".join(f"{name} {result.stage_seconds[name]:.0f} s" for name in STAGES)
    return (
        f"{result.step} steps took {result.training_seconds:.0f} s: {result.tokens_per_second:,.0f} tokens/s through encoder "
        f"and decoder, {result.training_flops / 1e12:.1f} TFLOP in all. Stages, start-up included: {stages}. "
        f"Peak memory of all processes together: {result.peak_memory_bytes / 2**30:.1f} GiB."
    )


def _what_next(demo: Demo) -> str:
    run, data = shlex.quote(str(demo.run)), shlex.quote(str(demo.data))
    return (
        "\n[bold]What next[/bold]\n"
        f"  mlflow ui --backend-store-uri {shlex.quote(tracking_uri())}\n"
        f"  echo 'def test_' | fnet-t5 generate {run} --temperature 0.7 --top-k 40\n"
        f"  fnet-t5 evaluate {run}\n"
        f"  fnet-t5 data inspect {data}\n"
        f"  fnet-t5 train configs/train/demo.yaml --output runs/longer data.path={data} "
        "train.steps=2000"
    )


def _num_processes(config: RunConfig) -> int:
    return config.mesh.tensor_parallel * config.mesh.pipeline_parallel


def _written(result: Result) -> Panel:
    original = Text("the original continued: ", style="italic").append(
        _without_blank_lines(_shortened(result.original)), style="dim not italic"
    )
    written = Text(_without_blank_lines(result.continuation) or "(the model ended the document immediately)", style="bold")
    return Panel(
        Group(Text("… " + _without_blank_lines(result.prefix), style="dim"), written, Text(""), original),
        title="A held-out text, and its continuation by the model in bold",
        title_align="left",
    )


def _without_blank_lines(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())


def _shortened(text: str) -> str:
    return text if len(text) <= _ORIGINAL_SHOWN else text[:_ORIGINAL_SHOWN] + " …"


def _sources(demo: Demo) -> Table:
    manifest = load_manifest(demo.data)
    table = Table(box=box.SIMPLE_HEAD, title="Data", title_justify="left")
    table.add_column("source")
    for name in ("documents", "tokens", "MB"):
        table.add_column(name, justify="right")
    names = sorted({name for split in manifest.splits.values() for name in split.sources})
    for name in names:
        counts = [split.sources[name] for split in manifest.splits.values() if name in split.sources]
        documents, tokens = sum(count.documents for count in counts), sum(count.tokens for count in counts)
        table.add_row(name, f"{documents:,}", f"{tokens:,}", f"{sum(count.bytes for count in counts) / 1e6:.1f}")
    table.add_section()
    totals = [split.total for split in manifest.splits.values()]
    table.add_row(
        "all",
        f"{sum(total.documents for total in totals):,}",
        f"{sum(total.tokens for total in totals):,}",
        f"{sum(total.bytes for total in totals) / 1e6:.1f}",
    )
    return table


def _losses(config: RunConfig, result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Loss, nats per target token", title_justify="left")
    table.add_column("")
    table.add_column("loss", justify="right")
    table.add_column("")

    def row(name: str, value: float, remark: Text | str = "") -> None:
        table.add_row(name, f"{value:.4f}", remark)

    row("training, first step", result.training_loss_first)
    row("training, last step", result.training_loss_last)
    row(f"validation, by the {_num_processes(config)} processes", result.mesh_loss)
    row("validation, by one process", result.loss, _mark(result.meshes_agree, "equal", "NOT EQUAL"))
    row(
        "unigram model, same tokens",
        result.unigram_loss,
        _mark(result.beats_unigram, "worse than the model", "NOT WORSE"),
    )
    if result.swapped_loss is not None:
        row(
            "encoder inputs swapped between rows",
            result.swapped_loss,
            _mark(result.uses_encoder, "worse: the decoder uses the encoder", "NOT WORSE"),
        )
    table.add_section()
    if result.bits_per_byte is not None:
        row(
            "bits per byte", result.bits_per_byte, f"over {result.target_tokens:,} target tokens, {result.target_bytes:,} bytes"
        )
    return table


def _mark(holds: bool, yes: str, no: str) -> Text:
    return Text(yes, style="green") if holds else Text(no, style="bold red")


def _files(demo: Demo) -> Table:
    table = Table(box=None, show_header=False, title="Files", title_justify="left", padding=(0, 2))
    for what, path in (
        ("raw text, Pile format", demo.raw),
        ("dataset folder", demo.data),
        ("run folder (metrics.jsonl, checkpoints)", demo.run),
        ("loss curve", demo.folder / CURVE_FILE),
        ("this page", demo.folder / PAGE_FILE),
    ):
        table.add_row(what, str(path))
    return table
