"""
What a text must look like so that every call in it can be read: grammars in llguidance's Lark.

Knows how calls are written and what the grammar's library takes; compiles nothing for a model. Without that library it writes the
same grammar, unchecked.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache

from langchain_pareto.schemas import closed
from langchain_pareto.tools import Tools

# JSON as models are trained to write it: on one line, with a space after commas and colons
_STYLE: Mapping[str, object] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": True,  # what it does not know is left to the reader of the call
    "coerce_one_of": True,
}
_TEXT = "TEXT: /(?s:.*)/"
# where the reader of a call is as loose, or makes its arguments fit
_HARMLESS = (
    "oneOf not fully supported",
    "Unknown format",
    'Unimplemented keys: ["uniqueItems"]',
)


def calls_grammar(
    style: str, key: str, special: Mapping[str, int], tools: Tools, *, named: bool
) -> str | None:
    """See ToolFormat.grammar; `special` are marks that are one special token, `key` is what arguments are called."""
    if not tools.callable:
        return None
    rules = [f"args_{i}: %json {_arguments(name, tools)}" for i, name in enumerate(tools.callable)]
    if style == "mistral" and named:
        lines = _named(special, tools)
    elif style == "mistral":
        lines = _listed(key, special, tools)
    elif style == "llama":
        lines = _plain(key, special, tools)
    else:
        lines = _tagged(key, special, tools)
    return "\n".join([*lines, *rules])


def _tagged(key: str, special: Mapping[str, int], tools: Tools) -> list[str]:
    """Calls between two marks, a line each."""
    mark, close = "<tool_call>", _mark("</tool_call>", special)
    return [
        *_start(mark, "body", rf'("\n" {_mark(mark, special)} body)*', special, tools),
        rf'body: "\n" object "\n" {close}',
        f"object: {_objects(key, tools)}",
    ]


def _listed(key: str, special: Mapping[str, int], tools: Tools) -> list[str]:
    """A mark, and a list of calls."""
    more = ' (", " object)*' if tools.parallel else ""
    return [
        *_start("[TOOL_CALLS]", "list", "", special, tools),
        f'list: " "? "[" object{more} "]"',
        f"object: {_objects(key, tools)}",
    ]


def _named(special: Mapping[str, int], tools: Tools) -> list[str]:
    """A mark, a name, a mark, and arguments, again and again."""
    mark, then = "[TOOL_CALLS]", _mark("[ARGS]", special)
    calls = [f"{_quoted(name)} {then} args_{i}" for i, name in enumerate(tools.callable)]
    return [
        *_start(mark, "body", f"({_mark(mark, special)} body)*", special, tools),
        f"body: {' | '.join(calls)}",
    ]


def _plain(key: str, special: Mapping[str, int], tools: Tools) -> list[str]:
    """Objects alone; one that names a tool begins the calls, wherever it stands."""
    more = ' ("; " object)*' if tools.parallel else ""
    lines = [f"object: {_objects(key, tools)}"]
    if tools.choice != "auto":
        return [f"start: object{more}", *lines]
    heads = [
        f"head_{i}[lazy]: TEXT {_quoted(_head(name))}" for i, name in enumerate(tools.callable)
    ]
    first = [f'head_{i} {_quoted(_middle(key))} args_{i} "}}"' for i in range(len(tools.callable))]
    tag = special.get("<|python_tag|>")
    marked = [] if tag is None else [f"TEXT? <[{tag}]> object"]
    return [
        f"start: TEXT | ( {' | '.join([*first, *marked])} ){more}",
        _TEXT,
        *heads,
        *lines,
    ]


def _start(mark: str, body: str, more: str, special: Mapping[str, int], tools: Tools) -> list[str]:
    """Calls alone where they must be made, else after text; `more` are those after the first."""
    more = f" {more}" if tools.parallel and more else ""
    if tools.choice != "auto":
        return [f"start: {_mark(mark, special)} {body}{more}"]
    if mark in special:
        return [f"start: TEXT | TEXT? {_mark(mark, special)} {body}{more}", _TEXT]
    return [
        f"start: TEXT | opened {body}{more}",
        f"opened[lazy]: TEXT {_quoted(mark)}",
        _TEXT,
    ]


def _objects(key: str, tools: Tools) -> str:
    return " | ".join(
        f'{_quoted(_head(name) + _middle(key))} args_{i} "}}"'
        for i, name in enumerate(tools.callable)
    )


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}'


def _middle(key: str) -> str:
    return f', "{key}": '


def _mark(mark: str, special: Mapping[str, int]) -> str:
    return f"<[{special[mark]}]>" if mark in special else _quoted(mark)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _arguments(name: str, tools: Tools) -> str:
    return _checked(name, json.dumps(tools.parameters(name)))


@lru_cache(maxsize=256)
def _checked(name: str, schema: str) -> str:
    """The schema, or the closest looser one that can be compiled."""
    given = json.loads(schema)
    for number, loosen in enumerate(_LOOSER):
        tried = json.dumps({**loosen(given), "x-guidance": _STYLE})
        refused, words = _verdict(tried)
        if refused:
            first = words[0]
            continue
        lost = [word for word in words if not word.startswith(_HARMLESS)]
        if number:
            lost = [first, *lost]
        if lost:
            msg = f"no grammar can hold the tool {name!r} to all of its schema; calls are checked once they are written: {lost[0]:.300}"
            warnings.warn(msg, stacklevel=6)
        return tried
    msg = f"an object could not be described: {words}"
    raise AssertionError(msg)


def _verdict(schema: str) -> tuple[bool, list[str]]:
    """Whether the library refuses a schema, and what it says; it refuses nothing where it is not installed."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        return False, []
    refused, words = LLMatcher.validate_grammar_with_warnings(f"start: %json {schema}")
    return bool(refused), list(words)


def _closed(schema: dict[str, object]) -> dict[str, object]:
    """Without parameters that the tool does not name; the parts of an allOf may name each other's."""
    made: dict[str, object] = schema if '"allOf"' in json.dumps(schema) else closed(schema)
    return made


def _unpatterned(schema: dict[str, object]) -> dict[str, object]:
    """Without regular expressions, whose dialects differ."""
    made = _without_patterns(schema)
    assert isinstance(made, dict)
    return _closed(made)


def _without_patterns(value: object, *, names: bool = False) -> object:
    if isinstance(value, list):
        return [_without_patterns(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_patterns(one, names=not names and key in ("properties", "$defs"))
        for key, one in value.items()
        if names or key not in ("pattern", "patternProperties", "propertyNames")
    }


def _named_only(schema: dict[str, object]) -> dict[str, object]:
    """Any values, under the right names."""
    parts = schema.get("properties")
    kept: dict[str, object] = dict.fromkeys(parts, True) if isinstance(parts, dict) else {}
    required = schema.get("required")
    needed = [key for key in required if key in kept] if isinstance(required, list) else []
    return {"type": "object", "properties": kept, "required": needed}


_LOOSER: tuple[Callable[[dict[str, object]], Mapping[str, object]], ...] = (
    _closed,
    _unpatterned,
    _named_only,
    lambda _: {"type": "object"},
)
