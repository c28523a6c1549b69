"""The options of `fnet-t5 launch PLATFORM prepare` as one record, and the data preparation that they describe."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from launch.cli.arguments import Overrides

if TYPE_CHECKING:
    from data_prep.config import PrepareConfig
    from launch.cluster.spec.launch_spec import LaunchSpec


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The options of a data preparation that all platforms share, as typer reads them."""

    input: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB...", help="Paths, URLs or datasets, as the nodes see them.", show_default=False),
    ] = None
    val: Annotated[list[str] | None, typer.Option(metavar="GLOB...", help="Files for validation.")] = None
    test: Annotated[list[str] | None, typer.Option(metavar="GLOB...", help="Files for the final test.")] = None
    output: Annotated[Path | None, typer.Option(help="Dataset folder to create, on storage that all nodes share.")] = None
    base: Annotated[Path | None, typer.Option(help="Finished dataset folder to add the input to; it is not changed.")] = None
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json, or bytes. Default: train one.")] = None
    workers: Annotated[int | None, typer.Option(help="Worker processes. Default: one per CPU of the cluster.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the split by hash.")] = None
    config: Annotated[str | None, typer.Option(metavar="YAML", help="Recipe with any setting of `fnet-t5 prepare`.")] = None
    overrides: Overrides = None

    def resolve(self, spec: LaunchSpec) -> tuple[PrepareConfig, str]:
        """The checked preparation, and the text of a recipe with all its settings, for the job to read."""
        import yaml

        from data_prep.config import PrepareConfig
        from launch.cluster.spec.section import PlatformSection
        from launch.config import load_config

        given = {
            "input": self.input or None,
            "val": self.val or None,
            "test": self.test or None,
            "output": self.output,
            "base": self.base,
            "tokenizer": self.tokenizer,
            "workers": self.workers,
            "seed": self.seed,
        }
        resolved = load_config(PrepareConfig, self.config, self.overrides or [], given, kind="data")
        if resolved.ray_address:
            raise ValueError(f"ray_address {resolved.ray_address} is set by the launched cluster: leave it out")
        if "workers" not in resolved.model_fields_set:
            resolved = resolved.model_copy(update={"workers": spec.num_cpus})
        if spec.section(PlatformSection).has_fixed_size and resolved.workers > spec.num_cpus:
            raise ValueError(
                f"workers {resolved.workers} is more than the {spec.num_cpus} CPUs of {spec.nodes} nodes x "
                f"{spec.cpus_per_node}, and each worker takes one CPU: lower it, or leave it out"
            )
        values = resolved.model_dump(mode="json", exclude_defaults=True)
        return resolved, yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def takes_prepare_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a typer command: its parameter `options: PrepareOptions` becomes one option for each field of the record."""
    hints = get_type_hints(PrepareOptions, include_extras=True)
    names = [field.name for field in fields(PrepareOptions)]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        options = PrepareOptions(**{name: values.pop(name) for name in names})
        command(options=options, **values)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        shown = [(name, hints[name], None) for name in names]
        if parameter.name != "options":
            shown = [(parameter.name, parameter.annotation, parameter.default)]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, annotation, default in shown
        ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper
