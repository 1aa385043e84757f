"""What a strategy may do: draws are paid, capped, ordered, cancelled and scored as the handle promises."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Literal

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import NumericalError, ScorerError, SettingError
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import BestOfN, Single, Strategy, Vote
from langchain_pareto.strategies.drawing import STEP
from langchain_pareto.strategies.record import Lengths
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import Answer

PROMPT = "2+2?"  # 4 tokens
ANSWER = "Answer: 1"  # 9 tokens and the end
SOON = 10  # seconds; a guard against hangs


class Do(Strategy):
    """A strategy written on the spot."""

    kind: Literal["do"] = "do"
    what: Callable[[Search], Awaitable[Answer]]

    async def run(self, search: Search) -> Answer:
        return await self.what(search)


async def ask(what, backend, budget=None, **settings) -> Outcome:
    """Runs `what(search)`; whatever happens, the books are closed and nothing stays behind."""
    account = Account(Budget.parse(budget) if budget else None)
    strategy = what if isinstance(what, Strategy) else Do(what=what)
    try:
        return await run(
            strategy, backend, PROMPT, account=account, settings=Settings(Sampling(), **settings)
        )
    finally:
        assert account.reserved == Cost()
        assert account.spent.tokens == backend.meter.new_tokens
        assert account.spent.flops == backend.meter.flops
        assert account.spent.memory == 0
        assert (backend.branches, backend.live) == (0, [])


async def until(condition) -> None:
    """Lets everybody else run until `condition()`."""
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


def asked(backend) -> list[int]:
    """The cap of each draw, in the order of starting."""
    return [task.asked[1].max_tokens for task in backend.draws]


# --- draws


async def test_sample_is_in_order_of_drawing_and_samples_as_they_finish():
    """However they finish, `sample` sorts by number; `samples` gives each when it is there."""
    backend = ScriptedBackend(["a", "b", "c"], manual=True)
    seen = []

    async def what(search):
        async for thought in search.samples(search.root, 3):
            seen.append(thought.text)  # noqa: PERF401 - to be seen at once
        thoughts = await search.sample(search.root, 3)
        assert [t.text for t in thoughts] == ["a", "b", "c"]
        assert [t.number for t in thoughts] == [4, 5, 6]
        return search.best(thoughts)

    running = asyncio.create_task(ask(what, backend))
    await until(lambda: len(backend.draws) == 3)
    for i, told in ((2, "c"), (0, "ca"), (1, "cab")):
        backend.finish(i)
        await until(lambda told=told: "".join(seen) == told)
    await until(lambda: len(backend.draws) == 6)
    for i in (5, 3, 4):
        backend.finish(i)
    outcome = await running
    assert [t.number for t in outcome.thoughts] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("how", ["break", "close", "raise"])
async def test_leaving_samples_early_cancels_the_rest_and_charges_what_it_took(how):
    """The others end within a step; what they had drawn is on the bill, and they are no thoughts."""
    backend = ScriptedBackend([ANSWER], manual=True)

    async def what(search):
        drawn = search.samples(search.root, 4)
        if how == "close":
            async with contextlib.aclosing(drawn) as drawn:
                async for thought in drawn:
                    return Answer(thought)
        async for thought in drawn:
            if how == "raise":
                raise ZeroDivisionError
            first = Answer(thought)
            break
        return first

    running = asyncio.create_task(ask(what, backend))
    await until(lambda: len(backend.draws) == 4)
    backend.step(3)
    backend.finish(2)
    if how == "raise":
        with pytest.raises(ZeroDivisionError):
            await running
    else:
        outcome = await running
        assert [t.number for t in outcome.thoughts] == [3]
        assert outcome.spent.tokens == 10 + 3 * 3
    assert backend.meter.new_tokens == 10 + 3 * 3


async def test_a_prompt_is_computed_once_for_many_draws():
    """Three draws pay for one prompt, and each for its own pending token."""
    backend = ScriptedBackend([ANSWER])
    outcome = await ask(Single(), backend)
    assert outcome.usage.prompt_tokens == 4
    outcome = await ask(Vote(n=3, adaptive=False), ScriptedBackend([ANSWER]))
    assert outcome.usage.prompt_tokens == 4 - 1 + 3


async def test_a_failing_draw_fails_the_strategy_and_cancels_the_rest():
    """The draw's own error comes out, and what the others had drawn is charged."""
    error = NumericalError("no")
    backend = ScriptedBackend([ANSWER, error, ANSWER], manual=True)
    running = asyncio.create_task(ask(Vote(n=3, adaptive=False), backend))
    await until(lambda: len(backend.draws) == 3)
    backend.step()
    with pytest.raises(NumericalError) as caught:
        await running
    assert caught.value is error
    assert backend.meter.new_tokens == 2


