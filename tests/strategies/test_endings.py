"""However a run of any strategy ends, it gives the best answer so far or a clear error, and leaves nothing behind."""

import asyncio
import json
import re
import time

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.call import Call, Draws, respond
from langchain_pareto.errors import (
    BudgetExceeded,
    CapacityError,
    ContextLengthError,
    ParetoError,
    ScorerError,
)
from langchain_pareto.ledger import Account
from langchain_pareto.messages import HumanMessage
from langchain_pareto.strategies import Rebase, Strategy, Vote, _kinds, parse_strategy
from langchain_pareto.strategies.process_reward import ProcessReward, RewardFormat
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.settings import Role, Settings

PROMPT = "2+2?"
REWARD = ProcessReward(format=RewardFormat(good="+", bad="-", after="\n"))


def nesting(kind: type[Strategy], of: Strategy) -> Strategy:
    """A small strategy of others."""
    return kind(of=of, **({"n": 3} if "n" in kind.model_fields else {}))


EVERY = [
    *[kind() for kind in _kinds],
    *[
        nesting(kind, of)
        for of in (Vote(n=3), Rebase(n=2))
        for kind in _kinds
        if "of" in kind.model_fields
    ],
]


def named(strategy) -> str:
    return ".".join([strategy.kind, *([strategy.of.kind] if hasattr(strategy, "of") else [])])


every = pytest.mark.parametrize("strategy", EVERY, ids=named)


def says(text: str, i: int) -> str:
    """Two steps and an answer; whoever is asked for something else gets a list and every kind of judgement."""
    if not re.fullmatch(r"2\+2\?\n?((step|then|so).*\n)*[^\n]*", text):
        return f"so Answer: 1\n1. one part\n2. another\nBest: 1\nBetter: A\nScore: {i % 10}"
    *done, begun = text.removeprefix(PROMPT).removeprefix("\n").split("\n")
    lines = [line.format(i % 3) for line in ("step {}\n", "then {}\n", "so Answer: {}")]
    return "".join(lines[len(done) :])[len(begun) :]


class Clock:
    """Time as a test wants it; later than any that the engine looks at."""

    def __init__(self) -> None:
        self.now = time.monotonic() + 1e6

    def __call__(self) -> float:
        return self.now


async def end(strategy, backend, budget=None, account=None, reward=None, **settings) -> Outcome:
    """The outcome of a run; however it ends, the books are closed, equal the meters, and nothing stays behind."""
    account = account or Account(Budget.parse(budget) if budget else None)
    backends = [backend] if reward is None else [backend, reward]
    roles = {}
    if reward is not None:
        render = reward.tokenizer.encode_prompt
        roles["scorer"] = Role(reward, Sampling(), lambda: render(PROMPT), render)
    tasks = asyncio.all_tasks()
    try:
        outcome = await run(
            strategy,
            backend,
            PROMPT,
            question=PROMPT,
            account=account,
            settings=Settings(Sampling(), roles=roles, **settings),
        )
    finally:
        assert account.reserved == Cost()
        assert account._tree.queue == []
        assert account.spent.tokens == sum(one.meter.new_tokens for one in backends)
        assert account.spent.flops == sum(one.meter.flops for one in backends)
        assert account.spent.memory == 0
        assert account.budget.limits().hold(account.spent)
        assert [(one.branches, one.live) for one in backends] == [(0, [])] * len(backends)
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == tasks
    assert outcome.spent.tokens == account.spent.tokens == outcome.usage.new_tokens
    assert outcome.spent.flops == account.spent.flops == outcome.usage.flops
    assert outcome.answer is None or outcome.answer.thought in outcome.thoughts
    return outcome


async def attempt(*args, **settings) -> tuple[Outcome | None, ParetoError | None]:
    """The outcome of a run, or what it raised; nothing but our own errors comes out."""
    try:
        return await end(*args, **settings), None
    except ParetoError as error:
        return None, error


def is_best_so_far(outcome) -> bool:
    """Whether there is an answer if one was drawn, and else a text if any was; nothing said aside."""
    own = [t for t in outcome.thoughts if not t.aside and not t.given]
    if outcome.answer is None:
        return not own
    thought = outcome.answer.thought
    return not thought.aside and (thought.answer is not None or all(t.answer is None for t in own))


