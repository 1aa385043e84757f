"""
Whether values keep to a JSON schema.

Knows JSON schemas and the library that applies them; knows no text and no model. That library looks at a value once for each way that
leads to it, of which references make exponentially many, and searches with regular expressions that may never end; here each
reference is followed once for each value, and patterns take linear time wherever the engine that guarantees it can read them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Annotated, Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from pydantic import StringConstraints, TypeAdapter, ValidationError as Mismatch

from langchain_pareto.forms.references import NOWHERE

DEEPEST = 100  # levels of a value: less than what any reader of JSON takes
TOO_DEEP = "it is nested too deeply"


class Validity:
    """Values against one schema, or parts of it: what is known of a value is known for all that follow.

    They must not change as long as this lives.
    """

    def __init__(self, root: Mapping[str, object]) -> None:
        """`root` is where references lead."""
        self._root = root
        # what a dynamic reference leads to depends on the way there
        self._followed: _Followed | None = None if _mentions(root, "$dynamicRef") else {}

    def violation(self, value: object, schema: object) -> str | None:
        """Where and how `value` breaks the schema; None where it does not. Never raises."""
        if not isinstance(schema, Mapping):
            return "nothing is allowed there" if schema is False else None
        before = _FOLLOWED.set(self._followed)
        try:
            validator = _Validator(self._root, registry=NOWHERE)
            wrong = next(validator.evolve(schema=schema).iter_errors(value), None)
        except RecursionError:
            return TOO_DEEP
        except Exception as error:  # noqa: BLE001 - a stranger's schema can fail in any way, and a text is only read
            return f"the schema cannot be applied: {error}"
        finally:
            _FOLLOWED.reset(before)
        return None if wrong is None else f"{wrong.message} (at {wrong.json_path})"


def too_deep(value: object) -> str | None:
    """The words for a value that is nested beyond what all who handle it take; None for any other."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _within(one)]
        if not level:
            return None
    return TOO_DEEP


def _within(value: object) -> Sequence[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list | tuple) else ()


def _mentions(value: object, word: str) -> bool:
    if isinstance(value, Mapping):
        return word in value or any(_mentions(one, word) for one in value.values())
    return isinstance(value, list) and any(_mentions(one, word) for one in value)


# by the value and the schema that refers: both, so that they live on, and what was wrong first
_Wrong = tuple[str, tuple[str | int, ...]]
_Followed = dict[tuple[int, int], tuple[object, object, _Wrong | None]]
_FOLLOWED: ContextVar[_Followed | None] = ContextVar("_FOLLOWED", default=None)


def _reference(validator: Any, ref: str, value: object, schema: object) -> Iterator[Any]:
    followed = _FOLLOWED.get()
    if followed is None:
        yield from _follow(validator, ref, value, schema)
        return
    key = (id(value), id(schema))
    if key not in followed:
        error = next(iter(_follow(validator, ref, value, schema)), None)
        wrong = None if error is None else (error.message, tuple(error.relative_path))
        followed[key] = value, schema, wrong
    if (wrong := followed[key][2]) is not None:
        yield ValidationError(wrong[0], path=wrong[1])  # a new one: those above add their names


def _pattern(validator: Any, pattern: str, value: object, schema: object) -> Iterator[Any]:  # noqa: ARG001 - the library's form
    if isinstance(value, str) and not _search(pattern)(value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


@lru_cache(maxsize=256)
def _search(pattern: str) -> Callable[[str], bool]:
    try:
        adapter = TypeAdapter(Annotated[str, StringConstraints(pattern=pattern, strict=True)])
    except Exception:  # noqa: BLE001 - one with a look-around, say
        search = re.compile(pattern).search
        return lambda text: search(text) is not None

    def found(text: str) -> bool:
        try:
            adapter.validate_python(text)
        except Mismatch:
            return False
        return True

    return found


_follow = Draft202012Validator.VALIDATORS["$ref"]
_Validator = extend(Draft202012Validator, {"$ref": _reference, "pattern": _pattern})  # type: ignore[no-untyped-call]
