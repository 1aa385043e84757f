"""
What tokens and device time cost, for budgets in usd and joules.

Knows accounts and prices; knows no model. Tokens have a price before they are drawn. Device time has not: a call takes a lease on the
time that its budget still pays for, runs under that deadline, and gives the rest back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import BudgetError, BudgetExceeded
from langchain_pareto.ledger import Account

_LONGEST = 3_600_000  # milliseconds that one call may take of a budget in joules or hourly usd


@dataclass(slots=True)
class _Clock:
    """An open lease on device time: until when, and what was used."""

    ends: float
    seconds: float = 0.0


# Of the call that we run on behalf of: a scorer or a callback may call the model again.
_open: ContextVar[_Clock | None] = ContextVar("langchain_pareto_clock", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the caller's device and tokens cost; None is unknown, and then a budget in that resource is refused."""

    usd_per_million_tokens: float | None = None
    usd_per_hour: float | None = None
    watts: float | None = None  # the most that the device draws

    @property
    def usd_per_token(self) -> float:
        """0 where tokens have no price."""
        return (self.usd_per_million_tokens or 0.0) / 1e6

    def of_time(self, seconds: float) -> Cost:
        """Joules and usd of so much device time, at most."""
        joules, usd = (self.watts or 0.0) * seconds, (self.usd_per_hour or 0.0) / 3600 * seconds
        return Cost.of(joules=joules, usd=usd)

    def check(self, account: Account) -> None:
        """Raises BudgetError when a limit around the call could not be kept."""
        unspent = account.room().unspent
        if unspent.nanojoules is not None and not self.watts:
            msg = "a budget in joules needs to know what the device draws"
            raise BudgetError(msg, hint="Give watts=, the device's power limit.")
        prices = (self.usd_per_million_tokens, self.usd_per_hour)
        if unspent.nanodollars is not None and prices.count(None) != 1:
            msg = f"a budget in usd needs one price, and has {2 - prices.count(None)}"
            raise BudgetError(msg, hint="Give either usd_per_million_tokens= or usd_per_hour=.")

    @asynccontextmanager
    async def device_time(
        self, account: Account
    ) -> AsyncIterator[tuple[Account, Callable[[float], None]]]:
        """The account to run under, and where to say how many device seconds that took.

        Where joules or hourly usd are limited, calls under one budget run one after another; a call inside a call uses the time
        of the outer one. One that fails or is cancelled before it says anything is charged all the time since it began. Raises
        BudgetError, or BudgetExceeded when no time is left.
        """
        self.check(account)
        unspent = account.room().unspent
        timed = (unspent.nanojoules is not None and self.watts) or (
            unspent.nanodollars is not None and self.usd_per_hour
        )
        if not timed:
            yield account, lambda _: None
            return
        if (outer := _open.get()) is not None:
            left = max(1e-6, outer.ends - time.monotonic())
            with _charged_if_it_fails(outer):
                yield account.child(Budget(seconds=left)), lambda s: _use(outer, s)
            return
        lease = await account.reserve(lambda ms: self.of_time(ms / 1000), _LONGEST)
        if lease is None:
            account.raise_if_exhausted(self.of_time(0.001))
            msg = "the budget has no time left"
            raise BudgetExceeded(msg, resource="seconds", spent=0, limit=0)
        seconds = lease.amount / 1000
        clock = _Clock(time.monotonic() + seconds)
        token = _open.set(clock)
        try:
            with _charged_if_it_fails(clock):
                yield account.child(Budget(seconds=seconds)), lambda s: _use(clock, s)
        finally:
            _open.reset(token)
            # a step that ends after the time is up is not charged
            lease.commit(self.of_time(min(clock.seconds, seconds)))


def _use(clock: _Clock, seconds: float) -> None:
    clock.seconds += seconds


@contextmanager
def _charged_if_it_fails(clock: _Clock) -> Iterator[None]:
    """What did not come to its end cannot say what it used: at most the time since it began, with what was said meanwhile."""
    began, before = time.monotonic(), clock.seconds
    try:
        yield
    except BaseException:
        clock.seconds = max(clock.seconds, before + time.monotonic() - began)
        raise
