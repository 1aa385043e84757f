"""
Values made to fit a JSON schema where the meaning is plain.

Knows JSON and JSON schemas; knows no call and no answer. Each value is fitted once to each part of the schema, however many ways lead
there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from referencing.exceptions import NoSuchResource, Unresolvable
from referencing.jsonschema import DRAFT202012

from langchain_pareto.forms.references import NOWHERE, listed
from langchain_pareto.forms.tool_arguments import read_json
from langchain_pareto.forms.validity import TOO_DEEP, Validity, too_deep

_INTEGER = re.compile(r"[+-]?\d{1,300}")
_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def coerced(value: object, schema: Mapping[str, object]) -> tuple[object, str | None]:
    """`value` as the schema wants it, as far as it can be, and what is still wrong. Never raises.

    "7" becomes 7 for an integer, 7 becomes "7" for a string, null is dropped where it stands for a parameter left out, and so are the
    repeats in a set.
    """
    if (wrong := too_deep(value)) is not None:
        return value, wrong
    fitting = _Fitting(schema)
    try:
        made = fitting.of(value, schema)
    except RecursionError:  # the schema's, or of whoever asks
        return value, TOO_DEEP
    return made, fitting.validity.violation(made, schema)


class _Fitting:
    """Values of one root fitted to a schema and its parts; what fits already stays the same object."""

    def __init__(self, root: Mapping[str, object]) -> None:
        self.validity = Validity(root)
        self._resolver = NOWHERE.resolver_with_root(DRAFT202012.create_resource(root))
        # by the value and the schema: both, so that they live on, and what was made
        self._made = dict[tuple[int, int], tuple[object, object, object]]()

    def of(self, value: object, schema: object) -> object:
        """The value as the schema wants it."""
        if not isinstance(schema, Mapping):
            return value
        key = (id(value), id(schema))
        if key not in self._made:
            self._made[key] = value, schema, self._fit(value, schema)
        return self._made[key][2]

    def _fit(self, value: object, schema: Mapping[str, object]) -> object:
        if "$ref" in schema:
            value = self.of(value, self._referred(schema["$ref"]))
        for part in listed(schema.get("allOf")):
            value = self.of(value, part)
        options = listed(schema.get("anyOf")) or listed(schema.get("oneOf"))
        if options:
            if any(self._keeps(value, option) for option in options):
                return value
            tried = ((self.of(value, option), option) for option in options)
            value = next((one for one, option in tried if self._keeps(one, option)), value)
        value = _cast(value, schema)
        if isinstance(value, dict):
            return self._object(value, schema)
        if isinstance(value, list):
            return self._list(value, schema)
        return value

    def _referred(self, ref: object) -> object:
        try:
            return self._resolver.lookup(str(ref)).contents
        except (Unresolvable, NoSuchResource):
            return None

    def _object(self, value: dict[str, object], schema: Mapping[str, object]) -> object:
        parts = schema.get("properties")
        if not isinstance(parts, Mapping):
            return value
        needed = listed(schema.get("required"))
        made = dict[str, object]()
        for key, one in value.items():
            part = parts.get(key)
            if (
                one is None
                and part is not None
                and key not in needed
                and not self._keeps(one, part)
            ):
                continue  # null for "left out"
            made[key] = self.of(one, part)
        same = len(made) == len(value) and all(made[key] is one for key, one in value.items())
        return value if same else made

    def _list(self, value: list[object], schema: Mapping[str, object]) -> object:
        items = [self.of(item, schema.get("items")) for item in value]
        if schema.get("uniqueItems") is True:
            items = _distinct(items)
        same = len(items) == len(value) and all(map(_is_same, items, value))
        return value if same else items

    def _keeps(self, value: object, schema: object) -> bool:
        return self.validity.violation(value, schema) is None


def _is_same(one: object, other: object) -> bool:
    return one is other


def _distinct(items: Sequence[object]) -> list[object]:
    told = dict[str, object]()
    for item in items:
        told.setdefault(json.dumps(item, sort_keys=True), item)
    return list(told.values())


def _cast(value: object, schema: Mapping[str, object]) -> object:
    """A value of another type as one that the schema names, if it can only mean that."""
    told = schema.get("type")
    kinds = [told] if isinstance(told, str) else listed(told)
    if not kinds:
        options = schema.get("enum") if "enum" in schema else [schema.get("const", value)]
        same = [o for o in options if str(o) == value] if isinstance(options, list) else []
        return same[0] if same and value not in same else value
    if any(_is(value, kind) for kind in kinds):
        return value
    for kind in kinds:
        made = _as_kind(value, kind)
        if made is not value:
            return made
    return value


def _is(value: object, kind: object) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS.get(str(kind), ()))


def _as_kind(value: object, kind: object) -> object:
    """`value` itself where it has no meaning of that kind."""
    text = value.strip() if isinstance(value, str) else None
    if kind == "string" and isinstance(value, bool | int | float):
        return json.dumps(value)
    if kind in ("integer", "number") and text is not None and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind == "boolean" and text is not None:
        return {"true": True, "false": False}.get(text.lower(), value)
    if kind == "null" and text is not None:
        return None if text.lower() in ("null", "none") else value
    if kind in ("integer", "number", "array", "object") and text is not None:
        try:
            read = read_json(text)
        except ValueError:
            return value
        if kind == "integer" and isinstance(read, float) and read.is_integer():
            return int(read)
        return read if _is(read, kind) else value
    return value
