"""
What tokens and device time cost, for budgets in usd and joules.

Knows accounts and prices; knows no model. Tokens have a price before they are drawn. Device time has not: a call takes a lease on the
time that its budget still pays for, runs under that deadline, and gives the rest back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from langchain_pareto.budget import Budget, Cost
from langchain_pareto.clocks import running
from langchain_pareto.errors import BudgetError
from langchain_pareto.ledger import Account


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
            raise BudgetError(
                msg, hint="Give watts= (--watts in a shell): the device's power limit."
            )
        prices = (self.usd_per_million_tokens, self.usd_per_hour)
        if unspent.nanodollars is not None and prices.count(None) != 1:
            msg = f"a budget in usd needs one price, and has {2 - prices.count(None)}"
            raise BudgetError(
                msg,
                hint="Give either usd_per_million_tokens= or usd_per_hour= (--usd-per-... in a shell).",
            )

    @asynccontextmanager
    async def device_time(
        self, account: Account
    ) -> AsyncIterator[tuple[Account, Callable[[float], None]]]:
        """The account to run under, and where to say how many device seconds that took.

        Where joules or hourly usd are limited, calls under one budget run one after another; a call inside a call uses the time
        of the outer one, within its own budget and those between the two. One that fails or is cancelled before it says anything is
        charged all the time since it began. Raises BudgetError, BudgetExceeded when no time is left, or SettingError when a sync call
        blocks the event loop of the call that it would wait for.
        """
        self.check(account)
        unspent = account.room().unspent
        timed = (unspent.nanojoules is not None and self.watts) or (
            unspent.nanodollars is not None and self.usd_per_hour
        )
        if not timed:
            yield account, lambda _: None
            return
        async with running(account, self.of_time) as clock:
            yield account.child(Budget(seconds=clock.left)), clock.use
