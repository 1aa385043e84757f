"""
What a scorer is: how good is a thought? Higher is better. And those that need nothing but the policy itself: how likely, and how sure.

Knows what a score is; does not know where thoughts come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from langchain_pareto.errors import ParetoError, ScorerError

if TYPE_CHECKING:
    from langchain_pareto.strategies.search import Search
    from langchain_pareto.strategies.thoughts import Thought

_HINT = "A scorer has `async def score(thoughts)`, which returns one number for each; -inf for one that it cannot score, never NaN."


class Scorable(Protocol):
    """What a scorer may read of a thought, all of it from the root on.

    `mean_logprob` is in nats per token. `confidences` has for each token minus the mean log-probability (nats) of the 20 most
    probable ones at its place.
    """

    @property
    def question(self) -> str: ...
    @property
    def whole_text(self) -> str: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def mean_logprob(self) -> float | None: ...
    @property
    def confidences(self) -> Sequence[float]: ...


class Scorer(Protocol):
    """One score per thought, in order; -inf for a thought that could not be scored.

    One whose scores only compare the thoughts of one call with each other says so by `relative = True`: nothing is held against a threshold.
    """

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
        return _known([thought.mean_logprob for thought in thoughts], "mean log-probability")


class MeanConfidence(BaseModel):
    """
    How peaked the policy's predictions were: the mean of a thought's `confidences`, in nats; whatever token was drawn.

    Self-certainty (Kang et al. 2025, arXiv 2502.18581, eq. 5) is this mean over the whole vocabulary, less a constant; here it is cut to
    the 20 most probable tokens, as DeepConf has it (Fu et al. 2025, arXiv 2508.15260, eq. 2 and 3), since backends keep no more.
    A thought of no tokens scores -inf; ScorerError if none of them has confidences, or on NaN.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mean_confidence"] = "mean_confidence"

    async def score(self, thoughts: Sequence[Scorable]) -> list[float]:
        found = [thought.confidences for thought in thoughts]
        means = [math.fsum(values) / len(values) if values else None for values in found]
        return _known(means, "mean confidence")


async def ask_scorer(
    scorer: Scorer | RunScorer, search: Search, thoughts: Sequence[Thought]
) -> Sequence[float | Sequence[float] | None]:
    """What a scorer says of each thought, once that is numbers; raises ScorerError."""
    try:
        if isinstance(scorer, RunScorer):
            found = [_numbers(score) for score in await scorer.score_in(search, thoughts)]
        else:
            found = [float(score) for score in await scorer.score(thoughts)]
    except ParetoError:
        raise
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, ParetoError):
            raise cause from None
        msg = f"the scorer failed: {type(cause).__name__}: {cause}"
        raise ScorerError(msg, hint=_HINT) from error
    if len(found) != len(thoughts) or any(map(_is_nan, found)):
        msg = f"expected {len(thoughts)} scores, got {len(found)}: {found!r:.80}"
        raise ScorerError(msg, hint=_HINT)
    return found


def _known(values: Sequence[float | None], what: str) -> list[float]:
    """The values, -inf for what is not known; ScorerError where nothing is, or on NaN."""
    if values and all(value is None for value in values):
        message = f"none of {len(values)} thoughts carries log-probabilities"
        raise ScorerError(message, hint="Use a backend that returns them, or another scorer.")
    if any(value is not None and math.isnan(value) for value in values):
        message = f"a thought's {what} is NaN"
        raise ScorerError(message)
    return [-math.inf if value is None else value for value in values]


def _numbers(score: float | Sequence[float] | None) -> float | Sequence[float] | None:
    """What a scorer says of one thought, as plain floats."""
    if isinstance(score, Sequence):
        return tuple(map(float, score))
    return None if score is None else float(score)


def _is_nan(score: float | Sequence[float] | None) -> bool:
    if score is None:
        return False
    return math.isnan(score) if isinstance(score, float) else any(map(math.isnan, score))


def _cause(error: Exception) -> Exception:
    """The first error of a scorer's own tasks, which fail as a group."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
