"""
Weighted vote: every sample votes for its answer with its score (Wu et al. 2024, arXiv 2408.00724, section 2).

With a scorer that is better than chance, more samples make the weighted vote right more often in the limit than the plain one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.thoughts import Answer, weighted_leader

if TYPE_CHECKING:
    from langchain_pareto.strategies import AnyStrategy


class WeightedVote(Strategy):
    """Samples `n` answers and returns the best sample of the class whose scores sum to most."""

    kind: Literal["weighted_vote"] = "weighted_vote"
    n: int = Field(default=16, ge=1)
    of: AnyStrategy = Field(default_factory=Single)

    async def run(self, search: Search) -> Answer:
        """Sample, score, vote."""
        thoughts = await search.run(self.of, self.n)
        await search.score(thoughts)
        return weighted_leader(thoughts)
