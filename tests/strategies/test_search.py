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
from langchain_pareto.errors import (
    ContextLengthError,
    NumericalError,
    ScorerError,
    SettingError,
)
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import BestOfN, Single, Strategy, Vote
from langchain_pareto.strategies.record import Lengths
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Role, Settings
from langchain_pareto.strategies.steps import Steps
from langchain_pareto.strategies.thoughts import Answer
from langchain_pareto.strategies.until import STEP

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


# --- many thoughts at once, step by step


def goes_on(whole: str):
    """A model that has `whole` to say, however far it has come."""
    return lambda text, _: whole[len(text) - len(PROMPT) :]


async def test_expand_continues_several_thoughts_in_their_order():
    """A thought may be named several times; however they finish, the result is in the order of the names."""
    steps = ["a\n", "b\n"]
    backend = ScriptedBackend(
        lambda text, i: steps[i] if text == PROMPT else f"{text[-2]}{i}\n", manual=True
    )

    async def what(search):
        a, b = await search.sample(search.root, 2, STEP)
        drawn = await search.expand([b, a, b, search.root, a])
        assert [t.parent for t in drawn] == [b, a, b, search.root, a]
        assert [t.text for t in drawn] == ["b2\n", "a3\n", "b4\n", "steps", "a6\n"]
        assert await search.expand([]) == []
        return Answer(drawn[0])

    steps += [""] * 3 + ["steps"]
    running = asyncio.create_task(ask(what, backend))
    for numbers in ((1, 0), (6, 4, 2, 5, 3)):
        await until(lambda numbers=numbers: len(backend.draws) > max(numbers))
        for i in numbers:
            backend.finish(i)
    await running


async def test_several_thoughts_share_what_is_left_in_order():
    """Where not all can be paid for, the first named are drawn."""

    async def what(search):
        a, b = await search.sample(search.root, 2, STEP)
        drawn = await search.expand([b, a, b, a])
        assert [t.parent for t in drawn if t.whole] == [b, a]
        return Answer(drawn[0])

    outcome = await ask(what, ScriptedBackend(["aaaaaaaa\n"]), 4 * 9 + 2)
    assert outcome.stopped_by == "tokens"


@pytest.mark.parametrize("length", [1, 62, 63, 64, 65, 127, 128, 129, 300])
@pytest.mark.parametrize("end", ["\n", "\n\n", "STOP"])
async def test_a_step_longer_than_reserved_goes_on(length, end):
    """The same text as in one piece, wherever the piece ends: in its end, before it, or in a stop string of the caller's."""
    whole = "x" * length + end + "next\n\nand so on"
    settings = {"stop": ("STOP",), "steps": Steps(delimiters=(end,))} if end != "STOP" else {}
    settings = settings or {"stop": ("STOP",)}
    texts = []

    async def what(search):
        thought = search.root
        for _ in range(2):
            drawn = await search.sample(thought, until=STEP)
            if not drawn or thought.finished:
                break
            [thought] = drawn
            texts.append((thought.text, thought.finish))
            assert len(thought.tokens) == len(thought.logprobs)
        return Answer(thought)

    free = await ask(what, ScriptedBackend(goes_on(whole)), **settings)
    in_one, texts = texts.copy(), []
    backend = ScriptedBackend(goes_on(whole))
    tight = await ask(what, backend, 2000, **settings)
    assert texts == in_one
    assert in_one[0] == (("x" * length, "stop") if end == "STOP" else ("x" * length + end, "step"))
    assert tight.spent.tokens == free.spent.tokens
    assert len(backend.draws) > (length > 64)
    assert tight.usage.new_tokens == sum(len(t.tokens) for t in tight.thoughts)


async def test_a_stop_may_begin_in_the_step_before():
    """A stop string of the caller's that holds the end of a step ends the answer, as in one piece, and is no part of it."""
    whole = "one\ntwo\nUser: more\n"
    stop, texts = ("\nUser:",), []

    async def what(search):
        thought = search.root
        while not thought.finished:
            [thought] = await search.sample(thought, until=STEP)
            texts.append(thought.text)
        [rest] = await search.sample(thought.parent)  # in one piece from there
        assert (rest.text, rest.finish) == ("", "stop")
        return Answer(thought)

    outcome = await ask(what, ScriptedBackend(goes_on(whole)), stop=stop)
    assert texts == ["one\n", "two\n", ""]
    assert outcome.answer.thought.finish == "stop"
    in_one = await ask(Single(), ScriptedBackend(goes_on(whole)), stop=stop)
    assert in_one.answer.thought.text == "one\ntwo"


