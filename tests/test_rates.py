"""Budgets in usd and joules: what they need, what they charge, and who waits for whom."""

import asyncio
import contextlib
import contextvars
import time
from concurrent.futures import ThreadPoolExecutor

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
from langchain_pareto.errors import ScorerError, SettingError

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


class Busy(ScriptedBackend):
    """One whose device is busy with a request for as long as it runs."""

    def forget(self, task):
        task.usage.device_seconds = task.usage.wall_seconds
        super().forget(task)


def busy(length=20, **fields):
    """A model that takes at least a millisecond of its device for each character."""
    backend = Busy(["x" * length], delay=0.001)
    return ChatPareto(**{"backend": backend, "strategy": "single"} | fields)


LIMITS = {"watts": ("20 J", "1000000 J"), "usd_per_hour": ("$0.002", "$100")}  # 0.2 s, and hours
RATES = [{"watts": 100.0}, {"usd_per_hour": 36.0}]


def paid(thing):
    """Joules or usd of an account or of a report, whichever there are."""
    if isinstance(thing, dict):
        return thing.get("joules", 0.0) + thing.get("usd", 0.0)
    return thing.spent.joules + thing.spent.usd


def reported(message):
    """What a call says that it took."""
    return paid(message.response_metadata["pareto"]["spent"])


async def until(fact):
    """Lets the loop go on until this is so."""
    for _ in range(100_000):
        if fact():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never is")


class Asks:
    """A scorer that runs `ask` for the first thought that it sees."""

    def __init__(self, ask):
        self.ask = ask

    async def score(self, thoughts):
        if (ask := self.ask) is not None:
            self.ask = None
            await ask()
        return [0.0] * len(thoughts)


def scored_by(ask, **fields):
    """A model whose calls run `ask` while they are scored."""
    return busy(strategy=BestOfN(n=2), scorer=Asks(ask), **fields)


@pytest.mark.parametrize("around", [True, False])
@pytest.mark.parametrize("rate", RATES)
async def test_a_budget_inside_a_call_limits_what_it_is_for(rate, around):
    """That of a call inside a call, or one opened by a scorer, ends the inner call, and is charged."""
    little, much = LIMITS[next(iter(rate))]
    long = busy(3000, **rate)
    inner = []

    async def ask():
        with run_budget(little) if around else contextlib.nullcontext() as account:
            inner.append((account, await long.ainvoke("?", budget=None if around else little)))

    with run_budget(much) as outer:
        await scored_by(ask, **rate).ainvoke("?")
    ((account, message),) = inner
    assert message.response_metadata["pareto"]["stopped_by"] == "seconds"
    assert 0 < len(message.text) < 3000
    assert paid(outer) > 0
    if account is not None:
        limit = account.budget.joules or account.budget.usd
        assert 0 < paid(account) <= limit
        assert account.reserved == Cost()


@pytest.mark.parametrize("rate", RATES)
async def test_each_account_around_a_call_inside_a_call_is_charged_once(rate):
    """However deep: the outermost pays for all calls, one in the middle for those inside it."""
    much = LIMITS[next(iter(rate))][1]
    innermost, middle, accounts = [], [], []

    async def ask_again():
        innermost.append(await busy(**rate).ainvoke("?"))

    async def ask():
        with run_budget(much) as account:
            middle.append(await scored_by(ask_again, **rate).ainvoke("?"))
            accounts.append(account)

    with run_budget(much) as outer:
        message = await asyncio.wait_for(scored_by(ask, **rate).ainvoke("?"), 60)
    inside = reported(innermost[0]) + reported(middle[0])
    assert reported(innermost[0]) > 0
    assert paid(accounts[0]) == pytest.approx(inside, abs=1e-8)
    assert paid(outer) == pytest.approx(inside + reported(message), abs=1e-8)
    assert outer.reserved == accounts[0].reserved == Cost()


