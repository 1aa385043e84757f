"""Accounts never overrun, nobody starves, and nothing leaks."""

import asyncio
import contextvars
import random
import threading
from collections.abc import Awaitable, Coroutine
from functools import partial

import pytest
from hypothesis import given, strategies as st

from langchain_pareto.budget import Budget, Cost, Limits
from langchain_pareto.errors import BudgetError, BudgetExceeded
from langchain_pareto.ledger import Account, Lease, current_account, run_budget

FEW = 30  # seconds; a guard against hangs


def tokens(count: int) -> Cost:
    return Cost(tokens=count)


def constant(cost: Cost, _: int) -> Cost:
    return cost


def take(account: Account, cost: Cost) -> Lease:
    """A lease that must be had at once."""
    lease = account.try_reserve(cost)
    assert lease is not None
    return lease


def exactly(account: Account, count: int) -> Coroutine[None, None, Lease | None]:
    return account.reserve(tokens, count, least=count)


def check(account: Account) -> None:
    """The invariant, at the account and all above it."""
    with account._tree.lock:
        for level in account._path:
            limits = level.budget.limits()
            assert limits.hold(level.spent + level.reserved)
            assert level.unspent == limits.less(level.spent)
            assert level.free == limits.less(level.spent + level.reserved)
            assert not level.spent.is_negative()
            assert not level.reserved.is_negative()


def at_rest(account: Account) -> None:
    check(account)
    assert account.reserved == Cost()
    assert account._tree.queue == []


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def start(*work: Coroutine[None, None, Lease | None]) -> list[asyncio.Task[Lease | None]]:
    """Starts each in turn, and lets it run until it waits."""
    tasks = []
    for each in work:
        tasks.append(asyncio.create_task(each))
        await asyncio.sleep(0)
    return tasks


async def soon(task: Awaitable[Lease | None]) -> Lease | None:
    return await asyncio.wait_for(task, FEW)


def test_reserve_commit_refund() -> None:
    """A lease sets its worst case aside at every level; its commit charges the truth, the rest flows back."""
    root = Account(Budget(tokens=100, calls=5))
    child = root.child(Budget(tokens=60))
    lease = take(child, tokens(50))
    assert (lease.amount, lease.cost) == (50, tokens(50))
    assert root.reserved == child.reserved == tokens(50)
    assert child.room().free == Limits(tokens=10, calls=5)
    assert child.room().unspent == Limits(tokens=60, calls=5)
    assert child.try_reserve(tokens(11)) is None
    assert root.try_reserve(tokens(51)) is None
    lease.commit(tokens(20))
    assert root.spent == child.spent == tokens(20)
    assert child.room().free == child.room().unspent == Limits(tokens=40, calls=5)
    assert root.room().free == Limits(tokens=80, calls=5)
    at_rest(root)


def test_no_limits() -> None:
    """An account without a budget grants everything and still counts."""
    account = Account()
    lease = take(account, Cost(tokens=10**30, memory=5))
    lease.commit(tokens(10**30))
    assert account.spent == tokens(10**30)
    assert account.room().free == Limits()
    assert account.room().seconds is None
    assert account.stopped_by() is None


def test_a_lease_ends_once() -> None:
    """A second commit or cancel is an error, and changes nothing."""
    account = Account(Budget(tokens=10))
    lease = take(account, tokens(10))
    lease.cancel()
    with pytest.raises(RuntimeError, match="before"):
        lease.commit(tokens(1))
    assert account.spent == Cost()
    at_rest(account)


def test_a_lease_that_is_left_open_is_cancelled() -> None:
    """As a context manager a lease gives everything back unless it was committed."""
    account = Account(Budget(tokens=10))
    with pytest.raises(ZeroDivisionError), take(account, tokens(10)):
        _ = 1 / 0
    with take(account, tokens(10)) as lease:
        lease.commit(tokens(3))
    assert account.spent == tokens(3)
    at_rest(account)


def test_charging_more_than_was_reserved_is_our_error() -> None:
    """A charge above the lease is recorded, and raised as a broken invariant with its numbers."""
    account = Account(Budget(tokens=10))
    lease = take(account, tokens(4))
    with pytest.raises(AssertionError, match=r"tokens=12.*tokens=4"):
        lease.commit(tokens(12))
    assert account.spent == tokens(12)
    assert account.reserved == Cost()
    assert account.try_reserve(tokens(1)) is None
    assert account.stopped_by() == "tokens"


