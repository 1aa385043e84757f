"""One number for a solution, from what is said of its steps."""

import math
from typing import get_args

import pytest
from hypothesis import given, strategies as st

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import Single
from langchain_pareto.strategies.aggregation import Aggregation, aggregate
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.until import STEP

HOW = get_args(Aggregation)
SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("how", "expected"), [("last", 0.8), ("mean", 0.5), ("min", 0.2), ("product", 0.08)]
)
def test_each_way_by_hand(how, expected):
    """Of 0.5, 0.2 and 0.8."""
    assert aggregate([0.5, 0.2, 0.8], how) == pytest.approx(expected)
    assert aggregate((0.7,), how) == 0.7


@pytest.mark.parametrize("how", HOW)
def test_a_solution_without_steps_is_the_worst(how):
    """However it is scored."""
    assert aggregate([], how) == -math.inf
    assert aggregate([-1e308], how) > aggregate([], how)


@given(SCORES)
def test_how_they_compare(scores):
    """Of probabilities the product is the least, then the minimum, then the mean; steps of one score are that score."""
    least, mean = aggregate(scores, "min"), aggregate(scores, "mean")
    assert aggregate(scores, "product") <= least <= mean + 1e-12
    assert mean <= max(scores) + 1e-12
    assert aggregate(scores, "last") in scores
    for how in ("last", "mean", "min"):
        assert aggregate(scores[:1] * 3, how) == pytest.approx(scores[0])


@given(SCORES, st.sampled_from(HOW), st.data())
def test_a_better_step_is_no_worse_solution(scores, how, data):
    """Every aggregation is monotone in each step."""
    i = data.draw(st.integers(0, len(scores) - 1))
    better = [*scores[:i], data.draw(st.floats(scores[i], 1)), *scores[i + 1 :]]
    assert aggregate(better, how) >= aggregate(scores, how) - 1e-12


class PerStep:
    """Gives the steps that a thought added what their digits say, tenths."""

    async def score_in(self, search, thoughts):
        return [[int(c) / 10 for c in t.text if c.isdigit()] for t in thoughts]


@pytest.mark.parametrize(
    ("how", "expected"), [("last", 0.8), ("mean", 0.5), ("min", 0.2), ("product", 0.08)]
)
async def test_a_path_is_scored_by_all_its_steps(how, expected):
    """Whether they were drawn in one piece, or step by step; a part without a step leaves the score as it was."""
    settings = Settings(Sampling(), scorer=PerStep(), aggregation=how)
    scores = []

    class Path(Single):
        async def run(self, search):
            piece, thought = None, search.root
            for until in (STEP, STEP, "answer", "answer"):
                [thought] = await search.sample(thought, until=until)
                await search.score([thought])
                scores.append(thought.score)
                piece = piece or thought
            assert piece.step_scores == (0.5,)
            assert thought.path_scores == [0.5, 0.2, 0.8]
            [whole] = await search.sample(search.root)
            await search.score([whole])
            scores.append(whole.score)
            return search.best([whole])

    lines = ["5\n", "2\n", "8", "", "5\n2\n8"]
    await run(Path(), ScriptedBackend(lines), "q", settings=settings)
    assert scores[0] == 0.5
    assert scores[2:] == pytest.approx([expected] * 3)
