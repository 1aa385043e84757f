"""
The formats in which models write calls of tools.

Knows what chat templates look like, and the words of each format. A format reads calls (tool_reader), writes them, describes them to
a model, and says what a grammar must hold a text to (tool_grammar).

* hermes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, of Hermes, Qwen and many others
* llama: `{"name": ..., "parameters": {...}}`, of Llama 3, sometimes after `<|python_tag|>`
* mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or, since version 11, `[TOOL_CALLS]name[ARGS]{...}`
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_core.messages import InvalidToolCall, ToolCall

from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.tool_grammar import calls_grammar
from langchain_pareto.tool_reader import CallReader, Ended
from langchain_pareto.tool_shapes import Marks
from langchain_pareto.tools import Tools

_MARKS: Mapping[str, Marks] = {
    "hermes": Marks("<tool_call>", "</tool_call>"),
    "llama": Marks("<|python_tag|>", between=";,"),
    "mistral": Marks("[TOOL_CALLS]", named=True, between=","),
}
_SPECIAL = ("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]")
_TOOLS_VARIABLE = re.compile(r"\{[%{](?:(?![%}]\}).)*\btools\b", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text, read: the words in it, its calls, and what was meant as a call and is none."""

    content: str
    calls: tuple[ToolCall, ...]
    invalid: tuple[InvalidToolCall, ...]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way of writing calls.

    `special` are those of its marks that the model has as special tokens, with their ids: a grammar must name these. With `named`, a
    call is written as a name and its arguments, with no object around both.
    """

    name: Literal["hermes", "llama", "mistral"]
    special: tuple[tuple[str, int], ...] = ()
    named: bool = False

    @property
    def marks(self) -> Marks:
        """What stands around calls."""
        return _MARKS[self.name]

    @property
    def key(self) -> str:
        """What the arguments are called in a call."""
        return "parameters" if self.name == "llama" else "arguments"

    def parse(self, text: str, tools: Tools) -> Parsed:
        """The calls in a text; never raises.

        What is meant as a call and is none, for want of JSON, of a tool of that name or of arguments that fit, is invalid; its text is
        kept as its arguments, and the error says what is wrong. Of two calls where one at a time was asked for, the first valid one
        counts, and the other is invalid.
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
        calls that end it. A schema that the grammar's library refuses is loosened for that tool, with a warning.
        """
        return calls_grammar(self.name, self.key, dict(self.special), tools, named=self.named)

    def write(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
        """Calls, by name and arguments, as a model writes them."""
        if self.named:
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{_json(args)}" for name, args in calls)
        objects = [_json({"name": name, self.key: args}) for name, args in calls]
        if self.name == "mistral":
            return f"[TOOL_CALLS][{', '.join(objects)}]" if objects else ""
        if self.name == "llama":
            return "; ".join(objects)
        return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects)

    def result(self, text: str) -> str:
        """What a call gave, as a text for the model."""
        if self.name == "hermes":
            return f"<tool_response>\n{text}\n</tool_response>"
        return f"The tool returned:\n{text}"

    def describe(self, tools: Tools) -> str:
        """The tools in words, and how to call them: for a model whose chat template does not show them; "" where none may be called."""
        if not tools.callable:
            return ""
        shown = [
            spec
            for spec, name in zip(tools.specs, tools.names, strict=True)
            if name in tools.callable
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


def format_of(template: str | None, tokenizer: Tokenizer | None = None) -> ToolFormat:
    """The format that a chat template shows, hermes where it shows none.

    With the model's tokenizer, the format knows which of its marks are special tokens, as its grammar must where they are.
    """
    special = () if tokenizer is None else _special(tokenizer)
    shown = template or ""
    if "<tool_call>" in shown:
        return ToolFormat("hermes", special)
    if "[TOOL_CALLS]" in shown:
        return ToolFormat("mistral", special, named="[ARGS]" in shown)
    if "<|python_tag|>" in shown or "ipython" in shown or '"parameters"' in shown:
        return ToolFormat("llama", special)
    return ToolFormat("hermes", special)


def shows_tools(template: str | None) -> bool:
    """Whether a chat template has words for tools."""
    return template is not None and _TOOLS_VARIABLE.search(template) is not None


def _special(tokenizer: Tokenizer) -> tuple[tuple[str, int], ...]:
    tokens = [(mark, tokenizer.encode(mark)) for mark in _SPECIAL]
    return tuple(
        (mark, ids[0])
        for mark, ids in tokens
        if len(ids) == 1 and ids[0] in tokenizer.special_tokens
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
