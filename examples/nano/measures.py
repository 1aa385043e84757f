"""
What k samples are worth, and how sure that is: pass@k, maj@k, best-of-k and weighted vote, intervals, and the area under the ROC curve.

Knows arrays of (questions, n); knows no model and no task.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from langchain_pareto.planning.measures import Array, best_of, pass_at, vote

__all__ = ["Array", "auc", "best_of", "bootstrap", "interval", "pass_at", "vote"]


def interval(values: Array) -> tuple[float, float]:
    """The 95 % interval of the mean over questions: Wilson's (1927) for zeros and ones, a bootstrap otherwise."""
    n, mean = len(values), float(values.mean())
    if not np.isin(values, (0, 1)).all():
        return bootstrap(n, lambda rows: float(values[rows].mean()))
    z = 1.959964
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    questions: int, statistic: Callable[[npt.NDArray[np.int64]], float], resamples: int = 1000
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of questions, given by their numbers (Efron 1979)."""
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(0, questions, questions)) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def auc(scores: Array, labels: npt.NDArray[np.bool_]) -> float:
    """The area under the ROC curve: the chance that a good one scores above a bad one, ties half; there must be both."""
    order = np.unique(scores, return_inverse=True)[1]
    positives = np.bincount(order[labels], minlength=order.max() + 1)
    negatives = np.bincount(order[~labels], minlength=order.max() + 1)
    below = np.concatenate([[0], np.cumsum(negatives)[:-1]])
    pairs = (positives * (below + negatives / 2)).sum()
    return float(pairs / (positives.sum() * negatives.sum()))
