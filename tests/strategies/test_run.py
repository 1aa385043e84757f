"""However a run ends, it answers within its budget, pays for what it took, and leaves nothing behind."""

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.backends.scripted_task import ScriptedTask
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import (
    BudgetExceeded,
    ContextLengthError,
    NumericalError,
    ScorerError,
    SettingError,
)
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import Auto, BestOfN, Single, Strategy, Vote
from langchain_pareto.strategies.record import Lengths, Record
from langchain_pareto.strategies.run import Outcome, anytime, run
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import Answer, NothingDrawn, Thought

PROMPT = "2+2?"  # 4 tokens
ANSWER = "Answer: 1"  # 9 tokens and the end
RUNAWAY = Line("on and on ", ends=False)
PLAIN = Settings(Sampling())
SOON = 10  # seconds; a guard against hangs


class Do(Strategy):
    """A strategy written on the spot."""

    kind: Literal["do"] = "do"
    what: Callable[[Search], Awaitable[Answer]]

    async def run(self, search: Search) -> Answer:
        return await self.what(search)


def account_of(budget: str | int | None) -> Account:
    return Account(Budget.parse(budget) if budget else None)


def at_rest(account: Account, *backends: ScriptedBackend) -> None:
    """The books are closed, and show what the backends' meters show."""
    assert account.reserved == Cost()
    assert account._tree.queue == []
    assert account.spent.tokens == sum(b.meter.new_tokens for b in backends)
    assert account.spent.flops == sum(b.meter.flops for b in backends)
    assert account.spent.memory == 0
    assert account.budget.limits().hold(account.spent)
    for backend in backends:
        assert (backend.branches, backend.live) == (0, [])


async def ask(what, backend, budget=None, settings=PLAIN, **options) -> Outcome:
    """One run on an account of its own, at rest afterwards however it ends."""
    strategy = what if isinstance(what, Strategy) else Do(what=what)
    account = account_of(budget)
    try:
        outcome = await run(
            strategy, backend, PROMPT, account=account, settings=settings, **options
        )
    finally:
        at_rest(account, backend)
    assert outcome.spent.tokens == account.spent.tokens == outcome.usage.new_tokens
    assert outcome.spent.flops == account.spent.flops == outcome.usage.flops
    assert outcome.answer is None or outcome.answer.thought in outcome.thoughts
    return outcome


async def until(condition) -> None:
    """Lets everybody else run until `condition()`."""
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


def thought(number, text="", finish="eos", **fields) -> Thought:
    return Thought("", Thought(""), text, number=number, finish=finish, **fields)


# --- within its budget


BUDGETS = (
    lambda rng: None,
    lambda rng: f"{rng.randint(1, 300)} tokens",
    lambda rng: f"{rng.randint(1, 1500) * 10**6} flops",
    lambda rng: f"{rng.randint(50, 9000)} B",
    lambda rng: f"{rng.randint(1, 400)} tokens, {rng.randint(50, 9000)} B",
    lambda rng: f"{rng.randint(1, 1500) * 10**6} flops, 1 calls",
    lambda rng: f"${rng.randint(1, 300) / 1e6:f}",
    lambda rng: f"{rng.randint(1, 300)} tokens, 60 s",
)
ANSWERS = (
    ANSWER,
    "Answer: 2",
    "so Answer: 3",
    "",
    "I do not know",
    RUNAWAY,
    Line("Answer: 2", -0.1),
)


def some_strategy(rng: random.Random, depth: int = 2) -> Strategy:
    of = some_strategy(rng, depth - 1) if depth and rng.random() < 0.3 else Single()
    return rng.choice(
        [
            Single(),
            Auto(most=rng.randint(1, 9)),
            Vote(n=rng.randint(1, 9), adaptive=rng.random() < 0.5, wave=rng.randint(1, 5), of=of),
            BestOfN(n=rng.randint(1, 6), threshold=rng.choice([None, -0.3, 0.0]), of=of),
        ]
    )


@pytest.mark.parametrize("part", range(4))
async def test_no_call_overruns(part):
    """400 random calls: whatever is asked of whom, spent stays within the limits, and equals the meter."""
    rng = random.Random(part)
    for _ in range(100):
        delay = rng.choice([None, None, 0])
        with ScriptedBackend(rng.choices(ANSWERS, k=5), delay=delay, context_length=400) as backend:
            settings = Settings(
                Sampling(), max_tokens=rng.choice([None, 30]), usd_per_token=1.23456e-7
            )
            outcome = await ask(some_strategy(rng), backend, rng.choice(BUDGETS)(rng), settings)
        limited = outcome.stopped_by not in ("done", "length")
        assert limited or outcome.answer is not None
        assert all(t.answer is None for t in outcome.thoughts if not t.finished)


