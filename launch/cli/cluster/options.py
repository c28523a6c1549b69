"""Options that several commands of `fnet-t5 launch` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="A recipe: a path, or the name of a shipped recipe.")]
Cluster = Annotated[
    str, typer.Option(metavar="YAML", help="The cluster: a path, or the name of a shipped file of configs/cluster.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides for the cluster file: nodes=2.", show_default=False),
]
RunFolder = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the recipe>.")]
PodFolder = Annotated[
    Path | None, typer.Option(help="Run folder, as the pods see it. Default: <first writable volume>/<name of the recipe>.")
]
Keep = Annotated[
    Path | None,
    typer.Option(help="Folder here that `launch status` and others take for this launch. Default: runs/<name of --output>."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted; write and submit nothing.")]