def test_negative_prices_are_our_error() -> None:
    """Nobody can mint money."""
    account = Account(Budget(tokens=10))
    with pytest.raises(AssertionError):
        account.try_reserve(tokens(-1))
    at_rest(account)


def test_memory_is_held_until_released() -> None:
    """Committed memory counts against the limit until it is given back, and the peak is kept."""
    root = Account(Budget(memory=100))
    child = root.child()
    for size in (60, 40):
        lease = take(child, Cost(memory=size))
        lease.commit(Cost(memory=size - 10))
    assert child.try_reserve(Cost(memory=21)) is None
    child.release(memory=50)
    assert root.spent == child.spent == Cost(memory=30)
    assert root.peak_memory == child.peak_memory == 80
    assert child.try_reserve(Cost(memory=70)) is not None
    with pytest.raises(AssertionError):
        child.release(memory=31)


@given(st.data())
def test_grants_are_those_of_a_plain_count(data: st.DataObject) -> None:
    """One at a time, a request is granted exactly if it fits at every level, by a naive count."""
    caps = st.none() | st.integers(1, 30)
    accounts = [Account(data.draw(st.builds(Budget, tokens=caps, calls=caps)))]
    parents = [-1]
    for _ in range(4):
        parents.append(data.draw(st.integers(0, len(accounts) - 1)))
        budget = data.draw(st.builds(Budget, tokens=caps, calls=caps))
        accounts.append(accounts[parents[-1]].child(budget))
    used = [(0, 0)] * 5  # tokens and calls, spent or reserved, per account
    leases: list[tuple[int, Lease]] = []

    def add(at: int, t: int, c: int) -> None:
        while at >= 0:
            used[at] = (used[at][0] + t, used[at][1] + c)
            at = parents[at]

    def fits(at: int, t: int, c: int) -> bool:
        while at >= 0:
            budget = accounts[at].budget
            if budget.tokens is not None and used[at][0] + t > budget.tokens:
                return False
            if budget.calls is not None and used[at][1] + c > budget.calls:
                return False
            at = parents[at]
        return True

    for _ in range(data.draw(st.integers(0, 15))):
        at, t, c = (data.draw(st.integers(0, top)) for top in (4, 15, 3))
        ending = data.draw(st.booleans())
        if leases and ending:
            at, lease = leases.pop(data.draw(st.integers(0, len(leases) - 1)))
            t, c = min(t, lease.cost.tokens), min(c, lease.cost.calls)
            lease.commit(Cost(tokens=t, calls=c))
            add(at, t - lease.cost.tokens, c - lease.cost.calls)
        else:
            granted = accounts[at].try_reserve(Cost(tokens=t, calls=c))
            assert (granted is not None) == fits(at, t, c)
            if granted is not None:
                leases.append((at, granted))
                add(at, t, c)
        check(accounts[at])
    for account, (t, c) in zip(accounts, used, strict=True):
        assert account.spent + account.reserved == Cost(tokens=t, calls=c)