async def test_one_token_gives_a_partial_text():
    """The least budget still answers: one character, marked as cut off by tokens."""
    for strategy in (Single(), Auto(), Vote(), BestOfN(), BestOfN(of=Vote(n=3))):
        outcome = await ask(strategy, ScriptedBackend([ANSWER]), 1)
        assert outcome.answer.thought.text == "A"
        assert not outcome.answer.thought.finished
        assert outcome.stopped_by == "tokens"


async def test_without_a_token_there_is_no_answer():
    """Where the prompt alone is too much, nothing is drawn."""
    for strategy in (Single(), Auto(), Vote(), BestOfN(), BestOfN(of=Vote(n=3))):
        outcome = await ask(strategy, ScriptedBackend([ANSWER]), "100 flops")
        assert (outcome.answer, outcome.stopped_by, outcome.thoughts) == (None, "flops", ())


@pytest.mark.parametrize(
    ("budget", "resource"),
    [("1 tokens", "tokens"), ("25 tokens", "tokens"), ("100 flops", "flops"), ("60 B", "memory")],
)
async def test_an_error_where_it_was_asked_for(budget, resource):
    """`on_limit="error"` raises with the numbers of what ran out, and the books are closed."""
    with pytest.raises(BudgetExceeded) as caught:
        await ask(Vote(n=9, adaptive=False), ScriptedBackend([ANSWER]), f"{budget}, on error")
    assert caught.value.resource == resource
    assert caught.value.spent <= caught.value.limit
    done = await ask(Single(), ScriptedBackend([ANSWER]), "99 tokens, on error")
    assert done.stopped_by == "done"


async def test_a_callers_own_cap_is_no_limit():
    """`max_tokens` cuts without blaming the budget: the run stopped by length."""
    outcome = await ask(
        Single(), ScriptedBackend([ANSWER]), "99 tokens, on error", Settings(Sampling(), 2)
    )
    assert (outcome.answer.thought.text, outcome.stopped_by) == ("An", "length")


async def test_calls_are_counted():
    """One call a run; where none is left, nothing is opened and BudgetExceeded says so."""
    backend, account = ScriptedBackend([ANSWER]), account_of("2 calls")
    for _ in range(2):
        await run(Single(), backend, PROMPT, account=account, settings=PLAIN)
    with pytest.raises(BudgetExceeded) as caught:
        await run(Single(), backend, PROMPT, account=account, settings=PLAIN)
    assert (caught.value.resource, caught.value.spent, caught.value.limit) == ("calls", 2, 2)
    at_rest(account, backend)


async def test_memory_is_given_back():
    """A run holds the cache of its draws within the limit, and gives it back for the next one."""
    backend, account = ScriptedBackend([ANSWER]), account_of("800 B")
    for _ in range(3):
        outcome = await run(Vote(n=9), backend, PROMPT, account=account, settings=PLAIN)
        assert outcome.answer.thought.answer == "1"
        assert 0 < outcome.spent.memory <= account.peak_memory <= 800
        assert account.spent.memory == 0
    at_rest(account, backend)


async def test_many_runs_share_one_account():
    """Eight runs with room for three worst cases take turns: all answer, none overruns, nobody waits for ever."""
    backend = ScriptedBackend([ANSWER], delay=0)
    settings = Settings(Sampling(), max_tokens=40)
    account = Account(Budget(tokens=120))
    async with asyncio.timeout(SOON):
        outcomes = await asyncio.gather(
            *(run(Single(), backend, PROMPT, account=account, settings=settings) for _ in range(8))
        )
    assert [o.answer.thought.answer for o in outcomes] == ["1"] * 8
    at_rest(account, backend)
    backend.close()


async def test_votes_share_one_account():
    """The same with votes inside votes, on what is left for each."""
    backend = ScriptedBackend([ANSWER, "Answer: 2"], delay=0)
    account = Account(Budget(tokens=500))
    strategies = [Vote(n=4), BestOfN(n=3, of=Vote(n=3)), Auto(), Single()] * 3
    async with asyncio.timeout(SOON):
        outcomes = await asyncio.gather(
            *(run(s, backend, PROMPT, account=account, settings=PLAIN) for s in strategies)
        )
    assert sum(o.spent.tokens for o in outcomes) == account.spent.tokens
    assert all(o.answer is not None for o in outcomes if o.stopped_by == "done")
    at_rest(account, backend)
    backend.close()


