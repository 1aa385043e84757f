"""
What a scorer is: how good is a thought? Higher is better. And the likelihood, which needs nothing but the policy itself.

Knows what a score is; does not know where thoughts come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from langchain_pareto.errors import ScorerError

if TYPE_CHECKING:
    from langchain_pareto.strategies.search import Search
    from langchain_pareto.strategies.thoughts import Thought


class Scorable(Protocol):
    """What a scorer may read of a thought; `mean_logprob` is in nats per token, from the root on, as `whole_text` is."""

    @property
    def question(self) -> str: ...
    @property
    def whole_text(self) -> str: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def mean_logprob(self) -> float | None: ...


class Scorer(Protocol):
    """One score per thought, in order; -inf for a thought that could not be scored."""

    async def score(self, thoughts: Sequence[Scorable]) -> list[float]: ...


@runtime_checkable
class RunScorer(Protocol):
    """A scorer that works with models, on the run's account.

    For each thought, in order: one score of the whole text, or one for each step that the thought added; None where the budget has no
    room for it.
    """

    async def score_in(
        self, search: Search, thoughts: Sequence[Thought]
    ) -> Sequence[float | Sequence[float] | None]: ...


class MeanLogprob(BaseModel):
    """
    The mean raw log-probability of a thought's tokens, in nats.

    A thought without one (no tokens) scores -inf; ScorerError if none of them has one, or on NaN.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mean_logprob"] = "mean_logprob"

    async def score(self, thoughts: Sequence[Scorable]) -> list[float]:
        found = [thought.mean_logprob for thought in thoughts]
        if found and all(value is None for value in found):
            message = f"none of {len(found)} thoughts carries log-probabilities"
            raise ScorerError(message, hint="Use a backend that returns them, or another scorer.")
        if any(value is not None and math.isnan(value) for value in found):
            message = "a thought's mean log-probability is NaN"
            raise ScorerError(message)
        return [-math.inf if value is None else value for value in found]
