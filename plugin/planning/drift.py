"""
How much longer calls take now than was measured, and how far single ones go beyond: what throttling and neighbours do to a device.

Knows predictions, plans and what became of them; measures no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from langchain_pareto.planning.limits import AS_MEASURED, Pace
from langchain_pareto.planning.plan import Plan, Spend

_HALF_LIFE = 20  # observations
_BOUNDS = (0.5, 2.0)
_LONGEST = 4.0  # times what was predicted, or what is usual
_AS_PREDICTED = (1.0, 1.0, 1)  # one such call goes before all: predicted, taken, count
_UNLIKE = 2.0  # times longer or shorter prompts than those that were measured teach nothing
_RATE = 0.1  # of a margin's logarithm, for a call that takes longer
_WIDEST = 4.0  # times; an interruption counts as no more in a drift either
_ABOVE = 0.1  # calls that may take longer than 9 of 10 are said to
_AT_FIRST = 1.14  # at first of such a margin: the speed of a device differs by a tenth from one moment to another


class Drift:
    """What predictions are to be multiplied by, by kind; safe to use from any thread.

    The ratio of two exponential averages, of what calls took and of what was predicted, plain at first, with a half-life of 20 calls; at
    most a factor of 2 either way. An average of the calls' own ratios would find a drift where some calls are just short.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._means = dict[str, tuple[float, float, int]]()

    def observe(self, kind: str, predicted: float, actual: float) -> None:
        """Adds one call, in what such calls take on average; what took no time says nothing."""
        if not (0 < predicted < math.inf and 0 < actual < math.inf):
            return
        took = min(actual, _LONGEST * max(1.0, predicted))  # an interruption is no drift
        with self._lock:
            foreseen, taken, count = self._means.get(kind, _AS_PREDICTED)
            weight = max(1 - 0.5 ** (1 / _HALF_LIFE), 1 / (count + 1))
            self._means[kind] = (
                foreseen + weight * (predicted - foreseen),
                taken + weight * (took - taken),
                count + 1,
            )

    def factor(self, kind: str) -> float:
        """1 where nothing is known."""
        foreseen, taken, _ = self._means.get(kind, _AS_PREDICTED)
        low, high = _BOUNDS
        return min(max(taken / foreseen, low), high)


class Margins:
    """What upper ends of predictions are to be multiplied by, by kind, so that a share `above` of calls takes longer; safe to use from any thread.

    Each call that takes longer widens a margin, each other narrows it a little, so that they balance at that share: the quantile tracker of
    Angelopoulos, Candes and Tibshirani 2023 (arXiv 2307.16895), in logarithms. Over T calls that share is exceeded by at most
    log(4) / (0.1 T), whatever calls are like, where no margin above 3.6 is needed; by less, where none is needed.
    """

    def __init__(self, above: float, at_first: float = 1.0) -> None:
        self._above, self._at_first = above, math.log(at_first)
        self._lock = Lock()
        self._logs = dict[str, float]()

    def observe(self, kind: str, *, longer: bool) -> None:
        """Adds one call: whether it took longer than the upper end with its margin."""
        with self._lock:
            wider = self._logs.get(kind, self._at_first) + _RATE * (longer - self._above)
            self._logs[kind] = min(max(wider, 0.0), math.log(_WIDEST))

    def of(self, *kinds: str) -> float:
        """The widest of those that are known, as at first where none is: at least 1."""
        known = [log for kind in kinds if (log := self._logs.get(kind)) is not None]
        return math.exp(max(known, default=self._at_first))


@dataclass(slots=True, eq=False)
class Watched:
    """A call that runs, and whether any other ran beside it."""

    alone: bool = True


class Paces:
    """What planned calls of this process teach of the devices that they run on, model by model."""

    def __init__(self) -> None:
        self._drift = Drift()
        self._margins = Margins(_ABOVE, _AT_FIRST)
        self._lock = Lock()
        self._running = set[Watched]()
        self._warm = set[str]()

    def of(self, devices: Mapping[str, str]) -> Pace:
        """What a call takes now, by the slowest and the most uncertain of these models on their devices."""
        kinds = [_kind(*one) for one in devices.items()]
        if not kinds:
            return AS_MEASURED
        return Pace(max(map(self._drift.factor, kinds)), self._margins.of(*kinds))

    @contextmanager
    def watched(self) -> Iterator[Watched]:
        """Inside, a call runs: those side by side share the device, which is no drift of it."""
        one = Watched()
        with self._lock:
            self._running.add(one)
            if len(self._running) > 1:
                for other in self._running:
                    other.alone = False
        try:
            yield one
        finally:
            with self._lock:
                self._running.discard(one)

    def learn(self, plan: Plan, *, tokens: int, prompt: int, seconds: float) -> None:
        """Compares the seconds of a planned call with those that were measured: for each token, and with what 9 of 10 calls stay within.

        The first call of a model warms it up, and teaches nothing; nor does one of several models, one that was expected to take all of a
        limit (nobody knows how many tokens it has then), or one whose prompt is unlike those that were measured.
        """
        drawn, took = plan.expected.get("tokens"), plan.expected.get("seconds")
        if drawn is None or took is None:
            return
        if not plan.device or plan.model is None or not plan.prompt:
            return
        if len(set(plan.roles.values())) > 1 or any(map(_is_cut, plan.expected.values())):
            return
        if not (drawn.mean and took.mean) or not 1 / _UNLIKE <= prompt / plan.prompt <= _UNLIKE:
            return
        kind = _kind(plan.model, plan.device)
        with self._lock:
            cold = kind not in self._warm
            self._warm.add(kind)
        if cold:
            return
        ended = took.limit is not None and min(seconds, took.p90) >= took.limit
        if not ended:  # else nobody knows what it would have taken
            most = took.p90 / plan.pace.times / plan.pace.margin  # as it was measured
            most *= self._drift.factor(kind) * self._margins.of(kind)
            self._margins.observe(kind, longer=seconds > most)
        measured = took.mean / plan.pace.times
        self._drift.observe(kind, tokens / drawn.mean, seconds / measured)


paces = Paces()
"""Of this process."""


def _is_cut(spend: Spend) -> bool:
    return spend.limit is not None and spend.mean >= spend.limit


def _kind(model: str, device: str) -> str:
    return f"{model} on {device}"
