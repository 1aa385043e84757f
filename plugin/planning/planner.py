"""
The planner: the cheapest plan that serves a budget, and why.

Level 0 has no measurements and takes the adaptive vote. Level 1 reads a profile: the cheapest plan that is within half a point of the best
(the lean rule), or the cheapest that reaches a wanted accuracy. Knows profiles, cost models and prices; samples
nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from langchain_pareto.budget import Budget
from langchain_pareto.errors import SettingError
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.certified import cheapest_certified
from langchain_pareto.planning.estimates import Reading
from langchain_pareto.planning.limits import AS_MEASURED, Pace, Within
from langchain_pareto.planning.plan import Plan
from langchain_pareto.planning.profile import Profile
from langchain_pareto.planning.readings import Readings
from langchain_pareto.planning.telling import Telling
from langchain_pareto.rates import Rates
from langchain_pareto.strategies import Auto

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

TOLERANCE = 0.005  # of accuracy: a cheaper plan may be so much worse; half a standard error instead saves no more and loses twice as much


@dataclass(frozen=True, slots=True)
class _Choice:
    """One option among those that a reading knows."""

    index: int
    unmet: bool = False  # whether the wanted accuracy is out of reach


class Planner:
    """Plans for calls of one kind, from one profile."""

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        rates: Rates | None = None,
        models: Sequence[str] | None = None,
        memory: Mapping[str, int] | None = None,
        lean: bool = True,
        here: Collection[str] | None = None,
    ) -> None:
        """`models` are those that may be used, by default all of the profile's; `memory` is what one sample of each takes at most, in bytes.

        `lean=False` takes the best plan that fits, whatever it costs. `here` names the devices that calls run on, by default all of this
        machine's: seconds that were measured elsewhere are not planned with. Raises SettingError where no plan is left.
        """
        self.profile = profile
        self._rates = rates or Rates()
        self._memory = memory or {}
        self._lean = lean
        self._known = None if profile is None else Readings(profile, models, here)

    def plan(
        self,
        budget: Budget | None = None,
        *,
        need: float | None = None,
        guarantee: Guarantee | None = None,
        pace: Pace = AS_MEASURED,
    ) -> Plan:
        """The plan for a call under `budget`; `need` is the share of right answers that is enough.

        With a `guarantee` it is the cheapest that has a certificate. `pace` is how calls go now, against what was measured.
        Raises SettingError for a need that is no share, and CertificateRefused.
        """
        if need is not None and not 0 < need < 1:
            msg = f"need is a share of right answers between 0 and 1, got {need}"
            raise SettingError(msg, hint="For example need=0.8.")
        budget = Budget() if budget is None else budget
        if (known := self._known) is None:
            note = "nothing was calibrated: one sample, then a vote while it may change and the budget lasts"
            return Plan(strategy=Auto(), budget=budget, notes=(note,))
        asked = Within.of(budget, self._rates, pace)
        missing = [name for name in asked.limits if name not in known.tables]
        within = asked.only(known.tables)
        telling = Telling(known, budget, within, known.at(within), missing)
        if guarantee is not None:
            return self._certified(known, telling, guarantee)
        if missing and not within.limits:
            note = "so nothing is planned: one sample, then a vote while it may change and the budget lasts"
            return Plan(strategy=Auto(), budget=budget, notes=(*telling.unmeasured(), note))
        return self._planned(known, telling, need)

    def _certified(self, known: Readings, telling: Telling, guarantee: Guarantee) -> Plan:
        """The cheapest plan of the profile's family that has a certificate; the reference itself needs none."""
        fits = self._fits(known, telling.budget)
        at_hand = {place: bool(fits[at]) for place, at in known.places.items()}
        index, told = cheapest_certified(known.profile, at_hand, guarantee)
        at = known.places[index]
        notes = (*telling.paced(), told, *telling.uncertain(at))
        return replace(telling.plan(at), notes=notes)

    def _planned(self, known: Readings, telling: Telling, need: float | None) -> Plan:
        """The plan of level 1; that of level 0 where none fits."""
        reading, within = telling.reading, telling.within
        possible = ~np.isnan(reading.quality) & self._fits(known, telling.budget)
        notes = list(telling.unmeasured())
        if not possible.any():
            notes += ["no plan of the profile fits: one sample, then a vote while the budget lasts"]
            rejected = tuple(telling.none_fits())
            return Plan(
                strategy=Auto(), budget=telling.budget, rejected=rejected, notes=tuple(notes)
            )
        timed = bool(self._rates.watts or self._rates.usd_per_hour)
        fractions = known.fractions(reading, within, possible, timed=timed)
        labelled = known.profile.labelled
        choice = self._choose(reading, possible, fractions, need if labelled else None)
        notes += [*telling.paced(), *telling.below()]
        if choice.unmet:
            notes += [
                f"no plan reaches {need:.0%} for sure within this budget: the best that fits is taken"
            ]
        notes += telling.at_once(choice.index)
        if need is not None and not labelled:
            notes += ["the profile has no labels, so a wanted accuracy cannot be planned for"]
        plan = telling.plan(choice.index)
        others = telling.rejected(choice.index, possible, fractions, plan.binding, need)
        return replace(plan, rejected=tuple(others), notes=tuple(notes))

    def _choose(
        self, reading: Reading, possible: Bools, fractions: Floats, need: float | None
    ) -> _Choice:
        """The cheapest of those that are good enough."""
        quality = np.where(possible, reading.quality, -np.inf)
        best = _cheapest(quality == quality.max(), fractions)
        if need is not None:
            lower = np.array([reading.lower(i) for i in range(len(quality))])
            enough = possible & (lower >= need)
            return _Choice(_cheapest(enough, fractions)) if enough.any() else _Choice(best, True)
        if not self._lean:
            return _Choice(best)
        as_good = possible & (reading.quality >= reading.quality[best] - TOLERANCE)
        return _Choice(_cheapest(as_good, fractions))

    def _fits(self, known: Readings, budget: Budget) -> Bools:
        """Of which options one sample fits into the memory; (options,)."""
        return np.array(
            [
                budget.memory is None
                or all(self._memory.get(m, 0) <= budget.memory for m in option.roles.values())
                for option in known.options
            ]
        )


def _cheapest(among: Bools, fractions: Floats) -> int:
    """The first of those that take least."""
    return int(min(np.flatnonzero(among), key=lambda i: float(fractions[i])))
