"""
How much longer calls take now than was measured: what throttling and neighbours do to a device.

Knows predictions, plans and what became of them; measures no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from langchain_pareto.planning.plan import Plan, Spend

_HALF_LIFE = 20  # observations
_BOUNDS = (0.5, 2.0)
_LONGEST = 4.0  # times what was predicted, or what is usual
_AS_PREDICTED = (1.0, 1.0, 1)  # one such call goes before all: predicted, taken, count
_UNLIKE = 2.0  # times longer or shorter prompts than those that were measured teach nothing


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


@dataclass(slots=True, eq=False)
class Watched:
    """A call that runs, and whether any other ran beside it."""

    alone: bool = True


class Paces:
    """What planned calls of this process teach of the devices that they run on, model by model."""

    def __init__(self) -> None:
        self._drift = Drift()
        self._lock = Lock()
        self._running = set[Watched]()
        self._warm = set[str]()

    def of(self, devices: Mapping[str, str]) -> float:
        """How many times the measured seconds a call takes now, by the slowest of these models on their devices."""
        factors = (self._drift.factor(_kind(*one)) for one in devices.items())
        return max(factors, default=1.0)

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
        """Compares the seconds of a planned call, for each token, with those that were measured.

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
        if not cold:
            measured = took.mean / plan.pace
            self._drift.observe(kind, tokens / drawn.mean, seconds / measured)


paces = Paces()
"""Of this process."""


def _is_cut(spend: Spend) -> bool:
    return spend.limit is not None and spend.mean >= spend.limit


def _kind(model: str, device: str) -> str:
    return f"{model} on {device}"
