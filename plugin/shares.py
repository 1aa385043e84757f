"""
What one call may take of the budgets around it: all that is left, or its share where it is one of a batch.

Knows accounts, batches and strategies that draw in turns; plans nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from langchain_pareto.budget import Budget, Cost, Limits
from langchain_pareto.ledger import Account, current_account, run_budget
from langchain_pareto.planning.plan import Plan
from langchain_pareto.sharing import Seat, seated, settled
from langchain_pareto.strategies import BestOfN, Strategy, Vote

_MOST_SHARES = 4  # that one call of a batch may take, where others save
_AMPLE = 0.9  # of a limit: who stays below that in 9 of 10 calls is not cut short


def left(budget: Budget | None, account: Account | None, seat: Seat | None = None) -> Budget | None:
    """What a call may plan to spend: its own budget within what the accounts around it have left, or within its share of that."""
    if account is None:
        return budget
    room = account.room()
    share = {} if seat is None else seat.share
    rounds = 1 if seat is None else seat.batch.rounds
    seconds = None if room.seconds is None else room.seconds / rounds
    around = replace(room.unspent, calls=None, **share).budget(seconds)  # a plan is for one call
    return around if budget is None else budget.tightest(around)


@asynccontextmanager
async def seat() -> AsyncIterator[Seat | None]:
    """This call's seat in its batch, if it has one: its share of what the accounts around it have left."""
    await settled()
    account = current_account()
    with seated({} if account is None else _shared(account.room().unspent)) as one:
        yield one


@contextmanager
def limited(strategy: Strategy, seat: Seat | None) -> Iterator[None]:
    """A call of a batch leaves the others their shares.

    It takes its own share at most; where all calls run at once, and where it is the last to begin, one that draws in turns may take more,
    since the others save where they are sure. Under `on_limit="error"` nothing but the run's own limit ends a call.
    """
    outer = current_account()
    if seat is None or outer is None:
        yield
        return
    parts = _MOST_SHARES if strategy.takes_turns and not seat.queued else 1
    share = Limits(**{name: amount * parts for name, amount in seat.share.items()})
    with run_budget(Budget() if outer.on_limit == "error" else share.budget()) as own:
        own.turns = outer.turns
        seat.spent = lambda: _shared(own.spent)
        yield


def in_turns(plan: Plan, seat: Seat | None) -> Strategy:
    """The planned strategy; one that takes turns draws a sample in each where its share is tight, so that its waves take no other's first sample."""
    strategy, spend = plan.strategy, plan.expected.get(plan.binding or "")
    if seat is None or spend is None or spend.limit is None or seat.queued:
        return strategy
    waves = isinstance(strategy, (Vote, BestOfN)) and strategy.takes_turns
    if not waves or spend.p90 < _AMPLE * spend.limit:
        return strategy
    return strategy.model_copy(update={"wave": 1})


def _shared(amounts: Limits | Cost) -> dict[str, int]:
    """What the calls of a batch share: all that adds up, as far as it is limited; memory is held by few at a time."""
    names = ("tokens", "flops", "nanojoules", "nanodollars")
    found = {name: getattr(amounts, name) for name in names}
    return {name: amount for name, amount in found.items() if amount is not None}
