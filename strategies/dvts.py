"""
Diverse verifier tree search: independent subtrees, each followed greedily (Beeching et al. 2024, "Scaling test-time compute with open
models").
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.frontier import Frontier
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Choice, promise


class DVTS(Strategy):
    """Splits `n` into `n / expansion` subtrees; each draws `expansion` next steps and follows the best of them.

    No subtree can crowd out another, as the paths of a beam do. What is unfinished at `depth` steps is drawn to its end in one piece.
    """

    kind: Literal["dvts"] = "dvts"
    n: int = Field(default=16, ge=1)
    expansion: int = Field(default=4, ge=1)
    depth: int = Field(default=32, ge=1)
    choose: Choice = "weighted"

    async def run(self, search: Search) -> Answer:
        """All subtrees side by side, level after level."""
        frontier, expansion = Frontier(search, self.choose), min(self.n, self.expansion)
        drawn = await frontier.grow([search.root] * (self.n // expansion * expansion))
        trees = [drawn[at : at + expansion] for at in range(0, len(drawn), expansion)]
        for _ in range(1, self.depth):
            best = [max(steps, key=promise) for steps in trees if steps]
            frontier.give_up([t for t in drawn if t not in best and not t.finished])
            paths = [path for path in best if not path.finished]
            if not paths:
                break
            drawn = await frontier.grow([path for path in paths for _ in range(expansion)])
            trees = [[t for t in drawn if t.parent is path] for path in paths]
        else:
            open_ = (max(steps, key=promise) for steps in trees if steps)
            await frontier.finish([path for path in open_ if not path.finished])
        return frontier.answer()
