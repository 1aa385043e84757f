"""
Accounts: what was spent, what is reserved, and who may go next.

Knows limits, leases and the queue. Deliberately does not know what a request does, or how its
price was made. Every request is reserved at its worst case, run, and committed at what it really
took; the rest flows back. The invariant, at every account of a tree and for every resource:

    spent + reserved <= limit

Who waits for whom: a request which fits what is unspent, but not what is free now, waits for open
leases to end. It is held up at the outermost account where it is short, or where an earlier request
for some of the same resources is held up; nothing else stands in its way. Hence a big request is
not starved by small later ones (none of them takes from its innermost account while it waits, so
that drains; then the one above it), and a full child does not hold up its siblings. Nobody may
await a second reservation while holding a lease, or two such could wait for each other.

One lock per tree guards the books. It is never held while pricing, computing or waiting; a reserve
or commit costs O(depth), plus O(waiting * depth) while somebody waits.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, Self

from langchain_pareto.budget import Budget, BudgetLike, Cost, Limits, Resource
from langchain_pareto.errors import BudgetExceeded
from langchain_pareto.sharing import Turns

Price = Callable[[int], Cost]  # worst case of a request with a cap of so many tokens; monotone

_ONE = Cost(tokens=1, flops=1, nanojoules=1, nanodollars=1, calls=1, memory=1)


@dataclass(frozen=True, slots=True)
class Room:
    """What is left at the tightest level: `unspent` once all leases end, `free` right now."""

    unspent: Limits
    free: Limits
    seconds: float | None


class Account:
    """What one run, call or part of it may spend; a child spends its parent's money as well.

    A child's limits only cap, nothing is set aside for it. The clock of `seconds` starts when the
    account is made; the root's `clock` is everybody's. Safe to use from any thread and event loop.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        parent: "Account | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = Budget() if budget is None else budget
        self.parent = parent
        self._tree: _Tree = _Tree(clock) if parent is None else parent._tree  # noqa: SLF001 - one of us
        self.turns: Turns | None = (
            None if parent is None else parent.turns
        )  # of calls that share it
        self._level = _Level(self.budget, started=self._tree.clock())
        above = () if parent is None else parent._path  # noqa: SLF001
        self._path: tuple[_Level, ...] = (*above, self._level)  # the root first
        ends = [level.deadline for level in self._path if level.deadline is not None]
        self.deadline = min(ends, default=None)  # by the root's clock

    def child(self, budget: Budget | None = None) -> "Account":
        """An account within this one."""
        return Account(budget, parent=self)

    def without(self, others: Iterable["Account"]) -> Self:
        """This account, less those around it that are around `others` as well: they are paid for there."""
        paid = {level for other in others for level in other._path}  # noqa: SLF001 - one of us
        rest = copy(self)
        rest._path = tuple(level for level in self._path if level not in paid)  # noqa: SLF001
        return rest

    def meets(self, other: "Account") -> bool:
        """Whether some account pays for both."""
        return not set(self._path).isdisjoint(other._path)  # noqa: SLF001 - one of us

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and self._tree.clock() >= self.deadline

    @property
    def on_limit(self) -> Literal["best", "error"]:
        """What to do at a limit: "error" if this account or one above it says so."""
        return "error" if any(level.budget.on_limit == "error" for level in self._path) else "best"

    @property
    def spent(self) -> Cost:
        """What this account and those below it have spent, and the memory that they hold."""
        return self._level.spent

    @property
    def reserved(self) -> Cost:
        """The sum of open leases of this account and those below it."""
        return self._level.reserved

    @property
    def peak_memory(self) -> int:
        """The most bytes ever held at once, as committed and released."""
        return self._level.peak_memory

    def room(self) -> Room:
        """What is left now, at the tightest level for each resource."""
        unspent = free = Limits()
        with self._tree.lock:
            for level in self._path:
                unspent = unspent.tightest(level.unspent)
                free = free.tightest(level.free)
        left = None if self.deadline is None else max(0.0, self.deadline - self._tree.clock())
        return Room(unspent=unspent, free=free, seconds=left)

    def try_reserve(self, want: Cost) -> "Lease | None":
        """A lease on `want` if it can be had at once, without passing anybody who waits."""
        claim = _Claim(self._tree, self._path, self.deadline)
        claim.enter(want.tokens, want)
        return claim.leave()

    async def reserve(
        self, price: Price, most: int, least: int = 1, *, wait: bool = True
    ) -> "Lease | None":
        """A lease on `price(k)`, for the largest k in `least..most` that the unspent room holds.

        Waits, first come first served, while only open leases stand in the way; None if even
        `price(least)` does not fit what is unspent (held memory is spent), or time is up. Also
        None if it would have to, and may not `wait`.
        """
        assert 1 <= least <= most, f"reserve from {least} to {most} tokens"
        claim = _Claim(self._tree, self._path, self.deadline, loop=asyncio.get_running_loop())
        try:
            while claim.lease is None:
                amount = self._largest(price, most, least)
                if amount is None:
                    break
                claim.enter(amount, price(amount))
                if not wait:
                    break
                await claim.wait(self.room().seconds)
        except BaseException:
            if (lease := claim.leave()) is not None:
                lease.cancel()
            raise
        return claim.leave()

    def _largest(self, price: Price, most: int, least: int) -> int | None:
        unspent = self.room().unspent
        if self.expired or not unspent.hold(price(least)):
            return None
        if unspent.hold(price(most)):
            return most
        while least + 1 < most:  # price(least) fits, price(most) does not
            middle = (least + most) // 2
            least, most = (middle, most) if unspent.hold(price(middle)) else (least, middle)
        return least

    def release(self, *, memory: int) -> None:
        """Gives back bytes that were committed to this account and are no longer held."""
        with self._tree.lock:
            held = self._level.spent.memory
            assert 0 <= memory <= held, f"release of {memory} bytes, while {held} are held"
            for level in self._path:
                level.spend(Cost() - Cost(memory=memory))
            self._tree.settle()

    def stopped_by(self, least: Cost = _ONE) -> Resource | Literal["seconds"] | None:
        """The resource that cannot pay for `least` more, open leases aside; None if all can."""
        return "seconds" if self.expired else self.room().unspent.lack(least)

    def raise_if_exhausted(self, least: Cost = _ONE) -> None:
        """Raises BudgetExceeded, with the numbers of the account that binds, once `stopped_by`."""
        resource = self.stopped_by(least)
        if resource is None:
            return
        now = self._tree.clock()
        used = [
            (level.used(resource, now), limit)
            for level in self._path
            if (limit := getattr(level.budget, resource)) is not None
        ]
        spent, limit = min(used, key=lambda pair: pair[1] - pair[0])
        raise BudgetExceeded(
            f"Budget exhausted: {plain_amount(spent)} of {plain_amount(limit)} {resource} spent.",
            resource=resource,
            spent=spent,
            limit=limit,
            hint='Ask for more, or use on_limit="best" to get the best answer so far.',
        )