# --- out of budget


@every
@pytest.mark.parametrize("tokens", [1, 7, 25, 60, 150])
async def test_out_of_tokens(strategy, tokens):
    """Any budget gives at least a text, and an answer if one was drawn."""
    outcome = await end(strategy, ScriptedBackend(says), tokens)
    assert outcome.thoughts
    assert is_best_so_far(outcome)
    assert outcome.stopped_by in ("tokens", "done", "length")
    if outcome.stopped_by == "done":
        assert outcome.answer.thought.answer is not None


@every
@pytest.mark.parametrize("share", [0.001, 0.1, 0.8])
async def test_out_of_flops(strategy, share):
    """The scorer's work counts; without any room there is no answer, and no error."""
    reward = ScriptedBackend(["unheard"])
    done = await end(strategy, ScriptedBackend(says), None, reward=reward, scorer=REWARD)
    flops = round(share * done.spent.flops)
    reward = ScriptedBackend(["unheard"])
    outcome = await end(
        strategy, ScriptedBackend(says), f"{flops} flops", reward=reward, scorer=REWARD
    )
    assert is_best_so_far(outcome)
    assert outcome.stopped_by in ("flops", "done")


@every
@pytest.mark.parametrize("memory", [50, 1000])
async def test_out_of_memory(strategy, memory):
    """What is held at once stays within the limit."""
    account = Account(Budget(memory=memory))
    outcome = await end(strategy, ScriptedBackend(says), account=account)
    assert is_best_so_far(outcome)
    assert account.peak_memory <= memory


@every
async def test_a_deadline_in_the_past(strategy):
    """Nothing is drawn, and the error says why."""
    clock = Clock()
    account = Account(Budget(seconds=5), clock=clock)
    clock.now += 6
    with pytest.raises(BudgetExceeded, match="6 of 5 seconds") as caught:
        await end(strategy, ScriptedBackend(says), account=account)
    assert (caught.value.resource, account.spent.tokens) == ("seconds", 0)


@every
@pytest.mark.parametrize("after", [1, 2, 5, 12])
async def test_out_of_seconds(strategy, after):
    """Once so many draws have started, there is no time for another."""
    clock = Clock()
    account = Account(Budget(seconds=1000), clock=clock)

    def slow(text, i):
        clock.now += 2000 * (len(backend.draws) == after - 1)
        return says(text, i)

    backend = ScriptedBackend(slow)
    outcome = await end(strategy, backend, account=account)
    assert outcome.thoughts
    assert is_best_so_far(outcome)
    assert outcome.stopped_by == ("seconds" if account.expired else "done") or not any(
        outcome.refused.takes()
    )


# --- stopped from outside


@every
@pytest.mark.parametrize("at", [0, 1, 4, 11])
async def test_cancelled(strategy, at):
    """Wherever it is: the cancellation comes out, and nothing goes on."""
    asked = []

    def cancel(text, i):
        asked.append(text)
        if len(asked) == at + 1:
            running.cancel()
        return says(text, i)

    backend = ScriptedBackend(cancel)
    running = asyncio.create_task(end(strategy, backend))
    if await asyncio.wait({running}) and len(asked) <= at:
        assert running.result().answer is not None  # it was done before
        return
    assert running.cancelled()


@every
@pytest.mark.parametrize("delay", [0, 0.0005])
async def test_cancelled_while_the_engine_is_at_work(strategy, delay):
    """With a thread of its own, which ends a step later."""
    with ScriptedBackend(says, delay=delay) as backend:
        running = asyncio.create_task(end(strategy, backend))
        while not backend.draws and not running.done():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


# --- failures


class Fails:
    """A scorer that raises at its call of this number."""

    def __init__(self, at: int, error: Exception) -> None:
        self.calls, self._at, self._error = 0, at, error

    async def score(self, thoughts):
        self.calls += 1
        if self.calls > self._at:
            raise self._error
        return [0.5] * len(thoughts)


