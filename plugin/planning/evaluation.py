"""
How good the planner is on recorded answers: calibrated on some questions, judged on others, over many splits.

Every plan runs under the same hard budget in tokens, the planner's and the fixed ones it is held against. Knows replays and planners; knows
no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from langchain_pareto.budget import Budget
from langchain_pareto.planning.catalogue import Option, catalogue
from langchain_pareto.planning.measure import budgets, measure
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.profile import TERMS, Profile, Runs
from langchain_pareto.planning.replay import Recording
from langchain_pareto.strategies import Single, Strategy, Vote

Floats = npt.NDArray[np.float64]

FIXED = (1, 3, 4, 8, 16, 32)  # samples of the fixed votes
JUDGED = 14  # budgets
_FROM, _TO = 1.05, 64  # times the cheapest model's mean sample


@dataclass(frozen=True, slots=True)
class Arena:
    """Everything that was replayed of one set of pools.

    `seen` has what a calibration sees: the catalogue's options on the first samples of each question. `judged` has the catalogue's
    options, then the fixed plans, on all samples, at the budgets that judge.
    """

    options: tuple[Option, ...]
    fixed: tuple[Option, ...]
    seen: Runs
    judged: Runs

    @property
    def questions(self) -> int:
        """How many there are."""
        return int(self.judged.right.shape[2])

    @property
    def plays(self) -> int:
        """Replayed calls."""
        return self.seen.right.size + self.judged.right.size

    @property
    def overruns(self) -> int:
        """Replayed calls that took more tokens than they had."""
        return sum(
            int((runs.costs[..., 0] > runs.budgets.astype(int)[None, :, None, None]).sum())
            for runs in (self.seen, self.judged)
        )


@dataclass(frozen=True, slots=True)
class Split:
    """One split at every budget: accuracies on the judged questions, and tokens; arrays of (budgets,)."""

    planned: Floats  # what the planner chose was right
    greedy: Floats  # the same without the lean rule
    envelope: Floats  # the best fixed plan, chosen on the judged questions themselves
    preferred: Floats  # the fixed plan that the calibration prefers
    random: Floats  # a fixed plan at random
    expected: Floats  # the quality that the planner told
    spent: Floats
    spent_greedy: Floats
    falls: Floats  # how far the accuracy fell from the budget before, in paired standard errors


def arena(
    pools: Mapping[str, Pool],
    *,
    samples: int = 16,
    orders: int = 4,
    on_option: Callable[[], None] = lambda: None,
) -> Arena:
    """Replays whatever the splits need; pools are by model, the cheapest first."""
    scored = all(pool.scores is not None for pool in pools.values())
    options = catalogue(list(pools), samples=samples, scored=scored)
    fixed = tuple(Option(strategy, {"policy": model}) for model in pools for strategy in _fixed())
    first = {model: pool.first(samples) for model, pool in pools.items()}
    cheapest = min(float(pool.tokens.mean()) for pool in pools.values())
    grid = np.geomspace(_FROM * cheapest, _TO * cheapest, JUDGED).round()

    def recorded(of: Mapping[str, Pool]) -> dict[str, Recording]:
        return {model: Recording(pool) for model, pool in of.items()}

    return Arena(
        options,
        fixed,
        measure(
            [*options, *(o for o in fixed if _drawn(o.strategy) <= samples)],
            recorded(first),
            budgets(first),
            orders=orders,
            on_option=on_option,
        ),
        measure([*options, *fixed], recorded(pools), grid, orders=orders, on_option=on_option),
    )


def splits(found: Arena, *, calibrated: int, count: int = 100, seed: int = 0) -> Iterator[Split]:
    """Random splits: `calibrated` questions are seen, all the others judge."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        order = rng.permutation(found.questions)
        yield _split(found, order[:calibrated], order[calibrated:])


def interval(values: Floats, resamples: int = 1000) -> tuple[float, float]:
    """The 90 % interval of the mean over splits, by the bootstrap."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [0.05, 0.95])
    return float(low), float(high)


def _split(found: Arena, seen: npt.NDArray[np.int64], judged: npt.NDArray[np.int64]) -> Split:
    options = len(found.options)
    calibration = found.seen.cells(seen)
    profile = Profile(
        name="split",
        options=found.options,
        cells={"tokens": calibration.part(range(options))},
    )
    lean, greedy = Planner(profile), Planner(profile, lean=False)
    right = found.judged.right[:, :, judged].mean(
        3, dtype=np.float64
    )  # (options, budgets, questions)
    used = found.judged.costs[..., TERMS.index("tokens")]
    tokens = used[:, :, judged].mean((2, 3), dtype=np.float64)
    accuracy = right.mean(2)
    known = calibration.right[options:].mean(
        2
    )  # of the fixed plans, at the calibration's own budgets
    fixed = [options + i for i, o in enumerate(found.fixed) if _seen(found, o)]
    logs = np.log(calibration.budgets)
    rows = list[tuple[float, ...]]()
    before: Floats | None = None
    for j, budget in enumerate(found.judged.budgets):
        plans = [p.plan(Budget(tokens=int(budget))) for p in (lean, greedy)]
        i, k = (_place(found.options, plan.strategy, plan.roles) for plan in plans)
        at = [float(np.interp(np.log(budget), logs, row)) for row in known]
        liked = fixed[int(np.argmax(at))]
        now = right[i, j]
        quality = plans[0].quality
        rows.append(
            (
                accuracy[i, j],
                accuracy[k, j],
                accuracy[options:, j].max(),
                accuracy[liked, j],
                accuracy[options:, j].mean(),
                np.nan if quality is None else quality.mean,
                tokens[i, j],
                tokens[k, j],
                0.0 if before is None else _fall(before, now),
            )
        )
        before = now
    return Split(*np.array(rows, np.float64).T)


def _fall(before: Floats, now: Floats) -> float:
    """How far it fell, in paired standard errors; 0 where it rose."""
    difference = before - now
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return max(0.0, float(difference.mean()) / error) if error > 0 else 0.0


def _place(options: Sequence[Option], strategy: Strategy, roles: Mapping[str, str]) -> int:
    return next(
        i for i, o in enumerate(options) if (o.strategy, dict(o.roles)) == (strategy, dict(roles))
    )


def _fixed() -> Iterator[Strategy]:
    for n in FIXED:
        yield Single() if n == 1 else Vote(n=n, adaptive=False)


def _drawn(strategy: Strategy) -> int:
    return strategy.n if isinstance(strategy, Vote) else 1


def _seen(found: Arena, option: Option) -> bool:
    """Whether the calibration has samples enough for a fixed plan."""
    return _drawn(option.strategy) <= max(_drawn(o.strategy) for o in found.options)
