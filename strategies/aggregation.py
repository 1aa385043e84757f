"""
One number for a solution of several steps, from what a process reward says of each. Knows numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Aggregation = Literal["last", "mean", "min", "product"]


def aggregate(scores: Sequence[float], how: Aggregation) -> float:
    """The score of a solution whose steps have these; -inf where there is no step.

    "last" is what was published for votes over REBASE (Wu et al. 2024, arXiv 2408.00724), "min" and "product" are of Lightman et al.
    2023 (arXiv 2305.20050).
    """
    if not scores:
        return -math.inf
    if how == "last":
        return scores[-1]
    if how == "mean":
        return math.fsum(scores) / len(scores)
    return min(scores) if how == "min" else math.prod(scores)
