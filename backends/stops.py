"""
Stop strings, found in a text that arrives in pieces, and the ends of steps.

Knows text; knows no token and no stop that is not text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from langchain_pareto.errors import SettingError

_INK = re.compile(r"\S")


class StopStrings:
    """Finds the first of several strings in a text that arrives in pieces, in time linear in the text.

    The text ends with the piece in which a stop string completes. Of those that are complete by then, the one that starts
    first counts; of two that start together, the longer.
    """

    def __init__(self, strings: str | Sequence[str] = ()) -> None:
        self._strings = (strings,) if isinstance(strings, str) else tuple(dict.fromkeys(strings))
        if "" in self._strings:
            raise SettingError(f"a stop string must not be empty; got {strings!r}")
        self._firsts = frozenset(string[0] for string in self._strings)
        self._borders = [_borders(string) for string in self._strings]
        self._states = [0] * len(self._strings)  # how much of each string the text ends with
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str) -> tuple[str, str | None]:
        """Text that can no longer belong to a stop string, and the stop string that was found, if any.

        Once one was found, the text before it is complete, and further pieces give nothing.
        """
        if self.matched is not None:
            return "", self.matched
        if not self._held and self._firsts.isdisjoint(piece):
            return piece, None
        text = self._held + piece
        starts: list[tuple[int, int, str]] = []
        for index, string in enumerate(self._strings):
            end = self._advance(index, piece)
            if end is not None:
                starts.append((len(self._held) + end - len(string), -len(string), string))
        if starts:
            start, _, self.matched = min(starts)
            self._held = ""
            return text[:start], self.matched
        safe = len(text) - max(self._states)
        self._held = text[safe:]
        return text[:safe], None

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        self._states = [0] * len(self._strings)
        return text

    def _advance(self, index: int, piece: str) -> int | None:
        """Where in `piece` the string first ends (Knuth, Morris and Pratt 1977)."""
        string, borders, state = self._strings[index], self._borders[index], self._states[index]
        for position, symbol in enumerate(piece):
            while state and string[state] != symbol:
                state = borders[state - 1]
            state += string[state] == symbol
            if state == len(string):
                return position + 1
        self._states[index] = state
        return None


def step_ends(step: re.Pattern[str], text: str) -> Iterator[int]:
    """Where the steps of a text end: a step is what `step` matches from the first character that is no white space.

    To search for it would try every character where there is none.
    """
    at = 0
    while (begun := _INK.search(text, at)) and (found := step.match(text, begun.start())):
        at = found.end()
        yield at


def _borders(string: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders, length = [0], 0
    for symbol in string[1:]:
        while length and string[length] != symbol:
            length = borders[length - 1]
        length += string[length] == symbol
        borders.append(length)
    return borders