def test_eight_threads_never_overrun() -> None:
    """10^5 events of eight threads keep spent + reserved <= limit at every level, and the sums are right."""
    root = Account(Budget(tokens=200_000, joules=0.3, memory=5000, calls=30_000))
    middle = [root.child(Budget(tokens=120_000, memory=3000)), root.child(Budget(joules=0.2))]
    leaves = [middle[i % 2].child(Budget(tokens=40_000) if i % 3 else None) for i in range(6)]
    charged = [Cost()] * 8
    events = [0] * 8

    def work(me: int) -> None:
        draw = random.Random(me)
        accounts = [root, *middle, *leaves]
        open_leases: list[tuple[Account, Lease]] = []
        held: list[tuple[Account, int]] = []
        for _ in range(12_500):
            account = draw.choice(accounts)
            kind = draw.random()
            if kind < 0.05 and len(accounts) < 60:
                account = account.child(Budget(tokens=draw.randint(1, 5000)))
                accounts.append(account)
            elif kind < 0.55:
                want = Cost(*(draw.randint(0, top) for top in (300, 50, 300_000, 9, 1, 200)))
                if (lease := account.try_reserve(want)) is not None:
                    open_leases.append((account, lease))
            elif kind < 0.95 and open_leases:
                account, lease = open_leases.pop(draw.randrange(len(open_leases)))
                share = draw.choice([0, 1, 1, 2])  # of two; cancel, half or all
                halves = (getattr(lease.cost, name) * share // 2 for name in Cost.__slots__)
                actual = Cost(*halves)
                if share:
                    lease.commit(actual)
                    held.append((account, actual.memory))
                else:
                    lease.cancel()
                charged[me] += actual
            elif held:
                account, size = held.pop()
                account.release(memory=size)
                charged[me] -= Cost(memory=size)
            check(account)
            events[me] += 1
        for account, lease in open_leases:
            lease.cancel()
            check(account)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(events) == 100_000
    at_rest(root)
    total = Cost()
    for each in charged:
        total += each
    assert root.spent == total
    for account in middle:
        below = [leaf.spent for leaf in leaves if leaf.parent is account]
        assert all((account.spent - spent).is_negative() is False for spent in below)


async def test_shrunk_only_against_what_is_spent() -> None:
    """A request takes the largest amount that the unspent room holds, and waits for open leases."""
    root = Account(Budget(tokens=100))
    child = root.child(Budget(tokens=50))
    first = await soon(child.reserve(tokens, 80))
    assert first is not None
    assert first.amount == 50
    (second,) = await start(child.reserve(tokens, 45))
    assert not second.done()
    first.commit(tokens(20))
    lease = await soon(second)
    assert lease is not None
    assert lease.amount == 30
    lease.commit(tokens(25))
    assert await soon(child.reserve(tokens, 100, least=6)) is None
    last = await soon(child.reserve(tokens, 100, least=5))
    assert last is not None
    assert last.cost == tokens(5)
    last.commit(tokens(5))
    assert child.stopped_by() == "tokens"
    at_rest(root)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 2000), st.integers(0, 50))
