"""
How long draws may be, how long they likely are, and how many of them the budget holds side by side.

Knows prices and lengths; draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from langchain_pareto.budget import Cost, Limits
from langchain_pareto.strategies.desk import Desk
from langchain_pareto.strategies.marks import Before
from langchain_pareto.strategies.record import Lengths
from langchain_pareto.strategies.thoughts import Thought
from langchain_pareto.strategies.until import ANSWER, STEP, Until

_STEP = 64  # tokens that a step is reserved at first, while no length is known
WIDEST = 256  # draws side by side: beyond, setting them up takes longer than a step


def widest(n: int, likely: int | None, cap: int, fits: Callable[[int], int]) -> int:
    """How many of `n` draws may run side by side, at least one: as many as fit at their likely length, or at their cap while that is unknown.

    `fits` says how many draws of up to so many tokens the room holds, at most `n`.
    """
    if likely is None:
        return min(n, WIDEST) if fits(cap) == n else 1
    return min(WIDEST, max(1, fits(min(likely, cap))))


def reserved(cap: int, likely: int, share: int, least: int) -> tuple[int, int]:
    """The most and the least tokens that are reserved for a whole text of up to `cap`, of which `share` are held in any case.

    Fewer than `least` are not worth a start.
    """
    most = min(cap, max(share, likely))
    return most, max(1, min(most, least))


@dataclass(frozen=True, slots=True)
class Sizing:
    """The sizes of draws from one model."""

    desk: Desk
    max_tokens: int | None  # of a whole text
    aside: bool  # whether the texts are asides, whose lengths are their own

    @property
    def limited(self) -> bool:
        """Whether any resource that a draw takes has a limit."""
        return replace(self._unspent, calls=None) != Limits()

    @property
    def lengths(self) -> Lengths:
        """Of whole texts, answers or asides."""
        record = self.desk.record
        return record.asides if self.aside else record.lengths

    def price(self, thought: Thought, tokens: int) -> Cost:
        """The worst case of one draw of up to `tokens` tokens below a thought."""
        assert thought.branch is not None
        return self.desk.price(len(thought.branch.tokens), tokens, known=thought.paid)

    def cap(self, thought: Thought) -> int:
        """The most tokens that a draw may take by the model and the caller, who means whole texts."""
        assert thought.branch is not None
        room = self.desk.backend.capabilities.context_length - len(thought.branch.tokens)
        most = self.max_tokens
        # a prompt that fills the context is the backend's to refuse
        least = 1 if thought.parent is None else 0
        return max(least, room if most is None else min(room, most - thought.length))

    def share(self, width: int) -> int:
        """Tokens that each of so many draws side by side has in any case: none need be shorter."""
        tokens = self._unspent.tokens
        return 0 if tokens is None else tokens // width

    def width(self, thoughts: Sequence[Thought], until: Until) -> int:
        """How many of these draws may run side by side, at least one."""
        n = len(thoughts)
        if not self.limited:
            return min(n, WIDEST)
        thought = max(thoughts, key=lambda t: t.length)  # the dearest
        return widest(
            n,
            self._likely(thought, until),
            self.cap(thought),
            lambda tokens: self._unspent.times(self.price(thought, tokens), n),
        )

    def steps_in_half(self, thought: Thought, n: int) -> int:
        """How many of `n` steps below a thought half of the room holds, at their likely length."""
        cap = self.cap(thought)
        if not self.limited or not cap:
            return n
        price = self.price(thought, min(self._likely(thought, STEP) or _STEP, cap))
        held = self._unspent.times(price, 2 * n) // 2
        if held < n:
            self.desk.note_limit(price * (2 * n))
        return held

    def reservation(self, thought: Thought, until: Until, cap: int, share: int) -> tuple[int, int]:
        """The most and the least tokens that are reserved at a time for a draw of up to `cap`, of which `share` are held in any case."""
        likely = self._likely(thought, until)
        if likely is None or not self.limited:
            return cap, 1
        if until != ANSWER:
            return min(cap, likely), 1
        return reserved(cap, likely, share, self.lengths.q25 - thought.length)

    @property
    def _unspent(self) -> Limits:
        return self.desk.account.room().unspent

    def _likely(self, thought: Thought, until: Until) -> int | None:
        """A length that few such draws exceed, None while nothing is known."""
        if isinstance(until, int):
            return until
        if isinstance(until, Before):
            return None
        lengths = self.lengths if until == ANSWER else self.desk.record.steps
        if lengths.q95 is None:
            return _STEP if until == STEP else None
        return max(1, lengths.q95 - (thought.length if until == ANSWER else 0))
