"""
What the beginning of a call looks like, told from a text of which more may come.

Knows the marks of formats, and regular expressions; knows no tool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import product
from typing import Final

_SPACE = r"\s{0,9}"
ARGS, CALL_ID = "[ARGS]", "[CALL_ID]"  # Mistral's marks within a call
ARGUMENT_KEYS = ("arguments", "parameters")  # what models call the arguments in a call
_OBJECT = (r"\{", _SPACE, r'["}]')  # the beginning of one in JSON
_ID = ("[A-Za-z0-9]",) * 9


class Wait(Enum):
    """The type of WAIT."""

    WAIT = "wait"


WAIT: Final = Wait.WAIT  # more text has to come before it is certain


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands around the calls of a format.

    `named` says that a call may be a name and its arguments, with no object around both; `between` is what may stand between two
    calls, beside space.
    """

    open: str
    close: str = ""
    named: bool = False
    between: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a shape ends in a text, and the name in it, if it has one."""

    end: int
    name: str | None


class Shape:
    """A sequence of small regular expressions: a text that ends between two of them is known to be the beginning of a match.

    `name` is the name that the shape is of; without, the first group has it, if there is one.
    """

    def __init__(self, *atoms: str, name: str | None = None) -> None:
        self._name = name
        self._full = re.compile("".join(atoms))
        begun = ""
        for atom in reversed(atoms):
            begun = f"(?:{atom}{begun})?"
        self._begun = re.compile(begun)

    def match(self, text: str, at: int, *, final: bool) -> Found | Wait | None:
        """The match that begins at `at`; none comes any more after a `final` text."""
        found = self._full.match(text, at)
        if found is not None:
            groups = found.groups()
            return Found(found.end(), groups[0] if groups else self._name)
        return WAIT if not final and self._begun.fullmatch(text, at) else None


def first(shapes: Sequence[Shape], text: str, at: int, *, final: bool) -> Found | Wait | None:
    """The first of the shapes that matches at `at`; WAIT where none does, and one yet may."""
    waits = False
    for shape in shapes:
        found = shape.match(text, at, final=final)
        if isinstance(found, Found):
            return found
        waits = waits or found is WAIT
    return WAIT if waits else None


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` could begin the mark."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)


@lru_cache(maxsize=64)
def named(names: tuple[str, ...]) -> tuple[Shape, ...]:
    """A name that the first brace of its arguments follows, at once or after an id and a mark; with no names, after space any name.

    The marks are Mistral's, [CALL_ID] and [ARGS]; as special tokens, they may be missing in a text.
    """
    tails = (
        (),
        tuple(map(re.escape, ARGS)),
        (*map(re.escape, CALL_ID), r"\w{1,64}", *map(re.escape, ARGS)),
        _ID,
    )
    if not names:
        return tuple(
            Shape(_SPACE, r"([\w.-]{1,128})", *tail, _SPACE, *_OBJECT) for tail in tails[:3]
        )
    return tuple(
        Shape(*map(re.escape, name), *tail, *_OBJECT, name=name)
        for tail, name in product(tails, names)
    )


def _member(key: str, *value: str) -> tuple[str, ...]:
    return ('"', *key, '"', _SPACE, ":", _SPACE, *value)


VALUE = Shape(_SPACE, r"[{\[]")
_STARTS = [
    (r"(?:\[\s{0,9})?", r"\{", _SPACE, *before)
    for before in (
        (),
        *(
            (*_member(key, '"', r'[^"\\]{0,64}', '"'), _SPACE, ",", _SPACE)
            for key in ("type", "id")
        ),
    )
]
_NAMES = [(*start, *_member("name", '"', r'([^"\\]{1,128})', '"')) for start in _STARTS]
HEADS = tuple(Shape(*atoms) for atoms in _NAMES)  # of an object, or of the first in a list
FULL_HEADS = tuple(
    Shape(*atoms, _SPACE, ",", _SPACE, *_member(key))
    for atoms, key in product(_NAMES, ARGUMENT_KEYS)
)
