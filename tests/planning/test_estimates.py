"""How sure a reading is: intervals that hold as often as they say."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from profiles import answered, profile

from langchain_pareto.budget import Budget
from langchain_pareto.planning.estimates import Reading
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import TERMS, Cells


def counts(questions: int) -> Reading:
    """A reading of one option for each count of right answers."""
    right = np.array([answered(k / questions, questions) for k in range(questions + 1)])
    costs = np.ones((questions + 1, len(TERMS)))
    return Reading(right.mean(1), right, costs, costs)


def chances(questions: int, share: float) -> list[float]:
    """Of each count of right answers, where such a share of all answers is right."""
    n, whole = questions, math.lgamma(questions + 1)
    return [
        math.exp(
            whole
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(share)
            + (n - k) * math.log1p(-share)
        )
        for k in range(n + 1)
    ]


def passing(questions: int, shares: np.ndarray) -> Iterator[float]:
    """How often a plan of just such a quality is found to be better for sure."""
    reading = counts(questions)
    lower = np.array([reading.lower(k) for k in range(questions + 1)])
    for share in shares:
        yield float(np.array(chances(questions, float(share)))[lower > share].sum())


@pytest.mark.parametrize("questions", [30, 37, 44, 50, 64, 100, 150, 300])
def test_a_plan_that_is_just_not_better_seldom_passes(questions):
    """By the exact binomial, a wanted accuracy of a half or more is found to be surpassed in at most 6.5 % of calibrations."""
    assert max(passing(questions, np.arange(0.5, 0.995, 0.01))) <= 0.065


@pytest.mark.parametrize("questions", [100, 107, 128, 300])
def test_lower_accuracies_are_a_little_less_sure(questions):
    """With the 100 questions of a usual calibration, at most 7 % from three tenths on."""
    assert max(passing(questions, np.arange(0.3, 0.995, 0.01))) <= 0.07


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_it_asks_for_about_as_many_right_answers_as_the_exact_test(share):
    """Of 100 questions at most one more or less than the fewest that so good a plan reaches in at most 5 % of calibrations."""
    reading, chance = counts(100), chances(100, share)
    exact = min(k for k in range(102) if sum(chance[k:]) <= 0.05)
    ours = min(k for k in range(101) if reading.lower(k) > share)
    assert abs(ours - exact) <= 1


@pytest.mark.parametrize("questions", [1, 2, 3, 10, 1000])
def test_an_interval_has_the_quality_in_it(questions):
    """Also where all or none are right, and never leaves 0 to 1."""
    reading = counts(questions)
    for k in range(questions + 1):
        low, high = reading.interval(k)
        assert 0 <= low <= k / questions <= high <= 1
        assert high > low


def test_a_plan_tells_this_interval():
    """What it is sure of and what it tells are one."""
    right = np.array([[answered(0.9, 100)]] * 4)
    costs = np.ones((4, 1, len(TERMS)))
    made = profile(tables={"tokens": Cells(np.array([100.0]), right, costs, costs)})
    quality = Planner(made).plan(Budget(tokens=100)).quality
    assert quality is not None
    assert (quality.low, quality.high) == pytest.approx(counts(100).interval(90))
