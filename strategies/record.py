"""
What one run keeps: its thoughts, its requests, its best offer, and what it learned of lengths.

Knows no model and no strategy; every search of a run writes into the same record.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from langchain_pareto.backends.base import Branch, Task, Usage
from langchain_pareto.budget import Cost
from langchain_pareto.strategies.seekers import Seekers
from langchain_pareto.strategies.thoughts import Answer, Thought
from langchain_pareto.strategies.waves import Waves

# spread of the lengths of one question's samples, relative to their mean: standard deviation 0.30
_Q95, _Q25 = 1.5, 0.8


@dataclass(slots=True)
class Lengths:
    """What is known about the lengths of this question's samples, or of their steps, in tokens."""

    total: int = 0
    count: int = 0
    longest: int = 0
    cut: int = 0  # tokens of samples that were longer than the likely length

    def add(self, tokens: int) -> None:
        """One more sample came to its own end."""
        self.total += tokens
        self.count += 1
        self.longest = max(self.longest, tokens)

    @property
    def q95(self) -> int | None:
        """A length that few samples exceed, None while nothing is known.

        All tokens over the finished samples are the likeliest mean when some were cut off (an exponential's, censored).
        """
        if not self.count:
            return None
        return max(self.longest, round(_Q95 * (self.total + self.cut) / self.count))

    @property
    def q25(self) -> int:
        """A length that most samples exceed: no draw with less room is worth its start."""
        return max(1, int(_Q25 * self.total / self.count)) if self.count else 1


class PaidTask:
    """A task whose future resolves once it is paid for: who has waited for it finds the books closed."""

    def __init__(self, task: Task) -> None:
        self.future: Future[object] = Future()
        self.held = 0  # bytes of cache that it left on the account
        self._task = task

    @property
    def usage(self) -> Usage:
        """What the task has cost so far."""
        return self._task.usage

    def cancel(self) -> None:
        """Ends the task within one step."""
        self._task.cancel()

    def settle(self, pay: Callable[[], None]) -> None:
        """Pays as soon as the task is done, on the thread that ends it; an error in paying is the result."""

        def settle(done: Future[object]) -> None:
            try:
                pay()
                result = done.result()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                self.future.set_exception(error)
            else:
                self.future.set_result(result)

        self._task.future.add_done_callback(settle)


@dataclass(slots=True)
class Record:
    """What one run shares among its searches: the tree, the offers, and what stood in its way."""

    thoughts: list[Thought] = field(default_factory=list)
    tasks: list[PaidTask] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    seed: int = 0
    roots: dict[tuple[object, ...], Thought] = field(default_factory=dict)  # beside the first one
    offer: Answer | None = None
    lengths: Lengths = field(default_factory=Lengths)
    asides: Lengths = field(default_factory=Lengths)
    steps: Lengths = field(default_factory=Lengths)  # of single steps
    seekers: Seekers = field(default_factory=Seekers)
    waves: Waves = field(default_factory=Waves)
    judges: set[int] = field(default_factory=set)  # by id, of whom something could be read
    held: int = 0  # bytes of KV cache on the account
    prefix: int = 0  # tokens of the prompt that this run computed
    limited_by: str | None = None  # the resource that shrank or refused a draw
    refused: Cost = field(default_factory=Cost)  # what it would have cost
    ended: bool = False  # nothing more is drawn, and what is committed holds no memory
    lock: threading.Lock = field(default_factory=threading.Lock)  # of `held`: engines commit too
    on_thought: Callable[[Thought], None] | None = None


async def finished(task: Task) -> object:
    """The result of an engine's task; cancelling the wait cancels the task, within one step."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def notify(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits
            loop.call_soon_threadsafe(wake)

    task.future.add_done_callback(notify)
    try:
        await waiter
    except asyncio.CancelledError:
        task.cancel()
        raise
    return task.future.result()
