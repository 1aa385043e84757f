"""
How a chat model plans its calls: which profile, and which models.

Knows settings and files of profiles; loads no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from langchain_pareto.budget import Budget
from langchain_pareto.errors import BudgetError, SettingError
from langchain_pareto.footprint import LARGE_FILES, Footprint
from langchain_pareto.ledger import Account
from langchain_pareto.plan_settings import both
from langchain_pareto.planning.catalogue import LARGE, Option
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.drift import paces
from langchain_pareto.planning.plan import Plan, Rejected
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Family, Profile, load_profile
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.planning.store import profile_path
from langchain_pareto.rates import Rates
from langchain_pareto.strategies import Cascade, Single
from langchain_pareto.strategies.thoughts import POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """What calls are planned with.

    `models` are those that a plan may take, by name, the cheapest first; `keys` tells how each of them is used now. `task` is a profile, its
    name or its file; without one nothing is known, and several models make a cascade.
    """

    models: Mapping[str, object]
    keys: Mapping[str, str]
    task: Profile | Path | str | None = None
    rates: Rates = field(default_factory=Rates)
    footprint: Footprint | None = None  # of the models on their device
    here: Callable[[], Collection[str]] | None = None  # devices they run on, all there are without
    unlike: str | None = None  # why this call is like none that was measured

    def plan(
        self,
        budget: Budget | None,
        *,
        need: float | None = None,
        guarantee: Guarantee | None = None,
    ) -> Plan:
        """The plan for a call; one of level 0 with the reason, where the profile says nothing of these models."""
        if need is not None and guarantee is not None:
            raise both()
        plan = self._plan(budget, need, guarantee)
        return replace(plan, notes=(*plan.notes, *self._unpriced(budget)))

    def _plan(self, budget: Budget | None, need: float | None, guarantee: Guarantee | None) -> Plan:
        profile = self.profile()
        if profile is None:
            return self._unmeasured(budget, "no profile was named", need, guarantee)
        if self.unlike is not None:
            return self._unmeasured(budget, self.unlike, need, guarantee)
        reasons = profile.misfits(self.keys)
        if reasons:
            why = f"the profile {profile.name} is of other models or settings: {'; '.join(reasons)}"
            return self._unmeasured(budget, why, need, guarantee)
        too_large = self._too_large(profile.options)
        kept = [i for i in range(len(profile.options)) if i not in too_large]
        if kept:
            planner, pace = self._planner(profile, kept, budget), paces.of(profile.devices)
            plan = planner.plan(budget, need=need, guarantee=guarantee, pace=pace)
        else:
            why = f"no plan of the profile {profile.name} fits on the device"
            plan = self._unmeasured(budget, why, need, guarantee)
        lost = tuple(Rejected(profile.options[i], why) for i, why in too_large.items())
        return replace(plan, rejected=(*lost, *plan.rejected))

    def profile(self) -> Profile | None:
        """The profile, read once for each version of its file."""
        if self.task is None or isinstance(self.task, Profile):
            return self.task
        path = profile_path(self.task)
        return _load(path, path.stat().st_mtime_ns if path.exists() else 0)

    def _planner(self, profile: Profile, kept: list[int], budget: Budget | None) -> Planner:
        """The planner over the options that are kept; the last ones are remembered."""
        memory = {}
        if budget is not None and budget.memory is not None and self.footprint is not None:
            memory = {
                name: round(self.footprint.token(name) * tokens)
                for name, tokens in _samples(profile).items()
                if name in self.models
            }
        # asked only where seconds were measured: most plans need no torch
        here = frozenset(self.here()) if self.here is not None and profile.devices else None
        key = (id(profile), tuple(self.keys), self.rates, tuple(kept), tuple(memory.items()), here)
        if (known := _planners.get(key)) is not None:
            return known[1]
        usable = _part(profile, kept)
        planner = Planner(
            usable, rates=self.rates, models=list(self.keys), memory=memory, here=here
        )
        _planners.clear()  # of one profile at a time: most programs have one
        _planners[key] = profile, planner
        return planner

    def _too_large(self, options: Sequence[Option]) -> dict[int, str]:
        """Those whose models do not fit on the device together, beside what is there: their places, and why."""
        if self.footprint is None:
            return {}
        sizes = {
            i: self.footprint.missing(option.roles)
            for i, option in enumerate(options)
            if set(option.roles.values()) <= set(self.models)
        }
        if max(sizes.values(), default=0) < LARGE_FILES:
            return {}  # fits anywhere
        free = self.footprint.free()
        return {
            i: f"{_models_of(options[i])} not fit on the device: {size / 1e9:.1f} GB to load, {free / 1e9:.1f} GB free"
            for i, size in sizes.items()
            if size > free
        }

    def _unpriced(self, budget: Budget | None) -> Iterator[str]:
        """What a budget limits that has no rate, or two."""
        try:
            self.rates.check(Account(budget))
        except BudgetError as error:
            yield f"a call with this budget is refused: {error}. {error.hint}"

    def _unmeasured(
        self, budget: Budget | None, why: str, need: float | None, guarantee: Guarantee | None
    ) -> Plan:
        if guarantee is not None:
            msg = f"nothing can be guaranteed: {why}"
            raise SettingError(
                msg,
                hint="Calibrate with `pareto calibrate quality`, and name the profile with task=.",
            )
        plan = Planner(rates=self.rates).plan(budget, need=need)
        notes = (why, *plan.notes)
        if need is not None:
            notes = (*notes, "without a profile a wanted accuracy cannot be planned for")
        plan = replace(plan, notes=notes)
        names = list(self.models)
        if len(names) < 2:
            return plan
        roles = {POLICY: names[0], LARGE: names[1]}
        cascade = Option(Cascade(n=8, n_large=8, agreement=0.75), roles)
        if too_large := self._too_large([cascade]):
            lost = (Rejected(cascade, too_large[0]),)
            return replace(plan, roles={POLICY: names[0]}, rejected=lost)
        return replace(plan, strategy=cascade.strategy, roles=roles)


# The profile is kept, so that its id is its own.
_planners = dict[object, tuple[Profile, Planner]]()


def _models_of(option: Option) -> str:
    together = len(set(option.roles.values())) > 1
    return "its models together do" if together else "its model does"


def _part(profile: Profile, kept: list[int]) -> Profile:
    """A profile of some of its options; those of its family stay in their order, so certificates hold."""
    if len(kept) == len(profile.options):
        return profile
    places = {old: new for new, old in enumerate(kept)}
    family = profile.family
    if family is not None:
        rows = [row for row, i in enumerate(family.options) if i in places]
        there = rows and family.reference in places
        family = (
            None
            if not there
            else Family(
                places[family.reference],
                tuple(places[family.options[row]] for row in rows),
                family.differs[rows],
                None if family.lost is None else family.lost[rows],
            )
        )
    return replace(
        profile,
        options=tuple(profile.options[i] for i in kept),
        cells={name: cells.part(kept) for name, cells in profile.cells.items()},
        family=family,
    )


def _samples(profile: Profile) -> dict[str, float]:
    """Tokens of a prompt and one sample of each model, which 9 of 10 stay within."""
    tokens = profile.cells["tokens"].p90[:, -1, TERMS.index("tokens")]
    return {
        option.model: profile.prompt + float(tokens[i])
        for i, option in enumerate(profile.options)
        if isinstance(option.strategy, Single) and not math.isnan(tokens[i])
    }


@lru_cache(maxsize=8)
def _load(path: Path, _modified: int) -> Profile:
    return load_profile(path)
