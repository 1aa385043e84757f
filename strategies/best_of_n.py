"""
Best of n: sample, score, take the best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.thoughts import Answer

if TYPE_CHECKING:
    from langchain_pareto.strategies import AnyStrategy


class BestOfN(Strategy):
    """Samples `n` answers and returns the one that the run's scorer likes best."""

    kind: Literal["best_of_n"] = "best_of_n"
    n: int = Field(default=16, ge=1)
    of: AnyStrategy = Field(default_factory=Single)

    async def run(self, search: Search) -> Answer:
        """Sample, score, choose."""
        thoughts = await search.run(self.of, self.n)
        await search.score(thoughts)
        return search.best(thoughts)
