"""
JSON schemas: what breaks one, how one is held closed, and values in one form, so that a vote can compare what samples say.

Knows JSON; knows no model and no message.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator, SchemaError
from referencing import Registry, Resource
from referencing.exceptions import NoSuchResource, Unresolvable
from referencing.jsonschema import DRAFT202012, SchemaResource

from langchain_pareto.errors import SettingError

NO_SCHEMA: Mapping[str, object] = {}
# words of a schema that hold schemas; "not" and "if" are left alone, since closed they would let more through
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_WITHIN = (
    *("items", "prefixItems", "additionalProperties", "contains", "unevaluatedItems"),
    *("allOf", "anyOf", "oneOf", "then", "else"),
)
_NAMING = ("properties", "patternProperties", "additionalProperties", "unevaluatedProperties")
_NOWHERE: Registry[Any] = Registry()  # nothing is fetched


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
    names = isinstance(made.get("properties"), Mapping)
    if alone and names and made.get("type", "object") == "object":
        made.setdefault("additionalProperties", False)
    return made


def _descriptions(schema: Mapping[str, object]) -> Iterator[object]:
    """What in a schema may name properties of one object: its own words, a reference, and each part of it."""
    if any(key in schema for key in _NAMING):
        yield {"properties": {}}
    if "$ref" in schema:
        yield {"$ref": schema["$ref"]}
    yield from _listed(schema.get("allOf"))
    for key in ("anyOf", "oneOf"):  # of these only one counts at a time
        if any(map(_names_properties, _listed(schema.get(key)))):
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


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def violation(
    value: object, schema: Mapping[str, object], *, root: Mapping[str, object] | None = None
) -> str | None:
    """Where and how `value` breaks the schema, whose references are to places in `root`; None where it does not. Never raises."""
    try:
        validator = Draft202012Validator(schema if root is None else root, registry=_NOWHERE)
        wrong = next(validator.evolve(schema=schema).iter_errors(value), None)
    except RecursionError:
        return "it is nested too deeply"
    except Exception as error:  # noqa: BLE001 - a stranger's schema can fail in any way, and a text is only read
        return f"the schema cannot be applied: {error}"
    return None if wrong is None else f"{wrong.message} (at {wrong.json_path})"


def check_schema(schema: Mapping[str, object]) -> None:
    """Raises SettingError for what is not a JSON schema, or refers to what it does not hold."""
    try:
        json.dumps(schema)
        Draft202012Validator.check_schema(schema)
        _check_references(schema)
    except SchemaError as error:
        msg = f"this is not a JSON schema: {error.message}"
        raise SettingError(msg, hint=f"Look at {error.json_path}.") from error
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"this is not a JSON schema: {error!s:.300}"
        raise SettingError(msg, hint="Leave out what JSON cannot write.") from error


def _check_references(schema: Mapping[str, object]) -> None:
    """Raises SettingError where a reference leads nowhere, elsewhere, or back to itself."""
    root = DRAFT202012.create_resource(schema)
    todo = [(root, _NOWHERE.resolver_with_root(root))]
    beside = dict[int, list[int]]()  # schemas by id, and those that hold for the same value
    parts = {id(one.contents) for one in _parts(root)}
    while todo:
        resource, resolver = todo.pop()
        contents = resource.contents
        if id(contents) in beside or not isinstance(contents, Mapping):
            continue
        beside[id(contents)] = [id(one) for one in _same_place(contents)]
        todo += [(one, resolver.in_subresource(one)) for one in resource.subresources()]
        for ref in (contents[key] for key in ("$ref", "$dynamicRef") if key in contents):
            try:
                found = resolver.lookup(ref)
            except (Unresolvable, NoSuchResource) as error:
                place = "what it does not hold" if ref.startswith("#") else "a schema elsewhere"
                msg = f"a JSON schema refers to {ref!r:.200}, {place}"
                hint = "Put the definition under $defs, and refer to #/$defs/..."
                raise SettingError(msg, hint=hint) from error
            if id(found.contents) not in parts:  # not a place where schemas stand
                Draft202012Validator.check_schema(found.contents)
            beside[id(contents)].append(id(found.contents))
            todo.append((DRAFT202012.create_resource(found.contents), found.resolver))
    try:
        TopologicalSorter(beside).prepare()
    except CycleError as error:
        msg = "a JSON schema refers to itself for the same value, without end"
        raise SettingError(
            msg, hint="Let it refer to itself from a property or an item."
        ) from error


def _parts(resource: SchemaResource) -> Iterator[Resource[Any]]:
    yield resource
    for one in resource.subresources():
        yield from _parts(one)


def _same_place(schema: Mapping[str, object]) -> Iterator[object]:
    for key in ("allOf", "anyOf", "oneOf"):
        yield from _listed(schema.get(key))
    yield from (schema[key] for key in ("if", "then", "else", "not") if key in schema)
    dependent = schema.get("dependentSchemas")
    yield from dependent.values() if isinstance(dependent, Mapping) else ()


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
