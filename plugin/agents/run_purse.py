"""
The purse of one agent run: what it may still spend, what it keeps for a last answer, and what it has spent.

Knows budgets, accounts and clocks. Knows no model and no message, and nothing of how a record is stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from threading import Lock

from langchain_pareto.agents.run_record import (
    SUMMED,
    Record,
    Sums,
    Update,
    minus,
    plus,
    sums_of,
    used,
)
from langchain_pareto.budget import Budget, Cost, Limits
from langchain_pareto.errors import BudgetExceeded
from langchain_pareto.ledger import Account, Lease, Room, current_account, paying_from, plain_amount

SHARED = ("tokens", "seconds", "flops", "joules", "usd", "calls")  # what a reserve may be of
_NOTHING = Cost()


@dataclass(slots=True)
class Bill:
    """What a foreign model took, `tokens`, to be charged at the end; `account` pays for what calls our models inside."""

    account: Account
    lease: Lease | None
    tokens: int = 0


class Purse:
    """What one run may spend: an account of the run, within that of its thread, within whatever is around the agent.

    Work (all calls but the last answer, and tools) is paid from an account below the run's, which leaves the reserve alone. A
    purse begins where `record` ends. Its clock runs while the agent does: the pause of a run that waits for a human is free.
    """

    def __init__(
        self,
        record: Record,
        *,
        per_run: Budget,
        per_thread: Budget,
        reserve: float | Budget,
        clock: Callable[[], float] = time.monotonic,
        control: object = None,
    ) -> None:
        """`reserve` is a share of what there is at the beginning, or a budget; `control` tells one call of an agent from the next."""
        self.run = record["run"]
        self.per_run = per_run
        self.per_thread = per_thread
        self.control = control
        self._record = record
        self._clock = clock
        self._began = self._active = clock()
        self._lock = Lock()
        self._owed = _NOTHING  # spent, but more than the accounts had room for
        self._around = current_account()
        thread = Account(_rest(per_thread, record["thread"]), parent=self._around, clock=clock)
        self._all = thread.child(_rest(per_run, record["spent"]))
        there = _left(self._all.room())
        kept = _kept(reserve, there)
        self.keeps = kept != Budget()
        self._work = self._all.child(_without(there, kept))

    # --- what is left

    @property
    def raises(self) -> bool:
        """Whether a budget of the run, or around it, says `on_limit="error"`."""
        around = "best" if self._around is None else self._around.on_limit
        return "error" in (self.per_run.on_limit, self.per_thread.on_limit, around)

    def room(self, *, last: bool) -> Budget:
        """What is left for work, or for a last answer; 0 where nothing is, which `lacking` finds."""
        self.charge(_NOTHING)
        now = (self._all if last else self._work).room()
        return _left(Room(now.unspent.less(self._owed), now.free, now.seconds))

    def is_low(self, share: float) -> bool:
        """Whether of some resource at most `share` of what there was for work is left."""
        room, first = self.room(last=False), self._work.budget
        limits = {name: getattr(first, name) for name in SHARED}
        return any(
            getattr(room, name) <= share * limit
            for name, limit in limits.items()
            if limit is not None
        )

    def exceeded(self, resource: str) -> BudgetExceeded:
        """The error that says whose budget is spent, and how much of it."""
        taken = self.spent()
        owners = [
            ("this run", self.per_run, taken),
            ("this thread", self.per_thread, self._of_thread(taken)),
        ]
        found = [
            (limit - used(sums, resource), whose, used(sums, resource), limit)
            for whose, budget, sums in owners
            if (limit := getattr(budget, resource)) is not None
        ]
        _, whose, spent, limit = min([*found, *_limits_around(self._around, resource)])
        return BudgetExceeded(
            f"The budget of {whose} is spent: {plain_amount(spent)} of {plain_amount(limit)} {resource}.",
            resource=resource,
            spent=spent,
            limit=limit,
            hint="Give a larger budget, or keep a reserve for a last answer.",
        )

    # --- spending

    @contextmanager
    def paying(self, per_call: Budget | None = None, *, last: bool = False) -> Iterator[None]:
        """Whatever calls our models inside spends from here, even if it fails."""
        with self._within((self._all if last else self._work).child(per_call)):
            yield

    def admit(self, most: int | None, *, last: bool = False) -> Bill | None:
        """A bill for a call of a model that keeps no books, or None where others were faster.

        The call is charged at once, for it may fail. `most` tokens are set aside where they are known, so that what runs side by
        side cannot take them.
        """
        account = self._all if last else self._work
        if (call := account.try_reserve(Cost(calls=1))) is None:
            return None
        lease = None if most is None else account.try_reserve(Cost(tokens=most))
        if most is not None and lease is None:
            call.cancel()
            return None
        call.commit(call.cost)
        # nobody inside may wait for a lease of ours
        return Bill(account if lease is None else Account(Budget(tokens=most)), lease)

    @contextmanager
    def paying_foreign(self, bill: Bill) -> Iterator[None]:
        """Charges the bill at the end."""
        try:
            with self._within(bill.account):
                yield
        finally:
            over = bill.tokens
            if bill.lease is not None:
                taken = min(bill.lease.cost.tokens, bill.tokens + bill.account.spent.tokens)
                bill.lease.commit(Cost(tokens=taken))
                over = max(0, bill.tokens - taken)
            self.charge(Cost(tokens=over))

    def charge(self, cost: Cost) -> None:
        """Adds what was spent, whether or not there is room for it."""
        with self._lock:
            self._owed = _charge(self._all, _charge(self._work, self._owed + cost))
            self._active = self._clock()

    @contextmanager
    def _within(self, account: Account) -> Iterator[None]:
        try:
            with paying_from(account):
                yield
        finally:
            self._active = self._clock()

    # --- the record

    def spent(self, *, until: float | None = None) -> Sums:
        """What the run has spent, from its first call on."""
        now = self._clock() if until is None else until
        with self._lock:
            cost = self._all.spent + self._owed
        sums = {name: getattr(cost, name) for name in SUMMED}
        return plus(self._record["spent"], sums | {"microseconds": _micro(now - self._began)})

    def left_behind(self) -> Record:
        """The record of a run that has stopped, which was when it last did something."""
        taken = self.spent(until=self._active)
        return Record(run=self.run, spent=taken, thread=self._of_thread(taken))

    def update(self, written: Mapping[str, object]) -> Update:
        """What the record lacks that was `written` before."""
        same = written.get("run") == self.run
        return Update(run=self.run, spent=minus(self.spent(), sums_of(written) if same else {}))

    def _of_thread(self, taken: Sums) -> Sums:
        return plus(self._record["thread"], minus(taken, self._record["spent"]))


def lacking(room: Budget, tokens: int = 1) -> str | None:
    """The first resource of which there is too little for a call that draws so many tokens."""
    if room.seconds is not None and room.seconds <= 0:
        return "seconds"
    need = Cost(tokens=tokens, flops=1, nanojoules=1, nanodollars=1, calls=1)
    return room.limits().lack(need)


def _kept(reserve: float | Budget, there: Budget) -> Budget:
    """What only a last answer may take."""
    if isinstance(reserve, Budget):
        return reserve
    limits = {name: getattr(there, name) for name in SHARED}
    parts = {name: reserve * limit for name, limit in limits.items() if limit}
    whole = {name: math.ceil(parts[name]) for name in ("tokens", "calls") if name in parts}
    return Budget(**{name: part for name, part in (parts | whole).items() if part})


def _charge(account: Account, cost: Cost) -> Cost:
    """Charges what there is room for now, and returns the rest."""
    if cost == _NOTHING:
        return cost
    pairs = zip(astuple(cost), astuple(account.room().free), strict=True)
    fits = Cost(*(a if free is None else max(0, min(a, free)) for a, free in pairs))
    lease = account.try_reserve(fits)
    if lease is None:
        return cost
    lease.commit(fits)
    return cost - fits


def _rest(budget: Budget, sums: Sums) -> Budget:
    """What is left of a budget after these sums."""
    spent = Cost(**{name: sums.get(name, 0) for name in SUMMED})
    seconds = None if budget.seconds is None else budget.seconds - used(sums, "seconds")
    return _budget(budget.limits().less(spent), seconds)


def _without(budget: Budget, part: Budget) -> Budget:
    cost = Cost.of(
        tokens=part.tokens or 0,
        flops=part.flops or 0,
        joules=part.joules or 0,
        usd=part.usd or 0,
        calls=part.calls or 0,
    )
    seconds = None if budget.seconds is None else budget.seconds - (part.seconds or 0)
    return _budget(budget.limits().less(cost), seconds)


def _left(room: Room) -> Budget:
    return _budget(replace(room.unspent, memory=None), room.seconds)


def _budget(limits: Limits, seconds: float | None) -> Budget:
    """Limits as a budget, which may be 0: nobody may ask for that, but it may be all that is left."""
    known = None if seconds is None else math.floor(seconds * 1e6) / 1e6  # microseconds
    return limits.budget(known, least=0)


def _limits_around(
    account: Account | None, resource: str
) -> Iterator[tuple[float, str, float, float]]:
    """(left, whose, spent, limit) of the accounts around an agent."""
    while account is not None:
        if (limit := getattr(account.budget, resource)) is not None:
            left = account.room().seconds or 0.0
            spent = limit - left if resource == "seconds" else getattr(account.spent, resource)
            yield limit - spent, "what is around this run", spent, limit
        account = account.parent


def _micro(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
