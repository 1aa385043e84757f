"""Budgets in usd and joules: what they need, what they charge, and who waits for whom."""

import asyncio
import contextlib
import time

import pytest

from langchain_pareto import (
    BestOfN,
    Budget,
    BudgetError,
    BudgetExceeded,
    ChatPareto,
    Cost,
    run_budget,
)
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import ScorerError

ANSWER = "Answer: 7"


def chat(**fields):
    return ChatPareto(backend=ScriptedBackend([ANSWER]), strategy="single", **fields)


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({}, "5 J"),
        ({"watts": 0.0}, "5 J"),
        ({}, "$1"),
        ({"usd_per_hour": 1.0, "usd_per_million_tokens": 1.0}, "$1"),
    ],
)
def test_a_limit_that_cannot_be_priced_is_refused(fields, budget):
    """Joules without watts, or with none, usd without a price, and usd with two."""
    with pytest.raises(BudgetError, match="needs"):
        chat(**fields).invoke("?", budget=budget)


@pytest.mark.parametrize("name", ["watts", "usd_per_hour", "usd_per_million_tokens"])
def test_an_endless_rate_is_refused(name):
    """A rate is a finite number."""
    with pytest.raises(ValueError, match=name):
        chat(**{name: float("inf")})


def test_tokens_are_paid_for_exactly():
    """Ten tokens at a dollar a token fit into ten dollars, and an eleventh does not."""
    llm = chat(usd_per_million_tokens=1e6)
    report = llm.invoke("?", budget="$5").response_metadata["pareto"]
    assert report["spent"]["tokens"] == 5
    assert report["spent"]["usd"] == 5
    assert report["stopped_by"] == "usd"


def test_device_time_is_charged_to_the_run():
    """What a call reports in joules is what its run is charged."""
    with run_budget("1000 J") as account:
        reports = [
            message.response_metadata["pareto"]["spent"]
            for message in chat(watts=100.0).batch(["?"] * 4)
        ]
    assert account.spent.joules == pytest.approx(sum(r.get("joules", 0.0) for r in reports))
    assert account.reserved.joules == 0


def test_a_spent_run_refuses_the_next_call():
    """A budget in joules that is used up says so."""
    llm = chat(watts=1.0)
    with run_budget("0.001 J") as account:
        lease = account.try_reserve(account.room().unspent and _joules(0.001))
        lease.commit(lease.cost)
        with pytest.raises(BudgetExceeded, match="joules"):
            llm.invoke("?")


def _joules(amount):
    return Cost.of(joules=amount)


async def test_a_call_inside_a_call_uses_its_time():
    """A scorer that calls the model under the same joules does not wait for the call that it scores."""
    inner = chat(watts=10.0)

    class Judge:
        async def score(self, thoughts):
            return [float(len((await inner.ainvoke(t.text)).content)) for t in thoughts]

    outer = ChatPareto(
        backend=ScriptedBackend([ANSWER]), strategy=BestOfN(n=2), scorer=Judge(), watts=10.0
    )
    with run_budget("1000000 J") as account:
        message = await asyncio.wait_for(outer.ainvoke("?"), 60)
    assert message.response_metadata["pareto"]["stopped_by"] == "done"
    assert account.reserved.joules == 0


class Unsure:
    """A scorer that fails once it is asked."""

    async def score(self, thoughts):
        raise ValueError("not to be read")


def slow(**fields):
    """A model that takes its time: 20 steps of a millisecond for each sample."""
    return ChatPareto(backend=ScriptedBackend(["x" * 19], delay=0.001), **fields)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"budget": Budget(tokens=5, on_limit="error"), "strategy": "single"}, BudgetExceeded),
        ({"strategy": BestOfN(n=2), "scorer": Unsure()}, ScorerError),
    ],
)
@pytest.mark.parametrize("rate", [{"watts": 100.0}, {"usd_per_hour": 36.0}])
def test_a_call_that_fails_is_charged(fields, error, rate):
    """One that raises at its limit, or whose scorer fails, has used the device: the time since it began at most."""
    llm = slow(**fields, **rate)
    began = time.monotonic()
    limit = Budget(joules=1e6) if "watts" in rate else Budget(usd=1e6)
    with run_budget(limit) as account, pytest.raises(error):
        llm.invoke("?")
    taken = time.monotonic() - began
    charged = account.spent.joules / 100 if "watts" in rate else account.spent.usd / 36 * 3600
    assert 0.005 <= charged <= taken
    assert account.reserved.joules == account.reserved.usd == 0


async def test_a_stream_that_is_left_is_charged():
    """Also one that is cancelled."""
    llm = slow(strategy="single", watts=100.0)
    with run_budget("1000000 J") as account:
        stream = llm.astream("?")
        await anext(stream)
        await stream.aclose()
    for _ in range(10_000):  # what is left behind ends on the loop
        if not account.reserved.joules:
            break
        await asyncio.sleep(0.001)
    assert account.spent.joules > 0
    with run_budget("1000000 J") as account, pytest.raises(TimeoutError):
        await asyncio.wait_for(llm.ainvoke("?"), 0.01)
    assert account.spent.joules > 0
    assert account.reserved.joules == 0


def test_failures_use_a_budget_up():
    """Calls that all fail end with the joules, as calls that answer do."""
    llm = slow(strategy="single", watts=1000.0, budget=Budget(tokens=5, on_limit="error"))
    with run_budget("20 J") as account:
        for _ in range(1000):
            with pytest.raises(BudgetExceeded) as caught:
                llm.invoke("?")
            if caught.value.resource == "joules":
                break
    assert caught.value.resource == "joules"
    assert 19 < account.spent.joules <= 20  # less than a millisecond is left


async def test_a_call_inside_a_call_that_fails_is_charged_to_it():
    """The outer call goes on, and pays for the time of both."""
    inner = slow(strategy="single", watts=100.0, budget=Budget(tokens=5, on_limit="error"))

    class Judge:
        async def score(self, thoughts):
            with contextlib.suppress(BudgetExceeded):
                await inner.ainvoke("?")
            return [0.0] * len(thoughts)

    outer = ChatPareto(
        backend=ScriptedBackend([ANSWER]), strategy=BestOfN(n=2), scorer=Judge(), watts=100.0
    )
    with run_budget("1000000 J") as account:
        await outer.ainvoke("?")
    assert account.spent.joules >= 0.5  # five steps of a millisecond
    assert account.reserved.joules == 0
