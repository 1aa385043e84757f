"""
Majority vote over answers (self-consistency, Wang et al. 2022, arXiv 2203.11171), with adaptive stopping.

Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860, eq. 4): with v1 votes for the leader and v2 for the runner-up, stop when
P(X > 1/2) >= threshold for X ~ Beta(v1 + 1, v2 + 1). The posterior is looked at between waves, in order of drawing; a wave is as wide
as can decide the vote, which wastes no sample and asks for no more rounds than that needs. Under a deadline it is looked at whenever
a sample ends: nobody waits for stragglers, whose answers seldom change the vote (Agarwal et al. 2025, arXiv 2505.18149).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import aclosing
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from langchain_pareto.strategies.answers import shape_of
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.thoughts import (
    Answer,
    Thought,
    ballot,
    leader,
)
from langchain_pareto.strategies.worth import worth

if TYPE_CHECKING:
    from langchain_pareto.strategies import AnyStrategy

# The part of the doubt that is allowed where samples vote as they end: the first to end are no fair sample of all. On recorded reasoning
# (MATH-500, GPQA) all of it loses up to 0.8 points to the vote of all, a fifth up to 0.3, in 1.6 to 4 times less time.
_HASTE = 0.2


class Vote(Strategy):
    """Samples up to `n` answers and returns a sample of the class that most agree on.

    With `adaptive`, stops once the leader is ahead with probability `threshold`, or cannot be overtaken. A wave has as many samples as
    could decide that if they agreed, or `wave`. Under a deadline all are drawn at once and vote as they end; once no more than a fifth of
    that doubt is left (whoever ends first is no fair sample of all) the rest is cancelled. Where `of` is no single sample, all `n` end. A
    sample that was cut off, or has no answer, does not vote.
    """

    kind: Literal["vote"] = "vote"
    n: int = Field(default=16, ge=1)
    adaptive: bool = True
    threshold: float = Field(default=0.95, gt=0.5, le=1)
    wave: int | None = Field(default=None, ge=1)
    of: AnyStrategy = Field(default_factory=Single)

    @property
    def takes_turns(self) -> bool:
        return self.adaptive

    async def run(self, search: Search) -> Answer:
        """Waves until the vote is decided."""
        return await self.continue_from(search, [])

    async def continue_from(self, search: Search, drawn: Sequence[Thought]) -> Answer:
        """The vote, with what is drawn already."""
        thoughts = list(drawn)
        while (left := self.n - len(thoughts)) > 0:
            races = leads(thoughts)
            if not (wanted := self._needed(races, left, self.threshold)):
                break
            async with search.turn(worth(max(doubt(*race) for race in races), len(thoughts))):
                if self.adaptive and search.has_deadline:
                    await self._race(search, thoughts)
                    break
                if self.adaptive and self.wave is not None:
                    wanted = min(self.wave, left)
                new = await search.run(self.of, wanted)
            thoughts += new
            if thoughts:
                search.offer(leader(thoughts))
            if len(new) < wanted:
                break  # no more can be paid for
        return leader(thoughts)

    async def _race(self, search: Search, thoughts: list[Thought]) -> None:
        """Draws all that are left at once. Samples vote as they end, and once the vote is decided the rest is cancelled."""
        left = self.n - len(thoughts)
        if type(self.of) is not Single:
            thoughts += await search.run(self.of, left)
            return
        own = search.at_temperature(self.of.temperature)
        threshold = 1 - _HASTE * (1 - self.threshold)
        due = left - self._needed(leads(thoughts), left, threshold)
        async with aclosing(own.groups(own.root, left)) as groups:
            async for ended in groups:
                thoughts += ended
                left -= len(ended)
                if left > due:
                    continue  # all votes for one would not decide it; to count them each time is slow
                search.offer(leader(thoughts))
                needed = self._needed(leads(thoughts), left, threshold)
                if not needed:
                    break
                due = left - needed

    def _needed(self, races: Sequence[tuple[int, int]], left: int, threshold: float) -> int:
        """How many of the samples that are left could decide the vote, if they agreed: none where it is decided, all where it never stops early."""
        if not self.adaptive:
            return left
        if all(decided(*race, left, threshold) for race in races):
            return 0
        return max(least_deciding(*race, left, threshold) for race in races)


def leads(thoughts: Sequence[Thought]) -> list[tuple[int, int]]:
    """The votes of the leader and of the runner-up in each race: that of shapes, and that of the classes of the leading shape."""
    shapes: dict[str, list[int]] = {}  # sizes of their classes; the leading one comes first
    for members in ballot(thoughts):
        shapes.setdefault(shape_of(members[0].answer), []).append(len(members))
    races = map(sum, shapes.values()), next(iter(shapes.values()), [])
    return [(first, second) for first, second, *_ in ([*race, 0, 0] for race in races)]


def doubt(first: int, second: int) -> float:
    """How unsure it is of its leader."""
    return 1 - lead_probability(first, second)


def decided(first: int, second: int, left: int, threshold: float) -> bool:
    """Whether `left` more samples are not worth drawing."""
    if first == 0:
        return False
    return first - second > left or lead_probability(first, second) >= threshold


def least_deciding(first: int, second: int, left: int, threshold: float) -> int:
    """How many more samples could decide the vote, if all were for the leader; at most `left`."""
    for more in range(1, left):
        if decided(first + more, second, left - more, threshold):
            return more
    return left


def lead_probability(first: int, second: int) -> float:
    """P(X > 1/2) for X ~ Beta(first + 1, second + 1): a binomial tail, since both are whole numbers."""
    n = first + second + 1
    return float(Fraction(sum(math.comb(n, i) for i in range(first + 1)), 2**n))
