"""The published schemas of custom resources, made strict: a misspelt field is an error.

The API server drops fields that a CRD does not know (`kubectl --validate=strict` rejects them); the schemas themselves allow
them. This module closes every object that lists `properties`, except `metadata` and objects that preserve unknown fields. CEL
rules (`x-kubernetes-validations`) are not evaluated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft4Validator


def validator(crd_file: Path, version: str) -> Draft4Validator:
    """A strict validator of one version of a CRD. Raises StopIteration if the CRD has no such version."""
    versions = yaml.safe_load(crd_file.read_text())["spec"]["versions"]
    schema = next(entry["schema"]["openAPIV3Schema"] for entry in versions if entry["name"] == version)
    close(schema)
    return Draft4Validator(schema)


def close(schema: dict[str, Any], name: str = "") -> None:
    """Forbid unknown fields, in place."""
    preserves = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if "properties" in schema and name != "metadata" and not preserves:
        schema.setdefault("additionalProperties", False)
    for field, part in schema.get("properties", {}).items():
        close(part, field)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            close(schema[key])
