"""
REBASE: reward-balanced search (Wu et al. 2024, arXiv 2408.00724, section 3.2).

Of a budget of N paths, each level gives those that are open as many next steps as a softmax of their rewards says; a path that has
come to its end keeps one unit for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.frontier import Frontier
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Choice


class Rebase(Strategy):
    """Splits `n` paths over the steps of each level by softmax(score / `score_temperature`).

    0.1 is the paper's score temperature; its code takes 0.2. What is unfinished at `depth` steps is drawn to its end in one piece.
    """

    kind: Literal["rebase"] = "rebase"
    n: int = Field(default=16, ge=1)
    score_temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    depth: int = Field(default=25, ge=1)
    choose: Choice = "weighted"

    async def run(self, search: Search) -> Answer:
        """Level after level."""
        frontier = Frontier(search, self.choose)
        paths = [search.root] * self.n
        for _ in range(self.depth):
            open_ = [t for t in await frontier.grow(paths) if not t.finished]
            left = self.n - len(frontier.leaves)
            shares = widths([t.score for t in open_], left, self.score_temperature)
            frontier.give_up([t for t, width in zip(open_, shares, strict=True) if width == 0])
            paths = [t for t, width in zip(open_, shares, strict=True) for _ in range(width)]
            if not paths:
                break
        else:
            await frontier.finish(paths)
        return frontier.answer()


def widths(scores: Sequence[float | None], total: int, temperature: float) -> list[int]:
    """How many of `total` next steps each path gets: in proportion to exp(score / temperature), by largest remainder (Hamilton).

    They sum to `total`, ties to the better path, then to the earlier; a path without a score, or of -inf, gets some only where all are
    so. Rounding each share by itself, as the paper writes it, may sum to nothing: 16 equal paths for 4 steps.
    """
    if not scores or total <= 0:
        return [0] * len(scores)
    known = [-math.inf if score is None else score for score in scores]
    top = max(known)
    weights = [1.0] * len(known)
    if math.isfinite(top):
        weights = [math.exp((score - top) / temperature) for score in known]
    elif top > 0:
        weights = [float(score == top) for score in known]
    whole = math.fsum(weights)
    exact = [total * weight / whole for weight in weights]
    out = [math.floor(share) for share in exact]
    # the sort is stable, so that the earlier comes first
    by_remainder = sorted(range(len(out)), key=lambda i: (out[i] - exact[i], -known[i]))
    for i in by_remainder[: total - sum(out)]:
        out[i] += 1
    return out
