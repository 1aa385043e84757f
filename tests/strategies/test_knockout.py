"""The knockout: who meets whom, who goes on, and what an unreadable judgement is worth."""

import logging
import re

import pytest
from pydantic import ValidationError

from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import ScorerError
from langchain_pareto.strategies import BestOfN, Cascade, Knockout, Vote
from langchain_pareto.strategies.judge import JudgeCompare


def answers(*numbers: int) -> list[str]:
    return [f"Answer: {number}" for number in numbers]  # 9 tokens and the end


def pair(prompt: str) -> tuple[int, int]:
    """The two numbers that a judge is shown."""
    a, b = re.findall(r"^Answer [AB]:\nAnswer: (\d)", prompt, re.MULTILINE)
    return int(a), int(b)


def larger(prompt: str, i: int) -> str:
    """A judge to whom more is better; 9 tokens and the end."""
    a, b = pair(prompt)
    return "Better: A" if a > b else "Better: B"


def knockout(ask, numbers, says=larger, budget=None, **options):
    """The outcome of a knockout of these answers, and the pairs that the judge was shown."""
    seen = []

    def say(prompt, i):
        seen.append(pair(prompt))
        return says(prompt, i)

    policy = ScriptedBackend(answers(*numbers))
    strategy = Knockout(n=len(numbers), **options)
    return ask(strategy, policy, budget, roles={"judge": ScriptedBackend(say)}), seen


async def test_the_best_wins_in_rounds_of_pairs(ask):
    """Best seed against worst, in both orders: of four, two matches and a final, two judgements each."""
    running, seen = knockout(ask, [1, 2, 3, 4])
    outcome = await running
    assert seen == [(1, 4), (4, 1), (2, 3), (3, 2), (3, 4), (4, 3)]
    assert outcome.answer.thought.answer == "4"
    assert outcome.spent.tokens == 4 * 10 + 6 * 10
    assert [t.role for t in outcome.thoughts if t.aside] == ["judge"] * 6


async def test_the_best_seed_of_an_odd_number_has_no_match(ask):
    """Of five the first waits; a champion of n needs n - 1 matches."""
    running, seen = knockout(ask, [5, 1, 2, 3, 4], judge=JudgeCompare(n=1))
    assert (await running).answer.thought.answer == "5"
    assert seen == [(1, 4), (2, 3), (3, 4), (5, 4)]


async def test_the_seeds_are_by_vote_then_likelihood(ask):
    """The larger class is seeded first, then the likelier; what was cut off takes no part."""
    lines = [Line("Answer: 1", -2.0), Line("Answer: 2", -1.0), *answers(3, 3), "4" * 40]
    seen = []

    def first(prompt, i):
        seen.append(pair(prompt))
        return "Better: A"

    outcome = await ask(
        Knockout(n=5, judge=JudgeCompare(n=1)),
        ScriptedBackend(lines),
        roles={"judge": ScriptedBackend(first)},
        max_tokens=12,
    )
    assert seen == [(3, 1), (3, 2)]
    assert outcome.answer.thought.answer == "3"


async def test_the_same_answers_are_not_compared(ask):
    """Twice two of a kind: both of the better kind go on, and neither has to beat the other."""
    running, seen = knockout(ask, [1, 1, 2, 2])
    outcome = await running
    assert seen == [(1, 2), (2, 1)] * 2
    assert outcome.answer.thought.answer == "2"
    assert outcome.spent.tokens == 80


async def test_a_judge_who_goes_by_the_place_decides_nothing(ask):
    """A tie goes to the better seed: with such a judge the vote's leader wins."""
    running, _ = knockout(ask, [1, 2, 2, 3], lambda prompt, i: "Better: A")
    assert (await running).answer.thought.answer == "2"


async def test_what_cannot_be_read_is_no_vote_and_is_told(ask, caplog):
    """Of each two judgements one is unreadable: the other decides, and the log says how many were lost."""

    def half(prompt, i):
        a, b = pair(prompt)
        return "Hard to say." if a > b else "Better: B"

    with caplog.at_level(logging.WARNING):
        running, _ = knockout(ask, [1, 2, 3, 4], half)
        assert (await running).answer.thought.answer == "4"
    assert "2 of 4 judgements could not be read" in caplog.text


async def test_a_judge_who_never_says_anything_is_an_error(ask):
    """Nothing readable in the first round: ScorerError, with what it said."""
    running, _ = knockout(ask, [1, 2], lambda prompt, i: "Hard to say.")
    with pytest.raises(ScorerError, match="Hard to say"):
        await running


async def test_an_unreadable_final_goes_to_the_better_seed(ask, caplog):
    """What was judged before is not thrown away."""

    def tired(prompt, i):
        return "Hard to say." if set(pair(prompt)) == {3, 4} else larger(prompt, i)

    with caplog.at_level(logging.WARNING):
        running, _ = knockout(ask, [1, 2, 3, 4], tired)
        outcome = await running
    assert outcome.answer.thought.answer == "3"
    assert "2 of 2 judgements could not be read" in caplog.text


async def test_without_money_for_judges_the_vote_decides(ask):
    """65 tokens are for four answers and two judgements, both of the first match; the other matches go by seed."""
    running, seen = knockout(ask, [2, 3, 3, 4], budget=65)
    outcome = await running
    assert seen == [(3, 4), (4, 3)]
    assert outcome.answer.thought.answer == "3"
    assert (outcome.stopped_by, outcome.spent.tokens) == ("tokens", 60)


async def test_one_entrant_needs_no_judge(ask):
    """Nor does the longest of texts that were all cut off."""
    running, seen = knockout(ask, [1])
    assert (await running).answer.thought.answer == "1"
    outcome = await ask(Knockout(n=3), ScriptedBackend(["a long text"]), max_tokens=5)
    assert (seen, len(outcome.thoughts)) == ([], 3)


async def test_it_nests(ask):
    """Entrants may be votes, and the champion an entrant of something else; without a judge the policy judges itself."""

    def say(text, i):
        return f"Answer: {i}" if text == "2+2?" else larger(text, i)

    outcome = await ask(Knockout(n=2, of=Vote(n=2, adaptive=False)), ScriptedBackend(say))
    assert sum(not t.aside for t in outcome.thoughts) == 4
    outcome = await ask(BestOfN(n=2, of=Knockout(n=2)), ScriptedBackend(say))
    assert sum(t.aside for t in outcome.thoughts) == 4
    outcome = await ask(Cascade(n=2, n_large=2, of=Knockout(n=2)), ScriptedBackend(say))
    assert sum(not t.aside for t in outcome.thoughts) == 8


def test_mistakes_are_named():
    """No entrants, or a prompt that does not show both."""
    with pytest.raises(ValidationError):
        Knockout(n=0)
    with pytest.raises(ValueError, match="lacks"):
        JudgeCompare(prompt="Which? {question} {a}")
