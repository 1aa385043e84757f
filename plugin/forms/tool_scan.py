"""
Where tool calls stand in a text that arrives in pieces.

Knows marks, braces and the names of tools; does not read what stands between the braces. What it finds does not depend on how the
text is cut into pieces, and its parts join to the text.

Special tokens are left out of a text, and so may be the mark that opens a call: what opens like a call of one of the tools is one,
marked or not. Before any words, so is an object with a name and arguments, whatever the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from langchain_pareto.forms.tool_region import OpenRegion, Region
from langchain_pareto.forms.tool_shapes import (
    FULL_HEADS,
    HEADS,
    VALUE,
    WAIT,
    Marks,
    Shape,
    Wait,
    first,
    named,
)


@dataclass(frozen=True, slots=True)
class Opened:
    """The name of the call that has begun, before its arguments are complete."""

    name: str


class CallScanner:
    """Finds the calls in a text: gives the text outside of them, names as soon as they stand, and whole regions."""

    def __init__(self, marks: Marks, names: Sequence[str]) -> None:
        self._marks = marks
        self._names = frozenset(names)
        starts = {marks.open[0], "{", "["} | {name[0] for name in names if marks.named}
        self._starts = re.compile(f"[{re.escape(''.join(sorted(starts)))}]")
        self._idle = re.compile(rf"[\s{re.escape(marks.between)}]*")
        self._shapes = named(tuple(names)) if marks.named else ()
        self._held = ""
        self._last = ""  # the character before what is held
        self._worded = False  # whether there were words outside of calls
        self._open: OpenRegion | None = None
        self._trusting = True

    def feed(self, piece: str) -> Iterator[str | Opened | Region]:
        """What is certain with this piece."""
        self._held += piece
        return self._go(final=False)

    def flush(self) -> Iterator[str | Opened | Region]:
        """What was held back, once no more text comes."""
        return self._go(final=True)

    def _go(self, *, final: bool) -> Iterator[str | Opened | Region]:
        while self._held:
            if self._open is None:
                yield from self._look(final=final)
            if self._open is None:
                return
            yield from self._name(self._open, final=False)
            end = self._open.ends(self._held, final=final)
            if end is None:
                return
            yield from self._name(self._open, final=True)
            self._trusting = self._trusting and self._open.trusting
            yield self._open.close(self._held[:end])
            self._last, self._held, self._open = self._held[end - 1], self._held[end:], None

    def _name(self, region: OpenRegion, *, final: bool) -> Iterator[Opened]:
        name = region.tells(self._held, final=final)
        if name is not None:
            yield Opened(name)

    # --- outside of calls

    def _look(self, *, final: bool) -> Iterator[str]:
        for found in self._starts.finditer(self._held):
            opening = self._opening(found.start(), final=final)
            if opening is not None:
                yield from self._tell(found.start())
                self._open = None if opening is WAIT else opening
                return
        yield from self._tell(len(self._held))

    def _tell(self, end: int) -> Iterator[str]:
        if end:
            text, self._held = self._held[:end], self._held[end:]
            self._last = text[-1]
            self._worded = self._worded or not self._idle.fullmatch(text)
            yield text

    def _opening(self, at: int, *, final: bool) -> OpenRegion | Wait | None:
        """The region that begins there, if one does."""
        text, mark = self._held, self._marks.open
        if text.startswith(mark, at):
            return self._marked(at, final=final)
        if not final and mark.startswith(text[at:]):
            return WAIT
        if text[at] in "{[":
            return self._unmarked(at, final=final)
        before = text[at - 1] if at else self._last
        if before.isalnum() or before in ("_", "-"):  # the middle of a word
            return None
        return self._bare(at, at, self._shapes, final=final)

    def _marked(self, at: int, *, final: bool) -> OpenRegion | Wait | None:
        start = at + len(self._marks.open)
        if self._marks.close:
            size = len(self._marks.open)
            return OpenRegion(size, size, mark=self._marks.close, trusting=self._trusting)
        found = VALUE.match(self._held, start, final=final)
        if found is WAIT:
            return WAIT
        if found is not None:
            return OpenRegion(found.end - 1 - at, found.end - 1 - at)
        return self._bare(start, at, (*self._shapes, *named(())), final=final)

    def _unmarked(self, at: int, *, final: bool) -> OpenRegion | Wait | None:
        found = first(HEADS, self._held, at, final=final)
        if found is WAIT or found is None:
            return found
        if found.name not in self._names:
            if self._worded or not self._idle.fullmatch(self._held, 0, at):
                return None
            full = first(FULL_HEADS, self._held, at, final=final)
            if full is WAIT or full is None:
                return full
        return OpenRegion()

    def _bare(
        self, start: int, at: int, shapes: Sequence[Shape], *, final: bool
    ) -> OpenRegion | Wait | None:
        found = first(shapes, self._held, start, final=final) if self._marks.named else None
        if found is WAIT or found is None:
            return found
        brace = self._held.rindex("{", start, found.end) - at
        return OpenRegion(brace, brace, name=found.name, bare=True)
