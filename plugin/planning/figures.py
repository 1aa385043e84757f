"""How measured figures are told: rounded, and in points of accuracy with their intervals."""

import numpy as np

from langchain_pareto.planning.pool import Floats


def points(values: Floats, resamples: int = 1000) -> list[float]:
    """The mean of (questions,), and the ends of its 90 % interval by the bootstrap, in points."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [0.05, 0.95])
    return [rounded(100 * x) for x in (values.mean(), low, high)]


def rounded(value: float | np.floating) -> float:
    """Two decimals, and never -0.0."""
    return round(float(value), 2) + 0.0
