"""
A knockout tournament of answers, judged in pairs (Chen et al. 2024, arXiv 2411.19477, algorithm 1): the strategy with a proof.

If an answer is right with probability p > 0, and a judgement between a right and a wrong one with probability q > 1/2, the champion of N
entrants, each pair judged K times, is wrong with probability at most (1 - p)^N + ceil(log2 N) exp(-2 K (q - 1/2)^2) (theorem 1). It needs
no votes and no scores, so it is for answers that cannot be counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from langchain_pareto.strategies.answers import group
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.judge import JudgeCompare
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.thoughts import (
    Answer,
    Thought,
    ballot,
    best_of,
    preference,
)

if TYPE_CHECKING:
    from langchain_pareto.strategies import AnyStrategy

_Pair = tuple[Thought, Thought]  # the better seed first


class Knockout(Strategy):
    """Draws `n` answers and lets `judge` choose between two at a time, in rounds, until one is left.

    Entrants are seeded by a vote, then by score and likelihood. The better half meets the worse, the best the worst; the best seed of an
    odd number has no match. A tie goes to the better seed, and so does a match that no readable judgement decides: without any the
    vote's leader wins. Two answers that are the same are not compared. ScorerError where no judgement was ever readable.
    """

    kind: Literal["knockout"] = "knockout"
    n: int = Field(default=8, ge=1)
    judge: JudgeCompare = Field(default_factory=lambda: JudgeCompare(n=2, temperature=None))
    of: AnyStrategy = Field(default_factory=Single)

    async def run(self, search: Search) -> Answer:
        """Round after round, the matches of each side by side."""
        drawn = await search.run(self.of, self.n)
        entrants = _seeded(drawn)
        while len(entrants) > 1:
            search.offer(entrants[0])
            half = len(entrants) // 2
            upper, lower = entrants[-2 * half : -half], entrants[-half:]
            pairs = list(zip(upper, reversed(lower), strict=True))
            shares = await self._shares(search, pairs)
            beaten = {
                better if shares.get((better, worse), 1.0) < 0.5 else worse
                for better, worse in pairs
            }
            entrants = [entrant for entrant in entrants if entrant not in beaten]
        return Answer(entrants[0])

    async def _shares(self, search: Search, pairs: Sequence[_Pair]) -> dict[_Pair, float]:
        """The better seed's share of the judgements, where there are any."""
        unlike = [pair for pair in pairs if not _same(*pair)]
        found = zip(unlike, await self.judge.compare(search, unlike), strict=True)
        return {pair: share for pair, share in found if share is not None}


def _same(one: Thought, other: Thought) -> bool:
    """Whether they give the same answer."""
    return any(len(members) == 2 for members in group([one.answer, other.answer]))


def _seeded(thoughts: Sequence[Thought]) -> list[Thought]:
    """The finished ones, those of larger classes first; where none is, the best of the others."""
    finished = [t for t in thoughts if t.finished] or [best_of(thoughts)]
    place = {t: i for i, members in enumerate(ballot(finished)) for t in members}
    ranked = sorted(finished, key=preference, reverse=True)
    return sorted(ranked, key=lambda thought: place.get(thought, len(place)))
