"""
What strategies reach at equal cost: a line for each with its lead in pairs, and the curves.

Knows results by the names of strategies, "name, n", one a problem, in the same order for all; runs nothing. Best-of-n is told at widths
between those that ran as well, by the first samples of the widest: so that between two points of its curve there is little to guess.
Intervals are over problems; what a strategy costs on average is taken as known.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano import measures

Array = npt.NDArray[np.float64]

COSTS = ("flops", "tokens", "seconds")


RIVAL = "best of n"
_NEAR = 1.02  # times an end of the curve: as many samples as there, a little longer
FIRST = "best of the first"  # samples of the widest best-of-n: its costs but tokens are told by those of what ran


@dataclass(frozen=True, slots=True)
class Result:
    """What one strategy made of one problem."""

    right: bool
    tokens: int
    flops: int | None = None
    seconds: float | None = None  # of the processor: the mean over all problems of the run


def rights(results: Sequence[Result]) -> Array:
    """1 where an answer is right, 0 where it is not."""
    return np.array([r.right for r in results], np.float64)


def mean_cost(results: Sequence[Result], cost: str) -> float:
    """What a problem cost on average; NaN where that is not known."""
    known = [np.nan if (value := getattr(r, cost)) is None else value for r in results]
    return float(np.mean(known))


def curve(done: Mapping[str, list[Result]], cost: str) -> list[tuple[float, Array]]:
    """What best-of-n costs and gets right on each problem, from one sample to the widest.

    FLOPs and seconds of widths that did not run are between those of their neighbours, in proportion to their tokens.
    """
    ran = sorted(
        (mean_cost(results, "tokens"), mean_cost(results, cost))
        for key, results in done.items()
        if key.startswith((f"{RIVAL}, ", "one sample"))
    )
    points = [
        (mean_cost(results, "tokens"), rights(results))
        for key, results in done.items()
        if key.startswith((f"{RIVAL}, ", f"{FIRST}, ", "one sample"))
    ]
    tokens, costs = np.array(ran).T
    told = [(float(np.interp(at, tokens, costs)), right) for at, right in points]
    return sorted(told, key=lambda point: point[0])


def at_cost(points: Sequence[tuple[float, Array]], wanted: float) -> Array | None:
    """What is reached at a cost between two points of a curve: a straight line over the logarithm of the cost; None beyond its ends."""
    ends = points[0][0], points[-1][0]
    if ends[0] / _NEAR <= wanted <= ends[1] * _NEAR:
        wanted = min(max(wanted, ends[0]), ends[1])
    for (low, a), (high, b) in pairwise(points):
        if low <= wanted <= high:
            share = np.log(wanted / low) / np.log(high / low) if high > low else 0.0
            between: Array = (1 - share) * a + share * b
            return between
    return None


def _interval(values: Array) -> list[float]:
    low, high = measures.bootstrap(len(values), lambda rows: float(values[rows].mean()))
    return [round(100 * x, 1) for x in (float(values.mean()), low, high)]


def rows(task: str, done: Mapping[str, list[Result]]) -> list[dict[str, object]]:
    """One line for each strategy and width, with its lead; on word problems one more, of the weighted vote over all widths."""
    lead = _lead_on_words
    if task == "countdown":
        lead = partial(_lead, {cost: curve(done, cost) for cost in COSTS})
    out = list[dict[str, object]]()
    for key, results in done.items():
        name, _, n = key.rpartition(", ")
        if name == FIRST:
            continue
        right = rights(results)
        costs = {cost: mean_cost(results, cost) for cost in COSTS}
        row: dict[str, object] = {
            "bench": "strategies",
            "row": f"{task}: {name}, n = {n}",
            "right": [round(100 * x, 1) for x in (right.mean(), *measures.interval(right))],
            **{cost: float(f"{mean:.4g}") for cost, mean in costs.items() if not np.isnan(mean)},
        }
        out.append(row | lead(done, key) | {"problems": len(results)})
    return out if task == "countdown" else [*out, _over_all_widths(done)]


def _lead(
    curves: Mapping[str, list[tuple[float, Array]]], done: Mapping[str, list[Result]], key: str
) -> dict[str, object]:
    """Over best-of-n at equal cost; None where it cost less than one sample, or more than the widest best-of-n."""
    if key.startswith((f"{RIVAL}, ", "one sample")):
        return {}
    right, out = rights(done[key]), dict[str, object]()
    for cost in COSTS:
        rival = at_cost(curves[cost], mean_cost(done[key], cost))
        out[f"over best of n at equal {cost}"] = None if rival is None else _interval(right - rival)
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


def draw(done: Mapping[str, list[Result]], task: str, path: Path) -> None:
    """Three panels: what is reached against each cost. Searches that can choose in two ways are shown as they choose by themselves."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.ticker
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
    keys = [key for key in done if not key.startswith(("one", FIRST)) and ", by best" not in key]
    names = dict.fromkeys(key.rpartition(", ")[0] for key in keys)
    for axes, cost in zip(panels, COSTS, strict=True):
        for name, colour in zip(names, plt.get_cmap("tab10").colors, strict=False):
            runs = [v for key, v in done.items() if key.rpartition(", ")[0] == name]
            x = [mean_cost(results, cost) for results in runs]
            y = [100 * rights(results).mean() for results in runs]
            style = "--" if name in ("best of n", "weighted vote") else "-"
            axes.plot(x, y, style, marker="o", markersize=4, color=colour, label=name)
        one = done["one sample, 1"]
        axes.plot(mean_cost(one, cost), 100 * rights(one).mean(), "k*", label="one sample")
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.set_xlabel(f"{cost} a problem")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("right, per cent")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    figure.suptitle(f"{task}: {len(one)} held-out problems, nano policy and reward model")
    figure.savefig(path, dpi=110)
    plt.close(figure)