# --- in time


async def test_at_the_deadline_the_vote_so_far_counts():
    """What is finished by then votes; what is not is cut, and has no vote."""
    answers = ["Answer: 2", "Answer: 1", "Answer: 2", RUNAWAY, RUNAWAY]
    with ScriptedBackend(answers, delay=0.001) as backend:
        outcome = await ask(Vote(n=5), backend, "0.2 s")
    assert (outcome.answer.thought.answer, outcome.stopped_by) == ("2", "seconds")
    assert outcome.answer.share == pytest.approx(2 / 3)
    assert [t.finished for t in outcome.thoughts] == [True] * 3 + [False] * 2
    assert outcome.seconds < 2


async def test_a_deadline_cuts_a_single_sample():
    """The text so far is the answer."""
    with ScriptedBackend([RUNAWAY], delay=0.001) as backend:
        outcome = await ask(Single(), backend, "0.1 s")
    assert outcome.answer.thought.text.startswith("on")
    assert not outcome.answer.thought.finished
    assert outcome.stopped_by == "seconds"
    with (
        ScriptedBackend([RUNAWAY], delay=0.001) as backend,
        pytest.raises(BudgetExceeded) as caught,
    ):
        await ask(Single(), backend, "0.1 s, on error")
    assert caught.value.resource == "seconds"


async def test_an_offer_survives_a_strategy_that_hangs():
    """At the deadline the last offer is the answer, whatever the strategy was waiting for."""
    backend = ScriptedBackend(["Answer: 1", "Answer: 2"])

    async def what(search):
        first, second = await search.sample(search.root, 2)
        search.offer(first)
        search.offer(second)
        await asyncio.sleep(3600)

    began = time.monotonic()
    outcome = await ask(what, backend, "0.05 s")
    assert time.monotonic() - began < 2
    assert (outcome.answer.thought.answer, outcome.stopped_by) == ("2", "seconds")


async def test_what_was_drawn_survives_a_strategy_that_hangs():
    """Without an offer the leader of what was drawn is the answer."""

    async def what(search):
        await search.sample(search.root, 3)
        await asyncio.sleep(3600)

    outcome = await ask(what, ScriptedBackend(["Answer: 1", "Answer: 2", "Answer: 2"]), "0.05 s")
    assert outcome.answer.thought.answer == "2"


async def test_draws_that_hang_are_cut_at_the_deadline():
    """A backend that says nothing until it is cancelled gives what it has."""
    backend = ScriptedBackend([ANSWER], manual=True)
    running = asyncio.create_task(ask(Vote(n=3), backend, "0.1 s"))
    await until(lambda: len(backend.draws) == 3)
    backend.step(2)
    outcome = await running
    assert [t.text for t in outcome.thoughts] == ["An"] * 3
    assert outcome.stopped_by == "seconds"


async def test_a_draw_that_fails_at_the_deadline_loses_no_answer(monkeypatch):
    """An error while a straggler is cancelled ends the run with that error or an answer, never with a strategy left behind."""
    backend = ScriptedBackend([ANSWER], manual=True)

    def fail(task: ScriptedTask) -> None:
        task.fail(NumericalError("no"))

    ended = []

    async def what(search):
        try:
            [first] = await search.sample(search.root)
            search.offer(first)
            await search.sample(search.root)
        finally:
            ended.append(True)

    running = asyncio.create_task(ask(what, backend, "0.1 s"))
    await until(lambda: backend.draws)
    backend.finish(0)
    await until(lambda: len(backend.draws) == 2)
    monkeypatch.setattr(ScriptedTask, "cancel", fail)
    with pytest.raises(NumericalError):
        await running
    assert ended == [True]


async def test_a_straggler_that_fails_when_it_is_left_loses_no_answer(monkeypatch):
    """Once the strategy has answered, an error of what it left behind is nobody's."""
    backend = ScriptedBackend([ANSWER], manual=True)
    left = []

    async def what(search):
        rest = search.samples(search.root, 2)
        left.append(rest)  # kept alive
        return Answer(await anext(rest))

    running = asyncio.create_task(ask(what, backend))
    await until(lambda: len(backend.draws) == 2)
    monkeypatch.setattr(ScriptedTask, "cancel", lambda task: task.fail(NumericalError("no")))
    backend.finish(0)
    outcome = await running
    assert outcome.answer.thought.answer == "1"
    await left[0].aclose()


