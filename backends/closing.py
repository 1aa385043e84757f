"""
A grammar kept to the end: near its last token, or its deadline, a text takes the shortest way out that is found.

Knows a constraint, the tokenizer's bytes, how many tokens are left and how fast they come; knows no grammar in particular. A text that
is cut off in the middle of a JSON value is worth nothing, and a small model, or a small budget, would often end so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from langchain_pareto.backends.constraint import Constraint, TokenMask
from langchain_pareto.backends.forced import forced
from langchain_pareto.backends.thinking import THINK_END
from langchain_pareto.backends.tokens import Tokenizer

_CLOSERS = (THINK_END,)  # what ends a block in which any text may stand
# What is tried where there is a choice: what closes something, and else the one of these that the way has least of, so that no way
# turns in a circle.
_CLOSE = ("}", "]")
_TRIED = tuple(',"0eZ@:-.T/+123456789alrsu')
_LETTER = "a"
_LONGEST = 512  # tokens of a way that is looked for
_FEW = 64  # tokens to choose the longest of
_BLIND = 32  # tokens until it is looked for again at most, where none was found
_SLACK = 12  # tokens that one step may lengthen the way by
_RECENT = 32  # steps that tell the pace
_FEWEST = 3  # of them
_AT_ONCE = 1e-4  # seconds: tokens that come faster are of one step
_HASTE = 0.8  # of the time that is left is counted on: the pace drifts


@dataclass(frozen=True, slots=True)
class _Words:
    """Some texts in one tokenizer's tokens."""

    close: tuple[int, ...]
    tried: tuple[int, ...]
    quote: int
    letter: int
    closers: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Words:
        def last(text: str) -> int:
            return tokenizer.encode(text)[-1]

        closers = tuple(tuple(tokenizer.encode(text)) for text in _CLOSERS)
        close, tried = tuple(map(last, _CLOSE)), tuple(map(last, _TRIED))
        return cls(close, tried, last('"'), last(_LETTER), closers)


@dataclass(frozen=True, slots=True)
class _Place:
    """What is known after so many tokens, of which `left` are still to come."""

    left: int
    whole: int  # tokens of the first way that was found: of one whole value
    look_at: int  # how many are left when the way is looked at next
    taken: tuple[int, ...] | None = None  # the rest of the way out, once it is taken

    def after(self, token: int) -> _Place:
        taken = self.taken[1:] if self.taken is not None and self.taken[:1] == (token,) else None
        return replace(self, left=self.left - 1, taken=taken)


