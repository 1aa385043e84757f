"""
Turns and batches: who of many calls under one budget draws next, and how many there are to share it.

Each call asks for a turn before it spends more, and says how much that is worth. Few have a turn at a time, so that the others can be
compared: whoever frees a place gives it to the most uncertain. Where nobody else waits, a turn is had at once. A batch knows how many
calls are still to come: each has its part of what is left, and what one saves is there for the next. An input whose answer is cached makes
no call, and has no part. Knows calls by what they ask and what they have spent; knows neither accounts nor samples.
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
_PATIENCE = 100  # times round the loop that a call waits for inputs beside it to make theirs, or to end without


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
        self._together, self._queues = together, size > together
        self._coming = size  # calls that have no share yet
        self._open = list[Seat]()
        self._unknown = 0  # inputs that run, and may make a call or not

    @property
    def rounds(self) -> int:
        """How many calls, one after another, share the time that is left."""
        with self._lock:
            return max(1, -(-(self._coming + len(self._open)) // self._together))

    def seat(self, unspent: Amounts) -> Seat:
        """The next call, with its part of what is left once those that run have had theirs."""
        with self._lock:
            held = [seat.held for seat in self._open]
            free = {
                name: amount - sum(one.get(name, 0) for one in held)
                for name, amount in unspent.items()
            }
            coming = max(1, self._coming)
            share = {name: max(1, amount // coming) for name, amount in free.items()}
            self._coming -= 1
            # one that has not begun has nobody who keeps its share but those that have
            one = Seat(self, share, queued=self._queues and self._coming > 0)
            self._open.append(one)
            return one

    def leave(self, seat: Seat) -> None:
        """A call has ended: what it has not spent is there for those to come."""
        with self._lock:
            self._open.remove(seat)

    def begin(self) -> _Input:
        """One input runs, which may make a call or not."""
        with self._lock:
            self._unknown += 1
            return _Input(self)

    def calls(self, one: _Input) -> None:
        """An input makes a call."""
        with self._lock:
            self._unknown -= not one.calls
            one.calls = True

    def end(self, one: _Input) -> None:
        """An input has ended: one that had no seat needs no share."""
        with self._lock:
            self._unknown -= not one.calls
            self._coming -= not one.seated

    @property
    def settled(self) -> bool:
        """Whether every input that runs makes a call."""
        with self._lock:
            return self._unknown == 0


@dataclass(slots=True, eq=False)
class Seat:
    """One call of a batch: its share, whether calls were still to begin after it as others end, and how to ask what it has spent."""

    batch: Batch
    share: Amounts  # at least one of a kind
    queued: bool  # once for all, for how it draws goes with how much it may draw
    spent: Callable[[], Amounts] = dict

    @property
    def held(self) -> Amounts:
        """What is still kept for it."""
        spent = self.spent()
        return {name: max(0, amount - spent.get(name, 0)) for name, amount in self.share.items()}


@dataclass(slots=True, eq=False)
class _Input:
    """One input of a batch: whether it makes a call, and has a seat."""

    batch: Batch
    calls: bool = False
    seated: bool = False


_current: ContextVar[Batch | None] = ContextVar("langchain_pareto_batch", default=None)
_input: ContextVar[_Input | None] = ContextVar("langchain_pareto_batch_input", default=None)


@contextmanager
def batch_of(size: int, together: int | None = None) -> Iterator[None]:
    """The calls inside are one batch of this size, of which at most `together` run at a time."""
    token = _current.set(Batch(size, size if together is None else max(1, together)))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def asked() -> Iterator[None]:
    """One input of the batch around it, if there is one; if it ends without a call, the others have its share."""
    batch = _current.get()
    if batch is None:
        yield
        return
    one = batch.begin()
    token = _input.set(one)
    try:
        yield
    finally:
        _input.reset(token)
        batch.end(one)


async def settled() -> None:
    """This input makes a call; returns once it is known of those beside it whether they do, or after a short while."""
    one = _own_input()
    if one is None:
        return
    one.batch.calls(one)
    for _ in range(_PATIENCE):
        await asyncio.sleep(0)  # first of all, those beside it begin
        if one.batch.settled:
            return


@contextmanager
def seated(unspent: Amounts) -> Iterator[Seat | None]:
    """This call's seat in the batch that it belongs to, if it does; calls inside it belong to none."""
    batch = _current.get()
    if batch is None:
        yield None
        return
    if (own := _own_input()) is not None:
        own.seated = True
    seat = batch.seat(unspent)
    token = _current.set(None)
    try:
        yield seat
    finally:
        with suppress(ValueError):  # a stream that was closed from another context
            _current.reset(token)
        batch.leave(seat)


def _own_input() -> _Input | None:
    """The input of the batch around the caller that it works for, if there is a batch."""
    one = _input.get()
    return one if one is not None and one.batch is _current.get() else None
