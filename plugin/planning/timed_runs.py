"""
Single runs through a backend, as calls would run, timed: reading a prompt, drawing into forks of it, and a call around them.

Knows backends and clocks; knows nothing of which runs are worth their time, or of what is made of the times (`device.py` does).
"""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from langchain_pareto.backends.base import Backend, Branch, Extension, Stop
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import Strategy
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings

Clock = Callable[[], float]

_CALLS = 5  # whose median is the overhead of one


class TimedRuns:
    """Single runs through one backend, by one clock."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self.backend = backend
        self.clock = clock
        self.busy = list[float]()  # device seconds of a second, of each run
        self._random = random.Random(0)  # noqa: S311 - tokens, not keys

    def tokens(self, n: int) -> list[int]:
        """Tokens that nobody has read in this order."""
        return [self._random.randrange(self.backend.spec.vocabulary) for _ in range(n)]

    def read(self, branch: Branch) -> float:
        """Seconds of reading what is not read yet."""
        began = self.clock()
        self.backend.prefill(branch).future.result()
        return self.clock() - began

    @contextmanager
    def prompt(self, n: int) -> Iterator[tuple[Branch, float]]:
        """A prompt, and the seconds of reading it."""
        branch = self.backend.open(self.tokens(n))
        try:
            yield branch, self.read(branch)
        finally:
            branch.free()

    def draw(self, root: Branch, lengths: Sequence[int]) -> float:
        """Seconds of drawing so many tokens into each of as many forks, all begun at once."""
        backend, branches = self.backend, root.fork(len(lengths))
        try:
            with _held(backend):
                tasks = [
                    backend.extend(branch, backend.sampling, Stop(n, eos=False), stats=True)
                    for branch, n in zip(branches, lengths, strict=True)
                ]
                began = self.clock()
            drawn = [task.future.result() for task in tasks]
            took = self.clock() - began
        finally:
            for branch in branches:
                branch.free()
        device = sum(one.usage.device_seconds for one in drawn if isinstance(one, Extension))
        if device > 0 and took > 0:
            self.busy.append(device / took)
        return took

    def overhead(self, strategy: Strategy) -> float:
        """Seconds of a call to a model that takes none."""
        took = list[float]()

        async def call() -> None:
            with ScriptedBackend(["1"]) as scripted:
                began = self.clock()
                await run(strategy, scripted, "?", settings=Settings(scripted.sampling))
                took.append(self.clock() - began)

        with ThreadPoolExecutor(1) as pool:  # the caller may be in an event loop
            for _ in range(_CALLS):
                pool.submit(asyncio.run, call()).result()
        return statistics.median(took)


@contextmanager
def _held(backend: Backend) -> Iterator[None]:
    """Inside, nothing starts: what is asked for starts together at the end."""
    engine, gate = getattr(backend, "engine", None), threading.Event()
    if engine is not None:
        engine.post(gate.wait)
    try:
        yield
    finally:
        gate.set()
