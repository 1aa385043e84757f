"""
The formats in which models write tool calls.

Knows what chat templates look like, and the words of each format (tool_format says what one must do). Where the model's tokenizer has a
response template, texts are read by that (tool_template).

* hermes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, of Hermes, Qwen and many others
* llama: `{"name": ..., "parameters": {...}}`, of Llama 3, sometimes after `<|python_tag|>`
* mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or, since version 11, `[TOOL_CALLS]name[ARGS]{...}`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import override

from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.forms.tool_format import Parsed, ToolFormat, as_json
from langchain_pareto.forms.tool_grammar import TEXT, CallLark, quoted
from langchain_pareto.forms.tool_shapes import ARGS, Marks
from langchain_pareto.forms.tool_template import Templated, response_template

__all__ = [
    "Hermes",
    "Llama",
    "Mistral",
    "NamedMistral",
    "Parsed",
    "Templated",
    "ToolFormat",
    "format_of",
    "shows_tools",
]

_TOOLS_VARIABLE = re.compile(r"\{[%{](?:(?![%}]\}).)*\btools\b", re.DOTALL)


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
        return "".join(f"{self.marks.open}{name}{ARGS}{as_json(args)}" for name, args in calls)

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
    """The format that a chat template shows, hermes where it shows none; read by the model's response template, if it has one.

    With the model's tokenizer, the format knows which of its marks are special tokens, as its grammar must where they are.
    """
    if tokenizer is None:
        return _shown(template or "", ())
    written_as = _shown(template or "", _special(tokenizer))
    found = response_template(tokenizer)
    return written_as if found is None else Templated(written_as=written_as, template=found)


def _shown(template: str, special: tuple[tuple[str, int], ...]) -> ToolFormat:
    if Hermes.marks.open in template:
        return Hermes(special)
    if Mistral.marks.open in template:
        return NamedMistral(special) if ARGS in template else Mistral(special)
    if any(word in template for word in (Llama.marks.open, "ipython", f'"{Llama.key}"')):
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
