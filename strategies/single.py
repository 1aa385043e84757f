"""
One sample: the cheapest strategy, and the leaf of the others.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Thought


class Single(Strategy):
    """Draws one sample and returns it."""

    varied: ClassVar[bool] = False

    kind: Literal["single"] = "single"

    async def run(self, search: Search) -> Answer:
        """One sample."""
        return search.best(await search.sample(search.root))

    async def run_many(self, search: Search, n: int) -> list[Thought]:
        """`n` samples of one root, which share its cache."""
        return await search.at_temperature(self.temperature).sample(search.root, n)