async def test_a_draw_that_cannot_start_gives_its_lease_back():
    """An error before anything ran costs nothing but what ran before."""

    def answers(text: str, i: int) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ask(Vote(n=3), ScriptedBackend(answers), "400 tokens")


# --- money


async def test_the_first_draw_may_take_all_that_is_left():
    """While no length is known, one draw at a time, up to the whole budget, the context or max_tokens."""
    for budget, options, cap in (
        (1000, {}, 1000),
        (10_000, {}, 4092),
        (1000, {"max_tokens": 50}, 50),
    ):
        backend = ScriptedBackend([ANSWER], manual=True)
        running = asyncio.create_task(ask(Vote(n=40), backend, budget, **options))
        await until(lambda backend=backend: backend.draws)
        await asyncio.sleep(0.001)
        fit = min(40, budget // cap) if options else 1
        assert asked(backend) == [cap] * min(fit, 4)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


@pytest.mark.parametrize(
    ("budget", "width", "cap"),
    [(1000, 15, 66), (10 + 15 * 15, 15, 15), (10 + 60, 4, 15), (10 + 59, 3, 19), (10 + 15, 1, 15)],
)
async def test_later_draws_are_capped_and_as_many_run_as_fit(budget, width, cap):
    """After a sample of 10 tokens as many run as what is left holds at 15 each, and share all of it."""
    backend = ScriptedBackend([ANSWER], manual=True)
    vote = Vote(n=16, adaptive=False)
    running = asyncio.create_task(ask(vote, backend, budget))
    await until(lambda: backend.draws)
    backend.finish(0)
    await until(lambda: len(backend.draws) > 1)
    await asyncio.sleep(0.001)
    assert asked(backend)[1:] == [cap] * width
    while not running.done():
        for i in range(len(backend.draws)):
            backend.finish(i)
        await asyncio.sleep(0)
    assert sum(t.finished for t in (await running).thoughts) == min(16, budget // 10)


@pytest.mark.parametrize(("left", "drawn"), [(7, 1), (8, 2), (10, 2), (18, 3)])
async def test_no_draw_starts_with_less_room_than_most_samples_take(left, drawn):
    """The floor is 0.8 of the mean length: 8 tokens after samples of 10."""
    backend = ScriptedBackend([ANSWER])
    outcome = await ask(Vote(n=16, adaptive=False), backend, 10 + left)
    assert len(outcome.thoughts) == drawn
    assert outcome.stopped_by == "tokens"
    assert sum(t.finished for t in outcome.thoughts) == 1 + left // 10


async def test_a_short_first_sample_does_not_silence_the_rest():
    """A sample that was cut at the likely length raises it: with room to spare, the next wave gets to its end."""
    answers = ["Answer: 1", *["some words first, then Answer: 2"] * 20]
    outcome = await ask(Vote(n=12), ScriptedBackend(answers), 4000)
    assert outcome.answer.thought.answer == "2"
    assert sum(t.finished for t in outcome.thoughts) >= 7


async def test_a_draw_waits_for_the_leases_of_others():
    """Two strategies that each ask for all there is go one after the other, and both are served."""
    backend = ScriptedBackend([ANSWER], manual=True)

    async def what(search):
        one, two = await asyncio.gather(search.sample(search.root), search.sample(search.root))
        return search.best(one + two)

    running = asyncio.create_task(ask(what, backend, 100))
    await until(lambda: backend.draws)
    await asyncio.sleep(0.001)
    assert asked(backend) == [100]
    backend.finish(0)
    await until(lambda: len(backend.draws) == 2)
    assert asked(backend) == [100, 90]
    backend.finish(1)
    assert len((await running).thoughts) == 2


async def test_drawing_between_two_samples_cannot_deadlock():
    """A strategy may await another draw inside `async for`: the others' leases end without it."""
    backend = ScriptedBackend([ANSWER], delay=0)

    async def what(search):
        thoughts = []
        async for thought in search.samples(search.root, 3):
            thoughts += [thought, *await search.sample(search.root, 2)]
        return search.best(thoughts)

    async with asyncio.timeout(SOON):
        outcome = await ask(what, backend, 70)
    assert len(outcome.thoughts) == 7
    backend.close()


async def test_a_draw_waits_for_no_money_that_is_gone():
    """What does not fit what is unspent is refused at once."""

    async def what(search):
        assert await search.sample(search.root, 3) == []
        assert search.room.unspent.flops == 100
        return search.best([])

    outcome = await ask(what, ScriptedBackend([ANSWER]), "100 flops")
    assert (outcome.answer, outcome.stopped_by) == (None, "flops")


async def test_calls_alone_are_no_reason_to_cut():
    """A limit on calls buys no tokens: draws are neither capped nor called limited by it."""

    async def what(search):
        assert not search.limited
        return search.best(await search.sample(search.root, 5))

    answers = ["x", "longer than that"]
    outcome = await ask(what, ScriptedBackend(answers), "3 calls")
    assert all(t.finished for t in outcome.thoughts)


async def test_money_is_counted_to_the_nanodollar():
    """What the outcome reports is what the account was charged, draw by draw."""
    backend, account = ScriptedBackend([ANSWER]), Account(Budget(usd=1))
    settings = Settings(Sampling(), usd_per_token=1.23456e-7)
    outcome = await run(Vote(n=7), backend, PROMPT, account=account, settings=settings)
    assert outcome.spent.nanodollars == account.spent.nanodollars > 0


# --- the tree


async def test_steps_join_to_the_text_of_their_tokens():
    """A step keeps the text of its stop; its child goes on from there, and the path's texts are the whole."""
    backend = ScriptedBackend(["one\ntwo", "two\n", "Answer: 3"])

    async def what(search):
        thought = search.root
        while not thought.finished or thought.finish == "step":
            [thought] = await search.sample(thought, until=STEP)
        assert [t.text for t in thought.path] == ["one\n", "two\n", "Answer: 3"]
        tokens = [token for t in thought.path for token in t.tokens]
        assert backend.tokenizer.decode(tokens) == "one\ntwo\nAnswer: 3"
        assert [t.answer for t in thought.path] == [None, None, "3"]
        return Answer(thought)

    outcome = await ask(what, backend)
    assert outcome.answer.thought.answer == "3"


async def test_so_many_tokens_at_a_time():
    """`until` may be a number of tokens; a piece that ran full is not finished, and has no answer."""
    backend = ScriptedBackend(["Answer: 12", "3"])

    async def what(search):
        [piece] = await search.sample(search.root, until=9)
        assert (piece.text, piece.finished, piece.answer) == ("Answer: 1", False, None)
        [rest] = await search.sample(piece, until=5)
        assert (rest.answer, rest.finished) == ("13", True)
        return Answer(rest)

    await ask(what, backend)


async def test_a_thought_knows_what_it_cost_and_how_sure_the_model_was():
    """Tokens, usage, the mean log-probability and the finish are the draw's own."""
    backend = ScriptedBackend([Line(ANSWER, logprob=-0.5), Line("x", ends=False)])
    outcome = await ask(Single(), backend)
    [thought] = outcome.thoughts
    assert (thought.mean_logprob, thought.finish, thought.number) == (-0.5, "eos", 1)
    assert thought.usage.new_tokens == len(thought.tokens) == 10
    assert thought.path == [thought]


async def test_a_sample_that_was_cut_off_has_no_answer():
    """However much it looks like one."""
    backend = ScriptedBackend([Line("Answer: 1. ", ends=False)])
    outcome = await ask(Single(), backend, 40)
    assert outcome.answer.thought.answer is None
    assert not outcome.answer.thought.finished
    assert len(outcome.answer.thought.text) == 40


async def test_children_draw_from_their_own_account_and_the_parents():
    """A child search has keys and an account of its own, and what it spends is its parent's money."""
    backend = ScriptedBackend([ANSWER])

    async def what(search):
        one, two = search.child(), search.child()
        a, b = await one.sample(one.root), await two.sample(two.root)
        assert one.room.unspent == two.room.unspent == search.room.unspent
        assert search.room.unspent.tokens == 80
        assert one._account.spent.tokens == two._account.spent.tokens == 10
        keys = {s.root.branch.key for s in (search, one, two)}
        assert len(keys) == 3
        return search.best(a + b)

    await ask(what, backend, 100)


async def test_a_strategy_may_be_run_many_times():
    """`run(strategy, n)` gives the answers of n runs; those that could draw nothing are missing."""

    async def what(search):
        thoughts = await search.run(Vote(n=3, adaptive=False), 4)
        assert len(thoughts) == len({t.number for t in thoughts}) == 4
        return search.best(thoughts)

    assert len((await ask(what, ScriptedBackend([ANSWER]))).thoughts) == 12

    async def tight(search):
        thoughts = await search.run(Vote(n=3, adaptive=False), 4)
        assert len(thoughts) == 2
        return search.best(thoughts)

    assert len((await ask(tight, ScriptedBackend([ANSWER]), 20)).thoughts) == 2


async def test_warmth_is_the_draws_own():
    """`at_temperature` changes the temperature of what is drawn through it, and of nothing else."""
    backend = ScriptedBackend([ANSWER])

    async def what(search):
        assert search.at_temperature(None) is search
        await search.at_temperature(0.25).sample(search.root)
        return search.best(await search.sample(search.root))

    await ask(what, backend)
    assert [task.asked[0].temperature for task in backend.draws] == [0.25, 1.0]


# --- scores


class Scores:
    """Gives what it was told."""

    def __init__(self, scores) -> None:
        self.scores = scores
        self.seen: list[str] = []

    async def score(self, thoughts) -> list[float]:
        self.seen += [t.text for t in thoughts]
        if isinstance(self.scores, Exception):
            raise self.scores
        return self.scores(thoughts)


async def test_only_what_is_finished_is_scored_and_only_once():
    """A thought that was cut off, or has a score, is not shown to the scorer."""
    backend = ScriptedBackend(["a", Line("b", ends=False), "c"])
    scorer = Scores(lambda thoughts: [float(ord(t.text)) for t in thoughts])

    async def what(search):
        thoughts = await search.sample(search.root, 3)
        await search.score(thoughts)
        await search.score(thoughts)
        assert [t.score for t in thoughts] == [97.0, None, 99.0]
        return search.best(thoughts)

    outcome = await ask(what, backend, scorer=scorer, max_tokens=5)
    assert scorer.seen == ["a", "c"]
    assert outcome.answer.thought.text == "c"


@pytest.mark.parametrize(
    "scores",
    [
        ScorerError("out of order"),
        ZeroDivisionError("a bug in the scorer"),
        lambda _: [1.0],
        lambda thoughts: [1.0] * (1 + len(thoughts)),
        lambda thoughts: [float("nan")] * len(thoughts),
        lambda thoughts: ["good"] * len(thoughts),
        lambda thoughts: [None] * len(thoughts),
    ],
)
async def test_a_scorer_that_fails_is_a_scorer_error(scores):
    """Whatever it raises, or gives instead of one number a thought; what was drawn is paid."""
    backend = ScriptedBackend([ANSWER])

    async def what(search):
        thoughts = await search.sample(search.root, 3)
        await search.score(thoughts)
        return search.best(thoughts)

    with pytest.raises(ScorerError):
        await ask(what, backend, "400 tokens", scorer=Scores(scores))
    assert backend.meter.new_tokens == 30


# --- lengths


def test_lengths():
    """q95 is 1.5 times the mean and no less than the longest; q25 is 0.8 times the mean."""
    lengths = Lengths()
    assert (lengths.q95, lengths.q25) == (None, 1)
    lengths.add(10)
    assert (lengths.q95, lengths.q25) == (15, 8)
    lengths.add(30)
    assert (lengths.q95, lengths.q25) == (30, 16)
    lengths.add(2)
    assert lengths.q95 == 30
    lengths.cut += 30  # longer than 30
    assert (lengths.q95, lengths.q25) == (36, 11)


# --- what an attack once broke


class Twice(Strategy):
    """Draws from one thought in two tasks at once."""

    kind: Literal["twice"] = "twice"

    async def run(self, search):
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(search.sample(search.root, 2)) for _ in range(2)]
        return search.best([t for task in both for t in task.result()])


class Offers(Strategy):
    """Offers its only draw, and returns what `gives` makes of it."""

    kind: Literal["offers"] = "offers"
    bare: bool = False

    async def run(self, search):
        [thought] = await search.sample(search.root)
        search.offer(thought)
        return thought if self.bare else None


async def test_one_thought_can_be_continued_by_several_tasks():
    """Parallel branches are a TaskGroup, also from the same thought."""
    outcome = await ask(Twice(), ScriptedBackend([ANSWER], delay=0.0), "400 tokens")
    assert len(outcome.thoughts) == 4


@pytest.mark.parametrize("bare", [False, True])
async def test_a_strategy_may_return_its_offer_or_a_thought(bare):
    """Nothing, after an offer, is the offer; a bare thought is an answer."""
    outcome = await ask(Offers(bare=bare), ScriptedBackend([ANSWER]))
    assert outcome.answer.thought is outcome.thoughts[0]


async def test_a_draw_of_no_tokens_is_refused():
    """`until` counts from one."""

    class Nothing(Strategy):
        kind: Literal["nothing"] = "nothing"

        async def run(self, search):
            return search.best(await search.sample(search.root, until=0))

    with pytest.raises(SettingError, match="at least 1 token"):
        await ask(Nothing(), ScriptedBackend([ANSWER]))


async def test_a_nested_strategy_offers_nothing_to_the_run():
    """The leader of an inner vote is one sample among others: the answer at the deadline is the vote of all."""

    class Stuck:
        async def score(self, thoughts):
            await asyncio.sleep(60)
            return [0.0] * len(thoughts)

    answers = ["Answer: 1", "Answer: 1", "Answer: 2", "Answer: 1", "Answer: 2", "Answer: 2"]
    outcome = await ask(
        BestOfN(n=3, of=Vote(n=2)), ScriptedBackend(answers), "0.5 s", scorer=Stuck()
    )
    assert len(outcome.thoughts) == 6
    assert outcome.answer.share == pytest.approx(0.5)