# --- errors and cancellation


@pytest.mark.parametrize(
    "strategy",
    [
        Single(),
        Auto(),
        Vote(n=4),
        BestOfN(n=4),
        BestOfN(n=2, of=Vote(n=2)),
        BestOfN(n=2, of=Vote(n=2, of=Vote(n=2))),
    ],
    ids=lambda strategy: strategy.kind,
)
@pytest.mark.parametrize("delay", [None, 0, 0.001])
async def test_a_failing_draw_fails_the_run_with_its_own_error(strategy, delay):
    """However deep the strategies nest, what comes out is the draw's error and no group; the books are closed."""
    error = NumericalError("no")
    with (
        ScriptedBackend([error, RUNAWAY], delay=delay) as backend,
        pytest.raises(NumericalError) as caught,
    ):
        await ask(strategy, backend, "500 tokens")
    assert caught.value is error


async def test_a_group_of_draws_that_could_not_be_paid_is_no_error():
    """A strategy's own task group may end with NothingDrawn: the best so far is the answer."""

    async def what(search):
        search.offer((await search.sample(search.root))[0])
        async with asyncio.TaskGroup() as group:
            group.create_task(Single().run(search))
            group.create_task(Single().run(search))

    outcome = await ask(what, ScriptedBackend([ANSWER]), 10)
    assert (outcome.answer.thought.answer, outcome.stopped_by) == ("1", "tokens")


