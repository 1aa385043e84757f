"""
Tool calls, read out of a text that arrives in pieces.

Knows what calls hold and which tools there are; where calls stand is the scanner's part, and what a stream shows of them
tool_stream's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import uuid4

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call

from langchain_pareto.forms.tool_arguments import coerced, read_json
from langchain_pareto.forms.tool_region import Region
from langchain_pareto.forms.tool_scan import CallScanner, Opened
from langchain_pareto.forms.tool_shapes import ARGUMENT_KEYS, Marks
from langchain_pareto.forms.tools import Tools

_TOLD = 300  # characters of an error


@dataclass(frozen=True, slots=True)
class Begun:
    """A call whose name is known; it is the `index`-th of its text."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that is complete, valid or not; `begun` says that its name was handed out before."""

    index: int
    call: ToolCall | InvalidToolCall
    begun: bool


class CallReader:
    """Reads the calls in a text: gives the text around them, names as soon as they stand, and whole calls.

    Where one call at a time was asked for, the first valid one is it, and the others are invalid. Where none may be called, all is
    text. The space around calls goes with them.
    """

    def __init__(self, marks: Marks, tools: Tools) -> None:
        self._tools = tools
        self._scanner = CallScanner(marks, tools.names) if tools.callable_names else None
        self._around = _Around(marks.between)
        self._index = 0
        self._begun: Begun | None = None
        self._called = False  # whether a valid call was read

    def feed(self, piece: str) -> Iterator[str | Begun | Ended]:
        """What is certain with this piece."""
        if self._scanner is None:
            yield piece
            return
        yield from self._read(self._scanner.feed(piece))

    def flush(self) -> Iterator[str | Begun | Ended]:
        """What was held back, once no more text comes."""
        if self._scanner is None:
            return
        yield from self._read(self._scanner.flush())
        yield self._around.end()

    def _read(self, found: Iterator[str | Opened | Region]) -> Iterator[str | Begun | Ended]:
        for part in found:
            if isinstance(part, str):
                yield self._around.words(part)
            elif isinstance(part, Opened):
                self._begun = Begun(self._index, _fresh_id(), part.name)
                yield self._begun
            else:
                self._around.call()
                for name, arguments, raw, error in _calls(part):
                    yield self._ended(name, arguments, raw, error)

    def _ended(self, name: str | None, arguments: object, raw: str, error: str | None) -> Ended:
        begun, self._begun = self._begun, None
        index, self._index = self._index, self._index + 1
        call_id = _fresh_id() if begun is None else begun.id
        made: object = None
        error = error or self._refusal(name)
        if error is None and name is not None:
            made, error = coerced(arguments, self._tools.parameters(name))
            error = error and f"the arguments do not fit: {error}"
        if error is None and self._called and not self._tools.parallel:
            error = "one call at a time was asked for, and this is a further one"
        if error is None and isinstance(made, dict) and name is not None:
            self._called = True
            call = tool_call(name=name, args=made, id=call_id)
            return Ended(index, call, begun is not None)
        told = (error or "the arguments are not an object")[:_TOLD]
        broken = invalid_tool_call(name=name, args=_not_an_object(raw), id=call_id, error=told)
        return Ended(index, broken, begun is not None)

    def _refusal(self, name: str | None) -> str | None:
        if name is None:
            return "the call has no name"
        if name not in self._tools.names:
            return f"there is no tool {name!r:.80}; there are: {', '.join(self._tools.names)}"
        if name not in self._tools.callable_names:
            return f"the tool {name!r} was called where {self._tools.choice!r} was asked for"
        return None


class _Around:
    """The text around calls, without the space next to them; text that no call is found in stays as it is."""

    def __init__(self, between: str) -> None:
        self._idle = f" \t\r\n\f\v{between}"
        self._held = ""  # space, or what may separate two calls
        self._dropped = ""  # space before a call, which words after it bring back
        self._worded = self._called = self._after = False

    def words(self, text: str) -> str:
        text, self._held = self._held + text, ""
        if self._after and not text.strip(self._idle):
            self._held = text
            return ""
        if self._called and not self._worded:
            text = text.lstrip()
        elif self._after:
            text = self._dropped + text
        self._after = False
        said = text.rstrip()
        self._held, self._dropped = text[len(said) :], ""
        self._worded = self._worded or bool(said)
        return said

    def call(self) -> None:
        self._dropped += self._held if not self._held.strip() else ""
        self._held, self._called, self._after = "", True, True

    def end(self) -> str:
        held, self._held = self._held, ""
        return held.strip() if self._called else held


def _calls(region: Region) -> Iterator[tuple[str | None, object, str, str | None]]:
    """Name, arguments, text and error of each call in a region."""
    try:
        value = read_json(region.body)
    except ValueError as error:
        yield region.name, None, region.raw, f"the call is not JSON: {error}"
        return
    if region.bare:
        yield region.name, value, region.raw, None
        return
    if not isinstance(value, list):
        yield _call(value, region.name, region.raw)
        return
    if not value:
        yield None, None, region.raw, "there is no call in the list"
    for one in value:
        raw = region.raw if len(value) == 1 else json.dumps(one, ensure_ascii=False)
        yield _call(one, None, raw)


def _call(value: object, name: str | None, raw: str) -> tuple[str | None, object, str, str | None]:
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping):
        return name, None, raw, "the call is not an object with a name and arguments"
    told = value.get("name")
    name = name if name is not None else told if isinstance(told, str) and told else None
    arguments: object = next(
        (value[key] for key in ARGUMENT_KEYS if value.get(key) is not None), {}
    )
    return name, arguments, raw, None


def _not_an_object(raw: str) -> str:
    """The text of an invalid call.

    One that begins like an object gets brackets: LangChain would read it as arguments, and make the call a valid one.
    """
    return f"[{raw}]" if raw.lstrip()[:1] == "{" else raw


def _fresh_id() -> str:
    """Nine letters and digits, the one form of id that the templates of all models take (Mistral's are strict)."""
    return uuid4().hex[:9]
