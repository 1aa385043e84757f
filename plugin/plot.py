"""
The Pareto plot of a profile: every plan by what it takes and how good it is, and what the planner takes at each budget.

Knows profiles and matplotlib, which comes with the extra `plot`; knows no model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from langchain_pareto.budget import Budget
from langchain_pareto.errors import SettingError
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.estimates import Estimates
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Profile
from langchain_pareto.strategies import BestOfN, Cascade, Single, Strategy, Vote, WeightedVote

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
# colours that colour-blind readers tell apart (Okabe and Ito), one a model; cascades are grey
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = {
    "one sample": "o",
    "adaptive vote": "s",
    "weighted vote": "^",
    "best of n": "v",
    "best of n, until one is good enough": "P",
    "cascade": "D",
}


def check_plot(path: Path) -> None:
    """Raises SettingError where no plot can be drawn into `path`: for its name, or for want of a folder or of matplotlib."""
    if path.suffix.lower() not in _FORMATS:
        msg = f"a plot cannot be written as {path.name!r}"
        raise SettingError(msg, hint=f"Take a name that ends in {', '.join(_FORMATS)}.")
    if path.is_dir():
        msg = f"{path} is a folder"
        raise SettingError(msg, hint="Give a file in it.")
    if not path.parent.is_dir():
        msg = f"there is no folder {path.parent} to write the plot into"
        raise SettingError(msg, hint="Make it first, or take another.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        msg = f"the plot {path} may not be written"
        raise SettingError(msg, hint="Take another folder.")
    _figure_class()


def draw_profile(profile: Profile, path: Path) -> None:
    """Writes the plot to `path`, in the format that its name says; SettingError as of `check_plot`."""
    check_plot(path)
    try:
        figure_of(profile).savefig(path, dpi=150)
    except OSError as error:
        msg = f"cannot write the plot {path}: {error.strerror or error}"
        raise SettingError(msg, hint="Take another folder.") from None


def figure_of(profile: Profile) -> Figure:
    """The plot, not written yet; SettingError without matplotlib."""
    figure = _figure_class()(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    models = list(dict.fromkeys(option.model for option in profile.options))
    _draw_options(axes, profile, models)
    _draw_planned(axes, profile)
    for model in models:
        axes.plot([], [], "o", color=_COLOURS[models.index(model) % len(_COLOURS)], label=model)
    for kind in dict.fromkeys(_kind(option.strategy) for option in profile.options):
        if kind in _MARKS:
            axes.plot([], [], _MARKS[kind], color="#777777", label=kind)
    axes.set_xscale("log")
    axes.set_xlabel("tokens: what a plan takes on average without a limit; of the line, the budget")
    axes.set_ylabel("right, %" if profile.labelled else "as most samples say, %")
    axes.set_title(f"{profile.name}: {profile.questions} questions")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def _figure_class() -> type[Figure]:
    try:
        import matplotlib.figure
    except ImportError as error:
        msg = "a plot needs matplotlib, which is not installed"
        raise SettingError(msg, hint='pip install "langchain-pareto[plot]"') from error
    found: type[Figure] = matplotlib.figure.Figure
    return found


def _draw_options(axes: Axes, profile: Profile, models: list[str]) -> None:
    """A mark for each option that was measured."""
    reading = Estimates(profile.options, profile.cells["tokens"]).unlimited()
    for i, option in enumerate(profile.options):
        if not np.isnan(reading.quality[i]):
            colour, mark = _style(option, models)
            at, quality = reading.cost(i, "tokens"), 100 * reading.quality[i]
            axes.plot(at, quality, mark, color=colour, ms=6, alpha=0.8)


def _draw_planned(axes: Axes, profile: Profile) -> None:
    """A line through what the planner takes at each budget."""
    budgets = profile.cells["tokens"].budgets
    grid = np.geomspace(budgets[0], budgets[-1], 100)
    planner, table = Planner(profile), Estimates(profile.options, profile.cells["tokens"])
    places = {
        (o.strategy, tuple(sorted(o.roles.items()))): i for i, o in enumerate(profile.options)
    }
    plans = [planner.plan(Budget(tokens=max(1, int(b)))) for b in grid]
    chosen = [places.get((plan.strategy, tuple(sorted(plan.roles.items())))) for plan in plans]
    quality = [
        np.nan if i is None else 100 * table.at(b).quality[i]
        for b, i in zip(grid, chosen, strict=True)
    ]
    axes.plot(grid, quality, color="black", lw=1.5, label="planned, at this budget")


def _style(option: Option, models: list[str]) -> tuple[str, str]:
    own = not isinstance(option.strategy, Cascade)
    colour = _COLOURS[models.index(option.model) % len(_COLOURS)] if own else "#777777"
    return colour, _MARKS.get(_kind(option.strategy), "*")


def _kind(strategy: Strategy) -> str:
    """What the legend calls it."""
    match strategy:
        case Single():
            return "one sample"
        case Vote():
            return "adaptive vote"
        case WeightedVote():
            return "weighted vote"
        case BestOfN(threshold=None):
            return "best of n"
        case BestOfN():
            return "best of n, until one is good enough"
        case Cascade():
            return "cascade"
    return strategy.kind
