"""Scores that are enough: Pandora's rule over recorded scores."""

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from langchain_pareto.planning.thresholds import COSTS, thresholds

SCORES = st.lists(st.floats(-1e6, 1e6), max_size=60)


def pandora(scores, cost: float) -> float:
    """The exact threshold, by bisection; a score of -inf gains nothing."""
    low, high = -1e9, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        too_low = np.maximum(scores - middle, 0).mean() > cost
        low, high = (middle, high) if too_low else (low, middle)
    return high


@pytest.mark.parametrize("failed", [0, 300, 3600])
def test_what_is_enough_is_worth_no_further_sample(failed):
    """Beyond it one more is expected to gain no more than it costs. Samples that could not be scored count as well."""
    scores = np.random.default_rng(0).normal(size=4000)
    scores[:failed] = -np.inf
    known = scores[failed:]
    spread = np.quantile(known, 0.95) - np.quantile(known, 0.05)
    exact = [max(known.min(), pandora(scores, cost * spread)) for cost in COSTS]
    gaps = np.diff(np.sort(known)).max()  # to the next recorded score
    assert thresholds(scores) == pytest.approx(exact, abs=gaps + spread / 1000)


def test_a_scorer_that_is_sure_sets_thresholds_between_good_and_bad():
    """Half of the samples near 1, half near 0: all thresholds are near 1."""
    scores = np.concatenate([np.linspace(0, 0.02, 500), np.linspace(0.98, 1, 500)])
    found = thresholds(scores)
    assert len(found) >= 2
    assert min(found) > 0.5


NOTHING = [[], [0.5], [1.0, 1.0, 1.0], [-np.inf] * 3, [np.nan] * 3]


@pytest.mark.parametrize("scores", NOTHING)
def test_without_a_difference_there_is_no_threshold(scores):
    """Nothing is scored, or all the same."""
    assert thresholds(np.array(scores, np.float64)) == ()


def test_what_passes_is_enough_where_the_rest_could_not_be_scored():
    """A verifier's 1, and crashes."""
    assert thresholds(np.array([1.0, -np.inf, 1.0, -np.inf])) == (1.0,)


@given(SCORES)
@example([0.0, 9.8e-306])
@example([0.0] * 30 + [1.0] * 30 + [1e307])
def test_each_threshold_is_reached_by_some_and_not_by_all(scores):
    """They rise, and no two are the same."""
    found = thresholds(np.array(scores, np.float64))
    assert list(found) == sorted(set(found))
    assert all(min(scores) < score <= max(scores) for score in found)
    assert len(found) <= len(COSTS)


def test_one_scale_is_as_good_as_another():
    """Rewards of 0 to 1, and of -50 to 50."""
    scores = np.random.default_rng(1).beta(2, 1, size=500)
    scaled = thresholds(100 * scores - 50)
    assert scaled == pytest.approx([100 * score - 50 for score in thresholds(scores)], abs=0.2)
