"""
The open paths of a step-level search, and the answers that it has found: what beam search, DVTS and REBASE share.

Knows steps and scores; knows no rule for which path to follow.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Choice, Thought, chosen, promise
from langchain_pareto.strategies.until import ANSWER, STEP, Until


def distinct_first(ranked: Sequence[Thought]) -> list[Thought]:
    """The first of each text in their order, and after them those that only repeat one."""
    first = dict[str, Thought]()
    for thought in ranked:
        first.setdefault(thought.whole_text, thought)
    kept = set(map(id, first.values()))
    return [*first.values(), *(thought for thought in ranked if id(thought) not in kept)]


class Frontier:
    """Grows paths step by step; a path that has come to its end is a leaf, and an answer of the run from then on."""

    def __init__(self, search: Search, choose: Choice) -> None:
        self.leaves = list[Thought]()
        self._search, self._choose = search, choose

    async def grow(self, paths: Sequence[Thought]) -> list[Thought]:
        """Draws a next step of each path, which may be named several times, and scores it; all but those that were cut off, in order.

        While there is no answer, one level takes at most half of what is left, the best paths first, and the first step shows how long
        steps are; where that is no whole step any more, the best path is drawn to its end.
        """
        rest, drawn = list(paths), list[Thought]()
        while rest:
            n, measured = self._affordable(rest), self._search.knows_steps
            if n < len(rest):
                rest.sort(key=promise, reverse=True)
            if n == 0:
                break
            drawn += await self._draw(rest[:n], STEP)
            rest = [] if measured else rest[n:]
        if rest and not drawn:
            await self.finish(rest[:1])
        return drawn

    async def finish(self, paths: Sequence[Thought]) -> None:
        """Draws the rest of each path in one piece: no answer is lost at a limit of depth."""
        await self._draw(paths, ANSWER)

    def give_up(self, paths: Sequence[Thought]) -> None:
        """Nothing will continue these paths."""
        self._search.drop(paths)

    def answer(self) -> Answer:
        """What is chosen among the leaves; raises NothingDrawn where there is none."""
        return chosen(self.leaves, self._choose)

    def _affordable(self, paths: Sequence[Thought]) -> int:
        """How many of the paths may take a step now."""
        if self.leaves or not self._search.limited:
            return len(paths)
        return self._search.steps_in_half(paths[0], len(paths)) if self._search.knows_steps else 1

    async def _draw(self, paths: Sequence[Thought], until: Until) -> list[Thought]:
        drawn = [t for t in await self._search.expand(paths, until) if t.whole]
        await self._search.score(drawn)
        found = [t for t in drawn if t.finished]
        if found:
            self.leaves += found
            self._search.offer(self.answer())
        return drawn
