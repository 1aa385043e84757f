"""The comparison of strategies at equal cost: made-up results whose leads are known."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from langchain_pareto.strategies.thoughts import Thought

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/bench"))
import _equal_cost
from _equal_cost import FIRST, Result, at_cost, curve, rows

import strategies

COUNT = 1000


def made(right: float, tokens: int, flops: int | None = None) -> list[Result]:
    """So many of the problems right, at one cost."""
    seconds = None if flops is None else flops / 100
    return [Result(i < right * COUNT, tokens, flops, seconds) for i in range(COUNT)]


DONE = {
    "one sample, 1": made(0.4, 10, 100),
    "best of n, 4": made(0.7, 40, 500),
    "best of n, 16": made(0.9, 160, 1700),
    f"{FIRST}, 8": made(0.85, 80),
    "tree, 16": made(0.9, 160, 900),
    "tree, 64": made(0.95, 640, 5000),
}


def test_a_width_that_did_not_run_costs_what_its_tokens_say() -> None:
    """Between its neighbours: 80 tokens are a third of the way from 40 to 160."""
    assert [cost for cost, _ in curve(DONE, "tokens")] == [10, 40, 80, 160]
    assert [cost for cost, _ in curve(DONE, "flops")] == pytest.approx([100, 500, 900, 1700])


def test_between_two_points_it_is_a_line_over_the_logarithm() -> None:
    """And nothing beyond the ends, but that one is a little longer than n samples."""
    points = curve(DONE, "flops")
    assert at_cost(points, 900).mean() == pytest.approx(0.85)
    share = math.log(600 / 500) / math.log(900 / 500)
    assert at_cost(points, 600).mean() == pytest.approx(0.7 + 0.15 * share)
    assert at_cost(points, 1710).mean() == pytest.approx(0.9)
    assert at_cost(points, 2000) is None
    assert at_cost(points, 50) is None


def test_a_line_says_how_far_it_is_ahead_at_each_cost() -> None:
    """The same samples for fewer operations are worth what those would have brought; what costs more than the widest has no lead."""
    lines = {row["row"]: row for row in rows("countdown", DONE)}
    assert f"countdown: {FIRST}, n = 8" not in lines
    tree = lines["countdown: tree, n = 16"]
    assert tree["over best of n at equal tokens"][0] == 0.0
    mean, low, high = tree["over best of n at equal flops"]
    assert mean == pytest.approx(5.0)
    assert low < mean < high
    assert lines["countdown: tree, n = 64"]["over best of n at equal flops"] is None
    assert "over best of n at equal flops" not in lines["countdown: best of n, n = 4"]


def test_votes_on_words_are_held_against_the_majority_of_their_samples() -> None:
    """And over all widths together, with the standard error of the mean lead of each problem."""
    done = {
        "one sample, 1": made(0.5, 10),
        "majority vote, 4": made(0.6, 40),
        "weighted vote, 4": made(0.7, 40),
        "majority vote, 8": made(0.6, 80),
        "weighted vote, 8": made(0.8, 80),
    }
    *lines, last = rows("words", done)
    leads = [row.get("over majority vote of the same samples") for row in lines]
    assert [lead and lead[0] for lead in leads] == [None, None, 10.0, None, 20.0]
    assert all("flops" not in row for row in lines)
    leads = np.repeat([0.0, 1.0, 0.5, 0.0], [600, 100, 100, 200])
    assert last["ours"][0] == 15.0
    assert last["standard error"] == pytest.approx(100 * leads.std(ddof=1) / 1000**0.5, abs=0.01)


def thought(number: int, answer: str, score: float, logprob: float) -> Thought:
    """A finished sample of a line."""
    text = f"Answer: {answer}"
    return Thought(
        "q", Thought("q"), text, (1,) * number, "eos", logprob, answer, score, number=number
    )


def test_a_majority_knows_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers of one vote each: the likelier wins, whatever the scorer says; of the first one there is no choice."""
    monkeypatch.setattr(strategies, "_right", lambda _, answer: answer.thought.answer == "2")
    drawn = (thought(1, "1", 0.9, -0.5), thought(2, "2", 0.1, -0.1))
    out = SimpleNamespace(thoughts=drawn, spent=SimpleNamespace(tokens=5, flops=7))
    found = {how: strategies.Pick(how).result(None, out) for how in ("best", "majority")}
    assert (found["best"].right, found["majority"].right) == (False, True)
    assert strategies.Pick("majority", 1).result(None, out) == _equal_cost.Result(False, 1)
    assert [thought.score for thought in drawn] == [0.9, 0.1]
