"""The vote: who votes, who leads, and when it is decided."""

import asyncio
from fractions import Fraction
from math import comb, factorial

import pytest
from hypothesis import given, strategies as st

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import BestOfN, Single, Vote
from langchain_pareto.strategies.answers import Exact
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import Thought, ballot, leader
from langchain_pareto.strategies.vote import decided, lead_probability, leads, least_deciding

VOTES = st.integers(0, 40)


def thought(number, answer, **fields) -> Thought:
    fields.setdefault("finish", "eos" if answer else "length")
    return Thought("", Thought(""), number=number, answer=answer, **fields)


def thoughts(*answers) -> list[Thought]:
    return [thought(i, answer) for i, answer in enumerate(answers, 1)]


async def vote(answers, budget=None, settings=None, **options):
    """The outcome of one vote over these answers, in turn."""
    lines = [f"Answer: {a}" if isinstance(a, int) else a for a in answers]
    backend = ScriptedBackend(lines)
    return await run(
        Vote(**options),
        backend,
        "q",
        account=Account(Budget.parse(budget) if budget else None),
        settings=settings or Settings(Sampling()),
    )


# --- who votes, who leads


async def test_the_majority_wins_with_one_of_its_samples():
    """The answer is a sample of the largest class, and its share is its part of the votes."""
    outcome = await vote([1, 2, 3, 2], n=4)
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("2", 0.5)
    assert outcome.answer.thought.number == 2


async def test_what_was_cut_off_or_says_nothing_does_not_vote():
    """A runaway that repeats an answer, and prose, have no vote."""
    runaway = Line("Answer: 2 ", ends=False)
    outcome = await vote(
        [runaway, 1, "prose", runaway, runaway],
        n=5,
        adaptive=False,
        settings=Settings(Sampling(), max_tokens=30),
    )
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("1", 1.0)
    assert len(outcome.thoughts) == 5


async def test_without_a_vote_the_best_sample_is_the_answer():
    """Finished before cut off, then by log-probability; there is no share."""
    lines = [Line("x", -0.1, ends=False), Line("b", -0.9), Line("c", -0.5)]
    outcome = await vote(lines, n=3, settings=Settings(Sampling(), max_tokens=9))
    assert (outcome.answer.thought.text, outcome.answer.share) == ("c", None)


async def test_spellings_of_one_answer_are_one_class():
    """Votes are for answers, not for texts."""
    outcome = await vote(["Answer: 0.5", "Answer: 2", r"so \boxed{1/2}"], n=3)
    assert outcome.answer.share == pytest.approx(2 / 3)


def test_ties_go_to_the_score_then_the_likelier_then_the_first_drawn():
    """Of classes of one size that with the best member leads; of its members the best is returned."""
    assert leader(thoughts("a", "b")).thought.number == 1
    likely = [thought(1, "a", mean_logprob=-2.0), thought(2, "b", mean_logprob=-1.0)]
    assert leader(likely).thought.number == 2
    scored = [thought(1, "a", mean_logprob=-2.0, score=1.0), thought(2, "b", mean_logprob=-1.0)]
    assert leader(scored).thought.number == 1
    several = [*likely, thought(3, "a", mean_logprob=-0.5), thought(4, "b", mean_logprob=-0.7)]
    assert leader(several).thought.number == 3
    assert leader(several[::-1]).thought.number == 3


@given(st.lists(st.sampled_from(["1", "2", "3", None]), max_size=12))
def test_the_ballot_counts_every_vote_once(answers):
    """Classes partition those who vote, largest first."""
    classes = ballot(thoughts(*answers))
    assert sorted(t.number for c in classes for t in c) == [
        i for i, answer in enumerate(answers, 1) if answer
    ]
    sizes = [len(c) for c in classes]
    assert sizes == sorted(sizes, reverse=True)


# --- when it is decided


def beta_tail(first: int, second: int) -> Fraction:
    """P(X > 1/2) for X ~ Beta(first + 1, second + 1), by integrating its polynomial exactly."""
    a, b = first + 1, second + 1
    terms = (
        Fraction((-1) ** k * comb(b - 1, k), a + k) * (1 - Fraction(1, 2 ** (a + k)))
        for k in range(b)
    )
    return sum(terms) * Fraction(factorial(a + b - 1), factorial(a - 1) * factorial(b - 1))


@given(VOTES, VOTES)
def test_the_lead_is_the_tail_of_a_beta(first, second):
    """The binomial sum equals the integral, to the last digit of a float."""
    assert lead_probability(first, second) == float(beta_tail(first, second))


def test_the_lead_in_known_cases():
    """Nothing known is a coin; 4 of 4 are enough for 0.95, 3 of 3 are not."""
    assert lead_probability(0, 0) == 0.5
    assert lead_probability(3, 3) == 0.5
    assert (lead_probability(3, 0), lead_probability(4, 0)) == (15 / 16, 31 / 32)


CALLS = [Exact(answer, shape) for answer, shape in zip("123456", "wwssss", strict=True)]


@given(
    st.sampled_from(["1234", CALLS]).flatmap(
        lambda pool: st.tuples(st.just(pool), st.lists(st.sampled_from(pool), max_size=9))
    ),
    st.integers(0, 4),
)
def test_what_cannot_be_overtaken_is_decided(case, left):
    """With a threshold of 1 the vote stops early only where no further sample can change its class."""
    pool, answers = case
    cast = thoughts(*answers)
    if not cast or not all(decided(*race, left, 1.0) for race in leads(cast)):
        return
    winner = leader(cast).thought.answer
    for other in pool:
        more = [thought(100 + i, other, score=1.0) for i in range(left)]
        assert leader([*cast, *more]).thought.answer == winner


