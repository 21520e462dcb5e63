"""Schema: what a plan's ``request`` may hold, from the table of settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from onnxprune.plans.request import Request, specs

JSON_TYPES: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "str": {"type": "string"},
    "Mode": {"type": "string"},
    "int | None": {"type": ["integer", "null"]},
    "float | None": {"type": ["number", "null"]},
    "tuple[str, ...]": {"type": "array", "items": {"type": "string"}},
    "Mapping[str, int]": {"type": "object"},
    "Mapping[str, float]": {"type": "object", "additionalProperties": {"type": "number"}},
}
"""JSON schema for the type of a setting."""


def request_schema() -> dict[str, Any]:
    """Return the JSON schema of a request; ``plan.schema.json`` holds the same."""
    said = specs(Request)
    properties: dict[str, Any] = {}
    for setting in fields(Request):
        constraint = said[setting.name].constraint
        own = dict(JSON_TYPES[str(setting.type)]) | (constraint.schema() if constraint else {})
        properties[setting.name] = own
    properties["align"] = {"anyOf": [properties["align"], {"const": "auto"}]}
    return {"type": "object", "additionalProperties": False, "properties": properties}
