"""
What a decode step takes on one runner, by how many tokens it computes: the measured curve that draft lengths are chosen by.

Knows counts and seconds; knows no model. Steps of up to 8 tokens are told apart, wider ones within an eighth of their width. A step also
takes longer the longer its texts are. Some widths were measured after short texts and others after long ones, so all are told as they
would be now: seconds of all widths grow by the same share with each token of context.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

_EXACT = 8  # tokens
_OLD = 0.9  # weight of what is known when a step is noted: the machine drifts
_OLD_GROWTH = 0.99  # the same for the growth, which takes texts of different lengths to see
_SLOW = 3.0  # times what is known: an interruption of the machine, noted with that much only
_LEAST = 0.5  # of what a width took: so far it is taken back, however short texts are now


class StepTimes:
    """An exponential average for each width; between widths a straight line, beyond them the line through the first and the last."""

    def __init__(self) -> None:
        self._by_width = dict[int, _Width]()
        self._widths = list[int]()
        self._context = 0.0  # of the last step
        # share of its seconds that a step takes more for each token of context; None until somebody asks
        self._growth: float | None = None

    def note(self, tokens: int, seconds: float, context: float = 0.0) -> None:
        """Adds one measured step, whose sequences are `context` tokens long on average."""
        width = _width(tokens)
        known = self._by_width.get(width)
        self._context = context
        if known is None:
            self._widths.insert(bisect_left(self._widths, width), width)
            self._by_width[width] = _Width(seconds, context)
            return
        if seconds > _SLOW * _LEAST * known.seconds:  # else it is none, whatever the growth
            seconds = min(seconds, _SLOW * self._at(width))
        known.note(seconds, context)
        self._growth = None  # every step is noted, and few are asked about

    @property
    def measured(self) -> bool:
        """Whether any step was noted."""
        return bool(self._widths)

    @property
    def context(self) -> int:
        """About how long the sequences of the last step were, within an eighth."""
        return _width(round(self._context))

    def seconds(self, tokens: int) -> float | None:
        """Seconds that a step of so many tokens takes, after texts as long as those of the last step; None before anything was measured."""
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
        """What one measured width takes now."""
        if self._growth is None:
            spread = sum(one.spread for one in self._by_width.values())
            together = sum(one.together / one.mean_seconds for one in self._by_width.values())
            self._growth = max(0.0, together / spread) if spread > 0 else 0.0
        known = self._by_width[width]
        return known.seconds * max(_LEAST, 1 + self._growth * (self._context - known.context))


@dataclass(slots=True)
class _Width:
    """Steps of one width: averages of the last ones, and how seconds and context went together in many."""

    seconds: float
    context: float  # tokens
    mean_seconds: float = 0.0
    mean_context: float = 0.0
    steps: float = 1.0
    spread: float = 0.0  # sum of squares of the contexts around their mean
    together: float = 0.0  # sum of products with the seconds around theirs

    def __post_init__(self) -> None:
        self.mean_seconds, self.mean_context = self.seconds, self.context

    def note(self, seconds: float, context: float) -> None:
        """Adds one step (Welford's sums, of which the old ones fade)."""
        self.seconds = _OLD * self.seconds + (1 - _OLD) * seconds
        self.context = _OLD * self.context + (1 - _OLD) * context
        self.steps = _OLD_GROWTH * self.steps + 1
        away = context - self.mean_context
        self.mean_context += away / self.steps
        self.mean_seconds += (seconds - self.mean_seconds) / self.steps
        self.spread = _OLD_GROWTH * self.spread + away * (context - self.mean_context)
        self.together = _OLD_GROWTH * self.together + away * (seconds - self.mean_seconds)


def _width(tokens: int) -> int:
    """Its own number for a narrow step, else the nearest of eight a doubling."""
    if tokens <= _EXACT:
        return tokens
    step = 1 << (tokens.bit_length() - 4)
    return (tokens + step // 2) // step * step
