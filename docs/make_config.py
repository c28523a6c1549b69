"""Writes docs/config.md: every key of every YAML file, from the pydantic classes that read it.

python docs/make_config.py                # a test fails where the page is not what this writes

Types, defaults and bounds come from each class's JSON schema. A description is `Field(description=...)`, or else the docstring
under the field.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter

from data_prep.config import PrepareConfig
from launch.cluster.spec.load import launch_spec_class
from pipeline.config import RunConfig
from pipeline.objectives.catalogue import NAMES, AnyObjective
from pipeline.objectives.interface import ObjectiveConfig
from pipeline.scaling.battery.settings import BatteryRecipe
from pipeline.scaling.ladder.recipe import LadderRecipe

PAGE = Path(__file__).with_name("config.md")
HEAD = """# Configuration

Every key of every YAML file that `fnet-t5` reads. It is generated from the classes that read the files; a key that is not here
is an error. Any key of a recipe can be set on the command line as `key=value`, with the key as it stands here:
`optimizer.clip=0.5`, `packing.lengths=[640]`. Keys of a cluster file are set with `--set key=value`. Values are YAML.

| file | command | keys |
| --- | --- | --- |
| `configs/train/*.yaml` | `fnet-t5 train`, `fnet-t5 plan` | [training](#training) and [objectives](#objectives) |
| `configs/data/*.yaml` | `fnet-t5 prepare` | [data preparation](#data-preparation) |
| `configs/scaling/*.yaml` | `fnet-t5 scaling plan` | [ladders](#ladders) |
| `configs/battery/*.yaml` | `fnet-t5 scaling battery` | [the battery](#the-battery) |
| `configs/cluster/*.yaml` | `fnet-t5 launch` | [clusters](#clusters) |

"none" means that the key is unset by default; its description says what happens then. `[]` after a key marks a list and `{}` a
table of named entries, each with the keys that follow.
"""
FILES: tuple[tuple[str, type[Any], str, str], ...] = (
    (
        "Training",
        RunConfig,
        "pipeline/config.py",
        "A recipe of `fnet-t5 train`. How-to: [train.md](train.md). `model.size` names a set of values for the other keys of "
        "`model` ([models.md](models.md)). A key given beside it wins; the defaults below hold where neither gives a value.",
    ),
    (
        "Data preparation",
        PrepareConfig,
        "data_prep/config.py",
        "A recipe of `fnet-t5 prepare`. How-to: [prepare.md](prepare.md).",
    ),
    (
        "Ladders",
        LadderRecipe,
        "pipeline/scaling/ladder/recipe.py",
        "A recipe of `fnet-t5 scaling plan`. How-to: [scaling.md](scaling.md). `data`, `mesh` and `tracking` are those of a "
        "training recipe.",
    ),
    (
        "The battery",
        BatteryRecipe,
        "pipeline/scaling/battery/settings.py",
        "A recipe of `fnet-t5 scaling battery`. How-to: [battery.md](battery.md).",
    ),
    (
        "Clusters",
        launch_spec_class(),
        "launch/cluster/spec",
        "A file for `fnet-t5 launch … --cluster FILE`. How-to: [launch.md](launch.md).",
    ),
)
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One row of the page."""

    name: str
    """With its section: optimizer.clip."""
    type: str
    default: str
    allowed: str
    description: str


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    shared = {section for _, section in sections_of(RunConfig)}
    parts = [HEAD]
    for title, root, source, opening in FILES:
        parts.append(f"## {title}\n\n{opening} Source: [{source}](../{source}).\n")
        for prefix, section in sections_of(root):
            if root is RunConfig or section not in shared:
                heading = f"`{prefix}`" if prefix else f"Top level ({title.lower()})"
                parts.append(f"### {heading}\n\n{_table(keys_of(section, prefix))}\n")
        if root is RunConfig:
            parts.append(_objectives())
    return "\n".join(parts)


def all_keys() -> list[Key]:
    """Every row of the page."""
    roots = [(prefix, section) for _, root, _, _ in FILES for prefix, section in sections_of(root)]
    objectives = [(f"objective({_objective_name(config)})", config) for config in objective_configs()]
    parts = [(name, part) for prefix, config in objectives for name, part in list(sections_of(config, prefix))[1:]]
    prefixes: dict[type[Any], str] = {}
    for prefix, section in [*roots, *objectives, *parts]:
        prefixes.setdefault(section, prefix)  # a section that two files share is shown once
    return [key for section, prefix in prefixes.items() for key in keys_of(section, prefix)]


def sections_of(root: type[Any], prefix: str = "") -> Iterator[tuple[str, type[Any]]]:
    """(prefix of its keys, class) of the root and of every section in it, in the order of the fields."""
    yield prefix, root
    for name, annotation in _annotations(root).items():
        for section, marks in _sections_in(annotation):
            yield from sections_of(section, f"{prefix}.{name}{marks}".removeprefix("."))


def keys_of(section: type[Any], prefix: str) -> Iterator[Key]:
    """The rows of one section. A nested section is one row of type "section"."""
    schema = TypeAdapter(section).json_schema()
    if "$ref" in schema:
        schema = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    descriptions = _descriptions(section)
    for name, annotation in _annotations(section).items():
        field = schema["properties"][name]
        if "const" in field:
            continue  # an objective's name, which the heading gives
        nested = list(_sections_in(annotation))
        about = field.get("description") or descriptions.get(name, "")
        yield Key(
            name=f"{prefix}.{name}".removeprefix("."),
            type="section" if nested and not nested[0][1] else _type(field, bool(nested)),
            default="required" if name in schema.get("required", ()) else _value(_default(section, name, field)),
            allowed=_allowed(field),
            description=about or (_first_sentence(nested[0][0]) if nested else ""),
        )


def objective_configs() -> tuple[type[ObjectiveConfig], ...]:
    """The configuration class of every objective."""
    return get_args(get_args(AnyObjective)[0])


def _objectives() -> str:
    parts = [
        "## Objectives\n\n`data.objective` is a name, or a mapping of a name and the keys below. What each objective does: "
        "[objectives.md](objectives.md). Source: [pipeline/objectives](../pipeline/objectives).\n"
    ]
    for config in objective_configs():
        rows = list(keys_of(config, ""))
        body = _table(rows) if rows else "No keys."
        parts.append(f"### `objective: {_objective_name(config)}`\n\n{body}\n")
        for name, annotation in _annotations(config).items():
            parts += [
                f"Keys of `{name}{marks}`:\n\n{_table(keys_of(part, name + marks))}\n"
                for part, marks in _sections_in(annotation)
            ]
    return "\n".join(parts)


def _objective_name(config: type[ObjectiveConfig]) -> str:
    return str(config.model_fields["name"].default)


def _annotations(section: type[Any]) -> dict[str, Any]:
    """The type of each key, in order."""
    hints = get_type_hints(section, include_extras=True)
    if is_dataclass(section):
        return {field.name: hints[field.name] for field in dataclass_fields(section)}
    return {name: hints[name] for name in section.model_fields}


def _sections_in(annotation: Any, marks: str = "") -> Iterator[tuple[type[Any], str]]:
    """Section classes inside an annotation, with [] for each list and {} for each table around them. No objectives."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        if not issubclass(annotation, ObjectiveConfig):
            yield annotation, marks
        return
    around = {tuple: "[]", list: "[]", dict: "{}"}.get(getattr(annotation, "__origin__", None), "")
    for inner in get_args(annotation):
        yield from _sections_in(inner, marks + around)


def _descriptions(section: type[Any]) -> dict[str, str]:
    """The docstring under each field, of the class and of those it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if owner in (object, BaseModel) or not (issubclass(owner, BaseModel) or is_dataclass(owner)):
            continue
        try:
            source = inspect.getsource(owner)
        except (OSError, TypeError):  # a class made by a function, whose bases have the docstrings
            continue
        body = ast.parse(textwrap.dedent(source)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr)):
                continue
            if isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
                found[field.target.id] = " ".join(below.value.value.split())
    return found


def _first_sentence(section: type[Any]) -> str:
    """Of the class's own docstring."""
    text = " ".join((section.__dict__.get("__doc__") or "").split())
    return text.partition(". ")[0].rstrip(".") + "." if text else ""


def _default(section: type[Any], name: str, field: dict[str, Any]) -> Any:
    """A schema does not hold defaults that a function makes."""
    return field["default"] if "default" in field else section.model_fields[name].get_default(call_default_factory=True)


def _type(field: dict[str, Any], is_section: bool) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(part, is_section) for part in field["anyOf"] if part.get("type") != "null"))
    if "oneOf" in field:
        return "[objective](#objectives)"
    if "$ref" in field:
        return "section"
    if field.get("type") == "array":
        inner = field.get("items") or field["prefixItems"][0]
        length = f"{len(field['prefixItems'])} × " if "prefixItems" in field else ""
        return f"list of {length}{_type(inner, is_section)}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"table of {_type(inner, is_section)}" if isinstance(inner, dict) else "table"
    return "path" if field.get("format") == "path" else str(field.get("type", "any value"))


def _allowed(field: dict[str, Any]) -> str:
    """Choices and bounds, of a list those of its entries."""
    parts = [field, *field.get("anyOf", ())]
    for part in list(parts):
        inner = part.get("items") or part.get("additionalProperties")
        parts += [inner] if isinstance(inner, dict) else part.get("prefixItems", [])[:1]
    texts = []
    for part in parts:
        choices = part.get("enum", [part["const"]] if "const" in part else [])
        texts += [f"`{choice}`" for choice in choices]
        bounds = [f"{sign} {_number(part[bound])}" for bound, sign in _BOUNDS.items() if bound in part]
        texts += [" and ".join(bounds)] if bounds else []
    if "minItems" in field and "prefixItems" not in field:
        texts.append(f"at least {field['minItems']} entries" if field["minItems"] > 1 else "not empty")
    return ", ".join(texts)


def _number(value: float) -> str:
    if value == 2**64:
        return "2^64"
    return f"{int(value):_}" if value == int(value) else f"{value:g}"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict) and value.get("name") in NAMES:
        return f"`{value['name']}`"
    if isinstance(value, dict) and value:
        return "its defaults"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 10_000:
        return f"`{value:_}`" if isinstance(value, int) else f"`{value:g}`"
    return f"`{json.dumps(value)}`"


def _table(keys: Sequence[Key] | Iterator[Key]) -> str:
    lines = ["| key | type | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
    for key in keys:
        cells = (f"`{key.name}`", key.type, key.default, key.allowed, key.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
