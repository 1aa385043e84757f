"""
Step-level beam search, guided by the run's scorer (Snell et al. 2024, arXiv 2408.03314; Beeching et al. 2024, "Scaling test-time
compute with open models").
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.frontier import Frontier, distinct_first
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Choice, Thought, promise


class Beam(Strategy):
    """Keeps the `n / expansion` best paths of each level, and draws `expansion` next steps of each.

    A path that has come to its end keeps its place: the beam is narrower by one from then on. What is unfinished at `depth` steps is
    drawn to its end in one piece. `distinct` leaves places to paths that repeat another, or an answer, only where there is nothing else:
    a sure policy writes the same step many times, and all paths become one.
    """

    kind: Literal["beam"] = "beam"
    n: int = Field(default=16, ge=1)
    expansion: int = Field(default=4, ge=1)
    depth: int = Field(default=32, ge=1)
    distinct: bool = False
    choose: Choice = "weighted"

    async def run(self, search: Search) -> Answer:
        """Level after level."""
        frontier, expansion = Frontier(search, self.choose), min(self.n, self.expansion)
        width = self.n // expansion
        steps, paths = [search.root] * self.n, list[Thought]()
        for _ in range(self.depth):
            drawn = await frontier.grow(steps)
            ranked = sorted((t for t in drawn if not t.finished), key=promise, reverse=True)
            ended = len(frontier.leaves)
            if self.distinct:
                ranked, ended = distinct_first(ranked), len(set(map(_text, frontier.leaves)))
            places = max(0, width - ended)
            frontier.give_up(ranked[places:])
            paths = ranked[:places]
            if not paths:
                break
            steps = [path for path in paths for _ in range(expansion)]
        else:
            await frontier.finish(paths)
        return frontier.answer()


def _text(thought: Thought) -> str:
    return thought.whole_text
