"""
Scores at which a search among samples may stop: Pandora's rule (Weitzman 1979) over recorded scores.

Where a further sample costs c, one goes on as long as it is expected to gain more than that over the best so far; so what is enough is the
t with E[max(score - t, 0)] = c. What a sample costs in units of a score nobody can say, so that several are proposed, and measured. Knows
scores, on any scale; knows no strategy.
"""

from __future__ import annotations

import math

import numpy as np

from langchain_pareto.planning.pool import Floats

COSTS = (0.2, 0.05, 0.01, 0.002)  # of a sample, as shares of what lies between high and low scores
_LOW, _HIGH = 0.05, 0.95  # quantiles: a few scores far out are no scale
_FINE = 1000  # of what lies between: as exactly as a threshold is told
_TINY = 1e-300  # what lies between may be so little that its parts are no floats


def thresholds(scores: Floats) -> tuple[float, ...]:
    """One a cost, from the lowest; fewer where two are one, or where any score would do. A sample that scores -inf is one that gains nothing.

    Each is rounded down, so that it is no higher than the score of some sample.
    """
    known = np.sort(scores[np.isfinite(scores)])[::-1]
    if not known.size or known[0] == scores.min():
        return ()
    low, high = np.quantile(known, [_LOW, _HIGH])
    spread = high - low or known[0] - known[-1] or 1.0
    ranks = np.arange(1, len(known) + 1)
    gains = (np.cumsum(known) - ranks * known) / scores.size  # expected, over each score
    found = known[np.searchsorted(gains, np.array(COSTS) * spread, side="right") - 1]
    rounded = (_rounded_down(float(score), spread) for score in found)
    return tuple(dict.fromkeys(score for score in rounded if score > scores.min()))


def _rounded_down(score: float, spread: float) -> float:
    """To the last digit that is told; as it is, where floats cannot say that."""
    if not _TINY < spread < 1 / _TINY:
        return score
    digits = _FINE / 10.0 ** math.floor(math.log10(spread))
    scaled = score * digits
    return math.floor(scaled) / digits if math.isfinite(scaled) else score
