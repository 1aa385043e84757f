"""
What a decode step takes on one runner, by how many tokens it computes: the measured curve that draft lengths are chosen by.

Knows counts and seconds; knows no model. Steps of up to 8 tokens are told apart, wider ones within an eighth of their width.
"""

from __future__ import annotations

from bisect import bisect_left

_EXACT = 8  # tokens
_OLD = 0.9  # weight of what is known when a step is noted: the machine drifts
_SLOW = 3.0  # times what is known: an interruption of the machine, noted with that much only


class StepTimes:
    """An exponential average for each width; between widths a straight line, beyond them the line through the first and the last."""

    def __init__(self) -> None:
        self._seconds = dict[int, float]()
        self._widths = list[int]()

    def note(self, tokens: int, seconds: float) -> None:
        """Adds one measured step."""
        width = _width(tokens)
        known = self._seconds.get(width)
        if known is None:
            self._widths.insert(bisect_left(self._widths, width), width)
            self._seconds[width] = seconds
        else:
            self._seconds[width] = _OLD * known + (1 - _OLD) * min(seconds, _SLOW * known)

    def seconds(self, tokens: int) -> float | None:
        """Seconds that a step of so many tokens takes, None before anything was measured."""
        if not self._widths:
            return None
        at = bisect_left(self._widths, tokens)
        if at == len(self._widths):
            first, last = self._widths[0], self._widths[-1]
            rise = self._seconds[last] - self._seconds[first]
            slope = max(0.0, rise) / (last - first) if last > first else 0.0
            return self._seconds[last] + slope * (tokens - last)
        after = self._widths[at]
        if at == 0:
            return self._seconds[after]
        before = self._widths[at - 1]
        share = (tokens - before) / (after - before)
        return (1 - share) * self._seconds[before] + share * self._seconds[after]


def _width(tokens: int) -> int:
    """Its own number for a narrow step, else the nearest of eight a doubling."""
    if tokens <= _EXACT:
        return tokens
    step = 1 << (tokens.bit_length() - 4)
    return (tokens + step // 2) // step * step
