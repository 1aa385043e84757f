"""
Turns and batches: who of many calls under one budget draws next, and how many there are to share it.

Each call asks for a turn before it spends more, and says how much that is worth. Few have a turn at a time, so that the others can be
compared: whoever frees a place gives it to the most uncertain. Where nobody else waits, a turn is had at once. A batch knows how many
calls are still to come: each has its part of what is left, and what one saves is there for the next. Knows calls by what they ask and
what they have spent; knows neither accounts nor samples.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock

Amounts = Mapping[str, int]  # of each resource that is limited

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


class Batch:
    """Calls that are made together, at most `together` of them at a time; safe to use from any thread."""

    def __init__(self, size: int, together: int) -> None:
        self._lock = Lock()
        self._together = together
        self._coming = size  # calls that have no share yet
        self._open = list[Seat]()

    @property
    def rounds(self) -> int:
        """How many calls, one after another, share the time that is left."""
        with self._lock:
            return max(1, -(-(self._coming + len(self._open)) // self._together))

    @property
    def queued(self) -> bool:
        """Whether some of its calls wait for others to end."""
        with self._lock:
            return self._coming + len(self._open) > self._together

    def seat(self, unspent: Amounts) -> Seat:
        """The next call, with its part of what is left once those that run have had theirs."""
        with self._lock:
            held = [seat.held for seat in self._open]
            free = {
                name: amount - sum(one.get(name, 0) for one in held)
                for name, amount in unspent.items()
            }
            coming = max(1, self._coming)
            one = Seat(self, {name: max(1, amount // coming) for name, amount in free.items()})
            self._coming -= 1
            self._open.append(one)
            return one

    def leave(self, seat: Seat) -> None:
        """A call has ended: what it has not spent is there for those to come."""
        with self._lock:
            self._open.remove(seat)


@dataclass(slots=True, eq=False)
class Seat:
    """One call of a batch: its share, and how to ask what it has spent."""

    batch: Batch
    share: Amounts  # at least one of a kind
    spent: Callable[[], Amounts] = dict

    @property
    def held(self) -> Amounts:
        """What is still kept for it."""
        spent = self.spent()
        return {name: max(0, amount - spent.get(name, 0)) for name, amount in self.share.items()}


_current: ContextVar[Batch | None] = ContextVar("langchain_pareto_batch", default=None)


@contextmanager
def batch_of(size: int, together: int | None = None) -> Iterator[None]:
    """The calls inside are one batch of this size, of which at most `together` run at a time."""
    token = _current.set(Batch(size, size if together is None else max(1, together)))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def seated(unspent: Amounts) -> Iterator[Seat | None]:
    """This call's seat in the batch that it belongs to, if it does; calls inside it belong to none."""
    batch = _current.get()
    if batch is None:
        yield None
        return
    seat = batch.seat(unspent)
    token = _current.set(None)
    try:
        yield seat
    finally:
        with suppress(ValueError):  # a stream that was closed from another context
            _current.reset(token)
        batch.leave(seat)
