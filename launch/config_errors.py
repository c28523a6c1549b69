"""Messages for a wrong configuration: one line a problem, with its origin, the key and the remedy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

RENAMED_KEY = "renamed_key"
"""Type of a validation error at a section that holds a key of an earlier version: `old` and `new` in its context."""
_UNKNOWN_KEY = {"extra_forbidden", "unexpected_keyword_argument"}
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text (quote it: key='\"7\"')",
    "path": "a path",
    "list": "a list, such as [1, 2]",
    "tuple": "a list, such as [1, 2]",
    "dict": "a section of key: value lines",
    "model": "a section of key: value lines",
    "dataclass": "a section of key: value lines",
}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is for the person who wrote it."""


@dataclasses.dataclass(kw_only=True)
class Origins:
    """Where each key got its value: a line of a file, a command-line option, or an override (the last one wins)."""

    file: str | None = None
    lines: dict[str, int] = dataclasses.field(default_factory=dict)
    given: dict[str, str] = dataclasses.field(default_factory=dict)
    """Dotted key to the text on the command line that set it."""
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    """Dotted key to the command-line option that could set it, given or not."""

    def of(self, key: str) -> str:
        """Where `key` got its value; for a section, the last command-line text that set a key of it."""
        for name, text in reversed(self.given.items()):
            if name == key or name.startswith(f"{key}.") or key.startswith(f"{name}."):
                return text
        return self.in_file(key)

    def in_file(self, key: str) -> str:
        """The line of `key` in the file, or of the nearest section around it; "the command line" if there is no file."""
        if self.file is None:
            return "the command line"
        while key:
            if key in self.lines:
                return f"{self.file}:{self.lines[key]}"
            key = key.rpartition(".")[0]
        return self.file


def explain(error: ValidationError, model_class: type[BaseModel], origins: Origins) -> ConfigError:
    """A ConfigError with the problems of pydantic's `error` in words for people."""
    details = error.errors(include_url=False)
    suggested: set[str] = set()
    lines: list[str] = []
    # Unknown keys first: a required key that one of them misspells is then not reported as missing as well.
    for problem in sorted(details, key=lambda problem: problem["type"] not in _UNKNOWN_KEY):
        parts, owner = _located(model_class, problem["loc"])
        key = ".".join(parts)
        if problem["type"] in _UNKNOWN_KEY:
            section, _, name = key.rpartition(".")
            keys = list(_annotations(owner)) if owner is not None else []
            near = _nearest(model_class, section, name, keys)
            suggested.update(near)
            valid = f"valid keys{' of ' + section if section else ''}: {', '.join(keys)}"
            hint = f"did you mean {near[0]}?" if near else valid
            lines.append(f"{origins.of(key)}: unknown key {key}; {hint}")
        elif problem["type"] == RENAMED_KEY:
            old = ".".join([*parts, problem["ctx"]["old"]])
            lines.append(f"{origins.of(old)}: {old} is now named {problem['ctx']['new']}: rename the key")
        elif problem["type"] != "missing":
            lines.append(_wrong_value(problem, key, model_class, origins))
        elif isinstance(problem["loc"][-1], int):  # an item that a fixed-length list lacks
            lines.append(f"{origins.of(key)}: {key.rpartition('.')[0]} is {problem['input']}; expected more values")
        elif key not in suggested:
            remedy = f"give {origins.options[key]}" if key in origins.options else "give it there"
            lines.append(f"{origins.in_file(key)}: {key} is missing; {remedy}, or {key}=VALUE")
    if len(lines) == 1:
        return ConfigError(lines[0])
    return ConfigError(f"{len(lines)} problems in the configuration" + "".join(f"\n  {line}" for line in lines))


def _wrong_value(problem: ErrorDetails, key: str, model_class: type[BaseModel], origins: Origins) -> str:
    context = problem.get("ctx", {})
    if problem["type"] in ("value_error", "assertion_error"):  # our own validators, whose messages are already for people
        message = str(context["error"])
        mentioned = sorted((name for name in all_keys(model_class) if _mentions(message, name)), key=message.index)
        places = dict.fromkeys(origins.of(name) for name in mentioned if name in origins.given)
        where = ", ".join(places) or origins.of(mentioned[0] if mentioned else key)
        prefix = "" if mentioned or not key or key.rpartition(".")[2] in message else f"{key}: "
        return f"{where}: {prefix}{message}"
    if problem["type"] == "literal_error":
        expected = str(context["expected"])
    elif problem["type"].startswith(("greater_than", "less_than")):
        expected = f"a number {problem['msg'].removeprefix('Input should be ')}"
    else:
        family = problem["type"].partition("_")[0]
        expected = _EXPECTED.get(family, problem["msg"].removeprefix("Input should be "))
    value = problem["input"]
    if problem["type"] == "union_tag_invalid":  # a section of several kinds, distinguished by their names
        value, expected = context["tag"], f"one of {context['expected_tags']}"
    shown = "empty" if value is None else repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    return f"{origins.of(key)}: {key} is {shown}; expected {expected}{_near_value(value, expected)}"


def _mentions(message: str, key: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.]*\w)", message) is not None


def _near_value(value: object, expected: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    near = get_close_matches(str(value), choices, n=1) if isinstance(value, str) and len(choices) > 1 else []
    return f" (did you mean {near[0]}?)" if near else ""


def _nearest(model_class: type[BaseModel], section: str, name: str, keys: list[str]) -> list[str]:
    """At most one dotted key: the closest among the `keys` of its section, else one of that name in another section."""
    prefix = f"{section}." if section else ""
    elsewhere = {key.rpartition(".")[2]: key for key in all_keys(model_class) if "." in key}
    near = get_close_matches(name, keys, n=1)
    if near and name not in elsewhere:
        return [prefix + near[0]]
    return [elsewhere[match] for match in get_close_matches(name, elsewhere, n=1, cutoff=0.8)]


def _located(model_class: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The parts of the dotted key as people write it, and the section that its last part is in (None if that is no section).

    Pydantic puts the name of the chosen kind behind a section that has several kinds.
    """
    parts: list[str] = []
    owner: Any = model_class
    annotation: Any = None
    for part in map(str, location):
        kinds = {kind.model_fields["name"].default: kind for kind in _kinds(annotation)}
        if part in kinds:
            owner, annotation = kinds[part], None
            continue
        if annotation is not None:
            owner = _section_class(annotation) or _section_class(next(iter(get_args(annotation)), None))
        parts.append(part)
        annotation = _annotations(owner).get(part) if owner is not None and not part.isdigit() else annotation
    return parts, owner


def _kinds(annotation: Any) -> list[Any]:
    """The sections of a union whose members have a `name`, empty for any other annotation."""
    members = [part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    return [part for part in members if "name" in part.model_fields] if len(members) > 1 else []


def all_keys(model_class: type[BaseModel]) -> Iterable[str]:
    """Every dotted key of a configuration, sections included, in the order they are declared."""
    return _walk(model_class, "")


def _walk(current: Any, prefix: str) -> Iterator[str]:
    for name, annotation in _annotations(current).items():
        yield prefix + name
        section = _section_class(annotation)
        if section is not None:
            yield from _walk(section, f"{prefix}{name}.")


def _annotations(section: Any) -> dict[str, Any]:
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def _section_class(annotation: Any) -> Any:
    """The configuration class inside an annotation such as `Section | None`, or None if it has plain values."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return annotation
    if get_origin(annotation) in (list, tuple, dict):  # no dotted key reaches into these
        return None
    return next((found for part in get_args(annotation) if (found := _section_class(part)) is not None), None)
