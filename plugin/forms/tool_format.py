"""
A format of tool calls: what every way of writing them must do.

Knows how a text is read, described and put into a grammar; the words of each format are its own (tool_formats).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from langchain_core.messages import InvalidToolCall, ToolCall

from langchain_pareto.forms.tool_grammar import CallLark
from langchain_pareto.forms.tool_reader import Begun, CallReader, Ended
from langchain_pareto.forms.tool_shapes import Marks
from langchain_pareto.forms.tools import Tools


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text, read: the words in it, its calls, what was meant as a call and cannot be one, and what the model thought before it."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()
    reasoning: str | None = None


class Reads(Protocol):
    """Reads the calls in a text that arrives in pieces; `reasoning` is known at the end."""

    reasoning: str | None

    def feed(self, piece: str) -> Iterator[str | Begun | Ended]:
        """What is certain with this piece."""
        ...

    def flush(self) -> Iterator[str | Begun | Ended]:
        """What was held back, once no more text comes."""
        ...


@dataclass(frozen=True, slots=True)
class ToolFormat(ABC):
    """One way of writing calls: the marks around them, and what the arguments are called in one.

    `special` are those of its marks that the model has as special tokens, with their ids: a grammar must name these.
    """

    marks: ClassVar[Marks]
    key: ClassVar[str] = "arguments"

    special: tuple[tuple[str, int], ...] = ()

    @abstractmethod
    def write(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
        """Calls, by name and arguments, as a model writes them."""

    @abstractmethod
    def _lines(self, lark: CallLark) -> list[str]:
        """The grammar of calls, but for the rules of arguments."""

    def result(self, text: str) -> str:
        """What a call gave, as a text for the model."""
        return f"The tool returned:\n{text}"

    def reader(self, tools: Tools) -> Reads:
        """What reads a text of this format."""
        return CallReader(self.marks, tools)

    def parse(self, text: str, tools: Tools) -> Parsed:
        """The calls in a text; never raises.

        What is meant as a call and cannot be one, for want of JSON, of a tool of that name or of an object of arguments, is invalid.
        An invalid call keeps its text as `args`, in brackets where it begins like an object, and `error` says what is wrong. Of two
        calls where one at a time was asked for, the first counts, and the other is invalid.
        """
        reader = self.reader(tools)
        content, calls, invalid = list[str](), list[ToolCall](), list[InvalidToolCall]()
        for part in (*reader.feed(text), *reader.flush()):
            if isinstance(part, str):
                content.append(part)
            elif isinstance(part, Ended):
                if part.call["type"] == "tool_call":
                    calls.append(part.call)
                else:
                    invalid.append(part.call)
        return Parsed("".join(content), tuple(calls), tuple(invalid), reader.reasoning)

    def grammar(self, tools: Tools) -> str | None:
        """Lark of the texts in which every call is one of these tools, with arguments as they take them; None where any text is.

        Where a call must be made, the text is calls only; where one may be made, text comes first, and the mark of a call begins the
        calls that end it. A schema that the grammar's library cannot hold a text to is loosened for that tool, with a warning.
        """
        if not tools.callable_names:
            return None
        lark = CallLark(tools, dict(self.special), self.key)
        return "\n".join([*self._lines(lark), *lark.rules()])

    def describe(self, tools: Tools) -> str:
        """The tools in words, and how to call them: for a model whose chat template does not show them; "" where none may be called."""
        if not tools.callable_names:
            return ""
        shown = [
            spec
            for spec, name in zip(tools.specs, tools.names, strict=True)
            if name in tools.callable_names
        ]
        listed = "\n".join(as_json(spec["function"]) for spec in shown)
        form = self.write([("NAME", {"PARAMETER": "VALUE"})])
        duty = (
            "Call one when it helps to answer; otherwise answer in words."
            if tools.choice == "auto"
            else "Answer with a call, and with nothing else."
        )
        number = (
            "Several calls may follow each other." if tools.parallel else "Make one call at most."
        )
        return (
            f"These tools can be called, each described by a JSON object with its parameters:\n{listed}\n\n"
            f"{duty} A call is written like this, with the tool's name and its arguments as JSON:\n{form}\n"
            f"{number} What a tool returns comes in the next message."
        )

    def _objects(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> list[str]:
        return [as_json({"name": name, self.key: args}) for name, args in calls]


def as_json(value: object) -> str:
    """A value as models read and write it."""
    return json.dumps(value, ensure_ascii=False, default=str)
