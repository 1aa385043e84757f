"""Turns of calls under one budget: the most uncertain goes first, nobody is stuck, and a batch spends where it changes most."""

import asyncio
import random
import threading

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.ledger import Account, run_budget
from langchain_pareto.sharing import Turns
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
