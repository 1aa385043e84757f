"""
Fits the costs of steps to measured runs, by least squares of relative errors, and tells how far what was fitted is off.

Knows runs and curves; measures nothing (`device.py` does).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from langchain_pareto.errors import SettingError
from langchain_pareto.planning.cost_model import Z95
from langchain_pareto.planning.step_cost import FEWEST_COLUMNS, PrefillCost, Sharing, StepCost

Floats = npt.NDArray[np.float64]

LEAST_SIGMA = 0.05
_STRAIGHT = 0.10  # the error that a simpler curve may have
_BENDS = ((), (2,), (2, 8), (2, 4, 8, 16))  # widths, simplest first


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run: forks of one prompt that drew so many tokens."""

    lengths: tuple[int, ...]
    prompt: int
    seconds: float

    def off(self, step: StepCost) -> float:
        """log(measured / predicted)."""
        return math.log(self.seconds / step.drawing(self.lengths, self.prompt))


def fit(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Non-negative coefficients, one a feature, whose products with them miss `seconds` least, each error relative to what was measured.

    Least squares for every set of features that might count; raises SettingError where nothing was measured.
    """
    if not features or min(seconds) <= 0:
        raise SettingError("a fit needs measured runs, each longer than no time at all")
    rows: Floats = np.asarray(features, np.float64) / np.asarray(seconds, np.float64)[:, None]
    scale = np.maximum(rows.max(0), 1e-300)  # so that no feature is lost beside a large one
    rows = rows / scale
    best, least = np.zeros(rows.shape[1]), math.inf
    for active in _subsets(rows.shape[1]):
        found = np.linalg.lstsq(rows[:, active], np.ones(len(rows)), rcond=None)[0]
        missed = float(((rows[:, active] @ found - 1) ** 2).sum())
        if found.min() >= 0 and missed < least - 1e-12:
            best, least = np.zeros(rows.shape[1]), missed
            best[active] = found
    return [float(x) for x in best / scale]


def _subsets(n: int) -> Iterator[list[int]]:
    for size in range(1, n + 1):
        yield from map(list, combinations(range(n), size))


def fit_decode(
    runs: Sequence[Run], held_out: Sequence[Run], sharing: Sharing, *, padded: bool = False
) -> StepCost:
    """The simplest curve of widths by which every run, those that are not fitted too, is within a tenth, or nearly as near as by any."""
    widest = max(len(run.lengths) for run in runs)
    form = StepCost(0.0, 0.0, 0.0, sharing=sharing, padded=padded)
    steps = [_fit_bent(runs, bends, form) for bends in _BENDS if widest > max(bends, default=0)]
    worst = [max(abs(run.off(step)) for run in (*runs, *held_out)) for step in steps]
    enough = max(_STRAIGHT, 1.25 * min(worst))
    return next(step for step, off in zip(steps, worst, strict=True) if off <= enough)


def _fit_bent(
    runs: Sequence[Run], bends: tuple[int, ...], form: StepCost, *, anew: bool = True
) -> StepCost:
    """The curve of this form that bends at these widths; without `anew`, columns that are fetched anew take no time."""
    edges = (1, *bends)
    units = [replace(form, a=1.0)]
    for i, edge in enumerate(edges):  # a slope of 1 between two edges, from which on it is counted
        rise = ((edges[i + 1], 0.0),) if i + 1 < len(edges) else ()
        units.append(replace(form, bends=((edge, 1.0), *rise)))
    units += [replace(form, c=1.0), replace(form, d=1.0)]
    if anew:
        units.append(replace(form, e=1.0))
    features = [[unit.drawing(r.lengths, r.prompt) for unit in units] for r in runs]
    found = fit(features, [run.seconds for run in runs])
    one, *slopes, c, d, e = found if anew else [*found, 0.0]
    after = tuple(zip(bends, slopes[1:], strict=True))
    step = replace(form, a=one - slopes[0], b=slopes[0], c=c, d=d, e=e, bends=after)
    # Runs are made to take about the same time, so what is paid once a run could explain them all: but it is part of one step.
    if anew and form.sharing == "union" and e * FEWEST_COLUMNS > step.width(1):
        return _fit_bent(runs, bends, form, anew=False)
    return step


def fit_prefill(points: Sequence[tuple[int, int, float]]) -> PrefillCost:
    """From (tokens, tokens before them, seconds)."""
    units = [PrefillCost(1.0, 0.0, 0.0), PrefillCost(0.0, 1.0, 0.0), PrefillCost(0.0, 0.0, 1.0)]
    features = [[unit.seconds(n, cached) for unit in units] for n, cached, _ in points]
    return PrefillCost(*fit(features, [seconds for *_, seconds in points]))


def spread(off: Sequence[float]) -> tuple[float, float]:
    """(sigma, median error) of log ratios: sigma by the size that 95 % of them stay below."""
    sizes = np.abs(np.asarray(off, np.float64))
    return max(LEAST_SIGMA, float(np.quantile(sizes, 0.95)) / Z95), float(np.median(sizes))
