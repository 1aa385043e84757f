"""
How a chat model plans its calls: which profile, which models, and what is left of the budgets around the call.

Knows settings, files of profiles and accounts; loads no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from langchain_pareto.budget import Budget, Cost, Limits
from langchain_pareto.errors import BudgetError, SettingError
from langchain_pareto.ledger import Account, current_account, run_budget
from langchain_pareto.models import LARGE_FILES, Footprint, can_be_model, model_name
from langchain_pareto.planning.catalogue import LARGE, Option
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.plan import Plan, Rejected
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Family, Profile, load_profile
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.planning.store import profile_path
from langchain_pareto.rates import Rates
from langchain_pareto.sharing import Seat, seated
from langchain_pareto.strategies import Auto, Cascade, Single, Strategy, Vote
from langchain_pareto.strategies.thoughts import POLICY

_SMALLEST = 1e-9  # of what a budget holds: a limit that is used up
_MOST_SHARES = 4  # that one call of a batch may take, where others save
_MODELS_HINT = 'For example models=["./small", "./large"], the cheapest first.'
TOGETHER = ("models", "model", "backend", "need", "guarantee")  # settings that exclude each other
_AMPLE = 0.9  # of a limit: who stays below that in 9 of 10 calls is not cut short


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

    def plan(
        self,
        budget: Budget | None,
        *,
        need: float | None = None,
        guarantee: Guarantee | None = None,
    ) -> Plan:
        """The plan for a call; one of level 0 with the reason, where the profile says nothing of these models."""
        if need is not None and guarantee is not None:
            raise _both()
        plan = self._plan(budget, need, guarantee)
        return replace(plan, notes=(*plan.notes, *self._unpriced(budget)))

    def _plan(self, budget: Budget | None, need: float | None, guarantee: Guarantee | None) -> Plan:
        profile = self.profile()
        if profile is None:
            return self._unmeasured(budget, "no profile was named", need, guarantee)
        reasons = profile.misfits(self.keys)
        if reasons:
            why = f"the profile {profile.name} is of other models: {'; '.join(reasons)}"
            return self._unmeasured(budget, why, need, guarantee)
        too_large = self._too_large(profile.options)
        kept = [i for i in range(len(profile.options)) if i not in too_large]
        if kept:
            planner = self._planner(profile, kept, budget)
            plan = planner.plan(budget, need=need, guarantee=guarantee)
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
        key = (id(profile), tuple(self.keys), self.rates, tuple(kept), tuple(memory.items()))
        if key not in _planners:
            _planners.clear()  # of one profile at a time: most programs have one
            usable = _part(profile, kept)
            planner = Planner(usable, rates=self.rates, models=list(self.keys), memory=memory)
            _planners[key] = profile, planner
            return planner
        return _planners[key][1]

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


_planners = dict[
    object, tuple[Profile, Planner]
]()  # the profile is kept, so that its id is its own


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
        if isinstance(option.strategy, Single) and tokens[i] == tokens[i]
    }


@lru_cache(maxsize=8)
def _load(path: Path, _modified: int) -> Profile:
    return load_profile(path)


def named(models: object) -> dict[str, object]:
    """Models by name, in the order given: from a mapping, or a list; SettingError for what holds none."""
    if isinstance(models, Mapping):
        found = dict(models)
    else:
        given = list(models) if isinstance(models, list | tuple) else [models]
        for model in given:
            _check_model(model)
        found = {model_name(model): model for model in given}
        if len(found) < len(given):
            msg = "two of the models have one name"
            raise SettingError(msg, hint='Name them: models={"small": ..., "large": ...}.')
    if not found or not all(isinstance(name, str) and name for name in found):
        msg = f"models are a list of models, or a mapping from their names, got {models!r:.80}"
        raise SettingError(msg, hint=_MODELS_HINT)
    for model in found.values():
        _check_model(model)
    return found


def _check_model(model: object) -> None:
    if not can_be_model(model):
        msg = f"{model!r:.80} in models= is no model"
        raise SettingError(msg, hint=f"A model is a path, a hub id or a loaded one. {_MODELS_HINT}")


def check_together(
    *, models: object, model: object, backend: object, need: object, guarantee: object
) -> None:
    """Raises SettingError for settings of a chat model that exclude each other."""
    if models is not None and (model is not None or not isinstance(backend, str)):
        msg = "a ChatPareto has either one model or several to plan with"
        raise SettingError(msg, hint="Leave model= and a Backend out, and name all in models=.")
    if need is not None and guarantee is not None:
        raise _both()


def _both() -> SettingError:
    msg = "need= and guarantee= are two answers to what is enough: a share of right answers, or a plan with a certificate"
    return SettingError(msg, hint="Leave one of them out.")


def checked_task(task: object) -> Profile | Path | str:
    """A profile, its file, or its name; SettingError for what is none of them."""
    if isinstance(task, str):
        profile_path(task)  # raises for what is no name
        return task
    if isinstance(task, Profile | Path):
        return task
    msg = f"task is the name of a profile, its file, or a Profile, not {type(task).__name__}"
    raise SettingError(msg)


def left(budget: Budget | None, account: Account | None, seat: Seat | None = None) -> Budget | None:
    """What a call may plan to spend: its own budget within what the accounts around it have left, or within its share of that."""
    if account is None:
        return budget
    room = account.room()
    limits = room.unspent if seat is None else replace(room.unspent, **seat.share)
    around = _budget(limits)
    if room.seconds is not None:
        rounds = 1 if seat is None else seat.batch.rounds
        around = around.tightest(Budget(seconds=max(room.seconds / rounds, _SMALLEST)))
    return around if budget is None else budget.tightest(around)


@contextmanager
def seat() -> Iterator[Seat | None]:
    """This call's seat in its batch, if it has one: its share of what the accounts around it have left."""
    account = current_account()
    with seated({} if account is None else _shared(account.room().unspent)) as one:
        yield one


