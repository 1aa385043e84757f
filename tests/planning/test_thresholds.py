"""Scores that are enough: Pandora's rule over recorded scores."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from langchain_pareto.planning.thresholds import COSTS, thresholds

SCORES = st.lists(st.floats(-1e6, 1e6), max_size=60)


def test_what_is_enough_is_worth_no_further_sample():
    """Beyond it one more is expected to gain no more than it costs; at the next score below, more than that."""
    scores = np.random.default_rng(0).normal(size=4000)
    spread = np.quantile(scores, 0.95) - np.quantile(scores, 0.05)
    for cost, enough in zip(COSTS, thresholds(scores), strict=True):
        below = scores[scores < enough].max()
        gains = [np.maximum(scores - score, 0).mean() for score in (enough, below)]
        assert gains[0] <= cost * spread < gains[1]


def test_a_scorer_that_is_sure_sets_thresholds_between_good_and_bad():
    """Half of the samples near 1, half near 0: all thresholds are near 1."""
    scores = np.concatenate([np.linspace(0, 0.02, 500), np.linspace(0.98, 1, 500)])
    assert all(score > 0.5 for score in thresholds(scores))


@pytest.mark.parametrize("scores", [[], [0.5], [1.0, 1.0, 1.0], [np.nan, 2.0], [np.nan] * 3])
def test_without_a_difference_there_is_no_threshold(scores):
    """Nothing is scored, or all the same."""
    assert thresholds(np.array(scores, np.float64)) == ()


@given(SCORES)
def test_thresholds_are_recorded_scores(scores):
    """Each was given, they rise, and none is the worst."""
    found = thresholds(np.array(scores, np.float64))
    assert set(found) <= set(scores)
    assert list(found) == sorted(set(found))
    assert min(scores, default=-1.0) not in found
    assert len(found) <= len(COSTS)


def test_one_scale_is_as_good_as_another():
    """Rewards of 0 to 1, and of -50 to 50."""
    scores = np.random.default_rng(1).beta(2, 1, size=500)
    scaled = thresholds(100 * scores - 50)
    assert scaled == pytest.approx([100 * score - 50 for score in thresholds(scores)])


def test_what_is_no_number_is_no_score():
    """NaN is a sample without a score; an infinite one is far out."""
    scores = [0.1, 0.2, 0.9, 0.95]
    assert thresholds(np.array([*scores, np.nan, -np.inf])) == thresholds(np.array(scores))
