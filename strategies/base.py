"""
What a strategy is: frozen settings, and a coroutine over a Search.

Knows nothing of devices, money or LangChain. Strategies are pydantic models with a literal `kind`, so that they nest as a
discriminated union and go through JSON and back.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, NothingDrawn, Thought


class Strategy(BaseModel):
    """How to spend tokens on one question.

    `temperature` is the strategy's own sampling temperature, at which `run` is given its search; None takes the call's, or that of the
    strategy around it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    varied: ClassVar[bool] = True  # whether it needs samples that differ, which greedy ones do not

    kind: str
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @property
    def takes_turns(self) -> bool:
        """Whether it draws in waves that may be its last, and lets calls side by side go first in between."""
        return False

    async def run(self, search: Search) -> Answer:
        """Searches, and returns one thought that was really drawn."""
        raise NotImplementedError

    async def run_many(self, search: Search, n: int) -> list[Thought]:
        """The answers of `n` independent runs side by side; a run that could draw nothing gives none."""
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(self._run_one(search.child())) for _ in range(n)]
        return [thought for run in runs if (thought := run.result()) is not None]

    async def _run_one(self, search: Search) -> Thought | None:
        try:
            return (await self.run(search.at_temperature(self.temperature))).thought
        except NothingDrawn:
            return None
