"""
The open paths of a step-level search, and the answers that it has found: what beam search, DVTS and REBASE share.

Knows steps and scores; knows no rule for which path to follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.seekers import Seekers
from langchain_pareto.strategies.thoughts import (
    POLICY,
    Answer,
    Choice,
    Thought,
    chosen,
    promise,
)
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
        steps are; where that is no whole step any more, the best path is drawn to its end. Searches side by side share that half, and
        one of them draws the first step.
        """
        rest, drawn = list(paths), list[Thought]()
        if self._sparing and rest and not rest[0].path:
            self._seekers.seeking.add(self)
            await asyncio.sleep(0)  # whoever begins together with us is seeking, too
        while rest and self._sparing and not self._search.knows_steps:
            async with self._seekers.first_step:
                if not self._search.knows_steps:
                    rest.sort(key=promise, reverse=True)
                    drawn += await self._draw([rest.pop(0)], STEP)
        n = self._affordable(rest)
        if n < len(rest):
            rest.sort(key=promise, reverse=True)
        if n > 0:
            drawn += await self._draw(rest[:n], STEP)
        elif rest and not drawn:
            await self.finish(rest[:1])
        return drawn

    async def finish(self, paths: Sequence[Thought]) -> None:
        """Draws the rest of each path in one piece: no answer is lost at a limit of depth."""
        await self._draw(paths, ANSWER)

    def give_up(self, paths: Sequence[Thought]) -> None:
        """Nothing will continue these paths."""
        self._search.drop(paths)

    def answer(self) -> Answer:
        """What is chosen among the leaves; raises NothingDrawn where there is none. It seeks none from then on."""
        self._seekers.seeking.discard(self)
        return chosen(self.leaves, self._choose)

    @property
    def _seekers(self) -> Seekers:
        return self._search.desk(POLICY).record.seekers

    @property
    def _sparing(self) -> bool:
        """Whether something has to be left for an answer."""
        return self._search.limited and not self.leaves

    def _affordable(self, paths: Sequence[Thought]) -> int:
        """How many of the paths may take a step now."""
        if not paths or not self._sparing:
            return len(paths)
        seeking = max(1, len(self._seekers.seeking))
        return self._search.steps_in_half(paths[0], len(paths) * seeking) // seeking

    async def _draw(self, paths: Sequence[Thought], until: Until) -> list[Thought]:
        drawn = [t for t in await self._search.expand(paths, until) if t.whole]
        await self._search.score(drawn)
        found = [t for t in drawn if t.finished]
        if found:
            self.leaves += found
            self._search.offer(self.answer())
        return drawn