class Lease:
    """Room set aside for one request: `cost` is its worst case, at a cap of `amount` tokens.

    Ends with one `commit` or `cancel`; as a context manager it cancels unless it was committed.
    """

    __slots__ = ("_open", "_path", "_tree", "amount", "cost")

    def __init__(self, tree: "_Tree", path: "tuple[_Level, ...]", amount: int, cost: Cost) -> None:
        self._tree = tree
        self._path = path
        self._open = True
        self.amount = amount
        self.cost = cost

    def commit(self, actual: Cost) -> None:
        """Charges what was really taken and gives back the rest; `actual.memory` stays held."""
        with self._tree.lock:
            if not self._open:
                raise RuntimeError(f"the lease of {self.cost} was committed or cancelled before")
            self._open = False
            for level in self._path:
                level.reserve(Cost() - self.cost)
                level.spend(actual)
            self._tree.settle()
        over = (self.cost - actual).is_negative() or actual.is_negative()
        assert not over, f"charged {actual} on a lease of {self.cost}"

    def cancel(self) -> None:
        """Gives everything back."""
        self.commit(Cost())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self.cancel()


class _Level:
    """The books of one account; guarded by the lock of its tree."""

    def __init__(self, budget: Budget, started: float) -> None:
        self.budget = budget
        self.started = started
        self.deadline = None if budget.seconds is None else started + budget.seconds
        self.spent = Cost()
        self.reserved = Cost()
        self.peak_memory = 0
        self.unspent = self.free = budget.limits()  # less what is spent, and less what is reserved

    def reserve(self, cost: Cost) -> None:
        self.reserved += cost
        self.free = self.free.less(cost)

    def spend(self, cost: Cost) -> None:
        self.spent += cost
        self.peak_memory = max(self.peak_memory, self.spent.memory)
        self.unspent = self.unspent.less(cost)
        self.free = self.free.less(cost)

    def used(self, resource: Resource | Literal["seconds"], now: float) -> float:
        """What is spent of a resource, in the units of a Budget."""
        return now - self.started if resource == "seconds" else getattr(self.spent, resource)


