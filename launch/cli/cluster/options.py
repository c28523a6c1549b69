"""What the commands of `fnet-t5 launch` share: options, the preparation that they describe, showing before submitting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from data_prep.config import PrepareConfig
    from launch.cluster.spec import LaunchSpec

Config = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="A recipe: a path, or the name of a shipped one.")]
Cluster = Annotated[
    str, typer.Option(metavar="YAML", help="The cluster: a path, or the name of a shipped file of configs/cluster.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Settings that win over the cluster file's: nodes=2.", show_default=False),
]
RunFolder = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the recipe>.")]
PodFolder = Annotated[
    Path | None, typer.Option(help="Run folder, as the pods see it. Default: <first writable volume>/<name of the recipe>.")
]
Keep = Annotated[
    Path | None,
    typer.Option(help="What names this launch here, as for `launch status`. Default: runs/<name of --output>."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted; write and submit nothing.")]

PrepareInput = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB...", help="Paths, URLs or datasets, as the nodes see them.", show_default=False),
]
PrepareVal = Annotated[list[str] | None, typer.Option(metavar="GLOB...", help="Files for validation.")]
PrepareTest = Annotated[list[str] | None, typer.Option(metavar="GLOB...", help="Files for the final test.")]
PrepareOutput = Annotated[Path | None, typer.Option(help="Dataset folder to make, on storage that all nodes share.")]
PrepareTokenizer = Annotated[Path | None, typer.Option(help="A tokenizer.json. Default: train one on the input.")]
PrepareWorkers = Annotated[int | None, typer.Option(help="Worker processes. Default: one a CPU of the cluster.")]
PrepareSeed = Annotated[int | None, typer.Option(help="Of the split by hash.")]
PrepareConfigFile = Annotated[str | None, typer.Option(metavar="YAML", help="Recipe with any setting of `fnet-t5 prepare`.")]


def preparation(
    spec: LaunchSpec,
    config: str | None,
    overrides: Sequence[str] | None,
    input: list[str] | None,
    val: list[str] | None,
    test: list[str] | None,
    output: Path | None,
    tokenizer: Path | None,
    workers: int | None,
    seed: int | None,
) -> tuple[PrepareConfig, str]:
    """The preparation that these options describe, and a recipe that says it whole, for the job to read."""
    import yaml

    from data_prep.config import PrepareConfig
    from launch.config import load_config

    given = {
        "input": input or None,
        "val": val or None,
        "test": test or None,
        "output": output,
        "tokenizer": tokenizer,
        "workers": workers,
        "seed": seed,
    }
    resolved = load_config(PrepareConfig, config, overrides or [], given, kind="data")
    if resolved.ray_address:
        raise ValueError(f"ray_address {resolved.ray_address} is the launched cluster's to say: leave it out")
    if "workers" not in resolved.model_fields_set:
        resolved = resolved.model_copy(update={"workers": spec.nodes * spec.cpus_per_node})
    most = spec.nodes * spec.cpus_per_node
    if spec.ray is None and resolved.workers > most:
        raise ValueError(
            f"workers {resolved.workers} is more than the {most} CPUs of {spec.nodes} nodes x {spec.cpus_per_node}, and each "
            "takes one: lower it, or leave it out"
        )
    values = resolved.model_dump(mode="json", exclude_defaults=True)
    return resolved, yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


@contextmanager
def refusing(dry_run: bool) -> Iterator[None]:
    """Checks of what the nodes will see: a dry run, which may be made anywhere, only tells what would be refused."""
    try:
        yield
    except ValueError as error:
        if not dry_run:
            raise
        typer.echo(f"Note: without --dry-run this is refused: {error}", err=True)


def show(text: str, folder: Path, size: str, beside: str = "") -> None:
    """What will be submitted, before it is: the file itself on stdout, so that it can be piped.

    What it is, and what will lie beside it, on stderr.
    """
    typer.echo(f"For {folder}: {size}", err=True)
    typer.echo(text, nl=False)
    typer.echo(beside, err=True, nl=False)