def test_the_amount_is_the_largest_that_fits(a: int, b: int, room: int, base: int) -> None:
    """Binary search finds what a linear search finds, for any monotone price."""
    least, most = min(a, b), max(a, b)

    def price(k: int) -> Cost:
        return Cost(tokens=k, flops=base + k * k // 7)

    account = Account(Budget(flops=room))
    lease = asyncio.run(account.reserve(price, most, least))
    best = max((k for k in range(least, most + 1) if price(k).flops <= room), default=None)
    assert (lease and lease.amount) == best


async def test_first_come_first_served() -> None:
    """A big request that waits is not passed by later small ones, which would fit."""
    account = Account(Budget(tokens=10))
    first = take(account, tokens(6))
    big, small, tiny = await start(*(exactly(account.child(), size) for size in (10, 2, 1)))
    assert account.try_reserve(tokens(1)) is None
    assert not any(task.done() for task in (big, small, tiny))
    first.cancel()
    lease = await soon(big)
    assert lease is not None
    assert not small.done()
    lease.cancel()
    assert await soon(small) is not None
    assert await soon(tiny) is not None
    assert account._tree.queue == []


async def test_no_starvation() -> None:
    """A request for everything is granted under an endless stream of small ones, at any level."""
    root = Account(Budget(tokens=10**9, calls=10))
    middle = root.child()
    leaf = middle.child(Budget(calls=6))
    done = False

    async def stream(account: Account) -> None:
        while not done:
            lease = await account.reserve(partial(constant, Cost(calls=2)), 1)
            assert lease is not None
            await asyncio.sleep(0)
            lease.cancel()

    async with asyncio.timeout(FEW), asyncio.TaskGroup() as group:
        for account in (root, root.child(), middle, leaf, leaf.child()) * 2:
            group.create_task(stream(account))
        await asyncio.sleep(0)
        for account, everything in ((leaf, Cost(calls=6)), (root, Cost(calls=10))):
            lease = await account.reserve(partial(constant, everything), 1)
            assert lease is not None
            lease.cancel()
        done = True
    at_rest(root)


async def test_a_full_child_does_not_hold_up_its_siblings() -> None:
    """Who waits for room in one child is passed by those who do not touch what it waits for."""
    root = Account(Budget(tokens=100, calls=3))
    full, sibling = root.child(Budget(tokens=10)), root.child()
    first = take(full, tokens(10))
    (waiter,) = await start(exactly(full, 10))
    take(sibling, tokens(90))
    assert full.try_reserve(Cost(calls=1)) is not None  # no tokens, so in nobody's way
    assert not waiter.done()
    first.cancel()
    assert await soon(waiter) is not None


async def test_eight_tasks_under_three_worst_cases() -> None:
    """Eight concurrent samples under a budget of three worst cases are all served, and none overruns."""
    with run_budget("300 tokens") as account:

        async def sample(size: int) -> int:
            lease = await account.child().reserve(tokens, 100)
            assert lease is not None
            for _ in range(3):
                await asyncio.sleep(0)
                check(account)
            used = min(size, lease.amount)
            lease.commit(tokens(used))
            return used

        used = await asyncio.wait_for(asyncio.gather(*map(sample, range(24, 32))), FEW)
    assert account.spent == tokens(sum(used)) == tokens(sum(range(24, 32)))
    at_rest(account)


async def test_cancelling_a_waiter() -> None:
    """A cancelled waiter leaves the queue, makes way, and takes nothing along."""
    account = Account(Budget(tokens=10))
    first = take(account, tokens(6))
    big, small = await start(exactly(account, 10), exactly(account, 4))
    big.cancel()
    with pytest.raises(asyncio.CancelledError):
        await big
    lease = await soon(small)
    assert lease is not None
    lease.cancel()
    first.cancel()
    at_rest(account)


async def test_cancelling_a_waiter_that_was_just_granted() -> None:
    """A lease that was granted to a task which is cancelled before it resumes flows back."""
    account = Account(Budget(tokens=10))
    first = take(account, tokens(10))
    (waiter,) = await start(exactly(account, 10))
    first.cancel()
    assert account.reserved == tokens(10)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    at_rest(account)


async def test_a_price_that_fails_leaves_no_trace() -> None:
    """An error in the price travels to the caller, and the queue goes on."""
    account = Account(Budget(tokens=10))
    first = take(account, tokens(10))
    fail = False

    def price(k: int) -> Cost:
        return tokens(k // 0 if fail else k)

    (waiter,) = await start(account.reserve(price, 10))
    fail = True
    first.commit(tokens(5))
    with pytest.raises(ZeroDivisionError):
        await soon(waiter)
    at_rest(account)


async def test_a_waiter_whose_room_was_spent_is_refused() -> None:
    """When what was waited for is spent, the waiter gets less, or None below its least."""
    account = Account(Budget(tokens=10))
    first = take(account, tokens(10))
    refused, shrunk = await start(exactly(account, 8), account.reserve(tokens, 8, least=2))
    first.commit(tokens(7))
    assert await soon(refused) is None
    lease = await soon(shrunk)
    assert lease is not None
    assert lease.amount == 3


def test_waiters_on_two_loops() -> None:
    """Accounts of one tree serve waiters of several event loops and threads."""
    root = Account(Budget(tokens=30))
    served = []

    async def sample(account: Account) -> None:
        lease = await account.reserve(partial(constant, tokens(10)), 1)
        assert lease is not None
        await asyncio.sleep(0)
        check(account)
        served.append(threading.get_ident())
        lease.cancel()

    async def main() -> None:
        child = root.child()
        await asyncio.wait_for(asyncio.gather(*(sample(child) for _ in range(200))), FEW)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served) == 400
    at_rest(root)


def test_a_waiter_of_a_closed_loop_is_dropped() -> None:
    """A loop that was closed with a waiter in it does not hold up the queue or keep a lease."""
    account = Account(Budget(tokens=10))
    first = take(account, tokens(10))
    loop = asyncio.new_event_loop()
    waiter = exactly(account, 10)
    task = loop.create_task(waiter)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    first.cancel()
    at_rest(account)
    waiter.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_the_deadline_wakes_waiters() -> None:
    """A waiter gets None when the deadline of an account above it passes."""
    root = Account(Budget(tokens=10, seconds=0.05))
    first = take(root, tokens(10))
    assert await soon(exactly(root.child(), 10)) is None
    assert root.expired
    first.commit(tokens(10))  # work that was under way still counts
    assert root.spent == tokens(10)
    at_rest(root)


async def test_deadlines() -> None:
    """The earliest deadline of an account and those above it binds; after it nothing is granted."""
    clock = Clock()
    root = Account(Budget(seconds=50), clock=clock)
    clock.now += 10
    child = root.child(Budget(seconds=5))
    late = root.child(Budget(seconds=500))
    assert (root.deadline, child.deadline, late.deadline) == (150, 115, 150)
    assert child.room().seconds == 5
    clock.now += 5
    assert child.expired
    assert not root.expired
    assert child.room().seconds == 0
    assert child.try_reserve(tokens(1)) is None
    assert await soon(child.reserve(tokens, 1)) is None
    assert root.try_reserve(tokens(1)) is not None
    assert child.stopped_by() == "seconds"
    with pytest.raises(BudgetExceeded, match=r"^Budget exhausted: 5 of 5 seconds spent[.]\n"):
        child.raise_if_exhausted()


async def test_many_tasks_many_levels() -> None:
    """400 tasks with several resources, levels and cancellations all end, within every limit."""
    draw = random.Random(7)
    root = Account(Budget(tokens=4000, flops=9000, calls=9, memory=500))
    middle = [root.child(Budget(tokens=3000, memory=200)), root.child(Budget(flops=3000))]
    leaves = [draw.choice(middle).child(Budget(calls=draw.randint(1, 3))) for _ in range(12)]

    async def sample() -> None:
        account = draw.choice([root, *middle, *leaves])
        flops, calls, size = draw.randint(0, 9), draw.randint(0, 1), draw.randint(0, 1)

        def price(k: int) -> Cost:
            return Cost(tokens=k, flops=flops * k, calls=calls, memory=size * k)

        lease = await account.reserve(price, draw.randint(1, 200))
        check(account)
        if lease is not None:
            with lease:
                await asyncio.sleep(0)
                if draw.random() < 0.7:
                    used = draw.randint(1, lease.amount)
                    lease.commit(Cost(tokens=used, flops=flops * used // 2, memory=size * used))
                    account.release(memory=size * used)
            check(account)

    tasks = [asyncio.create_task(sample()) for _ in range(400)]
    await asyncio.sleep(0)
    for task in draw.sample(tasks, 60):
        task.cancel()
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), FEW)
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ended)
    at_rest(root)


