"""
The planner: the cheapest plan that serves a budget, and why.

Level 0 has no measurements and takes the adaptive vote. Level 1 reads a profile: the cheapest plan that is within half a point of the best
(the lean rule), or the cheapest that reaches a wanted accuracy. Knows profiles, cost models and prices; samples
nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from langchain_pareto.budget import Budget
from langchain_pareto.errors import SettingError
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.certified import cheapest_certified
from langchain_pareto.planning.estimates import Estimates, Reading, by_term
from langchain_pareto.planning.limits import MEASURED, Within
from langchain_pareto.planning.plan import UNITS, Plan, Quality, Rejected, Spend, figure
from langchain_pareto.planning.profile import Profile
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.rates import Rates
from langchain_pareto.strategies import Auto, Vote

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

TOLERANCE = 0.005  # of accuracy: a cheaper plan may be so much worse; half a standard error instead saves no more and loses twice as much
_TOLD = 1.1  # a pace beyond which a plan tells of it


@dataclass(frozen=True, slots=True)
class _Choice:
    """One option among those that a reading knows."""

    index: int
    best: int
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
        self._options: tuple[Option, ...] = ()
        self._places = dict[int, int]()
        self._tables = dict[str, Estimates]()
        self._tables_in_time: Mapping[str, Estimates] = {}
        self._elsewhere: Mapping[str, str] = {}
        if profile is None:
            return
        all_models = {model for option in profile.options for model in option.roles.values()}
        usable = all_models if models is None else set(models)
        kept = [i for i, o in enumerate(profile.options) if usable.issuperset(o.roles.values())]
        if not kept:
            msg = f"the profile {profile.name!r} has no plan for {', '.join(sorted(usable)) or 'no model'}"
            raise SettingError(msg, hint=f"It knows {', '.join(sorted(all_models))}.")
        self._options = tuple(profile.options[i] for i in kept)
        self._places = {i: at for at, i in enumerate(kept)}
        self._elsewhere = _elsewhere(profile, self._options, here)
        known = [name for name in MEASURED if name != "seconds" or not self._elsewhere]
        self._tables = {
            name: Estimates(self._options, cells.part(kept))
            for name, cells in profile.cells.items()
            if name in known
        }
        for name in known:
            if name not in self._tables and (cells := by_term(self._tables["tokens"].cells, name)):
                self._tables[name] = Estimates(self._options, cells)
        self._tables_in_time = self._tables | self._in_time(kept)

    def plan(
        self,
        budget: Budget | None = None,
        *,
        need: float | None = None,
        guarantee: Guarantee | None = None,
        pace: float = 1.0,
    ) -> Plan:
        """The plan for a call under `budget`; `need` is the share of right answers that is enough.

        With a `guarantee` it is the cheapest that has a certificate. `pace` is how many times the measured seconds a call takes now.
        Raises SettingError for a need that is no share, and CertificateRefused.
        """
        if need is not None and not 0 < need < 1:
            msg = f"need is a share of right answers between 0 and 1, got {need}"
            raise SettingError(msg, hint="For example need=0.8.")
        budget = Budget() if budget is None else budget
        if self.profile is None:
            return Plan(
                strategy=Auto(),
                budget=budget,
                notes=(
                    "nothing was calibrated: one sample, then a vote while it may change and the budget lasts",
                ),
            )
        asked = Within.of(budget, self._rates, pace)
        missing = [name for name in asked.limits if name not in self._tables]
        within = asked.only(self._tables)
        if guarantee is not None:
            return self._certified(budget, within, missing, guarantee)
        if missing and not within.limits:
            return self._unplanned(budget, missing)
        reading = self._reading(within)
        possible = ~np.isnan(reading.quality) & self._fits(budget)
        fractions = self._fractions(reading, within, possible)
        choice = self._choose(reading, possible, fractions, need)
        return self._plan(budget, within, reading, possible, fractions, choice, need, missing)

    def _certified(
        self, budget: Budget, within: Within, missing: Sequence[str], guarantee: Guarantee
    ) -> Plan:
        """The cheapest plan of the profile's family that has a certificate; the reference itself needs none."""
        assert self.profile is not None
        fits = self._fits(budget)
        at_hand = {place: bool(fits[at]) for place, at in self._places.items()}
        index, told = cheapest_certified(self.profile, at_hand, guarantee)
        reading, at = self._reading(within), self._places[index]
        plan = self._told(budget, within, reading, at)
        notes = [*_paced(within), told, *self._limited(budget, within, missing, reading, at)]
        return replace(plan, notes=tuple(notes))

    def _limited(
        self,
        budget: Budget,
        within: Within,
        missing: Sequence[str],
        reading: Reading,
        at: int,
    ) -> Iterator[str]:
        """Where limits make a plan another one than was tested."""
        free = max(
            tables["tokens"].unlimited().cost(at, "samples")
            for tables in (self._tables, self._read_by(within))
        )
        # nor is it whole where nothing is known of it within this budget
        if not reading.cost(at, "samples") >= 0.98 * free:
            yield "this budget cuts the plan short, and the guarantee is of the whole plan: it does not hold here"
            return
        if missing:
            yield f"{self._unmeasured(missing)}; if it cuts the plan short, the guarantee does not hold"
        if budget.memory is not None:
            yield "if the limit on memory cuts a sample short, the guarantee does not hold"
        if within.timed and self._stops_early(at):
            yield (
                "under a limit on time the vote draws all its samples at once: the plan that was tested stops when it is sure, and the "
                "answers of the two may differ"
            )

    def _stops_early(self, i: int) -> bool:
        """Whether an option draws otherwise under a limit on time: all its samples at once."""
        strategy = self._options[i].strategy
        return isinstance(strategy, Vote) and strategy.adaptive

    # --- reading

    def _in_time(self, kept: Sequence[int]) -> dict[str, Estimates]:
        """What is read otherwise under a limit on time: the runs that were measured under one drew all their samples at once."""
        assert self.profile is not None
        if (timed := self.profile.cells.get("seconds")) is None:
            return {}
        by = {name: by_term(timed.part(kept), name) for name in MEASURED if name != "seconds"}
        return {name: Estimates(self._options, cells) for name, cells in by.items() if cells}

    def _read_by(self, within: Within) -> Mapping[str, Estimates]:
        """The tables for calls under such limits."""
        return self._tables_in_time if within.timed else self._tables

    def _reading(self, within: Within) -> Reading:
        """All options under all limits: each as where it is worst."""
        tables = self._read_by(within)
        if not within.limits:
            return tables["tokens"].unlimited()
        # Time first, which has ties: it was measured, and what the others come to in it is a guess.
        names = sorted(within.limits, key=lambda name: name != "seconds")
        readings = [tables[name].at(within.measured(name)) for name in names]
        if len(readings) == 1:
            return readings[0]
        values = np.stack([reading.quality for reading in readings])
        worst = values.argmin(0)  # NaN is the least of all: what one limit does not admit is out
        rows = np.arange(len(worst))

        def taken(name: str) -> Floats:
            table: Floats = np.stack([getattr(reading, name) for reading in readings])[worst, rows]
            return table

        return Reading(taken("quality"), taken("right"), taken("mean"), taken("p90"))

    def _fits(self, budget: Budget) -> Bools:
        """Of which options one sample fits into the memory; (options,)."""
        return np.array(
            [
                budget.memory is None
                or all(self._memory.get(m, 0) <= budget.memory for m in option.roles.values())
                for option in self._options
            ]
        )

    def _fractions(self, reading: Reading, within: Within, possible: Bools) -> Floats:
        """What each option takes of the tightest limit on average; without limits, what it costs up to a factor; (options,).

        It costs its seconds where time has a price, else its FLOPs, else its tokens: the first of them that is known of all that is possible.
        """
        if within.limits:
            shares = [
                reading.mean[:, TERMS.index(name)] / within.measured(name) for name in within.limits
            ]
            tightest: Floats = np.max(shares, axis=0)
            return tightest
        timed = not self._elsewhere and (self._rates.watts or self._rates.usd_per_hour)
        columns: list[Floats] = [
            reading.mean[:, TERMS.index(name)]
            for name in (("seconds", "flops") if timed else ("flops",))
        ]
        known = (costs for costs in columns if (costs[possible] > 0).all())
        tokens: Floats = reading.mean[:, TERMS.index("tokens")]
        return next(known, tokens)

    # --- choosing

    def _choose(
        self,
        reading: Reading,
        possible: npt.NDArray[np.bool_],
        fractions: Floats,
        need: float | None,
    ) -> _Choice | None:
        if not possible.any():
            return None
        quality = np.where(possible, reading.quality, -np.inf)
        best = min(np.flatnonzero(quality == quality.max()), key=lambda i: float(fractions[i]))
        if need is not None and self.profile is not None and self.profile.labelled:
            enough = [int(i) for i in np.flatnonzero(possible) if reading.lower(int(i)) >= need]
            if enough:
                return _Choice(min(enough, key=lambda i: float(fractions[i])), int(best))
            return _Choice(int(best), int(best), unmet=True)
        if not self._lean:
            return _Choice(int(best), int(best))
        as_good = possible & (reading.quality >= reading.quality[best] - TOLERANCE)
        cheapest = min(np.flatnonzero(as_good), key=lambda i: float(fractions[i]))
        return _Choice(int(cheapest), int(best))

    # --- telling

    def _plan(
        self,
        budget: Budget,
        within: Within,
        reading: Reading,
        possible: npt.NDArray[np.bool_],
        fractions: Floats,
        choice: _Choice | None,
        need: float | None,
        missing: Sequence[str],
    ) -> Plan:
        assert self.profile is not None
        notes = [self._unmeasured(missing)] if missing else []
        if choice is None:
            return Plan(
                strategy=Auto(),
                budget=budget,
                rejected=tuple(
                    Rejected(o, _why_not(reading, i)) for i, o in enumerate(self._options)
                ),
                notes=(
                    *notes,
                    "no plan of the profile fits: one sample, then a vote while the budget lasts",
                ),
            )
        notes += [*_paced(within), *self._below(within)]
        if choice.unmet:
            notes.append(
                f"no plan reaches {need:.0%} for sure within this budget: the best that fits is taken"
            )
        if within.timed and "seconds" not in self.profile.cells and self._stops_early(choice.index):
            notes.append(
                "under a limit on time the vote draws all its samples at once, which was not measured: it may take more than is told"
            )
        if need is not None and not self.profile.labelled:
            notes.append("the profile has no labels, so a wanted accuracy cannot be planned for")
        plan = self._told(budget, within, reading, choice.index)
        others = self._rejected(reading, possible, fractions, choice, plan.binding, need)
        return replace(plan, rejected=tuple(others), notes=tuple(notes))

    def _below(self, within: Within) -> Iterator[str]:
        """Which limits are smaller than any budget that was measured."""
        for name, limit in within.limits.items():
            least = within.now(name, float(self._read_by(within)[name].cells.budgets[0]))
            if limit < least:
                yield (
                    f"no budget as small as {figure(limit)} {UNITS[name]} was measured: "
                    f"the quality is that of {figure(least)} {UNITS[name]}, and less may come"
                )

    def _unplanned(self, budget: Budget, missing: Sequence[str]) -> Plan:
        """The plan of level 0, where nothing is known of any limit."""
        notes = (
            self._unmeasured(missing),
            "so nothing is planned: one sample, then a vote while it may change and the budget lasts",
        )
        return Plan(strategy=Auto(), budget=budget, notes=notes)

    def _unmeasured(self, missing: Sequence[str]) -> str:
        """Why limits in these resources are not planned for."""
        kept = "that limit is only kept, not planned for"
        if not self._elsewhere or "seconds" not in missing:
            return f"nothing was measured in {' and '.join(missing)}: {kept}"
        where = " and ".join(sorted(set(self._elsewhere.values())))
        return (
            f"the profile's seconds were measured on another device, {where}: {kept}; measure this one with `pareto calibrate device`, "
            "then run `pareto calibrate quality` again, which keeps its samples"
        )

    def _told(self, budget: Budget, within: Within, reading: Reading, i: int) -> Plan:
        """One option as a plan, with what it should take and be worth."""
        assert self.profile is not None
        expected = self._expected(reading, i, within)
        return Plan(
            strategy=self._options[i].strategy,
            roles=dict(self._options[i].roles),
            level=1,
            budget=budget,
            binding=max(
                (name for name in within.limits if name in expected),
                key=lambda name: expected[name].share,
                default=None,
            ),
            expected=expected,
            quality=self._quality(reading, i),
            source=self._source(),
            device=self._device_of(i, within),
            pace=within.pace,
            prompt=self.profile.prompt,
        )

    def _device_of(self, i: int, within: Within) -> str:
        """Where the seconds of such calls were measured, nothing where they were not."""
        assert self.profile is not None
        if self._elsewhere or (within.timed and "seconds" not in self.profile.cells):
            return ""
        return self.profile.devices.get(self._options[i].model, "")

    def _expected(self, reading: Reading, i: int, within: Within) -> dict[str, Spend]:
        found = dict[str, Spend]()
        for name in MEASURED:
            if name == "seconds" and self._elsewhere:
                continue
            mean, p90 = (
                within.now(name, float(table[i, TERMS.index(name)]))
                for table in (reading.mean, reading.p90)
            )
            if mean > 0 or (name in within.limits and not np.isnan(mean)):
                limit = within.limits.get(name)
                most = np.inf if limit is None else limit
                if name == "seconds":  # a step that has begun is ended
                    most += mean / max(1.0, reading.cost(i, "steps"))
                found[name] = Spend(min(mean, most), min(p90, most), limit)
        return found

    def _quality(self, reading: Reading, i: int) -> Quality | None:
        assert self.profile is not None
        if not self.profile.labelled or np.isnan(reading.quality[i]):
            return None
        return Quality(float(reading.quality[i]), *reading.interval(i))

    def _source(self) -> str:
        assert self.profile is not None
        told = "with labels" if self.profile.labelled else "without labels"
        made = f" of {self.profile.made}" if self.profile.made else ""
        return f"profile {self.profile.name}{made}: {self.profile.questions} questions, {told}"

    def _rejected(
        self,
        reading: Reading,
        possible: npt.NDArray[np.bool_],
        fractions: Floats,
        choice: _Choice,
        binding: str | None,
        need: float | None,
    ) -> Iterator[Rejected]:
        """Why not each of the others, the best of them first."""
        order = np.argsort(-np.where(possible, reading.quality, -1), kind="stable")
        ours, price = reading.quality[choice.index], float(fractions[choice.index])
        unit = binding or "compute"
        for i in order:
            if i == choice.index:
                continue
            if not possible[i]:
                why = _why_not(reading, int(i))
            else:
                points = 100 * float(reading.quality[i] - ours)
                times = float(fractions[i]) / price if price else float("inf")
                why = f"{points:+.1f} points for {figure(times)} times the {unit}"
                if need is not None and reading.lower(i) < need:
                    why += f", not {need:.0%} for sure"
            yield Rejected(self._options[i], why)


def _paced(within: Within) -> Iterator[str]:
    """That calls take longer or shorter than was measured."""
    if not 1 / _TOLD < within.pace < _TOLD:
        yield f"calls take {figure(within.pace)} times the measured seconds now: planned so"


def _why_not(reading: Reading, i: int) -> str:
    """Why an option is impossible."""
    unknown = np.isnan(reading.quality[i])
    return "not measured here" if unknown else "one sample does not fit into the memory"


def _elsewhere(
    profile: Profile, options: Sequence[Option], here: Collection[str] | None
) -> dict[str, str]:
    """The models whose seconds were measured on no device of these, and where."""
    used = {model for option in options for model in option.roles.values()}
    timed = {model: where for model, where in profile.devices.items() if model in used}
    if not timed or here is not None:
        return {model: where for model, where in timed.items() if where not in (here or ())}
    from langchain_pareto.planning.device import (
        is_here,
    )  # it imports torch, which most plans need not

    return {model: where for model, where in timed.items() if not is_here(where)}
