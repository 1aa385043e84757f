"""
How good the planner is on recorded answers: calibrated on some questions, judged on others, over many splits.

Every plan runs under the same hard budget in tokens, the planner's and the fixed ones it is held against. Knows replays and planners; knows
no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from langchain_pareto.budget import Budget
from langchain_pareto.planning.catalogue import Option, options_for
from langchain_pareto.planning.figures import points, rounded
from langchain_pareto.planning.measure import ORDERS, budgets, measure
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.pool import Floats, Pool
from langchain_pareto.planning.profile import Profile, Runs
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.planning.recording import Recording
from langchain_pareto.strategies import Single, Strategy, Vote

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
    spent_preferred: Floats
    falls: Floats  # how far the accuracy fell from the budget before, in paired standard errors
    leads: Floats  # (3, questions): over envelope, preferred and random plans, mean over budgets; NaN where a question was seen


def arena(
    pools: Mapping[str, Pool],
    *,
    samples: int = 16,
    orders: int = 4,
    seen_orders: int = ORDERS,
    on_option: Callable[[], None] = lambda: None,
) -> Arena:
    """Replays whatever the splits need; pools are by model, the cheapest first."""
    most = min(pool.samples for pool in pools.values())
    samples = min(samples, most)
    first = {model: pool.first(samples) for model, pool in pools.items()}
    options = options_for(
        first
    )  # of the scores of all questions, which say nothing of what is right
    fixed = tuple(
        Option(strategy, {"policy": model}) for model in pools for strategy in _fixed(most)
    )
    cheapest = min(float(pool.tokens.mean()) for pool in pools.values())
    grid = np.unique(np.geomspace(_FROM * cheapest, _TO * cheapest, JUDGED).round().clip(1))

    def recorded(of: Mapping[str, Pool]) -> dict[str, Recording]:
        return {model: Recording(pool) for model, pool in of.items()}

    return Arena(
        options,
        fixed,
        measure(
            [*options, *(o for o in fixed if _drawn(o.strategy) <= samples)],
            recorded(first),
            budgets(first),
            orders=seen_orders,
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


def summary(found: Arena, *, calibrated: int, count: int = 100, seed: int = 0) -> dict[str, object]:
    """What the splits come to, in points of accuracy; intervals are of 90 %, by the bootstrap over questions."""
    every = list(splits(found, calibrated=calibrated, count=count, seed=seed))

    def mean(name: str) -> Floats:
        """Mean over splits; (budgets,)."""
        table: Floats = np.array([getattr(split, name) for split in every]).mean(0)
        return table

    leads = np.array([split.leads for split in every])  # (splits, 3, questions)
    judged = ~np.isnan(leads).all((0, 1))  # by chance not every question is
    envelope, preferred, random = map(points, np.nanmean(leads[:, :, judged], axis=0))
    gains = 100 * (mean("planned") - mean("preferred"))
    falls = np.array([split.falls for split in every])
    return {
        "questions": found.questions,
        "calibrated on": calibrated,
        "splits": count,
        "options": len(found.options),
        "budgets": [int(b) for b in found.judged.budgets],
        "regret": [round(-x, 2) for x in (envelope[0], envelope[2], envelope[1])],
        "regret without the lean rule": rounded((mean("envelope") - mean("greedy")).mean() * 100),
        "over the preferred fixed plan": preferred,
        "over the preferred fixed plan, worst budget": rounded(gains.min()),
        "over a random fixed plan": random,
        "spent less than the preferred fixed plan, %": _saved(
            mean("spent"), mean("spent_preferred")
        ),
        "lean rule: spent less, %": _saved(mean("spent"), mean("spent_greedy")),
        "lean rule: points lost": rounded((mean("greedy") - mean("planned")).mean() * 100),
        "optimism": rounded((mean("expected") - mean("planned")).mean() * 100),
        "falls of more than 2 standard errors": int((falls > 2).sum()),
        "planned": [round(float(x), 4) for x in mean("planned")],
        "envelope": [round(float(x), 4) for x in mean("envelope")],
        "plays": found.plays,
        "overruns": found.overruns,
    }


def _saved(ours: Floats, theirs: Floats) -> float:
    """How much less was spent, in per cent, mean over budgets."""
    return rounded(
        100 * (1 - np.divide(ours, theirs, out=np.ones_like(ours), where=theirs > 0)).mean()
    )


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
    leads = np.full((3, len(found.judged.budgets), found.questions), np.nan)
    before: Floats | None = None
    for j, budget in enumerate(found.judged.budgets):
        plans = [p.plan(Budget(tokens=int(budget))) for p in (lean, greedy)]
        i, k = (_place(found.options, plan.strategy, plan.roles) for plan in plans)
        at = [float(np.interp(np.log(budget), logs, row)) for row in known]
        liked = fixed[int(np.argmax(at))]
        now = right[i, j]
        ideal = options + int(accuracy[options:, j].argmax())
        others = (right[ideal, j], right[liked, j], right[options:, j].mean(0))
        leads[:, j, judged] = [now - other for other in others]
        quality = plans[0].quality
        rows.append(
            (
                accuracy[i, j],
                accuracy[k, j],
                accuracy[ideal, j],
                accuracy[liked, j],
                accuracy[options:, j].mean(),
                np.nan if quality is None else quality.mean,
                tokens[i, j],
                tokens[k, j],
                tokens[liked, j],
                0.0 if before is None else _fall(before, now),
            )
        )
        before = now
    columns = [field.name for field in fields(Split) if field.name != "leads"]
    table = dict(zip(columns, np.array(rows, np.float64).T, strict=True))
    return Split(**table, leads=leads.mean(1))


def _fall(before: Floats, now: Floats) -> float:
    """How far it fell, in paired standard errors; 0 where it rose."""
    difference = before - now
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return max(0.0, float(difference.mean()) / error) if error > 0 else 0.0


def _place(options: Sequence[Option], strategy: Strategy, roles: Mapping[str, str]) -> int:
    return next(
        i for i, o in enumerate(options) if (o.strategy, dict(o.roles)) == (strategy, dict(roles))
    )


def _fixed(most: int) -> Iterator[Strategy]:
    for n in FIXED:
        if n <= most:
            yield Single() if n == 1 else Vote(n=n, adaptive=False)


def _drawn(strategy: Strategy) -> int:
    return strategy.n if isinstance(strategy, Vote) else 1


def _seen(found: Arena, option: Option) -> bool:
    """Whether the calibration has samples enough for a fixed plan."""
    return _drawn(option.strategy) <= max(_drawn(o.strategy) for o in found.options)
