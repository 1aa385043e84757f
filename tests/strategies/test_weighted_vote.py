"""The weighted vote: what a vote counts, and which sample of the leading class is returned."""

import math

import pytest
from hypothesis import given, strategies as st

from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import ScorerError
from langchain_pareto.strategies import BestOfN, Vote, WeightedVote
from langchain_pareto.strategies.thoughts import Thought, leader, weighted_leader

SCORES = st.none() | st.floats(-50, 50) | st.sampled_from([0.0, 1e308, -1e308, math.inf, -math.inf])
VOTES = st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), SCORES), min_size=1, max_size=9)


def cast(*votes) -> list[Thought]:
    """A thought for each (answer, score); None is prose."""
    return [
        Thought("", Thought(""), number=i, answer=answer, score=score, finish="eos")
        for i, (answer, score) in enumerate(votes, 1)
    ]


class Told:
    """Gives the scores that it was told, in order."""

    def __init__(self, *scores) -> None:
        self._scores = scores

    async def score(self, thoughts) -> list[float]:
        return list(self._scores[: len(thoughts)])


# --- what a vote counts


@pytest.mark.parametrize(
    ("votes", "number", "share"),
    [
        ([("1", 0.3), ("2", 0.5), ("1", 0.3)], 1, 0.6 / 1.1),  # by sum, not by the best
        ([("1", 0.3), ("2", 0.7), ("1", 0.3)], 2, 0.7 / 1.3),  # nor by number
        ([("1", 0.3), ("1", 0.4), ("2", 0.5)], 2, 0.7 / 1.2),  # the best of its class is returned
        ([("1", 0.5), ("2", 0.2), ("2", 0.3)], 1, 0.5),  # a tie goes to the best member
        ([("1", 0.5), ("2", 0.5)], 1, 0.5),  # and to the first drawn
        ([("0.5", 0.3), ("1", 0.5), ("1/2", 0.3)], 1, 0.6 / 1.1),  # spellings of one answer
        ([(None, 9.0), ("1", 0.1)], 2, 1.0),  # prose does not vote
        ([("1", None), ("2", 0.1)], 2, 1.0),  # without a score no weight
        ([("1", -math.inf), ("1", -math.inf), ("2", 0.1)], 3, 1.0),
        ([("1", 0.0), ("2", 0.0), ("2", 0.0)], 2, 2 / 3),  # nothing to weigh by: a plain vote
        ([("1", None), ("2", None), ("2", None)], 2, 2 / 3),
        ([("1", -1.0), ("2", -2.0), ("2", -2.0)], 1, 1 / (1 + 2 / math.e)),  # logarithms
        ([("1", -2000.0), ("2", -2001.0)], 1, 1 / (1 + 1 / math.e)),  # too small for exp
        ([("1", 2000.0), ("2", 1999.0), ("3", -1.0)], 1, 1 / (1 + 1 / math.e)),  # and too large
        ([("1", -0.01), ("2", 0.5)], 2, 1 / (1 + math.exp(-0.51))),  # one scale for all
        ([("1", math.inf), ("2", 5.0), ("2", 5.0)], 1, 1.0),
    ],
)
def test_the_class_with_most_in_sum_leads(votes, number, share):
    """By hand."""
    answer = weighted_leader(cast(*votes))
    assert answer.thought.number == number
    assert answer.share == pytest.approx(share)


def test_without_any_vote_the_best_sample_leads():
    """It has no share."""
    answer = weighted_leader(cast((None, 0.1), (None, 0.7)))
    assert (answer.thought.number, answer.share) == (2, None)


@given(VOTES)
def test_a_share_is_a_share(votes):
    """In (0, 1], never NaN; the winner is the best of its class, whatever order the votes are given in."""
    answer = weighted_leader(cast(*votes))
    if all(vote is None for vote, _ in votes):
        assert answer.share is None
        return
    assert 0 < answer.share <= 1
    score = -math.inf if answer.thought.score is None else answer.thought.score
    for vote, other in votes:
        if vote == answer.thought.answer and other is not None:
            assert score >= other
    again = weighted_leader(cast(*votes)[::-1])
    assert (again.thought.number, again.share) == (answer.thought.number, answer.share)