def test_calls_are_decided_when_both_their_shape_and_their_arguments_are():
    """Six equal calls of one tool lead by one, not by five, over five different ones of another; of one tool, the arguments race."""
    weather, search = [Exact("w", "w")] * 6, [Exact(f"s{i}", "s") for i in range(5)]
    assert leads(thoughts(*weather, *search)) == [(6, 5), (6, 0)]
    assert leads(thoughts(*search, search[2])) == [(6, 0), (2, 1)]
    assert leads(thoughts("1", "2", "1", None)) == [(3, 0), (2, 1)]
    assert leads([]) == [(0, 0), (0, 0)]


async def test_an_adaptive_vote_goes_on_while_the_race_of_shapes_is_open(ask):
    """Every other sample is a call of one tool with the same arguments, the rest calls of another with four: no sample is spared."""

    class Calls:
        def extract(self, text):
            return Exact(text, text[0])

    lines = ["w", "s1", "w", "s2", "w", "s3", "w", "s4"]
    outcome = await ask(Vote(n=16), ScriptedBackend(lines), answers=Calls())
    assert len(outcome.thoughts) == 16


async def test_an_adaptive_vote_stops_when_it_is_decided():
    """A wave has as many as could decide: unanimous answers need one, a close race all of them."""
    assert len((await vote([1], n=16)).thoughts) == 4
    assert len((await vote([1, 2], n=16)).thoughts) == 16
    assert len((await vote([1], n=16, wave=1)).thoughts) == 4
    assert len((await vote([1], n=16, threshold=0.99)).thoughts) == 6
    assert len((await vote([1, 2, 1, 1, 1], n=16, wave=2)).thoughts) == 10
    assert len((await vote([1], n=5, wave=1, threshold=1)).thoughts) == 3


def test_a_wave_is_as_wide_as_can_decide():
    """From nothing, so many unanimous votes as the threshold asks for; never more than are left."""
    assert [least_deciding(0, 0, 16, t) for t in (0.8, 0.9, 0.95, 0.99)] == [2, 3, 4, 6]
    assert least_deciding(3, 1, 12, 0.95) == 3  # 6 to 1
    assert least_deciding(2, 2, 3, 0.95) == 2  # 4 to 2 with one left cannot be overtaken
    assert least_deciding(0, 0, 3, 1.0) == 2


async def test_a_plain_vote_draws_all():
    """However clear."""
    assert len((await vote([1], n=9, adaptive=False)).thoughts) == 9


async def test_under_a_deadline_all_are_drawn_at_once_and_stragglers_are_not_awaited(ask, until):
    """Time is saved by width: samples vote as they end, and what is under way when that decides the vote is cancelled, and paid."""
    long = "a long way round, then Answer: 1"
    lines = [long, "Answer: 2", long, "Answer: 2.", "Answer:  2."] + [long] * 4
    backend = ScriptedBackend(lines, manual=True)
    running = asyncio.create_task(ask(Vote(n=9, threshold=0.65), backend, "60 s"))
    await until(lambda: len(backend.draws) == 9)
    for steps, ended in ((10, 1), (1, 2)):
        backend.step(steps)
        await until(lambda: sum(d.future.done() for d in backend.draws) == ended)  # noqa: B023
        # two votes would be enough if the first to end were as good as any
        assert not running.done()
    backend.step(1)
    outcome = await running
    assert [t.number for t in outcome.thoughts if t.finished] == [2, 4, 5]
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("2", 1.0)
    assert outcome.spent.tokens == 10 + 11 + 7 * 12
    assert outcome.stopped_by == "done"


async def test_what_ends_together_votes_together():
    """What has come to its end is paid: it is not left out because it was drawn later."""
    outcome = await vote([2] * 6 + [3] * 10, "60 s", n=16)
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("3", 10 / 16)


@pytest.mark.parametrize("options", [{"adaptive": False}, {"of": BestOfN(n=1)}])
async def test_what_has_to_come_to_an_end_does_so_under_a_deadline_too(options):
    """A vote that does not stop early, and voters that are searches."""
    assert len((await vote([1], "60 s", n=9, **options)).thoughts) == 9


async def test_money_ends_a_vote_with_what_there_is():
    """The leader of what could be paid is the answer, and the reason is told."""
    outcome = await vote([1, 2, 2], 35, n=16)
    assert [t.finished for t in outcome.thoughts] == [True] * 3
    assert (outcome.answer.thought.answer, outcome.stopped_by) == ("2", "tokens")


async def test_a_vote_of_other_strategies():
    """Each voter may be a search of its own, with the temperature of its own."""
    backend = ScriptedBackend(["Answer: 1", "Answer: 2", "Answer: 2"])
    strategy = Vote(n=3, of=BestOfN(n=2, temperature=0.5), adaptive=False)
    outcome = await run(strategy, backend, "q", settings=Settings(Sampling()))
    assert len(outcome.thoughts) == 6
    assert outcome.answer.share in (1.0, pytest.approx(2 / 3))
    assert {task.asked[0].temperature for task in backend.draws} == {0.5}


async def test_a_vote_goes_on_with_what_is_drawn():
    """Samples that were there before vote, and count towards n."""
    backend = ScriptedBackend(["Answer: 2"])
    seen = []

    class Later(Single):
        async def run(self, search):
            seen.extend(await search.sample(search.root, 2))
            return await Vote(n=5, adaptive=False).continue_from(search, seen)

    outcome = await run(Later(), backend, "q", settings=Settings(Sampling()))
    assert len(outcome.thoughts) == 5
    assert outcome.answer.share == 1.0
