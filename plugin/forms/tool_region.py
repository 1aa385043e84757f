"""
A call that has begun in a text, up to its end.

Knows braces, quotes and a closing mark; knows no tool. It is asked again with the same text, and more of it, until it has ended.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from langchain_pareto.forms.tool_shapes import HEADS, WAIT, first, overlap

_BLANK = re.compile(r"\s*")
_QUOTE = re.compile(r'["\\]')
_SLACK = re.compile(r"[\s}\]]*")  # closing braces too many are forgiven before a closing mark


@dataclass(frozen=True, slots=True)
class Region:
    """What was written as one call, or as a list of them: all of it, the JSON in it, and the name, if that stands before the arguments.

    `bare` says that the JSON is arguments only.
    """

    raw: str
    body: str
    name: str | None
    bare: bool


@dataclass(slots=True)
class OpenRegion:
    """What was written as one call, or as a list of them; places are counted from its start.

    Its JSON ends where its braces are even. With a closing mark, that mark ends it: the first one outside of strings, or, once quotes
    are no longer trusted to be even, the first of all.
    """

    body: int = 0  # where its JSON begins, or the space before it
    at: int = 0  # how far it was looked at
    name: str | None = None
    bare: bool = False  # whether its JSON is arguments only
    mark: str = ""  # that closes it
    trusting: bool = True
    told: bool = False  # whether its name was
    depth: int = 0
    quoted: bool = False
    end: int | None = None  # of its JSON

    def tells(self, text: str, *, final: bool) -> str | None:
        """The name of the call, once, as soon as it stands before the arguments."""
        if self.told:
            return None
        if not self.bare:
            blank = _BLANK.match(text, self.body)
            self.body = self.body if blank is None else blank.end()
            if text[self.body : self.body + 1] != "{":
                return None
            found = first(HEADS, text, self.body, final=final)
            if found is WAIT or found is None:
                return None
            self.name = found.name
        self.told = True
        return self.name

    def ends(self, text: str, *, final: bool) -> int | None:
        """Where the region ends, once that is certain."""
        if self.end is None and self.mark and not self._counts(text):
            return self._closing(text, final=final)
        stopped = None if self.end is not None else self._count(text)
        if stopped is not None:
            return stopped
        if self.end is None:
            return self._unfinished(text) if final else None
        return self._after(text, self.end, final=final)

    def close(self, raw: str) -> Region:
        """The region that it was, of which `raw` is all."""
        stop = len(raw.removesuffix(self.mark)) if self.end is None else self.end
        return Region(raw, raw[self.body : stop], self.name, self.bare)

    def _counts(self, text: str) -> bool:
        """Whether braces tell where it ends, and not its closing mark alone."""
        return self.trusting and text[self.body : self.body + 1] in ("{", "[")

    def _unfinished(self, text: str) -> int | None:
        """The end of one whose braces are uneven when the text ends."""
        if not self.mark:
            return len(text)
        self.trusting = False  # from here on, so that no text is looked through again and again
        return self._closing(text, final=True)

    def _after(self, text: str, end: int, *, final: bool) -> int | None:
        """The end of one whose JSON ends at `end`: behind the closing mark, if that comes next."""
        if not self.mark:
            return end
        slack = _SLACK.match(text, self.at)
        self.at = self.at if slack is None else slack.end()
        if text.startswith(self.mark, self.at):
            return self.at + len(self.mark)
        waits = not final and self.mark.startswith(text[self.at :])
        return None if waits else end

    def _closing(self, text: str, *, final: bool) -> int | None:
        """The end of the next closing mark, wherever it stands."""
        looked = self.at - len(self.mark) if self.trusting else self.body
        found = text.find(self.mark, max(looked, self.body))
        if found >= 0:
            return found + len(self.mark)
        self.at = max(self.at, len(text))
        return len(text) if final else None

    def _count(self, text: str) -> int | None:
        """Counts braces to the end of the JSON; the region's end where a closing mark stands before that, outside of strings."""
        at = self.at
        while self.end is None:
            found = (_QUOTE if self.quoted else _signs(self.mark)).search(text, at)
            if found is None:
                split = overlap(text, self.mark)
                at = len(text) if self.quoted else max(at, len(text) - split)
                break
            sign, at = found.group(), found.end()
            if sign == "\\":
                if at == len(text):  # the character that it quotes is still to come
                    at = found.start()
                    break
                at += 1
            elif sign == '"':
                self.quoted = not self.quoted
            elif sign in "{[":
                self.depth += 1
            elif sign in "}]":
                self.depth -= 1
                self.end = at if self.depth <= 0 else None
            else:
                return at
        self.at = at
        return None


@lru_cache
def _signs(close: str) -> re.Pattern[str]:
    """What counts outside of strings."""
    return re.compile(rf'["{{}}\[\]]|{re.escape(close)}' if close else r'["{}\[\]]')
