"""
The arguments of a call, made to fit the parameters of its tool where the meaning is plain.

Knows JSON and JSON schemas; knows no format of calls.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence

from langchain_pareto.forms.schemas import violation

TOO_DEEP = "it is nested too deeply"
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


def read_json(text: str) -> object:
    """The value that a text is, raw line ends in its strings allowed; raises ValueError.

    A number beyond floats is the largest of them, and half of a surrogate pair the replacement character: neither could be written
    as JSON again.
    """
    try:
        value: object = json.loads(
            text, strict=False, parse_float=_finite, parse_constant=_refuse_constant
        )
        return _text_only(value) if "\\u" in text else value
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def without_surrogates(text: str) -> str:
    """The text with the replacement character for halves of surrogate pairs, which are not text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def coerced(value: object, schema: Mapping[str, object]) -> tuple[object, str | None]:
    """`value` as the schema wants it, as far as it can be, and what is still wrong. Never raises.

    "7" becomes 7 for an integer, 7 becomes "7" for a string, null is dropped where it stands for a parameter left out, and so are the
    repeats in a set.
    """
    try:
        made = _fit(value, schema, schema)
    except RecursionError:
        return value, TOO_DEEP
    return made, violation(made, schema)


def _fit(value: object, schema: object, root: Mapping[str, object]) -> object:
    if not isinstance(schema, Mapping):
        return value
    target = _referred(schema, root)
    if target is not None:
        value = _fit(value, target, root)
    for part in _schemas(schema.get("allOf")):
        value = _fit(value, part, root)
    options = _schemas(schema.get("anyOf")) or _schemas(schema.get("oneOf"))
    if options and all(_broken(value, option, root) for option in options):
        tried = (_fit(value, option, root) for option in options)
        fits = (one for one, o in zip(tried, options, strict=True) if not _broken(one, o, root))
        value = next(fits, value)
    elif options:
        return value
    value = _cast(value, schema)
    if isinstance(value, dict):
        return _fit_object(value, schema, root)
    if isinstance(value, list):
        items = [_fit(item, schema.get("items"), root) for item in value]
        return _distinct(items) if schema.get("uniqueItems") is True else items
    return value


def _distinct(items: list[object]) -> list[object]:
    told = {json.dumps(item, sort_keys=True): item for item in reversed(items)}
    return list(reversed(told.values()))


def _fit_object(
    value: Mapping[str, object], schema: Mapping[str, object], root: Mapping[str, object]
) -> dict[str, object]:
    parts = schema.get("properties")
    required = schema.get("required")
    needed = required if isinstance(required, Sequence) else ()
    made = dict[str, object]()
    for key, one in value.items():
        part = parts.get(key) if isinstance(parts, Mapping) else None
        if one is None and part is not None and key not in needed and _broken(one, part, root):
            continue  # null for "left out"
        made[key] = _fit(one, part, root)
    return made


def _cast(value: object, schema: Mapping[str, object]) -> object:
    """A value of another type as one that the schema names, if it can only mean that."""
    told = schema.get("type")
    kinds = [told] if isinstance(told, str) else list(told) if isinstance(told, list) else []
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


def _broken(value: object, schema: object, root: Mapping[str, object]) -> bool:
    if not isinstance(schema, Mapping):
        return schema is False
    return violation(value, schema, root=root) is not None


def _referred(schema: Mapping[str, object], root: Mapping[str, object]) -> object:
    ref = schema.get("$ref")
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return None
    found: object = root
    for step in ref[2:].split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _schemas(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)


def _refuse_constant(name: str) -> object:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _text_only(value: object) -> object:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_text_only(one) for one in value]
    if isinstance(value, dict):
        return {_text_only(key): _text_only(one) for key, one in value.items()}
    return value