@pytest.mark.parametrize(
    "strategy",
    [Single(), Vote(n=4), BestOfN(n=3, of=Vote(n=2))],
    ids=lambda strategy: strategy.kind,
)
@pytest.mark.parametrize("budget", [None, 60])
async def test_cancelling_ends_everything(strategy, budget):
    """Whoever cancels a run finds its work ended and paid, and no strategy left behind."""
    backend, account = ScriptedBackend([ANSWER], manual=True), account_of(budget)
    tasks = asyncio.all_tasks()
    running = asyncio.create_task(run(strategy, backend, PROMPT, account=account, settings=PLAIN))
    await until(lambda: backend.draws)
    backend.step(3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    at_rest(account, backend)
    assert asyncio.all_tasks() == tasks
    assert account.spent.tokens == 3 * len(backend.draws)


async def test_cancelling_while_the_engine_is_slow():
    """With a thread of its own the engine ends a step later; the run waits for that."""
    with ScriptedBackend([RUNAWAY], delay=0.01) as backend:
        account = account_of(None)
        running = asyncio.create_task(
            run(Vote(n=4), backend, PROMPT, account=account, settings=PLAIN)
        )
        await until(lambda: backend.meter.new_tokens)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        at_rest(account, backend)


async def test_a_run_that_is_not_admitted_leaves_no_branch():
    """Refused or cancelled at the door, it gives its root back."""
    backend, account = ScriptedBackend([ANSWER]), account_of("1 calls")
    lease = account.try_reserve(Cost(calls=1))
    waiting = asyncio.create_task(run(Single(), backend, PROMPT, account=account, settings=PLAIN))
    await until(lambda: backend.branches)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    lease.commit(lease.cost)
    with pytest.raises(BudgetExceeded):
        await run(Single(), backend, PROMPT, account=account, settings=PLAIN)
    at_rest(account, backend)


async def test_a_bad_prompt_costs_nothing():
    """What the backend raises for a prompt comes before anything is paid."""
    backend, account = ScriptedBackend([ANSWER], context_length=8), account_of("9 calls")
    for prompt, error in (("", SettingError), ("123456789", ContextLengthError)):
        with pytest.raises(error):
            await run(Single(), backend, prompt, account=account, settings=PLAIN)
    assert account.spent == Cost()
    with pytest.raises(ContextLengthError):  # no room for a single token
        await run(Single(), backend, "12345678", account=account, settings=PLAIN)
    at_rest(account, backend)


async def test_a_failing_listener_fails_the_run():
    """`on_thought` hears every draw; what it raises comes out, with the books closed."""
    heard = []
    await ask(Vote(n=3, adaptive=False), ScriptedBackend([ANSWER]), on_thought=heard.append)
    assert [t.number for t in heard] == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        await ask(Vote(n=3), ScriptedBackend([ANSWER]), on_thought=lambda _: 1 / 0)


async def test_text_streams_from_the_first_draw_only():
    """`on_text` hears one sample, the first."""
    heard = []
    settings = Settings(Sampling(), on_text=heard.append)
    await ask(Vote(n=3), ScriptedBackend([ANSWER, "other"]), settings=settings)
    assert "".join(heard) == ANSWER


async def test_a_failing_scorer_closes_the_books():
    """ScorerError comes out as it is."""

    class Broken:
        async def score(self, thoughts):
            raise ScorerError("out of order")

    with pytest.raises(ScorerError):
        await ask(
            BestOfN(n=3), ScriptedBackend([ANSWER]), 300, Settings(Sampling(), scorer=Broken())
        )


async def test_more_is_never_charged_than_was_set_aside(monkeypatch):
    """A backend that takes more than its estimate is an error of ours that nobody can overlook."""
    backend = ScriptedBackend([ANSWER])
    monkeypatch.setattr(backend, "estimate", lambda request: (0, 0))
    with pytest.raises(AssertionError, match="charged"):
        await ask(Single(), backend)


def test_the_books_are_closed_whoever_comes_first():
    """The backend's thread commits and the run ends in any order: 300 runs that are left early hold nothing."""

    async def many() -> None:
        with ScriptedBackend([ANSWER, "Answer: 2"], delay=0) as backend:
            account = Account(Budget(memory=10**6))

            async def what(search):
                return Answer(await anext(search.samples(search.root, 3)))

            async def one(i: int) -> None:
                running = asyncio.create_task(
                    run(Do(what=what), backend, PROMPT, account=account, settings=PLAIN)
                )
                if i % 3 == 0:
                    await asyncio.sleep(0.0005)
                    running.cancel()
                await asyncio.wait({running})
                assert running.cancelled() or running.result().answer is not None

            for i in range(0, 300, 10):
                await asyncio.gather(*(one(j) for j in range(i, i + 10)))
            at_rest(account, backend)

    asyncio.run(many())
    gc.collect()


# --- the answer


def test_the_order_of_what_is_returned_at_the_end():
    """The last offer, else the vote's leader, else the best scored, else the first finished, else the longest text."""
    cut = [thought(1, "long text", "length"), thought(2, "longer text", "deadline")]
    finished = [thought(4, "b"), thought(3, "a")]
    scored = [thought(5, "c", score=0.1), thought(6, "d", score=0.9)]
    voted = [thought(n, answer=a) for n, a in ((7, "x"), (8, "y"), (9, "y"))]

    def end(*thoughts, offer=None):
        answer = anytime(Record(thoughts=list(thoughts), offer=offer))
        return answer and answer.thought.number

    assert end() is None
    assert end(Thought("")) is None  # a draw that never ended
    assert end(*cut) == 2
    assert end(*cut, thought(10, "equal texts", "length")) == 2
    assert end(*cut, *finished) == 3
    assert end(*cut, *finished, *scored) == 6
    assert end(*cut, *finished, *scored, *voted) == 8
    assert end(*cut, *finished, *scored, *voted, offer=Answer(cut[0])) == 1
    assert anytime(Record(thoughts=voted)).share == pytest.approx(2 / 3)


async def test_a_strategy_that_draws_nothing_has_no_answer():
    """NothingDrawn ends a strategy, and is never raised out of a run."""

    async def what(search):
        raise NothingDrawn

    outcome = await ask(what, ScriptedBackend([ANSWER]))
    assert (outcome.answer, outcome.stopped_by, outcome.spent.calls) == (None, "done", 1)


async def test_the_same_seed_gives_the_same_keys():
    """Draws of a run have keys by seed, prompt and place, all different."""

    async def keys(seed: int) -> list[int]:
        backend = ScriptedBackend([ANSWER, "Answer: 2"])
        await ask(BestOfN(n=3, of=Vote(n=3)), backend, seed=seed)
        return [task.branch.key for task in backend.draws]

    first, again, other = await keys(1), await keys(1), await keys(2)
    assert first == again
    assert len({*first, *other}) == 2 * len(first)


def test_lengths_are_shared_by_a_run():
    """A record starts with nothing known."""
    assert Record().lengths == Lengths()
