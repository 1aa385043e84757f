"""
The formats in which models write tool calls.

Knows what chat templates look like, and the words of each format. A format reads calls (tool_reader), writes them, describes them to
a model, and puts together the grammar that a text must be held to (tool_grammar).

* hermes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, of Hermes, Qwen and many others
* llama: `{"name": ..., "parameters": {...}}`, of Llama 3, sometimes after `<|python_tag|>`
* mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or, since version 11, `[TOOL_CALLS]name[ARGS]{...}`
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from langchain_core.messages import InvalidToolCall, ToolCall
from typing_extensions import override

from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.forms.tool_grammar import TEXT, CallLark, quoted
from langchain_pareto.forms.tool_reader import CallReader, Ended
from langchain_pareto.forms.tool_shapes import ARGS, Marks
from langchain_pareto.forms.tools import Tools

_TOOLS_VARIABLE = re.compile(r"\{[%{](?:(?![%}]\}).)*\btools\b", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text, read: the words in it, its calls, and what was meant as a call and cannot be one."""

    content: str
    calls: tuple[ToolCall, ...]
    invalid: tuple[InvalidToolCall, ...]


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

    def parse(self, text: str, tools: Tools) -> Parsed:
        """The calls in a text; never raises.

        What is meant as a call and cannot be one, for want of JSON, of a tool of that name or of arguments that fit, is invalid. An
        invalid call keeps its text as `args`, in brackets where it begins like an object, and `error` says what is wrong. Of two
        calls where one at a time was asked for, the first valid one counts, and the other is invalid.
        """
        reader = CallReader(self.marks, tools)
        content, calls, invalid = list[str](), list[ToolCall](), list[InvalidToolCall]()
        for part in (*reader.feed(text), *reader.flush()):
            if isinstance(part, str):
                content.append(part)
            elif isinstance(part, Ended):
                if part.call["type"] == "tool_call":
                    calls.append(part.call)
                else:
                    invalid.append(part.call)
        return Parsed("".join(content), tuple(calls), tuple(invalid))

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
        listed = "\n".join(_json(spec["function"]) for spec in shown)
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
        return [_json({"name": name, self.key: args}) for name, args in calls]


@dataclass(frozen=True, slots=True)
class Hermes(ToolFormat):
    """Calls between two marks, a line each."""

    marks = Marks("<tool_call>", "</tool_call>")

    @override
    def write(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
        opened, closed = self.marks.open, self.marks.close
        return "\n".join(f"{opened}\n{one}\n{closed}" for one in self._objects(calls))

    @override
    def result(self, text: str) -> str:
        return f"<tool_response>\n{text}\n</tool_response>"

    @override
    def _lines(self, lark: CallLark) -> list[str]:
        opened, closed = lark.mark(self.marks.open), lark.mark(self.marks.close)
        return [
            *lark.start(self.marks.open, "body", rf'("\n" {opened} body)*'),
            rf'body: "\n" object "\n" {closed}',
            lark.objects(),
        ]


@dataclass(frozen=True, slots=True)
class Llama(ToolFormat):
    """Objects alone; one that names a tool begins the calls, wherever it stands."""

    marks = Marks("<|python_tag|>", between=";,")
    key = "parameters"

    @override
    def write(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
        return "; ".join(self._objects(calls))

    @override
    def _lines(self, lark: CallLark) -> list[str]:
        more = ' ("; " object)*' if lark.tools.parallel else ""
        if lark.tools.choice != "auto":
            return [f"start: object{more}", lark.objects()]
        names = lark.tools.callable_names
        first = [f"head_{i} {quoted(lark.middle)} {lark.arguments(i)}" for i, _ in enumerate(names)]
        if self.marks.open in lark.special:
            first.append(f"TEXT? {lark.mark(self.marks.open)} object")
        heads = [f"head_{i}[lazy]: TEXT {quoted(lark.head(name))}" for i, name in enumerate(names)]
        return [f"start: TEXT | ( {' | '.join(first)} ){more}", TEXT, *heads, lark.objects()]


@dataclass(frozen=True, slots=True)
class Mistral(ToolFormat):
    """A mark, and a list of calls."""

    marks = Marks("[TOOL_CALLS]", named=True, between=",")

    @override
    def write(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
        return f"{self.marks.open}[{', '.join(self._objects(calls))}]" if calls else ""

    @override
    def _lines(self, lark: CallLark) -> list[str]:
        more = ' (", " object)*' if lark.tools.parallel else ""
        return [
            *lark.start(self.marks.open, "list"),
            f'list: " "? "[" object{more} "]"',
            lark.objects(),
        ]


@dataclass(frozen=True, slots=True)
class NamedMistral(ToolFormat):
    """A mark, a name, a mark, and arguments, again and again; with no object around a name and its arguments."""

    marks = Mistral.marks

    @override
    def write(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
        return "".join(f"{self.marks.open}{name}{ARGS}{_json(args)}" for name, args in calls)

    @override
    def _lines(self, lark: CallLark) -> list[str]:
        names = lark.tools.callable_names
        calls = [f"{quoted(name)} {lark.mark(ARGS)} args_{i}" for i, name in enumerate(names)]
        return [
            *lark.start(self.marks.open, "body", f"({lark.mark(self.marks.open)} body)*"),
            f"body: {' | '.join(calls)}",
        ]


_MARKS = (Hermes.marks.open, Hermes.marks.close, Llama.marks.open, Mistral.marks.open, ARGS)


def format_of(template: str | None, tokenizer: Tokenizer | None = None) -> ToolFormat:
    """The format that a chat template shows, hermes where it shows none.

    With the model's tokenizer, the format knows which of its marks are special tokens, as its grammar must where they are.
    """
    special = () if tokenizer is None else _special(tokenizer)
    shown = template or ""
    if Hermes.marks.open in shown:
        return Hermes(special)
    if Mistral.marks.open in shown:
        return NamedMistral(special) if ARGS in shown else Mistral(special)
    if any(word in shown for word in (Llama.marks.open, "ipython", f'"{Llama.key}"')):
        return Llama(special)
    return Hermes(special)


def shows_tools(template: str | None) -> bool:
    """Whether a chat template has words for tools."""
    return template is not None and _TOOLS_VARIABLE.search(template) is not None


def _special(tokenizer: Tokenizer) -> tuple[tuple[str, int], ...]:
    tokens = [(mark, tokenizer.encode(mark)) for mark in _MARKS]
    return tuple(
        (mark, ids[0])
        for mark, ids in tokens
        if len(ids) == 1 and ids[0] in tokenizer.special_tokens
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
