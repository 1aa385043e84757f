"""
A budget as limits of what was measured: joules and hourly prices limit seconds, prices of tokens limit tokens.

Knows budgets, rates and the pace of the device; knows no plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from langchain_pareto.budget import Budget
from langchain_pareto.rates import Rates

MEASURED = ("tokens", "flops", "seconds")


@dataclass(frozen=True, slots=True)
class Pace:
    """How calls go now: how many times the measured seconds they take, and by what more their upper end is to be multiplied."""

    times: float = 1.0
    margin: float = 1.0


AS_MEASURED = Pace()


@dataclass(frozen=True, slots=True)
class Within:
    """Limits as they are now, by resource, and the pace of calls.

    `timed` is whether time is limited, be that limit among these or not: a vote draws all at once then.
    """

    limits: Mapping[str, float]
    pace: Pace = AS_MEASURED
    timed: bool = False

    @classmethod
    def of(cls, budget: Budget, rates: Rates, pace: Pace = AS_MEASURED) -> Within:
        """All limits of a budget. What has none on time is planned by the measured seconds, whatever was before."""
        found = list(_limits(budget, rates))
        limits = {name: min(x for n, x in found if n == name) for name, _ in found}
        return cls(limits, pace, "seconds" in limits).only(limits)

    def only(self, names: Collection[str]) -> Within:
        """Those on these resources."""
        kept = {name: limit for name, limit in self.limits.items() if name in names}
        return Within(kept, self.pace if "seconds" in kept else AS_MEASURED, self.timed)

    def measured(self, name: str) -> float:
        """A limit in what was measured."""
        return self.limits[name] / self._times(name)

    def now(self, name: str, measured: float) -> float:
        """What was measured of a resource, as it is now."""
        return measured * self._times(name)

    def upper(self, name: str, measured: float) -> float:
        """What few calls were measured to take more of, as it is now."""
        return self.now(name, measured) * (self.pace.margin if name == "seconds" else 1.0)

    def _times(self, name: str) -> float:
        return self.pace.times if name == "seconds" else 1.0


def _limits(budget: Budget, rates: Rates) -> Iterator[tuple[str, float]]:
    for name in MEASURED:
        if (limit := getattr(budget, name)) is not None:
            yield name, float(limit)
    if budget.joules is not None and rates.watts:
        yield "seconds", budget.joules / rates.watts
    if budget.usd is not None and rates.usd_per_hour:
        yield "seconds", budget.usd / rates.usd_per_hour * 3600
    if budget.usd is not None and rates.usd_per_token:
        yield "tokens", budget.usd / rates.usd_per_token
