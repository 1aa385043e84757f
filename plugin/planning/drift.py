"""
How much longer calls take now than was measured: what throttling, neighbours and calls side by side do.

Knows predictions, and plans and what became of them; measures no clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from threading import Lock

from langchain_pareto.budget import Budget
from langchain_pareto.planning.plan import Plan, figure

_HALF_LIFE = 20  # observations
_BOUNDS = (0.5, 2.0)
_TOLD = 1.1  # a factor beyond which a plan tells of it


class Drift:
    """What predictions are to be multiplied by, by kind; safe to use from any thread.

    An exponential average of log(actual / predicted), plain at first, with a half-life of 20 calls; at most a factor of 2 either way.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._logs = dict[str, tuple[float, int]]()

    def observe(self, kind: str, predicted: float, actual: float) -> None:
        """Adds one call; what took no time says nothing."""
        if predicted <= 0 or actual <= 0:
            return
        low, high = map(math.log, _BOUNDS)
        new = min(max(math.log(actual / predicted), 2 * low), 2 * high)  # an interruption is none
        with self._lock:
            known, count = self._logs.get(kind, (0.0, 1))  # one call as predicted goes before all
            weight = max(1 - 0.5 ** (1 / _HALF_LIFE), 1 / (count + 1))
            self._logs[kind] = (known + weight * (new - known), count + 1)

    def factor(self, kind: str) -> float:
        """1 where nothing is known."""
        low, high = _BOUNDS
        return min(max(math.exp(self._logs.get(kind, (0.0, 1))[0]), low), high)


calls = Drift()
"""Of all planned calls of this process, by the device that their seconds were measured on."""


def pace_of(devices: Mapping[str, str], budget: Budget | None) -> float:
    """How many times the measured seconds a call takes now, on the slowest of these devices (by model); 1 without a limit on seconds.

    So what has no limit on time is planned the same whatever was before.
    """
    if budget is None or budget.seconds is None:
        return 1.0
    return max(map(calls.factor, set(devices.values())), default=1.0)


def as_measured(budget: Budget | None, pace: float) -> Budget | None:
    """A budget in the seconds that a profile knows."""
    if budget is None or budget.seconds is None:
        return budget
    return budget.model_copy(update={"seconds": budget.seconds / pace})


def as_now(plan: Plan, budget: Budget | None, pace: float) -> Plan:
    """A plan that was made for `as_measured`, in the seconds of now."""
    if pace == 1.0:
        return plan
    expected = dict(plan.expected)
    if (spend := expected.get("seconds")) is not None:
        limit = None if spend.limit is None else float(f"{spend.limit * pace:.12g}")
        expected["seconds"] = replace(
            spend, mean=spend.mean * pace, p90=spend.p90 * pace, limit=limit
        )
    notes = plan.notes
    if not 1 / _TOLD < pace < _TOLD:
        notes = (*notes, f"calls take {figure(pace)} times the measured seconds now: planned so")
    return replace(plan, budget=budget, expected=expected, notes=notes, pace=pace)


def learn(plan: Plan, tokens: int, seconds: float) -> None:
    """What a planned call took: its seconds for each token are compared, as its tokens are the question's."""
    expected = plan.expected
    if plan.device and {"tokens", "seconds"} <= expected.keys() and expected["tokens"].mean:
        measured = expected["seconds"].mean / plan.pace
        calls.observe(plan.device, measured * tokens / expected["tokens"].mean, seconds)
