"""
Measures what the scorer of a chat model takes: it is asked for some questions' answers, few and many at a time, as calls would ask it.

Knows chat models and scorers; what the measurements are fitted to is the planning room's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from langchain_core.messages import HumanMessage
from pydantic import Field, PrivateAttr

from langchain_pareto.budget import Budget
from langchain_pareto.errors import BudgetExceeded, ScorerError
from langchain_pareto.planning.scorer_cost import Scored, ScorerCost
from langchain_pareto.strategies import Single, Strategy
from langchain_pareto.strategies.scorers import MeanConfidence, MeanLogprob
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer

if TYPE_CHECKING:
    from langchain_pareto.chat_model import ChatPareto

_WIDTHS = (1, 4, 16)  # texts of an asking
_ROUNDS = 4
_NO_LIMIT = Budget(tokens=1 << 40, flops=1 << 60)  # so that what is left of it can be told


def takes_time(scorer: object) -> bool:
    """Whether a scorer does more than read what is known already."""
    return not isinstance(scorer, MeanLogprob | MeanConfidence)


async def scorer_cost(
    llm: ChatPareto,
    model: object,
    questions: Sequence[str],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> ScorerCost | None:
    """What the scorer of `llm` takes for answers of `model` to these questions, of which a few are asked.

    None where it could not be told: answers did not come to their end, or the budget around it ended. An asking whose judgements cannot be
    read is left out. Nothing else should run meanwhile. Raises what calls raise, and ScorerError where every asking failed.
    """
    askings, failure = list[Scored](), None

    async def ask(number: int, n: int) -> None:
        nonlocal failure
        timed = _TimedScoring(clock=clock, n=n)
        message = HumanMessage(questions[number % len(questions)])  # not one that was just read
        try:
            await llm.reply([message], model=model, strategy=timed, budget=_NO_LIMIT, seed=number)
        except ScorerError as error:
            failure = error
        askings.extend(timed.askings)

    try:
        await ask(0, _WIDTHS[0])  # what comes first allocates
        askings.clear()
        for number, n in enumerate(_WIDTHS * _ROUNDS, start=1):
            await ask(number, n)
    except BudgetExceeded:
        return None  # of a part of the widths a call could not be told from its texts
    if failure is not None and not askings:
        raise failure
    told = len({one.texts for one in askings}) > 1
    return ScorerCost.fitted(askings) if told else None


class _TimedScoring(Strategy):
    """Best of `n`, and what scoring them took."""

    kind: Literal["timed_scoring"] = "timed_scoring"
    n: int
    clock: Callable[[], float] = Field(exclude=True)
    _askings: list[Scored] = PrivateAttr(default_factory=list)

    @property
    def askings(self) -> list[Scored]:
        """What was measured."""
        return self._askings

    async def run(self, search: Search) -> Answer:
        """Sample, score, choose; what is cut off has no part in it."""
        thoughts = await search.run(Single(), self.n)
        began, before = self.clock(), search.room.unspent
        await search.score(thoughts)
        seconds, after = self.clock() - began, search.room.unspent
        scored = [thought for thought in thoughts if thought.score is not None]
        if scored and len(scored) == sum(thought.whole for thought in thoughts):
            one = Scored(
                texts=len(scored),
                tokens=sum(thought.length for thought in scored),
                seconds=seconds,
                flops=(before.flops or 0) - (after.flops or 0),
                drawn=(before.tokens or 0) - (after.tokens or 0),
            )
            self._askings.append(one)
        return search.best(thoughts)
