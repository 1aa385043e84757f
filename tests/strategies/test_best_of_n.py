"""Best of n: every sample is scored, and the best one returned."""

import asyncio

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import BestOfN, Single, Vote
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings


class Longest:
    """Likes long texts."""

    async def score(self, thoughts) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(t.text)) for t in thoughts]


def settings(scorer=None, **options) -> Settings:
    options |= {"scorer": scorer} if scorer else {}
    return Settings(Sampling(), **options)


async def best(lines, scorer=None, *, n=None, budget=None, of=None, **options):
    strategy = BestOfN(n=n or len(lines), of=of or Single())
    account = Account(Budget.parse(budget) if budget else None)
    backend = ScriptedBackend(lines)
    return await run(strategy, backend, "q", account=account, settings=settings(scorer, **options))


async def test_the_best_scored_is_the_answer():
    """By whatever scorer the call has."""
    outcome = await best(["a", "longest", "long"], Longest())
    assert outcome.answer.thought.text == "longest"
    assert [t.score for t in outcome.thoughts] == [1.0, 7.0, 4.0]


async def test_without_a_scorer_the_model_likes_best_what_is_likely():
    """The default scorer is the mean log-probability."""
    lines = [Line("a", -0.5), Line("b", -0.2), Line("c", -0.9)]
    assert (await best(lines)).answer.thought.text == "b"


async def test_ties_go_to_the_likelier_then_to_the_first_drawn():
    """Equal scores are told apart by mean log-probability, then by number."""
    lines = [Line("aa", -0.5), Line("bb", -0.2), Line("cc", -0.2)]
    assert (await best(lines, Longest())).answer.thought.text == "bb"


async def test_a_sample_that_was_cut_off_does_not_win():
    """However likely; unless there is nothing else."""
    lines = [Line("x", -0.01, ends=False), Line("done", -5.0)]
    assert (await best(lines, max_tokens=9)).answer.thought.text == "done"
    outcome = await best(lines[:1], n=2, max_tokens=9)
    assert (outcome.answer.thought.text, outcome.answer.thought.score) == ("x" * 9, None)


@pytest.mark.parametrize("n", [1, 2, 7])
async def test_exactly_n_are_drawn(n):
    """Neither more nor fewer, where there is room."""
    assert len((await best(["a", "b"], n=n, budget=500)).thoughts) == n


async def test_fewer_are_drawn_when_money_is_short():
    """The best of those that could be paid is the answer."""
    outcome = await best(["aaaa", "bbbbb"], Longest(), n=9, budget=11)
    assert (outcome.answer.thought.text, len(outcome.thoughts)) == ("bbbbb", 2)
    assert outcome.stopped_by == "tokens"


async def test_the_best_of_votes():
    """Nested, each vote gives its leader, and these are scored."""
    answers = [*["Answer: 1"] * 3, "Answer: 2", "Answer: 2", "Answer: 333333"]
    backend = ScriptedBackend(lambda _, i: answers[i])
    strategy = BestOfN(n=2, of=Vote(n=3, adaptive=False))
    outcome = await run(strategy, backend, "q", settings=settings(Longest()))
    assert len(outcome.thoughts) == 6
    assert outcome.answer.thought.answer in {"1", "2"}
    assert sum(t.score is not None for t in outcome.thoughts) == 2
