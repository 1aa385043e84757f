"""
The Pareto plot of a profile: every plan by what it takes and how good it is, and what the planner takes at each budget.

Knows profiles and matplotlib, which comes with the extra `plot`; knows no model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from langchain_pareto.budget import Budget
from langchain_pareto.errors import SettingError
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.estimates import Estimates
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Profile
from langchain_pareto.strategies import BestOfN, Cascade, Single, Vote, WeightedVote

# colours that colour-blind readers tell apart (Okabe and Ito), one a model; cascades are grey
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = {Single: "o", Vote: "s", WeightedVote: "^", BestOfN: "v", Cascade: "D"}
_WORDS = {
    Single: "one sample",
    Vote: "adaptive vote",
    WeightedVote: "weighted vote",
    BestOfN: "best of n",
    Cascade: "cascade",
}


def draw_profile(profile: Profile, path: Path) -> None:
    """Writes the plot to `path`, in the format that its name says; SettingError without matplotlib, or for a format that it does not know."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        msg = "a plot needs matplotlib"
        raise SettingError(msg, hint='pip install "langchain-pareto[plot]"') from error
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    reading = Estimates(profile.options, profile.cells["tokens"]).unlimited()
    models = list(dict.fromkeys(option.model for option in profile.options))
    for i, option in enumerate(profile.options):
        if not np.isnan(reading.quality[i]):
            colour, mark = _style(option, models)
            axes.plot(
                reading.cost(i, "tokens"),
                100 * reading.quality[i],
                mark,
                color=colour,
                ms=6,
                alpha=0.8,
            )
    budgets = profile.cells["tokens"].budgets
    grid = np.geomspace(budgets[0], budgets[-1], 100)
    planner = Planner(profile)
    plans = [planner.plan(Budget(tokens=max(1, int(b)))) for b in grid]
    table = Estimates(profile.options, profile.cells["tokens"])
    places = {
        (o.strategy, tuple(sorted(o.roles.items()))): i for i, o in enumerate(profile.options)
    }
    chosen = [places[plan.strategy, tuple(sorted(plan.roles.items()))] for plan in plans]
    quality = [100 * table.at(b).quality[i] for b, i in zip(grid, chosen, strict=True)]
    axes.plot(grid, quality, color="black", lw=1.5, label="planned, at this budget")
    for model in models:
        axes.plot([], [], "o", color=_COLOURS[models.index(model) % len(_COLOURS)], label=model)
    for kind in dict.fromkeys(type(option.strategy) for option in profile.options):
        if kind in _MARKS:
            axes.plot([], [], _MARKS[kind], color="#777777", label=_WORDS[kind])
    axes.set_xscale("log")
    axes.set_xlabel("tokens: what a plan takes on average without a limit; of the line, the budget")
    axes.set_ylabel("right, %" if profile.labelled else "as most samples say, %")
    axes.set_title(f"{profile.name}: {profile.questions} questions")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    try:
        figure.savefig(path, dpi=150)
    except (ValueError, OSError) as error:
        msg = f"cannot write the plot {path}: {error}"
        raise SettingError(msg, hint="Take a name that ends in .png, .svg or .pdf.") from None
    finally:
        plt.close(figure)


def _style(option: Option, models: list[str]) -> tuple[str, str]:
    kind = type(option.strategy)
    own = kind is not Cascade
    colour = _COLOURS[models.index(option.model) % len(_COLOURS)] if own else "#777777"
    return colour, _MARKS.get(kind, "*")
