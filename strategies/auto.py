"""
What to do when nothing was measured yet: let the first sample decide.

A question with nothing to vote on gets its first sample back; any other gets an adaptive vote, the safest use of more compute when no
profile is known.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer
from langchain_pareto.strategies.vote import Vote


class Auto(Strategy):
    """One sample; if it has an answer, an adaptive vote that starts with it.

    Without any budget the vote has at most `unasked` samples; `most` is the cap with one.
    """

    kind: Literal["auto"] = "auto"
    most: int = Field(default=32, ge=1)
    unasked: int = Field(default=4, ge=1)

    @property
    def takes_turns(self) -> bool:
        return True

    async def run(self, search: Search) -> Answer:
        """The first sample decides."""
        first = search.best(await search.sample(search.root))
        search.offer(first)
        if first.thought.answer is None or search.settings.sampling.temperature == 0:
            return first
        n = self.most if search.limited or search.has_deadline else self.unasked
        return await Vote(n=n).continue_from(search, [first.thought])