@given(VOTES, st.floats(0, 30), st.data())
def test_a_better_score_never_costs_a_class_its_lead(votes, more, data):
    """Raising the score of a vote for the leader keeps the leader, whatever the signs."""
    answer = weighted_leader(cast(*votes)).thought.answer
    ours = [i for i, (vote, score) in enumerate(votes) if vote == answer and score is not None]
    if answer is None or not ours:
        return
    i = data.draw(st.sampled_from(ours))
    raised = list(votes)
    raised[i] = (answer, votes[i][1] + more)
    signs = [[s >= 0 for _, s in cast_ if s not in (None, -math.inf)] for cast_ in (votes, raised)]
    if all(signs[0]) == all(signs[1]):  # on one scale
        assert weighted_leader(cast(*raised)).thought.answer == answer


@given(st.lists(st.sampled_from(["1", "2", "3"]), min_size=1, max_size=9), st.floats(0.01, 1))
def test_of_equal_scores_it_is_the_plain_vote(answers, score):
    """The same winner with the same share."""
    weighted = weighted_leader(cast(*[(answer, score) for answer in answers]))
    plain = leader(cast(*[(answer, score) for answer in answers]))
    assert weighted.thought.number == plain.thought.number
    assert weighted.share == pytest.approx(plain.share)


# --- the strategy


async def test_every_sample_is_drawn_scored_and_counted(ask):
    """Three votes of little weight lose against two of more."""
    answers = ["Answer: 1", "Answer: 2", "Answer: 1", "Answer: 2", "Answer: 1"]
    scorer = Told(0.1, 0.6, 0.1, 0.2, 0.1)
    outcome = await ask(WeightedVote(n=5), ScriptedBackend(answers), scorer=scorer)
    assert (outcome.answer.thought.number, outcome.answer.share) == (2, pytest.approx(0.8 / 1.1))
    assert [t.score for t in outcome.thoughts] == [0.1, 0.6, 0.1, 0.2, 0.1]
    assert outcome.spent.tokens == 5 * 10


async def test_what_was_cut_off_is_neither_scored_nor_counted(ask):
    """However often it repeats an answer."""
    runaway = Line("Answer: 2 ", ends=False)
    backend = ScriptedBackend([runaway, runaway, "Answer: 1"])
    outcome = await ask(WeightedVote(n=3), backend, scorer=Told(0.1), max_tokens=30)
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("1", 1.0)
    assert [t.score for t in outcome.thoughts] == [None, None, 0.1]


async def test_by_default_votes_weigh_their_likelihood(ask):
    """The exponential of the mean log-probability."""
    lines = [Line("Answer: 1", -2.0), Line("Answer: 2", -0.5), Line("Answer: 1", -2.0)]
    outcome = await ask(WeightedVote(n=3), ScriptedBackend(lines))
    assert outcome.answer.thought.answer == "2"
    expected = math.exp(-0.5) / (math.exp(-0.5) + 2 * math.exp(-2))
    assert outcome.answer.share == pytest.approx(expected)


async def test_the_votes_may_be_of_strategies(ask):
    """Of votes, or of the best of several: each run has one vote."""
    answers = ["Answer: 1", "Answer: 2"]
    for of in (Vote(n=2, adaptive=False), BestOfN(n=2)):
        outcome = await ask(
            WeightedVote(n=3, of=of), ScriptedBackend(answers), scorer=Told(0.5, 0.4, 0.3, 0.2)
        )
        assert len(outcome.thoughts) == 6


@pytest.mark.parametrize("tokens", [1, 9, 10, 19, 20, 35])
async def test_a_budget_ends_it_with_the_votes_so_far(ask, tokens):
    """As many samples as fit are scored and vote."""
    backend = ScriptedBackend(["Answer: 1", "Answer: 2", "Answer: 2"])
    outcome = await ask(WeightedVote(n=5), backend, tokens, scorer=Told(0.3, 0.2, 0.2, 0.2))
    assert outcome.stopped_by == "tokens"
    assert outcome.spent.tokens <= tokens
    whole = sum(t.finished for t in outcome.thoughts)
    assert whole == tokens // 10
    expected = {0: None, 1: "1", 2: "1", 3: "2"}[whole]
    assert outcome.answer.thought.answer == expected


async def test_a_scorer_that_fails_fails_it(ask):
    """Samples that nobody could score are no answer in silence."""
    with pytest.raises(ScorerError):
        await ask(WeightedVote(n=3), ScriptedBackend(["Answer: 1"]), scorer=Told(0.3))
