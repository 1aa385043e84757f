"""What the report compares: one way of answering with another, and one model with another, on the same problems."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nano import measures
from nano.sample_pools import Pool

N = 16  # samples


def gains(greedy: Pool, pool: Pool) -> dict[str, list[float]]:
    """What 16 samples bring over one greedy one, in points, with 95 % intervals; and the share of the way to pass@16, in per cent."""
    assert pool.scores is not None
    one = greedy.right[:, 0].astype(np.float64)
    ways = {
        "maj@16": measures.vote(pool.right, pool.answers, N),
        "best of 16": measures.best_of(pool.right, pool.scores, N),
        "weighted vote of 16": measures.vote(pool.right, pool.answers, N, weights=pool.scores),
    }
    all_way = measures.pass_at(pool.right, N) - one
    found = {}
    for name, way in ways.items():
        found[f"{name} over greedy"] = _points(way - one)
        found[f"{name}: gap closed"] = _ratio(way - one, all_way)
    return found


def larger_over_smaller(pools: Mapping[str, Pool]) -> dict[str, list[float]]:
    """The mean sample of each model over that of the next smaller one, in points, with 95 % intervals."""
    return {
        f"{large} over {small}": _points(pools[large].right.mean(1) - pools[small].right.mean(1))
        for small, large in pairwise(pools)
    }


def _points(differences: npt.NDArray[np.float64]) -> list[float]:
    low, high = measures.bootstrap(len(differences), lambda rows: float(differences[rows].mean()))
    return [round(100 * x, 1) for x in (float(differences.mean()), low, high)]


def _ratio(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> list[float]:
    """Of the sums, as there is no ratio of a single problem; NaN where there is no gap."""

    def ratio(rows: npt.NDArray[np.int64]) -> float:
        total = float(whole[rows].sum())
        return float(part[rows].sum()) / total if total else float("nan")

    everything = np.arange(len(part))
    return [round(100 * x, 1) for x in (ratio(everything), *measures.bootstrap(len(part), ratio))]
