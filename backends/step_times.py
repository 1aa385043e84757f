"""
What a decode step takes on one runner, by how many tokens it computes: the measured curve that draft lengths are chosen by.

Knows counts and seconds; knows no model. Steps of up to 8 tokens are told apart, wider ones within an eighth of their width. A step also
takes longer the more it reads of the cache. Steps of some widths were measured after short texts and others after long ones, so all are
told as they would be now: seconds grow with the slots that are read, by one slope for all widths.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

_EXACT = 8  # tokens
_OLD = 0.9  # weight of what is known when a step is noted: the machine drifts
_OLD_SLOPE = 0.99  # the same for the slope, which takes texts of different lengths to see
_SLOW = 3.0  # times what is known: an interruption of the machine, noted with that much only


class StepTimes:
    """An exponential average for each width; between widths a straight line, beyond them the line through the first and the last."""

    def __init__(self) -> None:
        self._by_width = dict[int, _Width]()
        self._widths = list[int]()
        self._read = 0  # slots, by the last step
        self._slope = 0.0  # seconds a slot

    def note(self, tokens: int, seconds: float, read: int = 0) -> None:
        """Adds one measured step, which has read so many slots of the cache."""
        width = _width(tokens)
        known = self._by_width.get(width)
        if known is None:
            self._widths.insert(bisect_left(self._widths, width), width)
            self._by_width[width] = _Width(seconds, read)
        else:
            usual = known.seconds + self._slope * (read - known.read)
            known.note(min(seconds, _SLOW * usual) if usual > 0 else seconds, read)
            spread = sum(one.spread for one in self._by_width.values())
            together = sum(one.together for one in self._by_width.values())
            self._slope = max(0.0, together / spread) if spread > 0 else 0.0
        self._read = read

    @property
    def reads(self) -> int:
        """About how many slots the last step has read, within an eighth."""
        return _width(self._read)

    def seconds(self, tokens: int) -> float | None:
        """Seconds that a step of so many tokens takes, where it reads as much as the last one; None before anything was measured."""
        if not self._widths:
            return None
        at = bisect_left(self._widths, tokens)
        if at == len(self._widths):
            first, last = self._widths[0], self._widths[-1]
            rise = self._at(last) - self._at(first)
            slope = max(0.0, rise) / (last - first) if last > first else 0.0
            return self._at(last) + slope * (tokens - last)
        after = self._widths[at]
        if at == 0:
            return self._at(after)
        before = self._widths[at - 1]
        share = (tokens - before) / (after - before)
        return (1 - share) * self._at(before) + share * self._at(after)

    def _at(self, width: int) -> float:
        """What one measured width takes now; never less than half of what it took, however far away that was."""
        known = self._by_width[width]
        now = known.seconds + self._slope * (self._read - known.read)
        return max(now, known.seconds / 2)


@dataclass(slots=True)
class _Width:
    """Steps of one width: averages of the last ones, and how seconds and slots went together in many."""

    seconds: float
    read: float  # slots
    mean_seconds: float = 0.0
    mean_read: float = 0.0
    steps: float = 0.0
    spread: float = 0.0  # sum of squares of the slots around their mean
    together: float = 0.0  # sum of products with the seconds around theirs

    def __post_init__(self) -> None:
        self.mean_seconds, self.mean_read, self.steps = self.seconds, self.read, 1.0

    def note(self, seconds: float, read: int) -> None:
        """Adds one step (Welford's sums, of which the old ones fade)."""
        self.seconds = _OLD * self.seconds + (1 - _OLD) * seconds
        self.read = _OLD * self.read + (1 - _OLD) * read
        self.steps = _OLD_SLOPE * self.steps + 1
        away = read - self.mean_read
        self.mean_read += away / self.steps
        self.mean_seconds += (seconds - self.mean_seconds) / self.steps
        self.spread = _OLD_SLOPE * self.spread + away * (read - self.mean_read)
        self.together = _OLD_SLOPE * self.together + away * (seconds - self.mean_seconds)


def _width(tokens: int) -> int:
    """Its own number for a narrow step, else the nearest of eight a doubling."""
    if tokens <= _EXACT:
        return tokens
    step = 1 << (tokens.bit_length() - 4)
    return (tokens + step // 2) // step * step
