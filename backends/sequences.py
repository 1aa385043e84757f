"""
One token sequence of one model: its tokens, how many of them are computed, and which stretches it shares with its relatives.

Knows no tensor. A sequence is a path of segments: forking closes the current segment and gives parent and child each a new one, so
two sequences of a tree agree exactly on the segments that both paths name. That is all the attention grouping needs, and it is kept
in O(1) a fork. The last token is always pending: it is computed with the next step, never before.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import dataclass

import numpy as np

from langchain_pareto.backends.kv_pool import Slots
from langchain_pareto.errors import SequenceError

_FEW = 8  # pending tokens of a sequence that goes on: no prefill yet


class Segment:
    """A stretch of tokens from `start` on; `computed` is the furthest position ever computed in it, for charging once."""

    __slots__ = ("__weakref__", "computed", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.computed = start


class Sequence:
    """Tokens, the slots of the computed ones, and the path of segments from the root."""

    __slots__ = ("_slots", "cached", "ends", "freed", "path", "tokens", "version")

    def __init__(self, tokens: list[int], path: list[Segment], ends: list[int]) -> None:
        self.tokens = tokens
        self.path = path  # the last segment is this sequence's own
        self.ends = ends  # where each closed segment of the path ends, one fewer than `path`
        self._slots = np.empty(len(tokens) + 64, np.int32)
        self.cached = 0
        self.version = 0  # counts every change that is not an append
        self.freed = False

    @classmethod
    def root(cls, tokens: Sequence_[int]) -> Sequence:
        """A sequence that shares nothing."""
        return cls(list(tokens), [Segment(0)], [])

    @property
    def slots(self) -> Slots:
        """Slots of the computed tokens, in order (a view)."""
        return self._slots[: self.cached]

    @property
    def last_slot(self) -> int:
        """The slot of the last computed token."""
        return int(self._slots[self.cached - 1])

    @property
    def pending(self) -> int:
        """Tokens that are not computed yet, at least one."""
        return len(self.tokens) - self.cached

    def fork(self) -> Sequence:
        """A child that shares everything so far; the caller retains its slots."""
        self.check_usable()
        self.part()
        length = len(self.tokens)
        child = Sequence(self.tokens.copy(), [*self.path[:-1], Segment(length)], self.ends.copy())
        child.put(self.slots)
        return child

    def part(self) -> None:
        """Closes the own segment: what comes after it is another stretch."""
        length = len(self.tokens)
        if self.path[-1].start < length:
            self.ends.append(length)
            self.path.append(Segment(length))
            self.version += 1

    def put(self, slots: Slots) -> None:
        """Notes that the next `len(slots)` tokens are computed."""
        end = self.cached + len(slots)
        if end > len(self._slots):
            grown = np.empty(max(end, 2 * len(self._slots)), np.int32)
            grown[: self.cached] = self.slots
            self._slots = grown
        self._slots[self.cached : end] = slots
        self.cached = end

    def take_back(self, n: int) -> Slots:
        """Forgets that the last `n` computed tokens are computed, and returns their slots."""
        slots = self._slots[self.cached - n : self.cached].copy()
        self.cached -= n
        self.version += 1
        return slots

    def truncate(self, length: int) -> Slots:
        """Cuts back to `length` tokens and returns the slots that fell off; the last token becomes pending."""
        self.check_usable()
        if not 0 < length <= len(self.tokens):
            msg = f"cannot truncate a sequence of {len(self.tokens)} tokens to {length}: 1 to {len(self.tokens)} are possible"
            raise SequenceError(msg)
        del self.tokens[length:]
        own = self.path[-1]
        if length <= own.start:
            while self.ends and self.ends[-1] >= length and self.path[-2].start >= length:
                self.path.pop(-2)
                self.ends.pop()
            self.ends[-1] = min(self.ends[-1], length)
            self.path[-1] = Segment(length)
        own = self.path[-1]
        own.computed = min(own.computed, length)
        self.version += 1
        return self.take_back(max(0, self.cached - (length - 1)))

    def amend(self, token: int) -> None:
        """Replaces the last token, which is pending."""
        assert self.pending >= 1, "what is computed cannot be replaced"
        assert len(self.tokens) > self.path[-1].start, "what relatives share cannot be replaced"
        self.tokens[-1] = token

    def segments(self, end: int) -> list[tuple[Segment, int, int]]:
        """The path up to position `end`, as (segment, start, stop) with start < stop."""
        out, start = [], 0
        for segment, stop in zip(self.path, [*self.ends, end], strict=True):
            stop = min(stop, end)
            if start < stop:
                out.append((segment, start, stop))
            start = stop
        return out

    def charge(self, start: int, stop: int, wanted: int) -> int:
        """How many of the positions from `start` to `stop` are charged, the last `wanted` of which give rows.

        A position that gives no row is charged once in a tree, whoever computes it: what an eviction or a preemption makes us
        compute again is not.
        """
        first_wanted = stop - wanted
        new = wanted
        for segment, first, last in self.segments(stop):
            new += max(0, min(last, first_wanted) - max(first, start, segment.computed))
            segment.computed = max(segment.computed, last)
        return new

    def check_usable(self) -> None:
        """Raises SequenceError when the sequence was freed."""
        if self.freed:
            msg = "this branch was freed and cannot be used any more"
            raise SequenceError(msg)


def goes_on(cached: int, tokens: int, rows: int) -> bool:
    """Whether computing so many tokens after `cached` ones continues a sequence, rather than reads a prompt."""
    return tokens <= max(1, rows) or (tokens <= _FEW and cached > 0)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `n` pending tokens of one sequence, the last `rows` of which give logits."""

    sequence: Sequence
    n: int
    rows: int
