"""From YAML and `key=value` overrides to a validated, typed configuration, and from there to a run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from data_prep.files import atomic_write
from launch.config_errors import ConfigError, Origins, explain
from launch.recipes import find_recipe

if TYPE_CHECKING:  # imports torch, which preparing data does without
    from pipeline.config import RunConfig

ConfigT = TypeVar("ConfigT", bound=BaseModel)

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
# What may change between two starts of one run: its number of steps, its reports and safeguards, and its mesh; not what it
# computes. Data is identified by its content, which `launch.preflight.check_resume` compares, not by its path.
_MAY_CHANGE = {
    *("data.path", "data.validation_rows", "train.input_use_rows", "tracking.enabled", "tracking.experiment"),
    *("mesh.tensor_parallel", "mesh.pipeline_parallel", "mesh.stage_memory_gb"),
    *("data.skip_ranges", "data.prefetch_steps", "data.loader_workers", "data.validation_rows_per_source"),
    *(
        "train.steps",
        "train.tokens",
        "train.epochs",
        "train.skip_steps",
        "train.micro_batch_size",
        "train.zero_stage",
        "train.recompute",
    ),
    *("tracking.parent_run", "train.log_every", "train.validate_every", "train.samples", "train.sample_tokens"),
    *("train.checkpoint_every", "train.checkpoint_minutes", "train.keep_last", "train.keep_every", "train.checkpoint_steps"),
    *("train.spike_sigma", "train.spike_window", "train.max_skips", "train.consistency_check_every", "train.hang_minutes"),
    "train.stop_minutes",
}
_ONLY_AT_THE_START = {"train.initial_weights", "train.initial_moments"}
"""Not read once there is a checkpoint."""
_ONE_OF = ({"train.steps", "train.tokens", "train.epochs"},)
"""Keys of which a recipe gives one: an override of one takes the place of another one in the file."""


def load_run_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The training run that a recipe describes. Raises ConfigError; see `load_config`."""
    from pipeline.config import RunConfig

    return load_config(RunConfig, recipe, overrides, kind="train")


def load_config(
    model_class: type[ConfigT],
    recipe: str | Path | None,
    overrides: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
    kind: str = "",
) -> ConfigT:
    """Merge a recipe, command-line options and `key=value` overrides, of which later ones win, and validate the result.

    `recipe` is a path or the name of a shipped recipe (`kind` is their folder, for messages), `extra` holds the values
    of options by key (`ray_address` is `--ray-address` in messages; None means not given), and override values are YAML:
    `optimizer.betas=[0.9,0.99]`.
    Raises ConfigError, which names each wrong key, where its value came from, and the remedy.
    """
    origins = Origins()
    merged = OmegaConf.create({})
    if recipe is not None:
        merged = _read(recipe, kind, origins)
    for key, value in (extra or {}).items():
        origins.options[key] = f"--{key.replace('_', '-')}"
        if value is not None:
            origins.given[key] = origins.options[key]
            merged = OmegaConf.merge(merged, {key: str(value) if isinstance(value, Path) else value})
    for text in overrides:
        merged = _override(merged, text, origins)
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise ConfigError(f"{origins.of(key)}: {key} cannot be resolved; {str(error).splitlines()[0]}") from error
    try:
        return model_class.model_validate(values)
    except ValidationError as error:
        raise explain(error, model_class, origins) from error


def write_resolved(config: BaseModel, run_dir: Path) -> None:
    """Write `config.yaml` and `config.json` into a run folder, which is created if it does not exist.

    Each file is written atomically, and not rewritten if its content is the same, so every process of a job may call it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    values = config.model_dump(mode="json")
    contents = {
        "config.yaml": yaml.safe_dump(values, sort_keys=False, allow_unicode=True),
        "config.json": json.dumps(values, indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in contents.items():
        path, data = run_dir / name, text.encode()
        if not path.is_file() or path.read_bytes() != data:
            with atomic_write(path) as file:
                file.write(data)


def check_same_run(config: BaseModel, run_dir: Path, *, has_checkpoint: bool = False) -> bool:
    """Whether `run_dir` already holds this run: True to resume it, False if nothing was started there.

    With `has_checkpoint` the initial weights may differ: they are not read. Raises ConfigError if it holds another run: a
    key differs that is not in `_MAY_CHANGE`.
    """
    from pipeline.config import flatten

    path = run_dir / "config.json"
    if not path.is_file():
        return False
    try:
        there = json.loads(path.read_bytes())
        with suppress(ValidationError):  # a key that is newer than the run has its default there
            there = type(config).model_validate(there).model_dump(mode="json")
        earlier = _identity(flatten(there), has_checkpoint)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not the configuration of a run ({error}): give another --output") from error
    now = _identity(flatten(config.model_dump(mode="json")), has_checkpoint)
    differing = [
        f"{key} ({earlier.get(key, 'absent')} there, {now.get(key, 'absent')} now)"
        for key in {**earlier, **now}
        if key not in _MAY_CHANGE and (key not in earlier or key not in now or earlier[key] != now[key])
    ]
    if differing:
        raise ConfigError(f"{run_dir} holds another run: {', '.join(differing)}; give another --output, or undo the difference")
    return True


def _identity(values: dict[str, Any], has_checkpoint: bool) -> dict[str, Any]:
    """The values of a run's keys that decide its numbers: of a blend the weights, because its folders may move."""
    kept = {key: value for key, value in values.items() if not (has_checkpoint and key in _ONLY_AT_THE_START)}
    if kept.get("data.blend"):
        kept["data.blend"] = [part["weight"] for part in kept["data.blend"]]
    return kept


def _read(recipe: str | Path, kind: str, origins: Origins) -> DictConfig:
    try:
        path = find_recipe(recipe, kind)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{recipe} cannot be read: {error}") from error
    origins.file = str(recipe)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None or not isinstance(root, yaml.MappingNode):
            found = "is empty" if root is None else "holds no sections"
            raise ConfigError(f"{recipe} {found}: a recipe is made of sections, such as `train:` with `steps: 100` under it")
        origins.lines.update(_key_lines(root))
        return OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{recipe}{line}: this is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{recipe}: this is not YAML: {str(error).splitlines()[0]}") from error


def _key_lines(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The dotted key and the line (counted from 1) of every key in a YAML mapping."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _key_lines(value, f"{name}.")


def _remove(merged: DictConfig, key: str) -> None:
    section, _, name = key.rpartition(".")
    if isinstance(found := OmegaConf.select(merged, section), DictConfig):
        found.pop(name, None)


def _override(merged: DictConfig, text: str, origins: Origins) -> DictConfig:
    key, equals, _ = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r} has no '=': write key=value, for example train.steps=100")
    if not _KEY.fullmatch(key):
        raise ConfigError(f"override {text!r}: {key!r} is not a dotted key such as train.steps")
    for other in {name for keys in _ONE_OF if key in keys for name in keys - {key} if name not in origins.given}:
        _remove(merged, other)
    origins.given.pop(key, None)  # re-inserted last: in `given`, later entries win
    origins.given[key] = f"override {text!r}"
    section = key.rpartition(".")[0]
    try:
        if section and isinstance(short := OmegaConf.select(merged, section), str):
            # `objective: ul2` is short for `objective: {name: ul2}`: an override inside it must keep the name
            OmegaConf.update(merged, section, {"name": short})
        return OmegaConf.merge(merged, OmegaConf.from_dotlist([text]))
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not YAML: {getattr(error, 'problem', None) or error}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"override {text!r} cannot be applied: {str(error).splitlines()[0]}") from error