async def test_an_answer_after_a_step_keeps_what_only_looked_like_a_stop():
    """The end of the step is not said twice, nor lost."""
    texts = []

    async def what(search):
        [step] = await search.sample(search.root, until=STEP)
        [rest] = await search.sample(step)
        texts.extend([step.text, rest.text])
        return Answer(rest)

    await ask(what, ScriptedBackend(goes_on("one\nUse it")), stop=("\nUser:",))
    assert texts == ["one\n", "Use it"]


@pytest.mark.parametrize("budget", [None, 1000])
async def test_max_tokens_are_of_the_whole_path(budget):
    """Steps share them; a path that has them all is not continued, by a step, an answer or a number of tokens."""

    async def what(search):
        thought, lengths = search.root, []
        while drawn := await search.sample(thought, until=STEP):
            [thought] = drawn
            lengths.append(thought.length)
        assert lengths == [3, 6, 7]
        assert (thought.whole, thought.finish) == (False, "length")
        for until_ in (STEP, "answer", 5):
            assert await search.expand([thought, search.root], until_) != []
            assert await search.sample(thought, 2, until_) == []
        return Answer(thought)

    outcome = await ask(what, ScriptedBackend(goes_on("ab\n" * 9)), budget, max_tokens=7)
    assert outcome.stopped_by == "length"


async def test_a_full_context_is_not_continued():
    """However it came about; a prompt that fills the context by itself is the backend's to refuse."""

    async def what(search):
        [thought] = await search.sample(search.root, until=STEP)
        assert (thought.finish, thought.whole) == ("step", True)
        assert await search.sample(thought) == []
        return Answer(thought)

    await ask(what, ScriptedBackend(["ab\n"], context_length=7))
    with pytest.raises(ContextLengthError):
        await ask(Single(), ScriptedBackend(["ab"], context_length=4))


async def test_what_is_dropped_gives_its_memory_back():
    """At once, and only once; its relatives keep theirs."""

    async def what(search):
        [step] = await search.sample(search.root, until=STEP)
        held = search.room.unspent.memory
        a, b = await search.expand([step, step])
        assert search.room.unspent.memory == held - 16 * 2 * (
            4 + 1
        )  # and the pending token of each
        search.drop([a])
        assert search.room.unspent.memory == held - 16 * (4 + 1)
        search.drop([a, b])
        search.drop([a, b])
        assert search.room.unspent.memory == held
        [more] = await search.sample(step)
        return Answer(more)

    backend = ScriptedBackend(["one\n", "abcd\n"[:3] + "\n"])
    outcome = await ask(what, backend, "4000 B", steps=Steps())
    assert outcome.spent.memory > 0


# --- other prompts, other models


async def ask_roles(what, policy, **roles) -> Outcome:
    """As `ask`, with models for other roles, which write back what they are."""
    account = Account()
    players = {
        name: Role(one, one.sampling, lambda: [ord("Q")], one.tokenizer.encode_prompt)
        for name, one in roles.items()
    }
    settings = Settings(Sampling(), roles=players)
    try:
        return await run(
            Do(what=what), policy, PROMPT, question="q", account=account, settings=settings
        )
    finally:
        backends = [policy, *roles.values()]
        assert account.reserved == Cost()
        assert account.spent.tokens == sum(one.meter.new_tokens for one in backends)
        assert [(one.branches, one.live) for one in backends] == [(0, [])] * len(backends)


async def test_what_is_asked_aside_is_never_the_answer():
    """However good it looks, and though nothing else was drawn."""

    async def what(search):
        [aside] = await search.ask("who?", n=1)
        assert (aside.text, aside.aside, aside.answer) == ("Answer: 9", True, None)
        assert aside.question == search.root.question
        # nothing: the best so far

    outcome = await ask(what, ScriptedBackend(["Answer: 9"]))
    assert (outcome.answer, len(outcome.thoughts)) == (None, 1)

    async def both(search):
        await search.sample(search.root)
        await search.ask("who?", n=5)

    outcome = await ask(both, ScriptedBackend(lambda text, _: "3" if text == PROMPT else ANSWER))
    assert outcome.answer.thought.text == "3"


