"""
A response template: what the tokenizers of some models have to say to transformers' own parser how the model writes.

Knows the fields of one, and what that parser gives; knows no tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

CALLS, CONTENT = "tool_calls", "content"  # fields that all templates name alike
Event = Mapping[str, Any]


class Parser(Protocol):
    """Transformers' ResponseParser, of one text; it raises whatever it does not expect in one."""

    def feed(self, text: str) -> Sequence[Event]:
        """What more text opens, adds to and closes."""
        ...

    def finalize(self) -> tuple[Mapping[str, object], Sequence[Event]]:
        """The message, and what the end of the text closes."""
        ...


@dataclass(frozen=True, slots=True)
class ResponseTemplate:
    """A template as JSON, what makes its parser, and the names of the tokens that end a text, which are not in it."""

    spec: str
    parser: Callable[[], Parser] = field(compare=False)
    ends: tuple[str, ...] = ()

    @property
    def has_bare_words(self) -> bool:
        """Whether content has no mark of its own."""
        words = self._fields().get(CONTENT, {"open": ""})
        return "open" not in words and "open_pattern" not in words

    def parsed(self, text: str) -> tuple[list[Event], Mapping[str, object]]:
        """The events of a text, and its message; raises whatever the parser does."""
        parser = self.parser()
        events = [*parser.feed(text)]
        message, last = parser.finalize()
        return [*events, *last], message

    def is_cut(self, text: str) -> bool:
        """Whether a text that ends with a call ends within it, where the parser makes a call of what came of it: of anything but JSON."""
        calls = self._fields()[CALLS]
        close, pattern = calls.get("close", ()), calls.get("close_pattern")
        marks = [re.escape(one) for one in ([close] if isinstance(close, str) else close)]
        marks += [] if pattern is None else [f"(?:{pattern})"]
        if calls.get("content", "text") == "json" or not marks:
            return False
        closed = re.compile("|".join(marks), re.DOTALL)
        if any(map(closed.search, self.ends)):
            return False
        return len(text.rstrip()) not in (found.end() for found in closed.finditer(text))

    def _fields(self) -> Mapping[str, Mapping[str, Any]]:
        fields: Mapping[str, Mapping[str, Any]] = json.loads(self.spec)["fields"]
        return fields


def flat(message: Mapping[str, object]) -> Iterator[object]:
    """The calls of a message, whose field holds one, a list, or a list of lists."""
    todo = [message.get(CALLS)]
    while todo:
        one = todo.pop(0)
        if isinstance(one, list):
            todo[:0] = one
        elif one is not None:
            yield one
