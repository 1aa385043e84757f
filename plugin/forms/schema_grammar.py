"""
The grammar rule of a JSON schema, as llguidance's Lark reads it.

Knows which words of a schema that library takes, and how to loosen a schema that it refuses; knows no tool and no answer. Without
the library it writes the same rule, unchecked. What a rule does not hold is left to the reader of the text.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial

from jsonschema import SchemaError

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.possible import Possible
from langchain_pareto.forms.references import places

_Schema = Mapping[str, object]

# JSON as models are trained to write it: on one line, with a space after commas and colons; no run of spaces can fill up a text
_STYLE: _Schema = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": True,  # what it does not know is left to the reader
    "coerce_one_of": True,
}
# where a reader is as loose, or makes the value fit
_HARMLESS = (
    "oneOf not fully supported",
    "Unknown format",
    'Unimplemented keys: ["uniqueItems"]',
)
_PATTERNS = frozenset({"pattern", "patternProperties", "propertyNames"})
_LIMITS = frozenset(
    f"{end}{of}" for end in ("min", "max") for of in ("imum", "Length", "Items", "Properties")
) | {"exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_OF_NAMES = ("properties", "$defs", "definitions", "dependentSchemas")  # keys are names in these


def json_rule(schema: Mapping[str, object], *, what: str) -> str:
    """`%json {...}` of the schema, or of the closest looser one that can be compiled.

    Warns, once for each schema, where it holds `what` to less than a reader checks.
    """
    return f"%json {_compilable(json.dumps(schema), what)}"


@lru_cache(maxsize=256)
def _compilable(schema: str, what: str) -> str:
    given = _possible_only(json.loads(schema))
    lost = list[str]()
    for loosen in _LOOSER:
        tried = json.dumps({**loosen(given), "x-guidance": _STYLE})
        refused, words = _verdict(tried)
        lost += [word for word in words if refused or not word.startswith(_HARMLESS)]
        if not refused:
            break
    else:
        msg = f"not even the loosest schema could be compiled: {lost}"
        raise AssertionError(msg)
    if lost:
        msg = f"no grammar can hold {what} to all of its schema; what is written is checked: {lost[0]:.300}"
        # whoever asked for the rule: in a call that is a thread of its own, which no line of the user's is on
        warnings.warn(msg, stacklevel=3)
    return tried


def _verdict(schema: str) -> tuple[bool, list[str]]:
    """Whether the library refuses a schema, and what it says; it refuses nothing where it is not installed."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        return False, []
    refused, words = LLMatcher.validate_grammar_with_warnings(f"start: %json {schema}")
    return bool(refused), list(words)


def _as_it_is(schema: _Schema) -> _Schema:
    return schema


def _possible_only(schema: _Schema) -> _Schema:
    """Without the parts that have no value: a text that began one would never end."""
    try:
        possible = Possible(places(schema))
    except (SettingError, SchemaError):  # nobody has checked it
        return schema

    def kept(value: object) -> object:
        if isinstance(value, list):
            return [kept(one) for one in value]
        if not isinstance(value, Mapping):
            return value
        return (
            {key: kept(one) for key, one in value.items()} if possible.has_value(value) else False
        )

    return {key: kept(one) for key, one in schema.items()}


def _loosened(schema: _Schema, words: Collection[str]) -> _Schema:
    """Without some words: regular expressions, whose dialects differ, or limits beyond what the library counts."""
    made = _without(words, schema)
    assert isinstance(made, Mapping)
    return made


def _without(words: Collection[str], value: object, *, names: bool = False) -> object:
    if isinstance(value, list):
        return [_without(words, one) for one in value]
    if not isinstance(value, Mapping):
        return value
    # an object closed to all but patterns would be left with nothing
    closing = {"additionalProperties"} if "patternProperties" in value else set[str]()
    return {
        key: one
        if not names and key in ("enum", "const")
        else _without(words, one, names=not names and key in _OF_NAMES)
        for key, one in value.items()
        if names or (key not in words and key not in closing)
    }


def _named_only(schema: _Schema) -> _Schema:
    """Any values, under the right names."""
    parts = schema.get("properties")
    kept: dict[str, object] = dict.fromkeys(parts, True) if isinstance(parts, Mapping) else {}
    required = schema.get("required")
    needed = [key for key in required if key in kept] if isinstance(required, list) else []
    return {**_typed_only(schema), "properties": kept, "required": needed}


def _typed_only(schema: _Schema) -> _Schema:
    return {"type": schema["type"]} if schema.get("type") else {}


_LOOSER: tuple[Callable[[_Schema], _Schema], ...] = (
    _as_it_is,
    partial(_loosened, words=_PATTERNS),
    partial(_loosened, words=_PATTERNS | _LIMITS),
    _named_only,
    _typed_only,
)
