"""
How a chat model plans its calls: which profile, which models, and what is left of the budgets around the call.

Knows settings, files of profiles and accounts; loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from langchain_pareto.budget import Budget
from langchain_pareto.errors import SettingError
from langchain_pareto.ledger import Account
from langchain_pareto.models import model_name
from langchain_pareto.planning.catalogue import LARGE
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.plan import Plan
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Profile, load_profile
from langchain_pareto.planning.store import profile_path
from langchain_pareto.rates import Rates
from langchain_pareto.strategies import Cascade
from langchain_pareto.strategies.thoughts import POLICY

_SMALLEST = 1e-9  # of what a budget holds: a limit that is used up


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

    def plan(
        self,
        budget: Budget | None,
        *,
        need: float | None = None,
        guarantee: Guarantee | None = None,
    ) -> Plan:
        """The plan for a call; one of level 0 with the reason, where the profile says nothing of these models."""
        profile = self.profile()
        if profile is None:
            return self._unmeasured(budget, "no profile was named", need, guarantee)
        reasons = profile.misfits(self.keys)
        if reasons:
            why = f"the profile {profile.name} is of other models: {'; '.join(reasons)}"
            return self._unmeasured(budget, why, need, guarantee)
        return self._planner(profile).plan(budget, need=need, guarantee=guarantee)

    def profile(self) -> Profile | None:
        """The profile, read once for each version of its file."""
        if self.task is None or isinstance(self.task, Profile):
            return self.task
        path = profile_path(self.task)
        return _load(path, path.stat().st_mtime_ns if path.exists() else 0)

    def _planner(self, profile: Profile) -> Planner:
        key = (id(profile), tuple(self.keys), self.rates)
        if key not in _planners:
            _planners.clear()  # of one profile at a time: most programs have one
            planner = Planner(profile, rates=self.rates, models=list(self.keys))
            _planners[key] = profile, planner
            return planner
        return _planners[key][1]

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
        names = list(self.models)
        if len(names) < 2:
            return replace(plan, notes=notes)
        roles = {POLICY: names[0], LARGE: names[1]}
        cascade = Cascade(n=8, n_large=8, agreement=0.75)
        return replace(plan, strategy=cascade, roles=roles, notes=notes)


_planners = dict[
    object, tuple[Profile, Planner]
]()  # the profile is kept, so that its id is its own


@lru_cache(maxsize=8)
def _load(path: Path, _modified: int) -> Profile:
    return load_profile(path)


def named(models: object, default: object) -> dict[str, object]:
    """Models by name, in the order given: from a mapping, a list, or the one that there is."""
    if models is None:
        return {model_name(default): default}
    if isinstance(models, Mapping):
        found = dict(models)
    else:
        given = list(models) if isinstance(models, list | tuple) else [models]
        found = {model_name(model): model for model in given}
        if len(found) < len(given):
            msg = "two of the models have one name"
            raise SettingError(msg, hint='Name them: models={"small": ..., "large": ...}.')
    if not found or not all(isinstance(name, str) and name for name in found):
        msg = f"models are a list of models, or a mapping from their names, got {models!r:.80}"
        raise SettingError(
            msg, hint='For example models=["./small", "./large"], the cheapest first.'
        )
    return found


def checked_task(task: object) -> Profile | Path | str:
    """A profile, its file, or its name; SettingError for what is none of them."""
    if isinstance(task, str):
        profile_path(task)  # raises for what is no name
        return task
    if isinstance(task, Profile | Path):
        return task
    msg = f"task is the name of a profile, its file, or a Profile, not {type(task).__name__}"
    raise SettingError(msg)


def left(budget: Budget | None, account: Account | None) -> Budget | None:
    """What a call may spend: its own budget within what the accounts around it have left."""
    if account is None:
        return budget
    room = account.room()
    unspent = room.unspent

    def some(value: float | None) -> float | None:
        return None if value is None else max(value, _SMALLEST)

    around = Budget(
        tokens=None if unspent.tokens is None else max(1, unspent.tokens),
        flops=None if unspent.flops is None else max(1, unspent.flops),
        joules=None if unspent.nanojoules is None else some(unspent.nanojoules / 1e9),
        usd=None if unspent.nanodollars is None else some(unspent.nanodollars / 1e9),
        memory=None if unspent.memory is None else max(1, unspent.memory),
        seconds=some(room.seconds),
    )
    return around if budget is None else budget.tightest(around)
