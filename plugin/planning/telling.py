"""
A chosen option told as a plan: what it should take and be worth, why none of the others, and what a reader should know of the limits.

Knows readings and limits; chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from langchain_pareto.budget import Budget
from langchain_pareto.planning.estimates import Reading
from langchain_pareto.planning.limits import MEASURED, Within
from langchain_pareto.planning.plan import UNITS, Plan, Quality, Rejected, Spend, figure
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.planning.readings import Readings

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_TOLD = 1.1  # a pace beyond which a plan tells of it


@dataclass(frozen=True, slots=True)
class Telling:
    """One reading under one budget; `missing` are the limits of it that nothing was measured in."""

    known: Readings
    budget: Budget
    within: Within
    reading: Reading
    missing: Sequence[str]

    def plan(self, i: int) -> Plan:
        """One option as a plan, with what it should take and be worth."""
        option, expected = self.known.options[i], self._expected(i)
        return Plan(
            strategy=option.strategy,
            roles=dict(option.roles),
            level=1,
            budget=self.budget,
            binding=max(
                (name for name in self.within.limits if name in expected),
                key=lambda name: expected[name].share,
                default=None,
            ),
            expected=expected,
            quality=self._quality(i),
            source=self._source(),
            device=self.known.device_of(i, self.within),
            pace=self.within.pace,
            prompt=self.known.profile.prompt,
        )

    def _expected(self, i: int) -> dict[str, Spend]:
        found, within, reading = dict[str, Spend](), self.within, self.reading
        for name in MEASURED:
            if name == "seconds" and self.known.elsewhere:
                continue
            term = TERMS.index(name)
            mean = within.now(name, float(reading.mean[i, term]))
            p90 = within.upper(name, float(reading.p90[i, term]))
            if mean > 0 or (name in within.limits and not np.isnan(mean)):
                limit = within.limits.get(name)
                most = np.inf if limit is None else limit
                if name == "seconds":  # a step that has begun is ended
                    most += mean / max(1.0, reading.cost(i, "steps"))
                found[name] = Spend(min(mean, most), min(p90, most), limit)
        return found

    def _quality(self, i: int) -> Quality | None:
        if not self.known.profile.labelled or np.isnan(self.reading.quality[i]):
            return None
        return Quality(float(self.reading.quality[i]), *self.reading.interval(i))

    def _source(self) -> str:
        profile = self.known.profile
        told = "with labels" if profile.labelled else "without labels"
        made = f" of {profile.made}" if profile.made else ""
        return f"profile {profile.name}{made}: {profile.questions} questions, {told}"

    # --- notes

    def paced(self) -> Iterator[str]:
        """That calls take longer or shorter than was measured."""
        times = self.within.pace.times
        if not 1 / _TOLD < times < _TOLD:
            yield f"calls take {figure(times)} times the measured seconds now: planned so"

    def below(self) -> Iterator[str]:
        """Which limits are smaller than any budget that was measured."""
        tables = self.known.by(self.within)
        for name, limit in self.within.limits.items():
            least = self.within.now(name, float(tables[name].cells.budgets[0]))
            if limit < least:
                yield (
                    f"no budget as small as {figure(limit)} {UNITS[name]} was measured: "
                    f"the quality is that of {figure(least)} {UNITS[name]}, and less may come"
                )

    def unmeasured(self) -> Iterator[str]:
        """Why limits in some resources are not planned for."""
        if not self.missing:
            return
        kept, elsewhere = "that limit is only kept, not planned for", self.known.elsewhere
        if not elsewhere or "seconds" not in self.missing:
            yield f"nothing was measured in {' and '.join(self.missing)}: {kept}"
            return
        where = " and ".join(sorted(set(elsewhere.values())))
        yield (
            f"the profile's seconds were measured on another device, {where}: {kept}; measure this one with `pareto calibrate device`, "
            "then run `pareto calibrate quality` again, which keeps its samples"
        )

    def at_once(self, i: int) -> Iterator[str]:
        """That a vote will draw otherwise than was measured."""
        untimed = self.within.timed and "seconds" not in self.known.profile.cells
        if untimed and self.known.all_at_once(i):
            yield "under a limit on time the vote draws all its samples at once, which was not measured: it may take more than is told"

    def uncertain(self, i: int) -> Iterator[str]:
        """Where limits make a plan another one than was tested for a guarantee."""
        # nor is it whole where nothing is known of it within this budget
        if not self.reading.cost(i, "samples") >= 0.98 * self.known.samples(i, self.within):
            yield "this budget cuts the plan short, and the guarantee is of the whole plan: it does not hold here"
            return
        for why in self.unmeasured():
            yield f"{why}; if it cuts the plan short, the guarantee does not hold"
        if self.budget.memory is not None:
            yield "if the limit on memory cuts a sample short, the guarantee does not hold"
        if self.within.timed and self.known.all_at_once(i):
            yield (
                "under a limit on time the vote draws all its samples at once: the plan that was tested stops when it is sure, and the "
                "answers of the two may differ"
            )

    # --- the others

    def rejected(
        self,
        chosen: int,
        possible: Bools,
        fractions: Floats,
        binding: str | None,
        need: float | None,
    ) -> Iterator[Rejected]:
        """Why not each of the others, the best of them first."""
        quality = self.reading.quality
        order = np.argsort(-np.where(possible, quality, -1), kind="stable")
        price, unit = float(fractions[chosen]), binding or "compute"
        for i in map(int, order):
            if i == chosen:
                continue
            if not possible[i]:
                why = self._why_not(i)
            else:
                points = 100 * float(quality[i] - quality[chosen])
                times = float(fractions[i]) / price if price else float("inf")
                why = f"{points:+.1f} points for {figure(times)} times the {unit}"
                if need is not None and self.reading.lower(i) < need:
                    why += f", not {need:.0%} for sure"
            yield Rejected(self.known.options[i], why)

    def none_fits(self) -> Iterator[Rejected]:
        """Why each of all is impossible."""
        for i, option in enumerate(self.known.options):
            yield Rejected(option, self._why_not(i))

    def _why_not(self, i: int) -> str:
        unknown = np.isnan(self.reading.quality[i])
        return "not measured here" if unknown else "one sample does not fit into the memory"
