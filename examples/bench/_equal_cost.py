"""
What strategies reach at equal cost: a line for each with its lead in pairs, and the curves.

Knows results by "name, n", one a problem, in the same order for all; knows neither models nor strategies.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano import measures

Array = npt.NDArray[np.float64]

COSTS = ("flops", "tokens", "seconds")


@dataclass(frozen=True, slots=True)
class Result:
    """What one strategy made of one problem."""

    right: bool
    flops: int
    tokens: int
    seconds: float  # of the processor: the mean over all problems of the run


def rights(results: Sequence[Result]) -> Array:
    """1 where an answer is right, 0 where it is not."""
    return np.array([r.right for r in results], np.float64)


def _costs(results: Sequence[Result], cost: str) -> float:
    return float(np.mean([getattr(r, cost) for r in results]))


def at_cost(done: Mapping[str, list[Result]], name: str, cost: str, wanted: float) -> Array:
    """What a strategy reaches on each problem at a cost between two of its widths: a straight line over the logarithm of the cost.

    Beyond its widest or narrowest run, that run.
    """
    runs = [results for key, results in done.items() if key.rpartition(", ")[0] == name]
    runs = [done["one sample, 1"], *runs]
    points = sorted((np.log(_costs(results, cost)), i) for i, results in enumerate(runs))
    x = float(np.clip(np.log(wanted), points[0][0], points[-1][0]))
    for (low, a), (high, b) in pairwise(points):
        if low <= x <= high:
            share = (x - low) / (high - low) if high > low else 0.0
            return (1 - share) * rights(runs[a]) + share * rights(runs[b])
    return rights(runs[points[-1][1]])


def _interval(values: Array) -> list[float]:
    low, high = measures.bootstrap(len(values), lambda rows: float(values[rows].mean()))
    return [round(100 * x, 1) for x in (float(values.mean()), low, high)]


def rows(task: str, done: Mapping[str, list[Result]]) -> list[dict[str, object]]:
    """One line for each strategy and width, with its lead; on word problems one more, of the weighted vote over all widths."""
    lead, costs = (_lead, COSTS) if task == "countdown" else (_lead_on_words, ("tokens",))
    out = list[dict[str, object]]()
    for key, results in done.items():
        name, _, n = key.rpartition(", ")
        right = rights(results)
        row: dict[str, object] = {
            "bench": "strategies",
            "row": f"{task}: {name}, n = {n}",
            "right": [round(100 * x, 1) for x in (right.mean(), *measures.interval(right))],
            **{cost: float(f"{_costs(results, cost):.4g}") for cost in costs},
        }
        out.append(row | lead(done, key) | {"problems": len(results)})
    return out if task == "countdown" else [*out, _over_all_widths(done)]


def _lead(done: Mapping[str, list[Result]], key: str) -> dict[str, object]:
    """Over best-of-n at equal cost."""
    if key.startswith(("best of n", "one sample")):
        return {}
    right, out = rights(done[key]), dict[str, object]()
    for cost in COSTS:
        rival = at_cost(done, "best of n", cost, _costs(done[key], cost))
        out[f"over best of n at equal {cost}"] = _interval(right - rival)
    return out


def _lead_on_words(done: Mapping[str, list[Result]], key: str) -> dict[str, object]:
    """Over the majority of the same samples."""
    name, _, n = key.rpartition(", ")
    if name in ("majority vote", "one sample"):
        return {}
    lead = rights(done[key]) - rights(done[f"majority vote, {n}"])
    return {"over majority vote of the same samples": _interval(lead)}


def _over_all_widths(done: Mapping[str, list[Result]]) -> dict[str, object]:
    """The weighted vote's lead, the mean over all widths of each problem, with its paired standard error."""
    widths = [n for name, _, n in (key.rpartition(", ") for key in done) if name == "majority vote"]
    leads = [
        rights(done[f"weighted vote, {n}"]) - rights(done[f"majority vote, {n}"]) for n in widths
    ]
    lead = np.mean(leads, axis=0)
    error = 100 * lead.std(ddof=1) / len(lead) ** 0.5
    return {
        "bench": "strategies",
        "row": "words: weighted vote over majority vote, all n",
        "ours": _interval(lead),
        "standard error": round(error, 2),
        "problems": len(lead),
    }


def draw(done: Mapping[str, list[Result]], path: Path) -> None:
    """Three panels: what is reached against each cost. Searches that can choose in two ways are shown as they choose by themselves."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.ticker
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
    keys = [key for key in done if not key.startswith("one") and ", by best" not in key]
    names = dict.fromkeys(key.rpartition(", ")[0] for key in keys)
    for axes, cost in zip(panels, COSTS, strict=True):
        for name, colour in zip(names, plt.get_cmap("tab10").colors, strict=False):
            runs = [v for key, v in done.items() if key.rpartition(", ")[0] == name]
            x = [_costs(results, cost) for results in runs]
            y = [100 * rights(results).mean() for results in runs]
            style = "--" if name in ("best of n", "weighted vote") else "-"
            axes.plot(x, y, style, marker="o", markersize=4, color=colour, label=name)
        one = done["one sample, 1"]
        axes.plot(_costs(one, cost), 100 * rights(one).mean(), "k*", label="one sample")
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.set_xlabel(f"{cost} a problem")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("right, per cent")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    figure.suptitle(
        f"Countdown, 4 numbers: {len(one)} held-out problems, nano policy and reward model"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