async def test_the_same_question_twice_is_two_samples():
    """One prompt is one root of the model's, whose draws have keys of their own."""
    backend = ScriptedBackend(["a", "b", "c", "d"])
    keys = set()

    async def what(search):
        texts = []
        for n in (1, 2):
            for thought in await search.ask("who?", n=n):
                texts.append(thought.text)
                keys.add(thought.branch.key)
        [other] = await search.ask("what?")
        keys.add(other.branch.key)
        assert texts == ["a", "b", "c"]
        assert other.text == "a"  # another prompt, another root
        return search.best(await search.sample(search.root))

    await ask(what, backend)
    assert len(keys) == 4


async def test_a_role_has_its_own_model_and_sampling():
    """Whoever is not named is the policy; `as_role` puts this question, `on` another, and both may be answers."""
    warm = Sampling(temperature=0.25)
    large = ScriptedBackend(["Answer: L"], name="large", sampling=warm)
    judge = ScriptedBackend(["fine"], name="judge")
    policy = ScriptedBackend(["Answer: P"])

    async def what(search):
        own = search.as_role("large")
        [dear] = await own.sample(own.root)
        assert (dear.text, dear.role, dear.aside) == ("Answer: L", "large", False)
        assert own.as_role("large") is own
        nobody = search.as_role("nobody")
        assert nobody is search
        [said] = await search.ask("who?", max_tokens=3, temperature=0.5)
        assert (said.text, said.role, said.aside) == ("fin", "judge", True)
        [asked] = await search.ask("who?", role="critic")
        assert (asked.text, asked.role) == ("Answer: P", "policy")
        other = search.on("another way", role="large")
        [more] = await other.sample(other.root)
        assert (more.role, more.aside, more.answer) == ("large", False, "L")
        return Answer(dear)

    outcome = await ask_roles(what, policy, large=large, judge=judge)
    assert outcome.answer.thought.answer == "L"
    assert [task.asked[0].temperature for task in large.draws] == [0.25, 0.25]
    assert [task.asked[0].temperature for task in judge.draws] == [0.5]
    assert [task.asked[1].max_tokens for task in judge.draws] == [3]
    assert [
        backend.tokenizer.decode(t.branch.tokens)[:11]
        for backend, t in (
            (large, large.draws[0]),
            (large, large.draws[1]),
            (judge, judge.draws[0]),
        )
    ] == ["QAnswer: L", "another way", "who?fin"]


async def test_an_unknown_player_is_a_setting_error():
    """With the keyword that names one."""

    async def what(search):
        search.player("judge")

    with pytest.raises(SettingError, match="no model plays the role 'judge'"):
        await ask(what, ScriptedBackend([ANSWER]))


@pytest.mark.parametrize("value", [1, True, [1, 0], [], (0.5,)], ids=repr)
async def test_a_run_scorer_may_give_whole_numbers(value):
    """A score is a number, a step's too; nothing of it is a crash."""

    class Counts:
        async def score_in(self, search, thoughts):
            return [value] * len(thoughts)

    outcome = await ask(BestOfN(n=2), ScriptedBackend([ANSWER]), scorer=Counts())
    expected = value if isinstance(value, int) else value[-1] if value else float("-inf")
    assert outcome.answer.thought.score == expected


async def test_a_run_scorers_group_of_errors_is_one_error():
    """The first that is no group: its own kind if it is one of ours."""

    class Fails:
        def __init__(self, error) -> None:
            self.error = error

        async def score_in(self, search, thoughts):
            raise ExceptionGroup("many", [ExceptionGroup("few", [self.error])])

    with pytest.raises(ScorerError, match="ZeroDivisionError: none"):
        await ask(BestOfN(n=2), ScriptedBackend([ANSWER]), scorer=Fails(ZeroDivisionError("none")))
    with pytest.raises(NumericalError, match="nan"):
        await ask(BestOfN(n=2), ScriptedBackend([ANSWER]), scorer=Fails(NumericalError("nan")))


async def test_what_says_the_same_is_as_likely():
    """Rows of a batch are rounded apart, and that decides nothing; what differs by more is another model's doing, and stays."""
    lines = [Line("Answer: 1", logprob) for logprob in (-1.0, -1.01, -2.0)]

    async def what(search):
        drawn = await search.sample(search.root, 3)
        assert [t.mean_logprob for t in drawn] == [-1.0, -1.0, -2.0]
        assert [t.origin.number for t in drawn] == [1, 1, 3]
        return drawn[0]

    await ask(what, ScriptedBackend(lines))