class _Tree:
    """What the accounts of one tree share: the lock, the clock and the queue."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = Lock()
        self.clock = clock
        self.queue: list[_Claim] = []

    def settle(self) -> None:
        """Grants all that fits, in order of arrival; the lock is held."""
        held: dict[_Level, set[Resource]] = {}  # what those wait for who are held up there
        now = self.clock()
        for claim in tuple(self.queue):
            if claim.is_over(now):
                self.queue.remove(claim)
                claim.wake()
                continue
            for level in claim.path:
                behind = level in held and not held[level].isdisjoint(claim.takes)
                if behind or not level.free.hold(claim.cost):
                    held.setdefault(level, set()).update(claim.takes)
                    if not behind and not all(at.unspent.hold(claim.cost) for at in claim.path):
                        claim.wake()  # asks for less, or leaves
                    break
            else:
                self.queue.remove(claim)
                if claim.wake():
                    for level in claim.path:
                        level.reserve(claim.cost)
                    claim.lease = Lease(self, claim.path, claim.amount, claim.cost)


@dataclass(slots=True, eq=False)
class _Claim:
    """One request in the queue; without a `loop` it asks once and does not wait."""

    tree: _Tree
    path: tuple[_Level, ...]
    deadline: float | None
    amount: int = 0
    cost: Cost = field(default_factory=Cost)
    takes: frozenset[Resource] = frozenset()
    loop: asyncio.AbstractEventLoop | None = None
    lease: Lease | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, amount: int, cost: Cost) -> None:
        """Asks for `cost`, keeping the place in the queue if it has one."""
        assert not cost.is_negative(), f"a price of {cost}"
        with self.tree.lock:
            self.woken.clear()
            if self.lease is None:
                self.amount, self.cost, self.takes = amount, cost, cost.takes()
                if self not in self.tree.queue:
                    self.tree.queue.append(self)
                self.tree.settle()

    async def wait(self, seconds: float | None) -> None:
        """Returns once the lease was granted, something else changed, or the time is up."""
        if self.lease is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.woken.wait()

    def leave(self) -> Lease | None:
        """Leaves the queue, with the lease if it was granted."""
        with self.tree.lock:
            if self in self.tree.queue:
                self.tree.queue.remove(self)
                self.tree.settle()
            return self.lease

    def is_over(self, now: float) -> bool:
        """Whether nobody waits for it any more."""
        late = self.deadline is not None and now >= self.deadline
        return late or (self.loop is not None and self.loop.is_closed())

    def wake(self) -> bool:
        """Wakes the one who waits, on its own loop; False if that is gone."""
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(self.woken.set)
            except RuntimeError:
                return False
        return True


def plain_amount(amount: float) -> str:
    """An amount as messages show it: whole where it is."""
    return f"{amount:.0f}" if amount == int(amount) else f"{amount:.6g}"


_current: ContextVar[Account | None] = ContextVar("langchain_pareto_account", default=None)


def current_account() -> Account | None:
    """The account of the innermost `run_budget` around the caller."""
    return _current.get()


@contextmanager
def run_budget(budget: BudgetLike) -> Iterator[Account]:
    """Everything inside spends from one account; a scope inside another opens a child account.

    Calls side by side take turns: after its first samples each waits while others are less sure of their answers, so that what
    one saves is spent where it changes most.
    Works around sync and async code. The clock of `seconds` starts at entering; leaving cancels
    nothing.
    """
    account = Account(Budget.parse(budget), parent=_current.get())
    account.turns = Turns()
    with paying_from(account):
        yield account


@contextmanager
def paying_from(account: Account) -> Iterator[None]:
    """Everything inside spends from this account."""
    token = _current.set(account)
    try:
        yield
    finally:
        with suppress(ValueError):  # closed from another context, which never saw the account
            _current.reset(token)
