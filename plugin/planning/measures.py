"""
What k samples are worth: pass@k, maj@k, best-of-k and weighted vote, from n recorded samples a question.

Expectations over the k-subsets of the n samples: exact where a formula is known, over seeded random subsets otherwise. Knows arrays
of (questions, n); knows no model and no task.
"""

from math import comb

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
SUBSETS = 100  # random subsets of a size, where no formula is known


def pass_at(right: npt.NDArray[np.bool_], k: int) -> Array:
    """The chance that one of k samples is right (Chen et al. 2021, the unbiased estimator); (questions, n) to (questions,).

    It can only be told up to k = n.
    """
    n = right.shape[1]
    assert 1 <= k <= n, f"pass@{k} of {n} samples"
    none = np.array([comb(n - c, k) / comb(n, k) for c in range(n + 1)])
    chance: Array = 1 - none[right.sum(1)]
    return chance


def best_of(right: npt.NDArray[np.bool_], scores: Array, k: int) -> Array:
    """The chance that the sample of the highest score among k is right; ties go to the earlier sample."""
    n = right.shape[1]
    ranked = np.take_along_axis(right, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    # The sample of rank i is the best of k if the others come from the n - 1 - i below it.
    weight = np.array([comb(n - 1 - i, k - 1) / comb(n, k) for i in range(n)])
    result: Array = ranked @ weight
    return result


def vote(
    right: npt.NDArray[np.bool_],
    answers: npt.NDArray[np.int64],
    k: int,
    *,
    weights: Array | None = None,
    seed: int = 0,
) -> Array:
    """The chance that the answer with most votes among k samples is right; (questions,).

    `answers` (questions, n) has each sample's class of equal answers, −1 for none, which does not vote. `weights` (questions, n) counts votes
    (majority: all 1). Ties go to the answer that came first.
    """
    questions, n = answers.shape
    rng = np.random.default_rng(seed)
    subsets = np.argsort(rng.random((SUBSETS, n)), axis=1)[:, :k]
    total = np.zeros(questions)
    for subset in subsets:
        total += _winner_right(right[:, subset], answers[:, subset], _part(weights, subset))
    return total / len(subsets)


def _part(weights: Array | None, subset: npt.NDArray[np.int64]) -> Array | None:
    return None if weights is None else weights[:, subset]


def _winner_right(
    right: npt.NDArray[np.bool_], answers: npt.NDArray[np.int64], weights: Array | None
) -> npt.NDArray[np.bool_]:
    """Whether the class with the most weight is right; (questions,)."""
    votes = (answers >= 0) * (1.0 if weights is None else weights)  # (questions, k)
    same = answers[:, :, None] == answers[:, None, :]  # (questions, k, k)
    support = (same * votes[:, None, :]).sum(2)
    support[answers < 0] = -1
    first = support.argmax(1)  # the first of the largest
    rows = np.arange(len(right))
    won: npt.NDArray[np.bool_] = right[rows, first] & (support[rows, first] > 0)
    return won
