"""
Adaptive parallel reasoning: a thread spawns others, waits for what they find, and goes on (Pan et al. 2025, arXiv 2504.15466).

The model decides when to spawn, in the words of a grammar that it was trained on; a model that was not is asked by `Decompose`.
Children have contexts of their own and are decoded side by side. Their results take the place of the spawn in the parent's context,
of which nothing else is computed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from langchain_pareto.budget import Budget
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.marks import Before
from langchain_pareto.strategies.prompts import fill
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.spawn_grammar import AnyGrammar, SpawnCall, TaskList
from langchain_pareto.strategies.thoughts import POLICY, Answer, NothingDrawn, Thought


@dataclass(slots=True)
class _Thread:
    """How far a thread has come, in tokens."""

    last: Thought | None = None
    own: int = 0  # drawn by itself
    sequential: int = 0  # its own, and of each spawn the longest child's
    total: int = 0  # its own and its children's
    rounds: int = 0  # spawns of its own
    spawns: int = 0  # its own and its children's
    children: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """For the report."""
        return {
            "sequential_tokens": self.sequential,
            "total_tokens": self.total,
            "children": self.children,
            "spawns": self.spawns,
        }

    def draw(self, thought: Thought) -> None:
        """It wrote more."""
        tokens = len(thought.tokens)
        self.last = thought
        self.own += tokens
        self.sequential += tokens
        self.total += tokens

    def join(self, children: Sequence[_Thread], before: Thought) -> None:
        """It goes on from where it spawned."""
        self.last = before
        self.sequential += max((child.sequential for child in children), default=0)
        self.total += sum(child.total for child in children)
        self.rounds += 1
        self.spawns += 1 + sum(child.spawns for child in children)
        self.children += len(children) + sum(child.children for child in children)


class SpawnJoin(Strategy):
    """One thread that spawns others, and goes on with what they found.

    `sub_calls` tells the model how many children to start (the paper's conditioning); the question is then asked by itself, without what
    stands before it in the chat. Hard caps: `children` of one spawn, `rounds` of spawns in a thread, `depth` of threads below
    the first, `thread_tokens` of each and `total_tokens` of all. A child beyond a cap is not run and has found nothing, as one that
    was cut off. Under a budget each child may take its equal share of what is left, the parent too; several such runs side by side go in
    waves that it pays for, the first by itself.

    The answer's figures are `sequential_tokens` (the longest chain that cannot be drawn side by side), `total_tokens`, `children` and
    `spawns`.
    """

    varied: ClassVar[bool] = False

    kind: Literal["spawn_join"] = "spawn_join"
    grammar: AnyGrammar = Field(default_factory=TaskList)
    sub_calls: int | None = Field(default=None, ge=0)
    children: int = Field(default=10, ge=1)
    rounds: int = Field(default=10, ge=1)
    depth: int = Field(default=1, ge=1)
    thread_tokens: int | None = Field(default=None, ge=1)
    total_tokens: int | None = Field(default=None, ge=1)

    async def run(self, search: Search) -> Answer:
        """The first thread."""
        question = search.root.question
        search = search.within(self.total_tokens)
        if self.sub_calls is not None:
            told = fill(self.grammar.condition, n=str(self.sub_calls))
            search = search.asking(told + question)
        thread = await self._thread(search, question, level=0)
        if thread.last is None:
            raise NothingDrawn
        return Answer(thread.last, figures=thread.figures)

    async def _run_one(self, search: Search) -> Thought | None:
        """One of several, in its wave: it has no answer before its end."""
        async with search.desk(POLICY).record.waves.turn(search) as own:
            return await super()._run_one(own)

    async def _thread(self, search: Search, question: str, level: int) -> _Thread:
        """A thread from its prompt to its end, through all its spawns."""
        grammar, thread = self.grammar, _Thread()
        at: Thought | None = search.root
        before: Thought | None = None  # what stands before the open spawn
        while at is not None and (part := await self._draw(search, at, thread, before)) is not None:
            thread.draw(part)
            if part.mark is None:  # its end, or cut off
                break
            if before is None or part.mark != grammar.end:
                before = part if before is None else before
                at = search.append(part, grammar.spawn)
            else:
                block = part.whole_text[len(before.whole_text) :]
                calls = grammar.calls(question, before.whole_text, block)
                search.drop(part.path[len(before.path) :])
                results = await self._spawn(search, calls, thread, before, level + 1)
                joined = grammar.join(calls, results, level + 1)
                if not joined and thread.rounds > self.rounds:  # it would be where it was, for ever
                    break
                at, before = search.append(before, joined), None
        return thread

    async def _draw(
        self, search: Search, at: Thought, thread: _Thread, before: Thought | None
    ) -> Thought | None:
        """What the thread writes next, up to a mark; None where it may write no more."""
        caps = [self.thread_tokens, search.settings.max_tokens]
        left = min((cap - thread.own for cap in caps if cap is not None), default=None)
        if left is not None and left < 1:
            return None
        mark = self.grammar.spawn if before is None else self.grammar.end
        marks = [mark] if self.grammar.results is None else [mark, self.grammar.results]
        capped = search.up_to(None if left is None else at.length + left)
        drawn = await capped.sample(at, until=Before(tuple(marks)))
        return drawn[0] if drawn else None

    async def _spawn(
        self,
        search: Search,
        calls: Sequence[SpawnCall],
        thread: _Thread,
        before: Thought,
        level: int,
    ) -> list[str | None]:
        """What each child found, in the order of the calls; None where it found nothing, was cut off or not run."""
        allowed = self.children if level <= self.depth and thread.rounds < self.rounds else 0
        prompts = {i: call.prompt for i, call in enumerate(calls) if call.prompt is not None}
        asked = list(prompts.items())[:allowed]
        share = search.share(len(asked) + 1)
        async with asyncio.TaskGroup() as group:
            running = {
                i: group.create_task(self._child(search, prompt, share, level))
                for i, prompt in asked
            }
        found = {i: task.result() for i, task in running.items()}
        thread.join([*found.values()], before)
        results = [self._result(found.get(i)) for i in range(len(calls))]
        for child in found.values():
            search.drop([] if child.last is None else child.last.path)
        return results

    async def _child(self, search: Search, prompt: str, share: Budget, level: int) -> _Thread:
        child = search.asking(prompt, aside=True).up_to(search.settings.max_tokens).within(share)
        return await self._thread(child, prompt, level)

    def _result(self, child: _Thread | None) -> str | None:
        if child is None or child.last is None or not child.last.finished:
            return None
        return self.grammar.result(child.last.whole_text)
