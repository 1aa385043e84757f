"""A judgement is read where it says one thing, and nowhere else."""

import pytest

from langchain_pareto.strategies.judgements import read_choice, read_score, read_side


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Fine.\nScore: 7", 7),
        ("**Score:** 8.5/10", 8.5),
        ("Final score: 3 out of 10.", 3),
        ("10", 10),
        ("Score: 2\nNo, wait.\nScore: 9", 9),
        ("Score: 11", None),
        ("Score: 7 or 8", None),
        ("Score: 7\nScore: none", None),
        ("I give it 7 points", None),
        ("", None),
    ],
)
def test_a_score_is_the_number_on_the_last_line_that_says_one(text, score):
    """Markdown and "out of 10" are dressing; a line that says more is no score, whatever an earlier one said."""
    assert read_score(text) == score


@pytest.mark.parametrize(
    ("text", "choice"),
    [("Best: 2", 1), ("Best: Answer 3", 2), ("Best: 4", None), ("Best: 0", None), ("2 is", None)],
)
def test_a_choice_is_one_of_those_that_there_are(text, choice):
    """Answers are numbered from 1."""
    assert read_choice(text, 3) == choice


@pytest.mark.parametrize(
    ("text", "side"),
    [("Better: A", "A"), ("better: **b**", "B"), ("Better: A and B", None), ("Better: C", None)],
)
def test_a_side_is_one_of_two(text, side):
    """Of two answers, neither and both are no judgement."""
    assert read_side(text) == side
