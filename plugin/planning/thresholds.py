"""
Scores at which a search among samples may stop: Pandora's rule (Weitzman 1979) over recorded scores.

Where a further sample costs c, one goes on as long as it is expected to gain more than that over the best so far; so what is enough is the
t with E[max(score - t, 0)] = c. What a sample costs in units of a score nobody can say, so that several are proposed, and measured. Knows
scores, on any scale; knows no strategy.
"""

from __future__ import annotations

import numpy as np

from langchain_pareto.planning.pool import Floats

COSTS = (0.2, 0.05, 0.01, 0.002)  # of a sample, as shares of what lies between high and low scores
_LOW, _HIGH = 0.05, 0.95  # quantiles: a few scores far out are no scale


def thresholds(scores: Floats) -> tuple[float, ...]:
    """One a cost, from the lowest; fewer where two are one, or where any score would do. NaN is no score."""
    known = np.sort(scores[np.isfinite(scores)])[::-1]
    if not known.size or known[0] == known[-1]:
        return ()
    low, high = np.quantile(known, [_LOW, _HIGH])
    spread = high - low if high > low else known[0] - known[-1]
    ranks = np.arange(1, len(known) + 1)
    gains = np.cumsum(known) / len(known) - ranks / len(known) * known  # expected, over each score
    found = np.searchsorted(gains, np.array(COSTS) * spread, side="right") - 1
    return tuple(dict.fromkeys(score for score in known[found].tolist() if score > known[-1]))
