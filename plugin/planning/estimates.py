"""
How good each option is at a budget, and how sure that is: read off a profile's cells, shrunk and made monotone.

Knows cells and options; knows no budget of the user's and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.profile import Cells
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.strategies import Single, Vote

Floats = npt.NDArray[np.float64]

PRIOR = 20  # questions that the shape of a vote's gain counts for
# Share of the gain of many votes that n of them reach: medians over 29 pools of recorded answers.
_SHARES = {1: 0.0, 3: 0.43, 4: 0.58, 6: 0.76, 8: 0.82, 12: 0.89, 16: 0.92, 24: 0.96, 32: 1.0}
# What is counted beside the questions that there are: equal answers, or few of them, tell little (Agresti and Coull 1998).
_MORE = (0.0, 0.0, 1.0, 1.0)
_Z90 = 1.645  # of a normal distribution: 5 % lie above


@dataclass(frozen=True, slots=True)
class Reading:
    """All options at one budget: what they are worth, and what they take.

    `quality` (options,) is the shrunk estimate, NaN where an option was not measured; `right` (options, questions) are the shares that it
    comes from; `mean` and `p90` (options, TERMS).
    """

    quality: Floats
    right: Floats
    mean: Floats
    p90: Floats

    def lower(self, i: int) -> float:
        """What the quality of an option is at least, with a chance of 95 %."""
        return self.interval(i)[0]

    def interval(self, i: int) -> tuple[float, float]:
        """What the quality of an option is at least, and at most, with a chance of about 95 % each.

        Of plans whose true quality is half or more, at most 6.5 % have a higher lower end, from 30 questions on; of worse ones a few more.
        """
        quality, n = float(self.quality[i]), self.right.shape[1]
        centre = (n * quality + sum(_MORE)) / (n + len(_MORE))
        half = _Z90 * float(np.concatenate([self.right[i], _MORE]).std()) / (n + len(_MORE)) ** 0.5
        return min(quality, max(0.0, centre - half)), max(quality, min(1.0, centre + half))

    def cost(self, i: int, term: str) -> float:
        """The mean of one term for an option."""
        return float(self.mean[i, TERMS.index(term)])


class Estimates:
    """One table of cells, ready to be read at any budget."""

    def __init__(self, options: Sequence[Option], cells: Cells) -> None:
        self.cells = cells
        self._logs = np.log(cells.budgets)
        self.quality = monotone(_shrunk(options, cells))  # (options, budgets)

    def at(self, budget: float) -> Reading:
        """The options at a budget, between two that were measured by the logarithm; beyond them, as at the last one."""
        at = float(np.interp(np.log(budget), self._logs, np.arange(len(self._logs))))
        low = min(int(at), len(self._logs) - 1)
        high, share = min(low + 1, len(self._logs) - 1), at - low

        def between(table: Floats) -> Floats:
            mixed: Floats = (1 - share) * table[:, low] + share * table[:, high]
            return mixed

        return Reading(
            between(self.quality),
            between(self.cells.right),
            between(self.cells.mean),
            between(self.cells.p90),
        )

    def unlimited(self) -> Reading:
        """The options at the largest budget that was measured."""
        return self.at(float(self.cells.budgets[-1]))


def by_term(cells: Cells, term: str) -> Cells | None:
    """Cells by what runs took in another resource, None where that is not known.

    An option under a limit in `term` does what it did under the largest budget of which 9 of 10 runs stayed within that limit; one that
    takes more at every budget was not measured there, nor was one of which nobody knows what it takes.
    """
    column = cells.p90[:, :, TERMS.index(term)]  # (options, budgets)
    known = column[np.isfinite(column) & (column > 0)]
    if not known.size:
        return None
    budgets = np.geomspace(known.min(), known.max() * 1.001, 2 * column.shape[1])
    right = np.full((len(column), len(budgets), cells.right.shape[2]), np.nan)
    mean = np.full((len(column), len(budgets), len(TERMS)), np.nan)
    p90 = mean.copy()
    for i, used in enumerate(column):
        if not (used > 0).any():
            continue
        for j, limit in enumerate(budgets):
            within = np.flatnonzero(used <= limit)
            if within.size:
                k = within[-1]
                right[i, j], mean[i, j], p90[i, j] = (
                    cells.right[i, k],
                    cells.mean[i, k],
                    cells.p90[i, k],
                )
    return Cells(budgets, right, mean, p90)


def monotone(quality: Floats) -> Floats:
    """The running best over budgets: whoever has more may spend less of it."""
    filled = np.where(np.isnan(quality), -np.inf, quality)
    best = np.maximum.accumulate(filled, axis=1)
    result: Floats = np.where(np.isnan(quality), np.nan, best)
    return result


def _shrunk(options: Sequence[Option], cells: Cells) -> Floats:
    """Mean quality (options, budgets); votes are drawn towards the usual shape of their gain over one sample.

    The prior of a vote that draws n samples on average is that of one sample of the model, plus the model's own largest gain by a vote times the share
    that n votes usually reach. It weighs as many questions as PRIOR says.
    """
    quality: Floats = cells.right.mean(2)
    n = cells.right.shape[2]
    drawn = cells.cost("samples")
    singles = {o.model: i for i, o in enumerate(options) if isinstance(o.strategy, Single)}
    votes = {
        model: [
            i for i, o in enumerate(options) if isinstance(o.strategy, Vote) and o.model == model
        ]
        for model in singles
    }
    out = quality.copy()
    for model, members in votes.items():
        one = quality[singles[model]]
        if np.isnan(quality[members]).all() or np.isnan(one).all():
            continue
        gain = max(0.0, float(np.nanmax(quality[members]) - np.nanmax(one)))
        for i in members:
            shares = np.interp(drawn[i], list(_SHARES), list(_SHARES.values()))
            drawn_in = (n * quality[i] + PRIOR * (one + gain * shares)) / (n + PRIOR)
            out[i] = np.where(np.isnan(one), quality[i], drawn_in)
    return out
