"""
JSON schemas: what breaks one, how one is held closed, and values in one form, so that a vote can compare what samples say.

Knows JSON; knows no model and no message.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator, SchemaError

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.possible import Possible
from langchain_pareto.forms.references import check_ends, listed, places
from langchain_pareto.forms.validity import Validity

NO_SCHEMA: Mapping[str, object] = {}
# words of a schema that hold schemas; "not" and "if" are left alone, since closed they would let more through
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_WITHIN = (
    *("items", "prefixItems", "additionalProperties", "contains", "unevaluatedItems"),
    *("allOf", "anyOf", "oneOf", "then", "else"),
)
_NAMING = ("properties", "patternProperties", "additionalProperties", "unevaluatedProperties")


def canonical(value: object, schema: Mapping[str, object] = NO_SCHEMA) -> object:
    """`value` so that equal meaning is equal JSON.

    Keys are sorted, whole floats are integers, text is NFC without idle spaces (lines stay as they are), and what `schema` gives as a default, or lets be null,
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
        return sorted(items, key=canonical_json) if schema.get("uniqueItems") else items
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value).strip()
        return text if "\n" in text else " ".join(text.split())  # lines may be code
    return value


def canonical_json(value: object) -> str:
    """The JSON of a value, the same for the same value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def closed(schema: Any) -> Any:
    """The schema, in which an object that names its properties has no others unless it says so.

    Where several schemas describe one object, as the parts of an allOf do, none is closed: it would forbid what the others name.
    """
    shared = set[str]()  # references to schemas that describe an object together with others
    while True:
        known = len(shared)
        made = _closed(schema, "#", shared, alone=True)
        if len(shared) == known:
            return made


def _closed(schema: Any, at: str, shared: set[str], *, alone: bool) -> Any:
    if isinstance(schema, list):
        return [_closed(one, f"{at}/{i}", shared, alone=alone) for i, one in enumerate(schema)]
    if not isinstance(schema, Mapping):
        return schema
    alone = alone and shared.isdisjoint({at, f"#{schema.get('$anchor')}"})
    alone = alone and sum(map(_names_properties, _descriptions(schema))) <= 1
    if not alone and "$ref" in schema:
        shared.add(unquote(str(schema["$ref"])))
    made = dict(schema)
    for key, value in schema.items():
        inner = f"{at}/{key}"
        if key in _BY_NAME and isinstance(value, Mapping):
            free = alone or key in ("$defs", "definitions")
            made[key] = {
                name: _closed(one, f"{inner}/{_escaped(name)}", shared, alone=free)
                for name, one in value.items()
            }
        elif key in _WITHIN:
            made[key] = _closed(value, inner, shared, alone=alone)
    if alone and _names_all(made) and made.get("type", "object") == "object":
        made.setdefault("additionalProperties", False)
    return made


def _names_all(schema: Mapping[str, object]) -> bool:
    """Whether a schema names all that it requires: closed, it would have no value else."""
    named = schema.get("properties")
    return isinstance(named, Mapping) and named.keys() >= set(
        map(str, listed(schema.get("required")))
    )


def _descriptions(schema: Mapping[str, object]) -> Iterator[object]:
    """What in a schema may name properties of one object: its own words, a reference, and each part of it."""
    if any(key in schema for key in _NAMING):
        yield {"properties": {}}
    if "$ref" in schema:
        yield {"$ref": schema["$ref"]}
    yield from listed(schema.get("allOf"))
    for key in ("anyOf", "oneOf"):  # of these only one counts at a time
        if any(map(_names_properties, listed(schema.get(key)))):
            yield {"properties": {}}
    yield from (schema[key] for key in ("then", "else") if key in schema)
    dependent = schema.get("dependentSchemas")
    yield from dependent.values() if isinstance(dependent, Mapping) else ()


def _names_properties(schema: object) -> bool:
    if not isinstance(schema, Mapping):
        return False
    if any(key in schema for key in (*_NAMING, "$ref")):
        return True
    return any(map(_names_properties, _descriptions(schema)))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def sealed(schema: Any) -> Any:
    """The schema, in which an object that names its properties requires all of them, and has no others."""
    if isinstance(schema, list):
        return [sealed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, Mapping):
            made[key] = {name: sealed(one) for name, one in value.items()}
        elif key in _WITHIN:
            made[key] = sealed(value)
    if isinstance(named := made.get("properties"), Mapping):
        made |= {"required": list(named), "additionalProperties": False}
    return made


def violation(
    value: object, schema: Mapping[str, object], *, root: Mapping[str, object] | None = None
) -> str | None:
    """Where and how `value` breaks the schema, whose references are to places in `root`; None where it does not. Never raises."""
    return Validity(schema if root is None else root).violation(value, schema)


def check_schema(schema: Mapping[str, object]) -> None:
    """Raises SettingError for what is not a JSON schema, refers to what it does not hold, or has no value."""
    try:
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
        _check_names(schema)
        Draft202012Validator.check_schema(schema)
        found = places(schema)
    except SchemaError as error:
        msg = f"this is not a JSON schema: {error.message} (at {error.json_path})"
        raise SettingError(msg, hint=f"Look at {error.json_path}.") from error
    except RecursionError as error:
        msg = "this JSON schema is nested too deeply"
        raise SettingError(msg, hint="Put inner parts under $defs, and refer to them.") from error
    except SettingError:
        raise
    except (TypeError, ValueError) as error:
        msg = f"this is not a JSON schema: {error!s:.300}"
        raise SettingError(msg, hint="Leave out what JSON cannot write.") from error
    check_ends(found)
    if (why := Possible(found).why_not()) is not None:
        msg = f"no value can fit this JSON schema: {why}"
        hint = (
            "Widen it there; what holds itself must be optional, may be null, or stand in a list."
        )
        raise SettingError(msg, hint=hint)


def _check_names(value: object) -> None:
    """Raises TypeError for a name that is no text, which JSON would make one."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                msg = f"a name in it is {name!r}, which is no text"
                raise TypeError(msg)
        value = list(value.values())
    for one in value if isinstance(value, list) else ():
        _check_names(one)


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