def test_stopped_by() -> None:
    """An account is stopped by the first resource that cannot pay for what is asked, at any level."""
    root = Account(Budget(tokens=200, usd=0.01))
    child = root.child(Budget(joules=2, on_limit="error"))
    assert (root.on_limit, child.on_limit, child.child().on_limit) == ("best", "error", "error")
    assert child.stopped_by() is None
    child.raise_if_exhausted()
    lease = take(child, Cost(tokens=200, nanojoules=1_500_000_000))
    assert child.stopped_by() is None  # reserved is not spent
    lease.commit(lease.cost)
    assert child.stopped_by() == "tokens"
    assert child.stopped_by(Cost.of(joules=1)) == "joules"
    assert child.stopped_by(Cost.of(joules=0.5)) is None
    with pytest.raises(
        BudgetExceeded, match=r"^Budget exhausted: 200 of 200 tokens spent[.]\n"
    ) as caught:
        child.raise_if_exhausted()
    assert (caught.value.resource, caught.value.spent, caught.value.limit) == ("tokens", 200, 200)
    with pytest.raises(BudgetExceeded, match=r"^Budget exhausted: 1.5 of 2 joules spent[.]\n"):
        child.raise_if_exhausted(Cost.of(joules=1))


def test_run_budget() -> None:
    """A scope opens an account, a scope inside it a child, and leaving restores the one before."""
    assert current_account() is None
    with run_budget("20k tokens, on error") as outer:
        assert current_account() is outer
        with run_budget(500) as inner:
            assert current_account() is inner
            assert inner.parent is outer
            assert inner.room().unspent.tokens == 500
            lease = take(inner, tokens(500))
            lease.commit(tokens(400))
        assert current_account() is outer
        assert outer.spent == tokens(400)
        seen = []
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(lambda: seen.append(current_account()),)
        )
        thread.start()
        thread.join()
        assert seen == [outer]
    assert current_account() is None
    with pytest.raises(BudgetError), run_budget("much"):
        pass


async def test_run_budget_in_tasks() -> None:
    """Tasks inherit the scope in which they were started, and do not see each other's."""

    async def inside(count: int) -> int | None:
        with run_budget({"tokens": count}) as account:
            await asyncio.sleep(0)
            assert current_account() is account
            assert account.parent is outer
            return account.budget.tokens

    with run_budget(Budget(seconds=60)) as outer:
        assert await asyncio.gather(*map(inside, range(1, 9))) == list(range(1, 9))
        assert current_account() is outer
    assert outer.deadline is not None


async def test_a_scope_may_be_left_from_another_context():
    """A server closes a streaming generator in a task of its own: the scope ends without an error."""

    async def stream():
        with run_budget(100) as account:
            yield account
            yield account

    answers = stream()
    await asyncio.create_task(anext(answers))
    await asyncio.create_task(answers.aclose())
    assert current_account() is None
