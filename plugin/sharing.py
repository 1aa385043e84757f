"""
Turns: who of many calls under one budget draws next.

Each call asks for a turn before it spends more, and says how much that is worth. Few have a turn at a time, so that the others can be
compared: whoever frees a place gives it to the most uncertain. Where nobody else waits, a turn is had at once. Knows calls by what they
ask; knows neither money nor samples.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from threading import Lock

_LEAST = 4  # turns at a time
_SHARE = 4  # one turn for so many calls that take part


@dataclass(slots=True, order=True)
class _Waiting:
    """One who waits: the worthiest first, then first come first served."""

    worth: float  # negative
    number: int
    loop: asyncio.AbstractEventLoop = field(compare=False)
    woken: asyncio.Event = field(compare=False, default_factory=asyncio.Event)
    granted: bool = field(compare=False, default=False)


class Turns:
    """The queue of one budget; safe to use from any thread and event loop."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._numbers = itertools.count()
        self._waiting = list[_Waiting]()
        self._having = 0  # turns that are open

    @asynccontextmanager
    async def turn(self, worth: float) -> AsyncIterator[None]:
        """Waits for a turn, and has it for as long as the block runs; `worth` is what the others' is compared with."""
        one = _Waiting(-worth, next(self._numbers), asyncio.get_running_loop())
        with self._lock:
            self._waiting.append(one)
            self._settle()
        try:
            if not one.granted:
                await one.woken.wait()
            yield
        finally:
            with self._lock:
                if one.granted:
                    self._having -= 1
                else:
                    self._waiting.remove(one)
                self._settle()

    def _settle(self) -> None:
        """Grants turns while there are places; the lock is held."""
        while self._waiting and self._having < self._places:
            one = min(self._waiting)
            self._waiting.remove(one)
            try:
                one.loop.call_soon_threadsafe(one.woken.set)
            except RuntimeError:  # the loop is gone, and nobody waits
                continue
            one.granted = True
            self._having += 1

    @property
    def _places(self) -> int:
        return max(_LEAST, (self._having + len(self._waiting)) // _SHARE)