@every
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("error", [ScorerError("no"), ZeroDivisionError("no")], ids=repr)
async def test_the_scorer_raises(strategy, at, error):
    """ScorerError, with what happened in its words; a strategy that does not score does not care."""
    scorer = Fails(at, error)
    outcome, caught = await attempt(strategy, ScriptedBackend(says), scorer=scorer)
    assert (caught is not None) == (scorer.calls > at)
    if outcome is not None:
        assert outcome.answer.thought.answer is not None
    else:
        assert isinstance(caught, ScorerError)
        assert "no" in str(caught)


@every
@pytest.mark.parametrize("at", [0, 1, 4, 11])
async def test_a_draw_fails(strategy, at):
    """With the error of that draw itself, however many run beside it and however deep strategies nest."""
    error = CapacityError("full", needed=2, free=1, kind="slots")
    count = []

    def fail(text, i):
        count.append(i)
        return error if len(count) == at + 1 else says(text, i)

    backend = ScriptedBackend(fail)
    outcome, caught = await attempt(strategy, backend)
    assert caught is (error if len(count) > at else None)
    assert outcome is None or outcome.answer.thought.answer is not None


@every
@pytest.mark.parametrize("text", ["on and on ", "x\n"], ids=repr)
@pytest.mark.parametrize("limits", [{"max_tokens": 30}, {"context": 60}, {"budget": 200}], ids=str)
async def test_the_model_never_ends(strategy, text, limits):
    """One of its texts, marked as cut off; no error, and never more than it may have."""
    limits = dict(limits)
    context, budget = limits.pop("context", 4000), limits.pop("budget", None)
    backend = ScriptedBackend([Line(text, ends=False)], context_length=context)
    outcome, error = await attempt(strategy, backend, budget, **limits)
    if error is not None:  # a prompt of the strategy's own may be longer than such a context
        assert context == 60
        assert isinstance(error, ContextLengthError)
        return
    thought = outcome.answer.thought
    assert (thought.answer, thought.finished) == (None, False)
    assert thought.length <= min(limits.get("max_tokens", 10**6), context)
    assert not thought.aside


@every
async def test_the_model_writes_no_answer(strategy):
    """Prose that ends is the answer where there is nothing better; a judge that says nothing readable is an error that quotes it."""
    outcome, error = await attempt(strategy, ScriptedBackend(["I do not know", "Nor do I"]))
    if error is not None:
        assert "judgements could be read; the first reads: 'I do not know'" in str(error)
        return
    assert outcome.answer.thought.text in ("I do not know", "Nor do I")
    assert outcome.answer.thought.answer is None


@every
async def test_the_model_says_nothing_at_all(strategy):
    """An end at once is an empty text; an empty judgement is an error."""
    outcome, error = await attempt(strategy, ScriptedBackend([""]))
    if error is not None:
        assert "judgements could be read" in str(error)
        return
    assert outcome.answer.thought.text == ""


# --- the same again


async def report(strategy, **settings) -> str:
    """The whole report as JSON, but for what was measured."""
    call = Call(strategy=strategy, draws=Draws(seed=7), **settings)
    reply = await respond(call, ScriptedBackend(says), [HumanMessage(PROMPT)])
    metadata = reply.message().response_metadata
    for measured in ("seconds", "device_seconds"):
        metadata["pareto"]["spent"].pop(measured)
    return json.dumps(metadata, allow_nan=False)


@every
@pytest.mark.parametrize("tokens", [None, 60, 200])
async def test_same_seed_same_report(strategy, tokens):
    """Byte for byte, but for measured times; and it is JSON, which has no NaN."""
    budget = None if tokens is None else Budget(tokens=tokens)
    first, second = [await report(strategy, budget=budget) for _ in range(2)]
    assert first == second
    reward = ScriptedBackend(["unheard"])
    settings = {"budget": budget, "scorer": REWARD, "roles": {"scorer": reward}}
    first, second = [await report(strategy, **settings) for _ in range(2)]
    assert first == second


@every
def test_every_strategy_goes_through_json(strategy):
    """As its text, as plain data, and by its name."""
    text = strategy.model_dump_json()
    for again in (text, json.loads(text)):
        assert parse_strategy(again) == strategy
    assert parse_strategy(strategy.kind) == type(strategy)()
    assert hash(parse_strategy(text)) == hash(strategy)
