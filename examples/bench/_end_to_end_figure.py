"""The figure of `end_to_end.py`: accuracy against budget, the planner's line over those of fixed strategies. Knows tables; measures nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from langchain_pareto.planning.catalogue import Option
from langchain_pareto.strategies import BestOfN

if TYPE_CHECKING:
    from end_to_end import Judged, Table

SHOWN = {  # fixed strategies with a colour, by what the catalogue calls them
    "one sample by S": "tab:cyan",
    "one sample by M": "tab:olive",
    "adaptive vote of 8 by M": "tab:purple",
    "weighted vote of 16 by S": "tab:brown",
    "weighted vote of 4 by M": "tab:gray",
    "weighted vote of 16 by M": "tab:blue",
    "rebase(n=4) by M": "tab:green",
    "rebase() by M": "tab:orange",
    "dvts() by M": "gold",
}
# The best of n until one is good enough, at the lowest threshold of each model.
STOPPED = {"M": "tab:red", "L": "tab:pink"}
NAMES = {
    "rebase(n=4) by M": "REBASE of 4 by M",
    "rebase() by M": "REBASE of 16 by M",
    "dvts() by M": "DVTS of 16 by M",
}
LABELS = {
    "tokens": "tokens a puzzle, at most",
    "seconds": "seconds a puzzle, at most (of one core)",
}


def stopped(options: Sequence[Option]) -> dict[str, str]:
    """Colours of the best of n until one is good enough, by what the catalogue calls it."""
    found = dict[str, str]()
    left = dict(STOPPED)
    for option in options:  # the lowest threshold comes first
        if isinstance(option.strategy, BestOfN) and option.strategy.threshold is not None:
            colour = left.pop(option.model, None)
            if colour is not None:
                found[str(option)] = colour
    return found


def draw(tables: Sequence["Table"], judged: Mapping[str, "Judged"], path: Path) -> None:
    """One panel a resource."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure, panels = plt.subplots(
        1, len(tables), figsize=(13, 5), sharey=True, layout="constrained"
    )
    for axes, table in zip(panels, tables, strict=True):
        budgets, planned = table.runs.budgets, judged[table.resource].planned
        colours = SHOWN | stopped(table.options)
        for i, option in enumerate(table.options):
            line, told = 100 * table.right[i].mean(1), str(option)
            if told in colours:
                axes.plot(budgets, line, color=colours[told], lw=1.4, label=NAMES.get(told, told))
            else:
                axes.plot(budgets, line, color="0.85", lw=0.7, zorder=0)
        axes.plot(budgets, 100 * planned.mean(0), "k-o", lw=2.4, ms=5, label="planned", zorder=5)
        low, high = np.quantile(100 * planned, (0.05, 0.95), axis=0)
        axes.fill_between(budgets, low, high, color="k", alpha=0.15, lw=0, zorder=4)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(budgets[::2])))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel(LABELS[table.resource])
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("right, per cent")
    panels[0].set_ylim(30, 100)
    handles, labels = panels[0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color="0.8", lw=0.9))
    labels.append("other fixed strategies")
    figure.legend(handles, labels, loc="outside right center", fontsize=9)
    puzzles = tables[0].right.shape[2]
    figure.suptitle(f"Countdown, {puzzles} held-out puzzles, nano S, M, L and reward model")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