@contextmanager
def limited(strategy: Strategy, seat: Seat | None) -> Iterator[None]:
    """A call of a batch leaves the others their shares.

    It takes its own share at most; where all calls run at once, one that draws in turns may take more, since the others save where they
    are sure. Under `on_limit="error"` nothing but the run's own limit ends a call.
    """
    outer = current_account()
    if seat is None or outer is None:
        yield
        return
    parts = _MOST_SHARES if _draws_in_turns(strategy) and not seat.batch.queued else 1
    share = Limits(**{name: amount * parts for name, amount in seat.share.items()})
    with run_budget(Budget() if outer.on_limit == "error" else _budget(share)) as own:
        own.turns = outer.turns
        seat.spent = lambda: _shared(own.spent)
        yield


def in_turns(plan: Plan, seat: Seat | None) -> Strategy:
    """The planned strategy; a vote whose share is tight draws one sample a turn, so that its first wave takes no other's first sample."""
    strategy, spend = plan.strategy, plan.expected.get(plan.binding or "")
    if seat is None or spend is None or spend.limit is None or seat.batch.queued:
        return strategy
    if not isinstance(strategy, Vote) or not strategy.adaptive or spend.p90 < _AMPLE * spend.limit:
        return strategy
    return strategy.model_copy(update={"wave": 1})


def _draws_in_turns(strategy: Strategy) -> bool:
    return isinstance(strategy, Auto) or (isinstance(strategy, Vote) and strategy.adaptive)


def _shared(amounts: Limits | Cost) -> dict[str, int]:
    """What the calls of a batch share: all that adds up, as far as it is limited; memory is held by few at a time."""
    names = ("tokens", "flops", "nanojoules", "nanodollars")
    found = {name: getattr(amounts, name) for name in names}
    return {name: amount for name, amount in found.items() if amount is not None}


def _budget(limits: Limits) -> Budget:
    """These limits, where one that is used up is the least that a budget holds."""

    def nano(amount: int | None) -> float | None:
        return None if amount is None else max(amount / 1e9, _SMALLEST)

    def whole(amount: int | None) -> int | None:
        return None if amount is None else max(1, amount)

    return Budget(
        tokens=whole(limits.tokens),
        flops=whole(limits.flops),
        joules=nano(limits.nanojoules),
        usd=nano(limits.nanodollars),
        memory=whole(limits.memory),
    )
