"""Turns of calls under one budget: the most uncertain goes first, nobody is stuck, and a batch spends where it changes most."""

import asyncio
import random
import threading

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.ledger import Account, run_budget
from langchain_pareto.sharing import Turns, asked, batch_of, seated, settled
from langchain_pareto.strategies import Vote
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.settings import Settings

SETTINGS = Settings(Sampling(), max_tokens=20)


async def test_the_worthiest_goes_first() -> None:
    """Of those that wait when a place is free, whatever their order of asking."""
    turns, went = Turns(), list[float]()
    hold = asyncio.Event()

    async def first() -> None:
        async with turns.turn(9.0):
            await hold.wait()

    async def ask(worth: float) -> None:
        async with turns.turn(worth):
            went.append(worth)

    holding = [asyncio.create_task(first()) for _ in range(4)]
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(ask(worth)) for worth in (0.1, 0.5, 0.3, 0.4)]
    await asyncio.sleep(0)
    assert went == []
    hold.set()
    await asyncio.gather(*holding, *waiting)
    assert sorted(went) == [0.1, 0.3, 0.4, 0.5]
    assert went[0] == 0.5


async def test_alone_nobody_waits() -> None:
    """One call after another has its turn at once."""
    turns = Turns()
    for _ in range(10):
        async with asyncio.timeout(5), turns.turn(0.0):
            pass


async def test_who_is_cancelled_leaves_the_queue() -> None:
    """Waiting, or just woken: the place goes to the next."""
    turns, hold = Turns(), asyncio.Event()

    async def ask(event: asyncio.Event | None = None) -> None:
        async with turns.turn(0.5):
            if event is not None:
                await event.wait()

    holding = [asyncio.create_task(ask(hold)) for _ in range(4)]
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(ask()) for _ in range(6)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    hold.set()
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.gather(*holding, *waiting, return_exceptions=True)
    async with asyncio.timeout(5), turns.turn(0.0):
        pass


