"""
Which schemas within a JSON schema have a value at all: one that ends, and that no two of their words forbid.

Knows types, limits and what must be there; knows no regular expression, no "not" and no "if". So what it calls impossible is so, while
what it lets pass need not be possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from langchain_pareto.forms.references import Place, listed

_NUMBER = frozenset({"integer", "fraction"})
_ALL = frozenset({"object", "array", "string", "boolean", "null"}) | _NUMBER
_KINDS = {kind: frozenset({kind}) for kind in _ALL} | {"number": _NUMBER}
_LIMITS = {
    "object": ("minProperties", "maxProperties"),
    "array": ("minItems", "maxItems"),
    "string": ("minLength", "maxLength"),
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a place has no value: `why`, or the part by that name, which must be there and has none."""

    why: str
    name: str | None = None
    part: object = None


class Possible:
    """The kinds of values that each place of a schema may have."""

    def __init__(self, found: Sequence[Place]) -> None:
        """Those that follow from nothing: a schema that needs itself has none."""
        self._root = found[0].schema
        self._targets = {id(one.schema): one.targets for one in found}
        self._kinds = dict.fromkeys(self._targets, frozenset[str]())
        changed = True
        while changed:
            changed = False
            for one in reversed(found):  # inner ones mostly come last
                kinds = self._of(one.schema)
                changed = changed or kinds != self._kinds[id(one.schema)]
                self._kinds[id(one.schema)] = kinds

    def has_value(self, schema: object) -> bool:
        """Whether a place may have a value."""
        return bool(self._known(schema))

    def why_not(self) -> str | None:
        """Where and why the whole schema has no value; None where it may have one."""
        if self.has_value(self._root):
            return None
        schema, path, above = self._root, "$", set[int]()
        while id(schema) not in above:
            above.add(id(schema))
            trouble = self._first_trouble(schema)
            if not isinstance(trouble.part, Mapping):
                place = path if trouble.name is None else f"{path}.{trouble.name}"
                return f"{place} {trouble.why}"
            schema = trouble.part
            path = path if trouble.name is None else f"{path}.{trouble.name}"
        return f"{path} must hold itself, without end"

    def _known(self, schema: object) -> frozenset[str]:
        if not isinstance(schema, Mapping):
            return frozenset() if schema is False else _ALL
        return self._kinds.get(id(schema), _ALL)

    def _of(self, schema: Mapping[str, object]) -> frozenset[str]:
        kinds = frozenset(kind for kind in _told(schema) if self._trouble(schema, kind) is None)
        for one in self._together(schema):
            kinds &= self._known(one)
        for options in _choices(schema):
            kinds &= frozenset[str]().union(*map(self._known, options))
        return kinds

    def _together(self, schema: Mapping[str, object]) -> Sequence[object]:
        return (*self._targets[id(schema)], *listed(schema.get("allOf")))

    def _trouble(self, schema: Mapping[str, object], kind: str) -> Trouble | None:
        """Why no value of a kind keeps to the schema's own words."""
        if why := _contradiction(schema, kind):
            return Trouble(why)
        parts = {"object": _needed_properties, "array": _needed_items}.get(kind)
        for name, part in () if parts is None else parts(schema):
            if not self.has_value(part):
                return Trouble("must be there, and may not", name, part)
        return None

    def _first_trouble(self, schema: Mapping[str, object]) -> Trouble:
        """What is to blame first in a place without a value."""
        for one in self._together(schema):
            if not self.has_value(one):
                return Trouble("is forbidden", part=one)
        for options in _choices(schema):
            if not any(map(self.has_value, options)):
                return Trouble("is forbidden", part=options[0])
        told = _told(schema)
        if not told:
            return Trouble("has an enum or a const without a value of its type")
        troubles = [self._trouble(schema, kind) for kind in sorted(told)]
        if None in troubles:
            return Trouble("is to be of types that exclude each other")
        return next(one for one in troubles if one is not None)


def _told(schema: Mapping[str, object]) -> frozenset[str]:
    """Kinds of values by "type", "enum" and "const"."""
    told = schema.get("type", [])
    types = [told] if isinstance(told, str) else told if isinstance(told, list) else []
    kinds = frozenset[str]().union(*(_KINDS.get(str(one), _ALL) for one in types)) or _ALL
    if "const" in schema:
        kinds &= _kind(schema["const"])
    if isinstance(values := schema.get("enum"), list):
        kinds &= frozenset[str]().union(*map(_kind, values))
    return kinds


def _kind(value: object) -> frozenset[str]:
    if isinstance(value, bool):
        return _KINDS["boolean"]
    if isinstance(value, int | float):
        return _KINDS["integer" if math.isfinite(value) and value == int(value) else "fraction"]
    if isinstance(value, str):
        return _KINDS["string"]
    if value is None:
        return _KINDS["null"]
    return _KINDS["object" if isinstance(value, Mapping) else "array"]


def _choices(schema: Mapping[str, object]) -> Iterator[Sequence[object]]:
    for key in ("anyOf", "oneOf"):
        if options := listed(schema.get(key)):
            yield options


def _contradiction(schema: Mapping[str, object], kind: str) -> str | None:
    """Two limits of a schema that no value of a kind keeps."""
    if kind in _NUMBER:
        return _no_number(schema, whole=kind == "integer")
    low, high = _LIMITS.get(kind, ("", ""))
    least, most = _number(schema, low), _number(schema, high)
    if least is not None and most is not None and least > most:
        return f"has {low} {least} above {high} {most}"
    names = len(set(_required(schema)))
    if kind == "object" and most is not None and most < names:
        return f"requires {names} properties and has {high} {most}"
    return None


def _no_number(schema: Mapping[str, object], *, whole: bool) -> str | None:
    lows = [
        (n, key)
        for key in ("minimum", "exclusiveMinimum")
        if (n := _number(schema, key)) is not None
    ]
    highs = [
        (n, key)
        for key in ("maximum", "exclusiveMaximum")
        if (n := _number(schema, key)) is not None
    ]
    for low, above in lows:
        for high, below in highs:
            strict = above.startswith("ex") or below.startswith("ex")
            room = high > low or (high == low and not strict)
            if room and whole:
                first = math.floor(low) + 1 if above.startswith("ex") else math.ceil(low)
                last = math.ceil(high) - 1 if below.startswith("ex") else math.floor(high)
                room = first <= last
            if not room:
                return f"has no number from {above} {low} to {below} {high}"
    return None


def _number(schema: Mapping[str, object], key: str) -> int | float | None:
    value = schema.get(key)
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if sound else None  # type: ignore[return-value]


def _required(schema: Mapping[str, object]) -> Sequence[str]:
    return [str(name) for name in listed(schema.get("required"))]


def _needed_properties(schema: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    named = schema.get("properties")
    others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
    for name in _required(schema):
        yield name, named.get(name, others) if isinstance(named, Mapping) else others


def _needed_items(schema: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    first, others = listed(schema.get("prefixItems")), schema.get("items", True)
    least = _number(schema, "minItems") or 0
    for i in range(min(int(least), len(first) + 1)):
        yield str(i), first[i] if i < len(first) else others
