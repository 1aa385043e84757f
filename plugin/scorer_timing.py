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
from langchain_pareto.errors import BudgetExceeded
from langchain_pareto.planning.scorer_cost import Scored, ScorerCost
from langchain_pareto.strategies import Single, Strategy
from langchain_pareto.strategies.scorers import MeanConfidence, MeanLogprob
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer

if TYPE_CHECKING:
    from langchain_pareto.chat_model import ChatPareto

_WIDTHS = (1, 4, 16)  # texts of an asking
_QUESTIONS = 4
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

    None where it scored nothing: no answer came to its end, or the budget around it is spent. Nothing else should run meanwhile.
    Raises what calls raise.
    """
    warming, timed = _TimedScoring(clock=clock, n=_WIDTHS[0]), list[_TimedScoring]()

    async def ask(question: str, strategy: _TimedScoring) -> None:
        await llm.reply([HumanMessage(question)], model=model, strategy=strategy, budget=_NO_LIMIT)

    try:
        for question in questions[:1]:
            await ask(question, warming)  # what comes first allocates
        for question in questions[:_QUESTIONS]:
            for n in _WIDTHS:
                timed.append(_TimedScoring(clock=clock, n=n))
                await ask(question, timed[-1])
    except BudgetExceeded:
        pass  # what was measured before is enough
    askings = [one for strategy in timed for one in strategy.askings]
    return ScorerCost.fitted(askings) if askings else None


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
