"""
First-finish search: of many samples the first to end are the answer (Agarwal et al. 2025, arXiv 2505.18149).

A reasoning model's shorter traces are right more often than its longer ones, and whoever waits for no straggler saves time and tokens.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Thought, leader


class FirstFinish(Strategy):
    """Starts `n` samples, lets the first `take` that come to their own end vote, and cancels the rest; the paper's has `take` = 1.

    Samples share the engine's steps, so the shortest end first, whatever the machine: those that vote depend on lengths, and on chance
    only where samples of one length compete for the last place. How far the rest had come when they were cancelled depends on time;
    all of it is paid. Under a limit, time aside, they start in waves that it holds at their likely length, at first one by itself unless
    it holds all at their longest: whoever starts earlier then ends earlier.
    """

    kind: Literal["first_finish"] = "first_finish"
    n: int = Field(default=8, ge=1)
    take: int = Field(default=3, ge=1)

    async def run(self, search: Search) -> Answer:
        """As many as there are, until enough have ended."""
        drawn = list[Thought]()
        async with aclosing(search.samples(search.root, self.n)) as ended:
            async for thought in ended:
                drawn.append(thought)
                search.offer(leader(drawn))
                if sum(t.finished for t in drawn) >= self.take:
                    break
        return leader(drawn)
