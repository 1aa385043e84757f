"""The bench that judges the planner end to end: live runs in their places, and what a split says of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.profile import Runs
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.strategies import Single, Vote

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/bench"))
import _trees
import end_to_end
from _trees import BLOCK, CHECKS, TREES, Live

SEARCH = next(option for option in TREES if _trees.LEAST[str(option)] == 153)


def empty(budgets: tuple[float, ...], puzzles: int, options: int = 1) -> Runs:
    """A table in which nothing has run."""
    shape = (options, len(budgets), puzzles, 1)
    nothing = np.full(shape, np.nan, np.float32)
    costs = np.full((*shape, len(TERMS)), np.nan, np.float32)
    return Runs(np.array(budgets), nothing, costs, np.zeros(shape, np.int32))


def ran(limit: int | None, *, right: bool, tokens: int = 200) -> Live:
    return Live(0, str(SEARCH), limit, right, tokens, 10**6, seconds=None if limit else 0.5)


def test_a_search_is_placed_by_the_budget_that_it_ran_under():
    """Where it never ran there is nothing; where its limit cannot bind it is the run without one."""
    runs = empty((78, 153, 214, 319, 321), 1)
    lives = [
        ran(None, right=True),
        ran(153, right=False, tokens=150),
        ran(214, right=True, tokens=190),
        ran(319, right=False),
    ]
    end_to_end._place(runs, 0, "tokens", lives)
    right, tokens = runs.right[0, :, 0, 0], runs.costs[0, :, 0, 0, TERMS.index("tokens")]
    assert np.isnan(right[0])
    assert right[1:].tolist() == [0, 1, 0, 1]
    assert tokens[1:].tolist() == [150, 190, 200, 200]


def test_a_limit_that_might_bind_has_to_have_run():
    """Nothing stands in for a missing run."""
    with pytest.raises(KeyError):
        end_to_end._place(empty((153,), 1), 0, "tokens", [ran(None, right=True)])


def test_a_search_that_the_clock_cuts_off_is_wrong():
    """It took what it had."""
    runs = empty((0.2, 0.5, 1.0), 1)
    end_to_end._place(runs, 0, "seconds", [ran(None, right=True)])
    assert runs.right[0, :, 0, 0].tolist() == [0, 1, 1]
    seconds = runs.costs[0, :, 0, 0, TERMS.index("seconds")]
    assert seconds == pytest.approx([0.2, 0.5, 0.5])


def test_whole_blocks_count():
    """A block counts once the last check has run on it."""
    last = str(CHECKS[-1])
    ends = [Live(i, last, None, True, 1, 1) for i in (0, 1, BLOCK, BLOCK + 1, 2 * BLOCK)]
    assert _trees.complete(ends) == 2 * BLOCK
    assert _trees.complete(ends[:1]) == 0


def test_limits_are_those_that_might_bind():
    """From the least that a search runs under to what surely leaves it alone."""
    assert _trees.limits(SEARCH, ran(None, right=True)) == [153, 214, 299]


def test_the_planner_is_judged_on_what_it_did_not_see():
    """With one strategy far ahead at each budget it takes that one, as the calibration does, and beats any single one."""
    rng = np.random.default_rng(0)
    options = (Option(Single(), {"policy": "S"}), Option(Vote(n=4), {"policy": "M"}))
    runs = empty((50.0, 400.0), 80, options=2)
    chances = np.array([[0.8, 0.8], [0.05, 0.95]])
    runs.right[..., 0] = rng.random((2, 2, 80)) < chances[:, :, None]
    runs.costs[...] = np.array([[40.0, 40.0], [50.0, 300.0]])[:, :, None, None, None]
    table = end_to_end.Table("tokens", options, runs)
    judged = end_to_end.judge([table])["tokens"]
    assert judged.planned == pytest.approx(judged.preferred)
    assert (judged.envelope >= judged.planned - 1e-9).all()
    assert (judged.planned.mean(1) > judged.constant.mean(1) + 0.03).mean() > 0.9
    assert [set(told) for told in judged.chosen] == [{str(options[0])}, {str(options[1])}]
    assert judged.leads[0] == pytest.approx(0)
    assert end_to_end.points(judged.leads[1])[1] > 0
