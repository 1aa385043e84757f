"""
What the options that may be used are worth and take under any limits: which of a profile's tables is read for which of them.

Knows profiles, estimates and limits; chooses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from langchain_pareto.errors import SettingError
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.estimates import Estimates, Reading, by_term
from langchain_pareto.planning.limits import MEASURED, Within
from langchain_pareto.planning.profile import Profile
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.strategies import Vote

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class Readings:
    """The options of one profile, and their tables by resource.

    `places` gives an option's number here by its number in the profile, `tables` what is read without a limit on time, `elsewhere` the
    models whose seconds were measured on no device of `here`, and where: of those no seconds are read.
    """

    def __init__(
        self, profile: Profile, models: Collection[str] | None, here: Collection[str] | None
    ) -> None:
        """`models` and `here` as the planner has them; raises SettingError where no option is left."""
        all_models = {model for option in profile.options for model in option.roles.values()}
        usable = all_models if models is None else set(models)
        kept = [i for i, o in enumerate(profile.options) if usable.issuperset(o.roles.values())]
        if not kept:
            msg = f"the profile {profile.name!r} has no plan for {', '.join(sorted(usable)) or 'no model'}"
            raise SettingError(msg, hint=f"It knows {', '.join(sorted(all_models))}.")
        self.profile = profile
        self.options = tuple(profile.options[i] for i in kept)
        self.places: Mapping[int, int] = {i: at for at, i in enumerate(kept)}
        self.elsewhere = _elsewhere(profile, self.options, here)
        self.tables = self._tables(kept)
        self._tables_in_time = self.tables | self._in_time(kept)

    def _tables(self, kept: Sequence[int]) -> dict[str, Estimates]:
        """What was measured under limits in each resource, or comes from what was measured under limits in tokens."""
        known = [name for name in MEASURED if name != "seconds" or not self.elsewhere]
        found = {
            name: Estimates(self.options, cells.part(kept))
            for name, cells in self.profile.cells.items()
            if name in known
        }
        for name in known:
            if name not in found and (cells := by_term(found["tokens"].cells, name)):
                found[name] = Estimates(self.options, cells)
        return found

    def _in_time(self, kept: Sequence[int]) -> dict[str, Estimates]:
        """What is read otherwise under a limit on time: the runs that were measured under one drew all their samples at once."""
        if (timed := self.profile.cells.get("seconds")) is None:
            return {}
        by = {name: by_term(timed.part(kept), name) for name in MEASURED if name != "seconds"}
        return {name: Estimates(self.options, cells) for name, cells in by.items() if cells}

    def by(self, within: Within) -> Mapping[str, Estimates]:
        """The tables for calls under such limits."""
        return self._tables_in_time if within.timed else self.tables

    def at(self, within: Within) -> Reading:
        """All options under all limits: each as where it is worst."""
        tables = self.by(within)
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

    def samples(self, i: int, within: Within) -> float:
        """How many an option draws on average where no limit cuts it short."""
        tables = (self.tables["tokens"], self.by(within)["tokens"])
        return max(table.unlimited().cost(i, "samples") for table in tables)

    def fractions(
        self, reading: Reading, within: Within, possible: Bools, *, timed: bool
    ) -> Floats:
        """What each option takes of the tightest limit on average; without limits, what it costs up to a factor; (options,).

        It costs its seconds where time has a price (`timed`), else its FLOPs, else its tokens: the first that is known of all `possible`.
        """
        if within.limits:
            shares = [
                reading.mean[:, TERMS.index(name)] / within.measured(name) for name in within.limits
            ]
            tightest: Floats = np.max(shares, axis=0)
            return tightest
        columns: list[Floats] = [
            reading.mean[:, TERMS.index(name)]
            for name in (("seconds", "flops") if timed and not self.elsewhere else ("flops",))
        ]
        known = (costs for costs in columns if (costs[possible] > 0).all())
        tokens: Floats = reading.mean[:, TERMS.index("tokens")]
        return next(known, tokens)

    def all_at_once(self, i: int) -> bool:
        """Whether an option draws all its samples at once under a limit on time, and in waves without one."""
        strategy = self.options[i].strategy
        return isinstance(strategy, Vote) and strategy.adaptive

    def device_of(self, i: int, within: Within) -> str:
        """Where the seconds of such calls were measured, nothing where they were not."""
        if self.elsewhere or (within.timed and "seconds" not in self.profile.cells):
            return ""
        return self.profile.devices.get(self.options[i].model, "")


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
