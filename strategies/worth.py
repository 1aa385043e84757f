"""
What a call's next samples are worth, where calls side by side share a budget and the one with most use for it goes first.

Knows numbers only.
"""

from __future__ import annotations

import math

_PATIENCE = 8  # samples after which a call that is still unsure counts half


def worth(doubt: float, drawn: int) -> float:
    """From how likely the answer would still change, and less after many samples that told little; a first sample comes before all."""
    return doubt / (1 + drawn / _PATIENCE) if drawn else math.inf
