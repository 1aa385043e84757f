"""
Where guesses come from: a smaller model that follows the branch, or what was written before.

Knows sequences and tokens; knows nothing of who verifies a guess. Each guesser is a generator, so that the steps of all branches'
small models are one step of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from typing import Protocol
from weakref import WeakKeyDictionary

from langchain_pareto.backends.base import Runner
from langchain_pareto.backends.keys import guess_key
from langchain_pareto.backends.programs import Draw, Drawn, Work
from langchain_pareto.backends.sequences import Segment, Sequence as TokenSequence
from langchain_pareto.backends.tentative import Tentative, within

Guessing = Generator[list[Work], list[list[Drawn]], list[Drawn]]


class Guesser(Protocol):
    """Guesses how a sequence goes on."""

    def guess(self, tokens: Sequence[int], most: int, ends: Collection[int]) -> Guessing:
        """Up to `most` tokens that may come after `tokens`; none comes after one of `ends`."""
        ...

    def look_back(self, tokens: Sequence[int], most: int) -> Work | None:
        """What tells which of up to `most` last tokens it would have guessed, one row each; None where nothing can tell.

        The branch drew them with one key and one sampling.
        """
        ...


class Silent:
    """Guesses nothing."""

    def guess(self, tokens: Sequence[int], most: int, ends: Collection[int]) -> Guessing:  # noqa: ARG002 - the protocol's names
        """As the protocol says; runs no model."""
        return []
        yield  # a generator like the others

    def look_back(self, tokens: Sequence[int], most: int) -> None:
        """Nothing tells."""


def rewrite(runner: Runner, sequence: TokenSequence, length: int, tokens: Sequence[int]) -> None:
    """Makes the sequence its first `length` tokens and then `tokens`, the last one pending, and keeps what is computed as far as that agrees."""
    old, at = sequence.tokens, 0
    while at < len(tokens) and length + at < len(old) and old[length + at] == tokens[at]:
        at += 1
    kept, rest = length + at, list(tokens[at:])
    if kept < len(old):
        # a truncation leaves the last token pending: where another one takes its place, nothing right is computed twice;
        # but not within a stretch that relatives share, for there the other token is theirs
        amends = bool(rest) and kept >= sequence.path[-1].start
        runner.truncate(sequence, kept + amends)
        if amends:
            sequence.amend(rest.pop(0))
            own = sequence.path[-1]
            own.computed = min(own.computed, kept)  # this token has never been
    if rest:
        runner.append(sequence, rest)
    elif not sequence.pending:
        runner.truncate(sequence, len(sequence.tokens))


class ModelGuesser:
    """A small model with a sequence of its own, which follows that of the branch."""

    def __init__(
        self,
        runner: Runner,
        sequence: TokenSequence,
        draw: Draw,
        *,
        vocabulary: int,
        confidence: float,
        context: int,
        known: int,
        keep: bool = False,
        stats: bool = False,
    ) -> None:
        """`draw` is that of the branch: with the same keys the small model mostly draws the same.

        It stops where its most probable token has less than `confidence`, before a token which is not in the branch's `vocabulary`,
        and where the branch's constraint leaves no token that it has, or fails: there the target may never come. It guesses nothing
        beyond its own `context`, nor after a token of which it has no embedding: `known` are those that it has. With `keep` it draws
        with keys of its own, and each guess comes with the distribution that it was drawn from, which stays on the device until it is
        verified: `vocabulary` float32 a guess. `stats`: each guess has figures.
        """
        self._runner, self._sequence = runner, sequence
        self._shared, self._context = min(vocabulary, known), context
        kept = vocabulary if keep else 0
        self._draw = replace(
            draw,
            sampling=within(draw.sampling, known),
            counted=False,
            judged=False,
            stats=stats or confidence > 0,
            keep=kept,
        )
        self._least = math.log(confidence) if confidence > 0 else -math.inf
        self._agreed = 0  # tokens at the start that are known to be the branch's

    def guess(self, tokens: Sequence[int], most: int, ends: Collection[int]) -> Guessing:
        """As the protocol says."""
        most = min(most, self._context - len(tokens))
        if most < 1 or not self._reads(tokens):
            return []
        self.follow(tokens)
        self._runner.checkpoint(self._sequence)
        draw, drawn = self._draw, list[Drawn]()
        if draw.keep:
            draw = replace(draw, key=guess_key(draw.key, len(tokens)))
        way = None if draw.constraint is None else Tentative(draw.constraint, self._shared)
        draw = replace(draw, constraint=way)
        try:
            while len(drawn) < most and not (drawn and drawn[-1].token in ends):
                if way is not None and not way.goes_on():
                    break
                [[one]] = yield [Work(self._sequence, draw, runner=self._runner)]
                if one.token >= self._shared or one.peak < self._least:
                    break
                self._runner.append(self._sequence, [one.token])
                drawn.append(one)
                if way is not None:
                    way.advance(one.token)
        finally:
            if way is not None:
                way.go_back()
        return drawn

    def look_back(self, tokens: Sequence[int], most: int) -> Work | None:
        """As the protocol says, of what it has not read yet: that it must read in any case before it guesses again.

        Nothing can tell where a guess depends on more than the branch's key and the tokens before it.
        """
        draw, before = self._draw, tokens[:-1]
        if draw.keep or draw.constraint is not None or self._least > -math.inf:
            return None
        if most < 1 or len(before) >= self._context or not self._reads(before):
            return None
        self.follow(before)
        rows = min(most, self._sequence.pending)
        return Work(self._sequence, draw, rows=rows, runner=self._runner, looks=True)

    def _reads(self, tokens: Sequence[int]) -> bool:
        """Whether it has all tokens of a branch."""
        return max(tokens[self._agreed :], default=0) < self._shared

    def follow(self, tokens: Sequence[int]) -> None:
        """Makes the small model's sequence that of the branch."""
        own, at = self._sequence.tokens, self._agreed
        assert own[0] == tokens[0], "a branch keeps its first token"
        while at < min(len(own), len(tokens)) and own[at] == tokens[at]:
            at += 1
        rewrite(self._runner, self._sequence, at or 1, tokens[at or 1 :])
        self._agreed = len(tokens)


