"""
A grammar kept to the end: near its last token, a text takes the shortest way out that is found.

Knows a constraint, the tokenizer's bytes and how many tokens are left; knows no grammar in particular. A text that is cut off in the
middle of a JSON value is worth nothing, and a small model, or a small budget, would often end so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from langchain_pareto.backends.base import Constraint, TokenMask
from langchain_pareto.backends.tokens import Tokenizer

_CLOSERS = ("</think>",)  # what ends a block in which any text may stand
_ENDS = ("}", "]", ",", '"', "0", "e")  # what is tried first where there is a choice
_LETTER = "a"
_LONGEST = 512  # tokens of a way that is looked for
_FEW = 64  # tokens to choose the longest of
_BLIND = 32  # tokens until it is looked for again, where none was found
_SLACK = 12  # tokens that one step may lengthen the way by


@dataclass(frozen=True, slots=True)
class _Words:
    """Some texts in one tokenizer's tokens."""

    ends: tuple[int, ...]
    quote: int
    letter: int
    closers: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Words:
        def last(text: str) -> int:
            return tokenizer.encode(text)[-1]

        closers = tuple(tuple(tokenizer.encode(text)) for text in _CLOSERS)
        return cls(tuple(map(last, _ENDS)), last('"'), last(_LETTER), closers)


class Closing:
    """A constraint that lets a text end within `tokens` tokens, the one that ends it among them.

    As long as there is room for more it allows what the constraint within it does. Where no way out is found, or one token opens up
    more than there is room for, the text is cut off as any other.
    """

    def __init__(self, within: Constraint, tokenizer: Tokenizer, tokens: int) -> None:
        self._within, self._tokenizer, self._left = within, tokenizer, tokens
        self._words = _Words.of(tokenizer)
        self._look_at = tokens  # how many are left when the way is looked at next
        self._taken: list[int] | None = None  # the rest of the way out, once it is taken
        self._before = list[tuple[int, list[int] | None]]()  # both, at each token

    def allowed(self) -> Sequence[int] | None:
        """The tokens that may come next."""
        mask = self._within.allowed()
        if mask is None or (self._taken is None and self._left > self._look_at):
            return mask
        if self._taken is None:
            way = self._way()
            spare = self._left - 1 - _SLACK - (0 if way is None else len(way))
            if way is None or spare > 0:
                self._look_at = self._left - (_BLIND if way is None else max(1, spare // 2))
                return mask
            self._taken = way
        return self._taken[:1] or self._ends(mask)

    def advance(self, token: int) -> None:
        """Consumes one token."""
        self._within.advance(token)
        self._before.append((self._look_at, self._taken))
        self._left -= 1
        if self._taken is not None:
            self._taken = self._taken[1:] if self._taken[:1] == [token] else None

    def rollback(self, n: int) -> None:
        """Takes the last `n` tokens back."""
        self._within.rollback(n)
        if n:
            self._left += n
            self._look_at, self._taken = self._before[-n]
            del self._before[-n:]

    def fork(self) -> Closing:
        """An independent copy."""
        copy = Closing(self._within.fork(), self._tokenizer, self._left)
        copy._words = self._words
        copy._look_at, copy._taken = self._look_at, self._taken
        copy._before = self._before[:]
        return copy

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
            if len(way) > min(_LONGEST, self._left):
                return None
            token = self._choice(mask)
            place.advance(token)
            way.append(token)
        return way

    def _ends(self, mask: Iterable[int]) -> list[int]:
        allowed = mask if isinstance(mask, TokenMask) else set(mask)
        return [token for token in sorted(self._tokenizer.end_tokens) if token in allowed]

    def _choice(self, mask: Sequence[int]) -> int:
        """One of the tokens, the likeliest to lead out."""
        words = self._words
        ends = words.ends
        if ends[0] in mask and words.letter in mask:  # a brace and a letter: within a string
            ends = (words.quote, words.letter)
        for token in ends:
            if token in mask:
                return token
        if len(mask) <= _FEW:
            return max(mask, key=lambda token: len(self._tokenizer.piece(token)))
        return next(iter(mask))
