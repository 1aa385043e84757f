"""
JSON schemas: what breaks one, how one is held closed, and values in one form, so that a vote can compare what samples say.

Knows JSON; knows no model and no message.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator, SchemaError

from langchain_pareto.errors import SettingError

NO_SCHEMA: Mapping[str, object] = {}


def canonical(value: object, schema: Mapping[str, object] = NO_SCHEMA) -> object:
    """`value` so that equal meaning is equal JSON.

    Keys are sorted, whole floats are integers, text is NFC without idle spaces, and what `schema` gives as a default, or lets be null,
    is as good as left out. The items of an array keep their order, unless they must be unique.
    """
    if isinstance(value, Mapping):
        parts = _properties(schema)
        found = {str(key): canonical(one, parts.get(key, NO_SCHEMA)) for key, one in value.items()}
        required = schema.get("required")
        needed = required if isinstance(required, Sequence) else ()
        return {
            key: found[key]
            for key in sorted(found)
            if key in needed or not _idle(found[key], parts.get(key, NO_SCHEMA))
        }
    if isinstance(value, list | tuple):
        of = schema.get("items")
        items = [canonical(one, of if isinstance(of, Mapping) else NO_SCHEMA) for one in value]
        return sorted(items, key=written) if schema.get("uniqueItems") else items
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFC", value).split())
    return value


def written(value: object) -> str:
    """The JSON of a value, the same for the same value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def closed(schema: Any) -> Any:
    """The schema, in which an object that names its properties has no others unless it says so."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {
        key: value if key in ("enum", "const", "default", "examples") else closed(value)
        for key, value in schema.items()
    }
    if isinstance(made.get("properties"), Mapping) and made.get("type", "object") == "object":
        made.setdefault("additionalProperties", False)
    return made


def breach(value: object, schema: Mapping[str, object]) -> str | None:
    """Where and how `value` breaks the schema; None where it does not."""
    wrong = next(Draft202012Validator(schema).iter_errors(value), None)
    return None if wrong is None else f"{wrong.message} (at {wrong.json_path})"


def check_schema(schema: Mapping[str, object]) -> None:
    """Raises SettingError for what is no JSON schema."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        msg = f"this is no JSON schema: {error.message}"
        raise SettingError(msg, hint=f"Look at {error.json_path}.") from error


def _properties(schema: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
    parts = schema.get("properties")
    if not isinstance(parts, Mapping):
        return {}
    return {name: part for name, part in parts.items() if isinstance(part, Mapping)}


def _idle(value: object, schema: Mapping[str, object]) -> bool:
    """Whether a property that may be left out says nothing."""
    return (
        value is None if "default" not in schema else value == canonical(schema["default"], schema)
    )