class WrittenBefore:
    """Sequences of a few tokens, and what came after them, in all branches of one tree (STAND, arXiv 2506.04708).

    A branch that is freed is remembered until there is as much of others again.
    """

    def __init__(self, longest: int, shortest: int, *, room: int = 1 << 15) -> None:
        """`room` is how many places are always kept."""
        self._lengths = range(longest, shortest - 1, -1)
        self._places = dict[tuple[int, ...], tuple[TokenSequence, int]]()  # where it goes on
        self._read = WeakKeyDictionary[Segment, int]()
        self._least = self._room = room

    def read(self, sequence: TokenSequence) -> None:
        """Takes in what is new of a branch."""
        if len(self._places) > self._room:
            self._release()
        tokens = sequence.tokens
        for segment, start, stop in sequence.segments(len(tokens)):
            first = max(start, self._read.get(segment, start), 1)
            for at in range(first, stop):  # the token that comes after
                for n in self._lengths:
                    if n <= at:
                        self._places[tuple(tokens[at - n : at])] = (sequence, at)
            self._read[segment] = max(first, stop)

    def goes_on(self, tokens: Sequence[int], most: int) -> list[int]:
        """What came after the longest known end of `tokens`, the last time."""
        for n in self._lengths:
            end = list(tokens[-n:])
            found = self._places.get(tuple(end))
            if found is None:
                continue
            written, at = found[0].tokens, found[1]
            if written[at - n : at] == end and (after := written[at : at + most]):
                return after  # else the branch was truncated since
        return []

    def _release(self) -> None:
        """Forgets freed branches; the others read once more what a freed one had read for all."""
        places = self._places.items()
        self._places = {end: place for end, place in places if not place[0].freed}
        self._room = self._least + 2 * len(self._places)
        self._read.clear()


class LookupGuesser:
    """Guesses that what was written before is written again: prompt lookup, over the whole tree."""

    def __init__(self, written: WrittenBefore, sequence: TokenSequence) -> None:
        self._written, self._sequence = written, sequence

    def guess(self, tokens: Sequence[int], most: int, ends: Collection[int]) -> Guessing:
        """As the protocol says; runs no model."""
        self._written.read(self._sequence)
        guessed = list[Drawn]()
        for token in self._written.goes_on(tokens, most):
            guessed.append(Drawn(token, math.nan, math.nan, math.nan))
            if token in ends:
                break
        return guessed
        yield  # a generator like the others

    def look_back(self, tokens: Sequence[int], most: int) -> None:
        """Nothing tells: what was written in those places would be found there."""