async def test_calls_side_by_side_inside_a_call_wait_for_each_other():
    """Under one budget in joules, opened inside: each has what the other leaves."""
    inner, accounts = busy(watts=100.0), []

    async def ask():
        with run_budget("1000 J") as account:
            messages = await inner.abatch(["?"] * 3)
        accounts.append((account, sum(map(reported, messages))))

    with run_budget("1000000 J"):
        await asyncio.wait_for(scored_by(ask, watts=100.0).ainvoke("?"), 60)
    account, told = accounts[0]
    assert account.spent.joules == pytest.approx(told)
    assert account.reserved.joules == 0


async def test_a_spent_budget_inside_a_call_refuses_the_next():
    """With its own numbers, while the outer one has plenty."""
    inner, errors = chat(watts=1.0), []

    async def ask():
        with run_budget("0.001 J") as account:
            account.try_reserve(_joules(0.001)).commit(_joules(0.001))
            with pytest.raises(BudgetExceeded) as caught:
                await inner.ainvoke("?")
        errors.append(caught.value)

    with run_budget("1000000 J") as outer:
        await scored_by(ask, watts=1.0).ainvoke("?")
    assert (errors[0].resource, errors[0].limit) == ("joules", 0.001)
    assert outer.reserved.joules == 0


@pytest.mark.parametrize("begins", ["inside", "after"])
async def test_what_outlives_the_call_that_began_it_is_charged(begins):
    """A task of a scorer, whether its own call begins while it is scored for, or after that."""
    drawing, over, tasks = asyncio.Event(), asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def say(text, number):
        loop.call_soon_threadsafe(drawing.set)
        return "x" * 99

    late = busy(backend=Busy(say, delay=0.001), watts=100.0)

    async def later():
        if begins == "after":
            await over.wait()
        return await late.ainvoke("?")

    async def ask():
        tasks.append(asyncio.create_task(later()))
        if begins == "inside":
            await drawing.wait()

    with run_budget("1000 J") as account:
        message = await scored_by(ask, watts=100.0).ainvoke("?")
        assert not tasks[0].done()
        over.set()
        left = await asyncio.wait_for(tasks[0], 60)
    assert len(left.text) == 99
    assert account.spent.joules == pytest.approx(reported(message) + reported(left))
    assert account.reserved.joules == 0


@pytest.mark.parametrize("door", ["invoke", "batch", "stream"])
async def test_a_sync_call_does_not_wait_for_one_that_waits_for_it(door):
    """It blocks the loop on which the other one holds the joules: it is told to await instead."""
    llm = chat(watts=100.0)
    ask = {
        "invoke": lambda: llm.invoke("?"),
        "batch": lambda: llm.batch(["?"]),
        "stream": lambda: list(llm.stream("?")),
    }[door]
    with run_budget("1000 J") as account:
        task = asyncio.create_task(busy(watts=100.0).ainvoke("?"))
        await until(lambda: account.reserved.joules)
        with pytest.raises(SettingError, match="event loop") as caught:
            ask()
        assert "ainvoke" in caught.value.hint
        await task
        assert ask()  # nobody is in the way now
    assert account.reserved.joules == 0


async def test_a_sync_call_does_not_wait_behind_one_that_waits_for_it():
    """Nor in a queue: whoever holds the joules would leave them to a call that cannot go on."""
    llm = chat(watts=100.0)
    with run_budget("1000 J") as account:
        lease = account.try_reserve(_joules(1000))
        task = asyncio.create_task(llm.ainvoke("?"))
        await until(lambda: account._tree.queue)
        with pytest.raises(SettingError, match="event loop"):
            llm.invoke("?")
        lease.cancel()
        assert (await task).text == ANSWER


async def test_a_sync_call_in_a_loop_waits_for_all_others():
    """Its own batch, and a call of another thread, go on while its loop is blocked."""
    llm = busy(watts=100.0)
    with run_budget("1000 J") as account, ThreadPoolExecutor(1) as pool:
        assert len(llm.batch(["?"] * 3)) == 3
        other = pool.submit(contextvars.copy_context().run, llm.invoke, "?")
        while not account.reserved.joules and not other.done():
            pass
        assert llm.invoke("?").text == other.result(60).text
    assert account.reserved.joules == 0
