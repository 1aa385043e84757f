"""
Best of n: sample, score, take the best; with a threshold, only until a sample is good enough.

A threshold is the optimal way to stop a search where each sample costs the same (Pandora's rule, Weitzman 1979; for samples of a language
model, Kalayci et al. 2025, arXiv 2510.01394): the best value of it depends on what a sample costs, so the planner chooses among several by
measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.thoughts import Answer, Thought
from langchain_pareto.strategies.vote import doubt

if TYPE_CHECKING:
    from langchain_pareto.strategies import AnyStrategy


class BestOfN(Strategy):
    """Samples up to `n` answers and returns the one that the run's scorer likes best.

    With a `threshold`, stops once the scorer gives one of them at least so much. A wave has as many samples as there are already, the
    first a single one; or `wave`.
    """

    kind: Literal["best_of_n"] = "best_of_n"
    n: int = Field(default=16, ge=1)
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    wave: int | None = Field(default=None, ge=1)
    of: AnyStrategy = Field(default_factory=Single)

    @property
    def stops_early(self) -> bool:
        return self.threshold is not None

    async def run(self, search: Search) -> Answer:
        """Sample, score, choose; in waves until one is good enough."""
        if self.threshold is None:
            return search.best(await self._scored(search, self.n))
        thoughts = list[Thought]()
        while (left := self.n - len(thoughts)) > 0 and not self._is_good(thoughts):
            wanted = min(left, self.wave or max(1, len(thoughts)))
            async with search.turn(doubt(0, 0, len(thoughts))):
                new = await self._scored(search, wanted)
            thoughts += new
            if thoughts:
                search.offer(search.best(thoughts))
            if len(new) < wanted:
                break  # no more can be paid for
        return search.best(thoughts)

    async def _scored(self, search: Search, n: int) -> list[Thought]:
        thoughts = await search.run(self.of, n)
        await search.score(thoughts)
        return thoughts

    def _is_good(self, thoughts: Sequence[Thought]) -> bool:
        scores = (thought.score for thought in thoughts if thought.score is not None)
        return self.threshold is not None and any(score >= self.threshold for score in scores)