def test_turns_are_shared_by_loops_of_several_threads() -> None:
    """Each is woken on its own loop, and all have theirs."""
    turns, count = Turns(), [0]

    async def many(seed: int) -> None:
        rng = random.Random(seed)

        async def one() -> None:
            async with turns.turn(rng.random()):
                await asyncio.sleep(0)
                count[0] += 1

        await asyncio.gather(*(one() for _ in range(50)))

    threads = [threading.Thread(target=lambda i=i: asyncio.run(many(i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert count == [200]


async def _samples(account: Account, answers: list[str]) -> Outcome:
    backend = ScriptedBackend([f"Answer: {a}" for a in answers])
    return await run(Vote(n=16), backend, "Question?", account=account.child(), settings=SETTINGS)


@pytest.mark.parametrize("sure_first", [True, False])
async def test_a_shared_budget_goes_to_the_unsure(sure_first: bool) -> None:
    """Calls that are sure stop early, and what they leave is drawn by those that are not; the limit holds."""
    sure, unsure = ["1"], ["1", "2", "3", "4", "5", "1", "2", "3"]
    scripts = [sure] * 6 + [unsure] * 6
    with run_budget(Budget(tokens=60 * 10)) as account:
        outcomes = await asyncio.gather(
            *(_samples(account, s) for s in (scripts if sure_first else scripts[::-1]))
        )
    if not sure_first:
        outcomes = outcomes[::-1]
    drawn = [len(outcome.thoughts) for outcome in outcomes]
    assert account.spent.tokens <= 600
    assert max(drawn[:6]) <= 4  # as many as decide a vote that agrees
    assert min(drawn[6:]) >= 4
    assert sum(drawn[6:]) > sum(drawn[:6])
    assert max(drawn[6:]) - min(drawn[6:]) <= 5  # equally unsure: within one wave of each other


# --- batches


def test_each_call_of_a_batch_has_an_equal_part_of_what_is_left() -> None:
    """What those that run have not spent yet is kept for them, and what one has saved when it ends is there for the next."""
    with batch_of(4, together=2):
        with seated({"tokens": 400, "joules": 40}) as first:
            assert first is not None
            assert first.share == {"tokens": 100, "joules": 10}
            first.spent = lambda: {"tokens": 30}
            assert first.held == {"tokens": 70, "joules": 10}
        with seated({"tokens": 370}) as second:  # 70 were saved
            assert second is not None
            assert second.share == {"tokens": 123}


async def test_calls_that_run_side_by_side_have_the_same_part() -> None:
    """Whatever those that began earlier have spent meanwhile; when all have begun, none is queued."""
    unspent, shares, queued = [1000], list[int](), list[bool]()
    go = asyncio.Event()

    async def call(cost: int) -> None:
        with seated({"tokens": unspent[0]}) as seat:
            assert seat is not None
            seat.spent = lambda: {"tokens": cost}
            unspent[0] -= cost
            shares.append(seat.share["tokens"])
            queued.append(seat.queued)
            await go.wait()

    with batch_of(5, together=4):
        first = [asyncio.create_task(call(cost)) for cost in (200, 150, 10, 200)]
        await asyncio.sleep(0)
        assert (shares, queued) == ([200] * 4, [True] * 4)
        go.set()
        await asyncio.gather(*first)
        await asyncio.create_task(call(0))
    assert shares[-1] == 1000 - 200 - 150 - 10 - 200
    assert not queued[-1]


def test_who_is_still_to_begin_counts_as_waiting() -> None:
    """Though all that are left could run at once: until a call has begun, nothing but the others keeps its share. A call is told once."""
    with batch_of(5, together=3):
        for _ in range(3):
            with seated({"tokens": 500}):
                pass
        with seated({"tokens": 500}) as fourth:
            assert fourth is not None
            assert fourth.queued
        with seated({"tokens": 500}) as last:
            assert last is not None
            assert not last.queued
            assert fourth.queued


def test_a_share_is_at_least_one_of_a_kind() -> None:
    """A budget that is used up leaves a share that no draw fits, and no negative one."""
    with batch_of(3), seated({"tokens": 0, "flops": 2}) as seat:
        assert seat is not None
        assert seat.share == {"tokens": 1, "flops": 1}


def test_a_call_within_a_call_is_none_of_the_batch() -> None:
    """A judge that asks the model again takes nobody's place, and outside a batch there are no seats."""
    with batch_of(2):
        with seated({"tokens": 10}), seated({"tokens": 10}) as inner:
            assert inner is None
        with seated({"tokens": 10}) as second:
            assert second is not None
            assert second.share["tokens"] == 10
    with seated({"tokens": 10}) as outside:
        assert outside is None


def test_an_input_that_makes_no_call_leaves_its_share() -> None:
    """One that is answered otherwise, or fails before it asks for a seat; one that had a seat is counted once."""
    with batch_of(4, together=1):
        with asked():
            pass
        with pytest.raises(ValueError, match="no question"), asked():
            raise ValueError("no question")
        with asked(), seated({"tokens": 100}) as third:
            assert third is not None
            assert third.share == {"tokens": 50}
        with asked(), seated({"tokens": 100}) as last:
            assert last is not None
            assert last.share == {"tokens": 100}
            assert last.batch.rounds == 1
            with asked(), seated({"tokens": 1}) as inner:
                assert inner is None


@pytest.mark.parametrize("ends", [True, False])
async def test_a_call_waits_for_those_beside_it_to_say_whether_they_are_calls(ends: bool) -> None:
    """Not for ever: one that is slow to say so is taken for a call."""
    go, shares = asyncio.Event(), list[int]()

    async def call() -> None:
        with asked():
            await settled()
            with seated({"tokens": 100}) as seat:
                assert seat is not None
                shares.append(seat.share["tokens"])
                go.set()

    async def cached() -> None:
        with asked():
            for _ in range(20):
                await asyncio.sleep(0)
            if not ends:
                await go.wait()

    with batch_of(4, together=4):
        async with asyncio.timeout(60):
            await asyncio.gather(call(), cached(), cached(), cached())
    assert shares == [100 if ends else 25]
