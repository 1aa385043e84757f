"""
Best of n: sample, score, take the best; with a threshold, only until a sample is good enough.

Where samples of one question are alike in cost and their scores come from one known distribution, the best way to stop is at a threshold
(Pandora's rule, Weitzman 1979; for samples of a language model, Kalayci et al. 2025, arXiv 2510.01394). Which one, depends on what a
sample is worth; the planner measures several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from langchain_pareto.errors import NothingScoredError, SettingError
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.thoughts import Answer, Thought, good_enough
from langchain_pareto.strategies.worth import worth

if TYPE_CHECKING:
    from langchain_pareto.strategies import AnyStrategy

_DOUBT = 0.5  # that the best so far is the answer: nothing is known but that it is not good enough


class BestOfN(Strategy):
    """Samples up to `n` answers and returns the one that the run's scorer likes best.

    With a `threshold`, ends after the wave in which the scorer gives an answer at least so much. A wave has as many samples as there are
    already, the first a single one; or `wave`. SettingError for a scorer that only compares samples with each other.
    """

    kind: Literal["best_of_n"] = "best_of_n"
    n: int = Field(default=16, ge=1)
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    wave: int | None = Field(default=None, ge=1)
    of: AnyStrategy = Field(default_factory=Single)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.wave is not None and self.threshold is None:
            raise ValueError(
                "wave is how many are drawn before they are held against a threshold: name one, or leave wave out"
            )
        return self

    @property
    def takes_turns(self) -> bool:
        return self.threshold is not None

    async def run(self, search: Search) -> Answer:
        """Sample, score, choose; in waves until one is good enough."""
        if self.threshold is not None:
            return await self._until_good(search)
        thoughts = await search.run(self.of, self.n)
        await search.score(thoughts)
        return search.best(thoughts)

    async def _until_good(self, search: Search) -> Answer:
        if getattr(search.settings.scorer, "relative", False):
            msg = "a threshold needs a scorer that says how good a sample is by itself, and this one compares samples"
            raise SettingError(
                msg, hint="Take JudgeScore, for example, or leave the threshold out."
            )
        thoughts, unscored = list[Thought](), None
        while (left := self.n - len(thoughts)) > 0 and not good_enough(thoughts, self.threshold):
            wanted = min(left, self.wave or max(1, len(thoughts)))
            async with search.turn(worth(_DOUBT, len(thoughts))):
                new = await search.run(self.of, wanted)
            thoughts += new
            try:
                await search.score(new)
            except NothingScoredError as error:
                unscored = error  # of a wave that may be a single sample: the next may do
            best = search.best(thoughts)
            if best.thought.finished:
                search.offer(best)
            if len(new) < wanted:
                break  # no more can be paid for
        if unscored is not None and all(thought.score is None for thought in thoughts):
            raise unscored
        return search.best(thoughts)
