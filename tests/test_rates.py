"""Budgets in usd and joules: what they need, what they charge, and who waits for whom."""

import asyncio

import pytest

from langchain_pareto import BestOfN, BudgetError, BudgetExceeded, ChatPareto, run_budget
from langchain_pareto.backends.scripted import ScriptedBackend

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
    from langchain_pareto import Cost

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
