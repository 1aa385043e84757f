"""
Decompose, solve, join: spawning for models that were not trained to, which are asked for each of the three.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.prompts import fill, shown
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import POLICY, Answer, Thought

_PLAN = """\
Split this problem into parts that can be solved side by side: no part may need the result of another.

Problem:
{question}

Do not solve anything. Write at most {n} parts as a numbered list, a line each, and each with all that is needed to solve it. If the \
problem cannot be split, write only: 1. The whole problem."""

_SOLVE = """\
Solve one part of a problem.

The problem, so that you know what the part is for:
{question}

Your part:
{part}

Solve only this part, step by step, and end with its result in one line."""

_JOIN = """\
{question}

Others have solved parts of this. Their work may have mistakes: check what you use.

{results}
Put it together and solve the whole problem, in the form that it asks for."""

_RESULT = """\
Part {i}: {part}
{result}

"""

_ITEM = re.compile(r"(?m)^[ \t]*[0-9]+[.)][ \t]+(\S.*?)[ \t]*$")


class Decompose(Strategy):
    """Asks for up to `parts` independent parts, solves them side by side, and answers with what they gave.

    Where there is nothing to split, the question is simply answered. A part that was cut off is left out. Under a budget the
    plan may take half of what is left, then each part and the answer an equal share; several side by side go in waves that it pays for,
    the first by itself. The answer's figures are `sequential_tokens`, `total_tokens` and `children`, as those of `SpawnJoin`.
    """

    varied: ClassVar[bool] = False

    kind: Literal["decompose"] = "decompose"
    parts: int = Field(default=4, ge=2)
    plan: str = _PLAN
    solve: str = _SOLVE
    join: str = _JOIN
    result: str = _RESULT

    async def run(self, search: Search) -> Answer:
        """The plan, its parts, the answer."""
        question, solved = search.root.question, list[Thought | None]()
        asked = fill(self.plan, question=question, n=str(self.parts))
        plan = await self._ask(search, [asked], among=2)
        parts = _items(plan[0])[: self.parts]
        if len(parts) > 1:
            prompts = [fill(self.solve, question=question, part=part) for part in parts]
            solved = await self._ask(search, prompts, among=len(parts) + 1)
        if results := self._results(parts, solved):
            search = search.asking(fill(self.join, question=question, results="".join(results)))
        best = search.best(await search.sample(search.root))
        return Answer(best.thought, figures=_figures([*plan, best.thought], solved))

    async def _run_one(self, search: Search) -> Thought | None:
        """One of several, in its wave: it has no answer before its end."""
        async with search.desk(POLICY).record.waves.turn(search) as own:
            return await super()._run_one(own)

    async def _ask(
        self, search: Search, prompts: Sequence[str], among: int
    ) -> list[Thought | None]:
        """A reply to each prompt, within one of `among` equal shares of what is left; None where nothing could be drawn."""
        share = search.share(among)
        asides = [search.asking(prompt, aside=True).within(share) for prompt in prompts]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(aside.sample(aside.root)) for aside in asides]
        for task in tasks:
            search.drop(task.result())  # nothing goes on where they end
        return [next(iter(task.result()), None) for task in tasks]

    def _results(self, parts: Sequence[str], solved: Sequence[Thought | None]) -> list[str]:
        """What the answer is told of each part that was solved."""
        return [
            fill(self.result, i=str(i), part=part, result=shown(thought).strip())
            for i, (part, thought) in enumerate(zip(parts, solved, strict=False), 1)
            if thought is not None and thought.finished
        ]


def _items(plan: Thought | None) -> list[str]:
    """The numbered lines of a plan that came to its end."""
    return [] if plan is None or not plan.finished else _ITEM.findall(shown(plan))


def _figures(
    serial: Sequence[Thought | None], parallel: Sequence[Thought | None]
) -> dict[str, float]:
    chain = sum(len(thought.tokens) for thought in serial if thought is not None)
    tokens = [len(thought.tokens) for thought in parallel if thought is not None]
    return {
        "sequential_tokens": chain + max(tokens, default=0),
        "total_tokens": chain + sum(tokens),
        "children": len(tokens),
    }
