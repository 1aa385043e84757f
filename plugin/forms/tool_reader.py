"""
Tool calls, read out of a text that arrives in pieces.

Knows how JSON holds calls; where calls stand is the scanner's part, what one comes to the maker's, and what a stream shows of them
tool_stream's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from langchain_core.messages import InvalidToolCall, ToolCall

from langchain_pareto.forms.tool_arguments import read_json
from langchain_pareto.forms.tool_calls import CallMaker, Written, as_written, fresh_id
from langchain_pareto.forms.tool_region import Region
from langchain_pareto.forms.tool_scan import CallScanner, Opened
from langchain_pareto.forms.tool_shapes import Marks
from langchain_pareto.forms.tools import Tools


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

    Where none may be called, all is text. The space around calls goes with them.
    """

    def __init__(self, marks: Marks, tools: Tools) -> None:
        self._scanner = CallScanner(marks, tools.names) if tools.callable_names else None
        self._around = Around(marks.between)
        self._index = 0
        self._begun: Begun | None = None
        self._maker = CallMaker(tools)
        self.reasoning: str | None = None  # no format has words for it

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
                self._begun = Begun(self._index, fresh_id(), part.name)
                yield self._begun
            else:
                self._around.call()
                yield from map(self._ended, _calls(part))

    def _ended(self, written: Written) -> Ended:
        begun, self._begun = self._begun, None
        index, self._index = self._index, self._index + 1
        call = self._maker.make(written, fresh_id() if begun is None else begun.id)
        return Ended(index, call, begun is not None)


class Around:
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


def _calls(region: Region) -> Iterator[Written]:
    """Each call in a region."""
    try:
        value = read_json(region.body)
    except ValueError as error:
        yield Written(region.name, None, region.raw, f"the call is not JSON: {error}")
        return
    if region.bare:
        yield Written(region.name, value, region.raw)
        return
    if not isinstance(value, list):
        yield as_written(value, region.raw, region.name)
        return
    if not value:
        yield Written(None, None, region.raw, "there is no call in the list")
    for one in value:
        raw = region.raw if len(value) == 1 else json.dumps(one, ensure_ascii=False)
        yield as_written(one, raw)