class Closing:
    """A constraint that lets a text end within `tokens` tokens, the one that ends it among them, and before `deadline`.

    As long as there is room for more it allows what the constraint within it does. How many tokens there is time for is told by the
    pace of the last ones, so a text under a deadline may differ from run to run, as one that the deadline cuts does. Where no way out
    is found, or one token opens up more than there is room for, the text is cut off as any other.
    """

    def __init__(
        self,
        within: Constraint,
        tokenizer: Tokenizer,
        tokens: int,
        *,
        deadline: float | None = None,
        words: _Words | None = None,
    ) -> None:
        """`deadline` is a time of `time.monotonic`; `words` are those of another one with this tokenizer."""
        self._within, self._tokenizer = within, tokenizer
        self._words = _Words.of(tokenizer) if words is None else words
        self._place = _Place(tokens, 0, tokens)
        self._before = list[_Place]()  # at each token
        # Tokens that were taken back, the first one last, and the places after them: what was found there is found, so that the
        # same text comes whether or not its tokens were guessed before.
        self._ahead = list[tuple[int, _Place]]()
        self._tokens = list[int]()
        self._deadline = deadline
        self._times = list[float]()  # of each token, seconds
        self._pauses = list[float]()  # before each step's first token but the first step's, seconds

    def allowed(self) -> Sequence[int] | None:
        """The tokens that may come next."""
        mask = self._within.allowed()
        if mask is None:
            return None
        place = self._place
        left = min(place.left, self._in_time) if place.taken is None else place.left
        if place.taken is None and (ends := self._ends(mask)):
            # Words may end anywhere, and may be cut off; after a whole value another begins only if there is room for it.
            free = self._words.letter in mask or left > place.whole + 1 + _SLACK
            return mask if free else ends
        if place.taken is None and left > place.look_at:
            return mask
        if place.taken is None:
            place = self._place = self._looked(place, left)
        return mask if place.taken is None else place.taken[:1] or self._ends(mask)

    def forced(self) -> Sequence[int]:
        """The tokens that must come next: those of the constraint within it, or of the way out, once it is taken."""
        return forced(self._within) if self._place.taken is None else self._place.taken

    def advance(self, token: int) -> None:
        """Consumes one token."""
        self._within.advance(token)
        self._tokens.append(token)
        now = time.monotonic()
        if self._times and now - self._times[-1] >= _AT_ONCE:
            self._pauses.append(now - self._times[-1])
        self._times.append(now)
        self._before.append(self._place)
        known = self._ahead.pop() if self._ahead else None
        if known is not None and known[0] == token:
            self._place = known[1]
        else:
            self._ahead.clear()
            self._place = self._place.after(token)

    def rollback(self, n: int) -> None:
        """Takes the last `n` tokens back."""
        self._within.rollback(n)
        for _ in range(n):
            last = self._times.pop()
            if self._times and last - self._times[-1] >= _AT_ONCE:
                self._pauses.pop()
            self._ahead.append((self._tokens.pop(), self._place))
            self._place = self._before.pop()

    def fork(self) -> Closing:
        """An independent copy."""
        copy = Closing(
            self._within.fork(),
            self._tokenizer,
            self._place.left,
            deadline=self._deadline,
            words=self._words,
        )
        copy._place, copy._before = self._place, self._before[:]
        copy._tokens, copy._ahead = self._tokens[:], self._ahead[:]
        copy._times, copy._pauses = self._times[:], self._pauses[:]
        return copy

    @property
    def _in_time(self) -> int:
        """Tokens that there is time for."""
        recent = self._pauses[-_RECENT:]
        if self._deadline is None or len(recent) < _FEWEST:
            return self._place.left
        # what was guessed or forced comes at once, and the way out may not: the pace is that of steps
        pace = fmean(pause for pause in recent if pause >= sum(recent) / len(recent) / 8)
        left = _HASTE * (self._deadline - time.monotonic()) / max(pace, 1e-6)
        return max(0, int(left))

    def _looked(self, place: _Place, left: int) -> _Place:
        """The place, once the way out is looked for, with room for `left` tokens."""
        way = self._way()
        whole = place.whole or len(way or ())
        spare = left - 1 - _SLACK - (0 if way is None else len(way))
        if way is not None and spare <= 0:
            return replace(place, whole=whole, taken=tuple(way))
        blind = min(_BLIND, 1 + left // 4)
        look_at = left - (blind if way is None else max(1, spare // 2))
        return replace(place, whole=whole, look_at=look_at)

    def _way(self) -> list[int] | None:
        """Tokens after which the text may end, not always the fewest; None where none were found."""
        ways = [self._way_after(first) for first in ((), *self._words.closers)]
        return min((way for way in ways if way is not None), key=len, default=None)

    def _way_after(self, first: Sequence[int]) -> list[int] | None:
        place, way = self._within.fork(), list[int]()
        for token in first:
            if (mask := place.allowed()) is not None and token not in mask:
                return None
            place.advance(token)
            way.append(token)
        while (mask := place.allowed()) is not None and not self._ends(mask):
            if len(way) > min(_LONGEST, self._place.left):
                return None
            token = self._choice(mask, way)
            place.advance(token)
            way.append(token)
        return way

    def _ends(self, mask: Iterable[int]) -> list[int]:
        allowed = mask if isinstance(mask, TokenMask) else set(mask)
        return [token for token in sorted(self._tokenizer.end_tokens) if token in allowed]

    def _choice(self, mask: Sequence[int], way: Sequence[int]) -> int:
        """One of the tokens, the likeliest to lead out after those of `way`."""
        words = self._words
        close = words.close
        if close[0] in mask and words.letter in mask:  # a brace and a letter: within a string
            close = (words.quote,)
        for token in close:
            if token in mask:
                return token
        if tried := [token for token in words.tried if token in mask]:
            return min(tried, key=way.count)
        if len(mask) <= _FEW:
            return max(mask, key=lambda token: len(self._tokenizer.piece(token)))
        return next(iter(mask))
