"""What happens when nothing was measured: the first sample decides."""

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import Auto
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings


async def auto(lines, budget=None, sampling=None, **options):
    account = Account(Budget.parse(budget) if budget else None)
    settings = Settings(sampling or Sampling())
    return await run(
        Auto(**options), ScriptedBackend(lines), "q", account=account, settings=settings
    )


@pytest.mark.parametrize("budget", [None, 1000, "60 s"])
async def test_free_text_is_one_sample(budget):
    """Where there is nothing to vote on, more would be waste."""
    outcome = await auto(["prose", "Answer: 2"], budget)
    assert [t.text for t in outcome.thoughts] == ["prose"]
    assert (outcome.answer.share, outcome.stopped_by) == (None, "done")


@pytest.mark.parametrize(("budget", "n"), [(None, 4), ("9 calls", 4), (10_000, 32), ("60 s", 32)])
async def test_an_answer_is_voted_on(budget, n):
    """With a budget that pays for draws up to 32, without one up to 4, the first sample among them."""
    outcome = await auto(["Answer: 1", "Answer: 2"], budget)
    assert len(outcome.thoughts) == n
    assert outcome.answer.share == 0.5


async def test_the_vote_stops_when_it_is_decided():
    """One and three more that agree are enough."""
    outcome = await auto(["Answer: 1"], 10_000)
    assert (len(outcome.thoughts), outcome.answer.share) == (4, 1.0)


async def test_the_caps_are_settings():
    """`most` and `unasked` bound the draws."""
    assert len((await auto(["Answer: 1", "Answer: 2"], 10_000, most=7)).thoughts) == 7
    assert len((await auto(["Answer: 1", "Answer: 2"], unasked=2)).thoughts) == 2
    assert len((await auto(["Answer: 1", "Answer: 2"], unasked=1)).thoughts) == 1


async def test_greedy_is_one_sample():
    """At temperature 0 every sample would be the same."""
    for options in ({"sampling": Sampling(temperature=0)}, {"temperature": 0}):
        assert len((await auto(["Answer: 1"], 1000, **options)).thoughts) == 1


async def test_a_first_sample_that_is_cut_off_is_the_answer():
    """It has no answer to vote on, and took all there was."""
    outcome = await auto([Line("Answer: 1 ", ends=False)], 20)
    assert len(outcome.thoughts) == 1
    assert outcome.stopped_by == "tokens"
    assert not outcome.answer.thought.finished
