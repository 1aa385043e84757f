"""
Stream of search: the serial baseline, a search written down in one chain (Gandhi et al. 2024, arXiv 2404.03683).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.prompts import fill
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer


class SoS(Strategy):
    """One long sample in which the model searches by itself; its answer is read at the end.

    `token_budget` tells a model that was trained on it how long the search may be (SoS+ of arXiv 2504.15466, section 4: a multiple of
    512), by `condition` before the question; the question is then asked by itself, without what stands before it in the chat. It
    is no cap: that is the call's `max_tokens` or its budget.
    """

    varied: ClassVar[bool] = False

    kind: Literal["sos"] = "sos"
    token_budget: int | None = Field(default=None, ge=1)
    condition: str = "Token Budget: {tokens} "

    async def run(self, search: Search) -> Answer:
        """One chain."""
        if self.token_budget is not None:
            told = fill(self.condition, tokens=str(self.token_budget))
            search = search.asking(told + search.root.question)
        best = search.best(await search.sample(search.root))
        tokens = len(best.thought.tokens)
        return Answer(best.thought, figures={"sequential_tokens": tokens, "total_tokens": tokens})
