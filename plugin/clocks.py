"""
Clocks: leases on device time, of calls and of calls inside them.

Knows accounts and event loops; knows no price but as a function of seconds. A call inside a call runs on the time of the outer one.
It takes a lease of its own on those accounts only that the outer one's does not take from: each is charged once, and nobody waits for
a call that waits for it. Leases go from the outer accounts to the inner ones, so that no two wait for each other.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from threading import Lock

from langchain_pareto.budget import Cost
from langchain_pareto.errors import BudgetExceeded, SettingError
from langchain_pareto.ledger import Account, Lease
from langchain_pareto.loop import waiting_loops

Price = Callable[[float], Cost]  # of so many seconds

_LONGEST = 3_600_000  # milliseconds that one lease may be for

_books = Lock()  # of all clocks


class Clock:
    """The device time of one call: until when it lasts, and what was used of it."""

    def __init__(self, account: Account, price: Price) -> None:
        self.ends = math.inf
        self.seconds = 0.0  # used, also by calls inside
        self.over = False  # whether the call has ended
        self.users = 1  # the call, and those inside it that go on
        self.loop = asyncio.get_running_loop()
        self._account = account
        self._price = price
        self._lease: Lease | None = None
        with _books:
            self.outer = _innermost()
            if self.outer is not None:
                self.outer.users += 1
            _clocks.add(self)
        around = () if self.outer is None else self.outer.chain
        self.chain: tuple[Clock, ...] = (self, *around)
        self.unpaid = account.without(clock._account for clock in around)  # noqa: SLF001 - one of us

    @property
    def left(self) -> float:
        """Seconds until the end; never 0, which no budget may be."""
        return max(1e-6, self.ends - time.monotonic())

    async def start(self) -> None:
        """Takes the lease, waiting for others to end; raises BudgetExceeded when no time is left, or SettingError."""
        around = math.inf if self.outer is None else self.outer.ends
        most = math.ceil(min(_LONGEST, max(1, 1000 * (around - time.monotonic()))))
        hangs = self._would_hang()
        self._lease = await self.unpaid.reserve(
            lambda ms: self._price(ms / 1000), most, wait=not hangs
        )
        if self._lease is None:
            self._account.raise_if_exhausted(self._price(0.001))
            if hangs:
                msg = "this call would wait for another one, whose event loop is blocked by it"
                hint = "Await ainvoke, abatch or astream instead, or call from a thread."
                raise SettingError(msg, hint=hint)
            msg = "the budget has no time left"
            raise BudgetExceeded(msg, resource="seconds", spent=0, limit=0)
        self.ends = min(around, time.monotonic() + self._lease.amount / 1000)

    def use(self, seconds: float) -> None:
        """Notes so much device time, here and around."""
        with _books:
            for clock in self.chain:
                clock.seconds += seconds

    @contextmanager
    def charged_if_it_fails(self) -> Iterator[None]:
        """What did not come to its end cannot say what it used: at most the time since it began, with what was said meanwhile."""
        began, before = time.monotonic(), [clock.seconds for clock in self.chain]
        try:
            yield
        except BaseException:
            taken = time.monotonic() - began
            with _books:
                for clock, seconds in zip(self.chain, before, strict=True):
                    clock.seconds = max(clock.seconds, seconds + taken)
            raise

    def end(self) -> None:
        """The call has ended; its accounts are charged once those inside it have, too."""
        with _books:
            self.over = True
        self.leave()

    def leave(self) -> None:
        """One of its users has ended."""
        with _books:
            self.users -= 1
            if self.users:
                return
            _clocks.discard(self)
        if self._lease is not None:
            # a step that ends after the time is up is not charged
            self._lease.commit(self._price(min(self.seconds, self._lease.amount / 1000)))
        if self.outer is not None:
            self.outer.leave()

    def _would_hang(self) -> bool:
        """Whether what it may have to wait for waits for this call: its event loop is blocked by sync code that called us."""
        blocked = waiting_loops()
        if not blocked:
            return False
        with _books:
            return any(
                clock.loop in blocked and clock.unpaid.meets(self.unpaid) for clock in _clocks
            )


_clocks = set[Clock]()  # of calls that have a lease, or wait for one
# Of the call that we run on behalf of: a scorer or a callback may call the model again.
_open: ContextVar[Clock | None] = ContextVar("langchain_pareto_clock", default=None)


@asynccontextmanager
async def running(account: Account, price: Price) -> AsyncIterator[Clock]:
    """The clock of a call that this account pays for; calls inside it use its time."""
    clock = Clock(account, price)
    try:
        await clock.start()
        token = _open.set(clock)
        try:
            with clock.charged_if_it_fails():
                yield clock
        finally:
            _open.reset(token)
    finally:
        clock.end()


def _innermost() -> Clock | None:
    """That of the innermost call around the caller which goes on: a task may outlive the call that began it."""
    clock = _open.get()
    while clock is not None and clock.over:
        clock = clock.outer
    return clock
