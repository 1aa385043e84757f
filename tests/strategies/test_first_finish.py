"""First finish: who comes to an end first decides, and whoever has not is cancelled and paid."""

import asyncio

import pytest

from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import BestOfN, FirstFinish, Vote

LONG = "a long way round, then Answer: 1"  # 32 tokens and the end
SHORT, OTHER = "Answer: 2", "Answer: 3"  # 9 tokens and the end


async def test_the_first_to_end_is_the_answer_and_the_rest_is_cancelled(ask, until):
    """With `take` = 1 the shortest wins; what the others had drawn by then is paid."""
    backend = ScriptedBackend([LONG, SHORT, LONG, LONG], manual=True)
    running = asyncio.create_task(ask(FirstFinish(n=4, take=1), backend))
    await until(lambda: len(backend.draws) == 4)
    backend.step(10)
    outcome = await running
    assert [(t.number, t.answer) for t in outcome.thoughts if t.finished] == [(2, "2")]
    assert outcome.answer.thought.number == 2
    assert outcome.spent.tokens == 4 * 10


async def test_the_first_few_vote(ask, until):
    """The answer is that of most of the first `take`, however many of the slower ones would say otherwise."""
    backend = ScriptedBackend([LONG, SHORT, LONG, OTHER, LONG, OTHER + "."], manual=True)
    running = asyncio.create_task(ask(FirstFinish(n=6, take=3), backend))
    await until(lambda: len(backend.draws) == 6)
    backend.step(10)
    await until(lambda: len([d for d in backend.draws if d.future.done()]) == 2)
    backend.step(1)
    outcome = await running
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("3", pytest.approx(2 / 3))
    assert outcome.spent.tokens == 10 + 10 + 4 * 11


async def test_of_those_that_end_together_the_first_drawn_come_first(ask):
    """Where all end in one step, the first `take` in order of drawing vote, and the rest is there, but has no vote."""
    outcome = await ask(FirstFinish(n=4, take=2), ScriptedBackend([SHORT, SHORT, OTHER, OTHER]))
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("2", 1.0)


async def test_whoever_is_cut_off_has_not_finished(ask):
    """A runaway that hits the longest length is none of the first."""
    backend = ScriptedBackend([Line("Answer: 1 ", ends=False), LONG, SHORT])
    outcome = await ask(FirstFinish(n=3, take=1), backend, max_tokens=12)
    assert outcome.answer.thought.answer == "2"


async def test_fewer_than_asked_for_vote_if_no_more_end(ask):
    """`take` may exceed what is drawn, or paid for."""
    outcome = await ask(FirstFinish(n=2, take=5), ScriptedBackend([SHORT]))
    assert (len(outcome.thoughts), outcome.answer.share) == (2, 1.0)
    outcome = await ask(FirstFinish(n=4, take=4), ScriptedBackend([SHORT, OTHER, OTHER]), 25)
    assert [t.answer for t in outcome.thoughts] == ["2", "3"]
    assert (outcome.stopped_by, outcome.spent.tokens) == ("tokens", 20)


async def test_it_nests(ask):
    """Three first-finish searches of two samples each vote."""
    strategy = Vote(n=3, adaptive=False, of=FirstFinish(n=2, take=1))
    outcome = await ask(strategy, ScriptedBackend([SHORT]))
    assert outcome.answer.share == 1.0
    outcome = await ask(BestOfN(n=2, of=FirstFinish(n=2, take=2)), ScriptedBackend([SHORT]))
    assert len(outcome.thoughts) == 4
