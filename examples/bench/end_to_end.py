"""
The planner end to end, live: `python examples/bench/end_to_end.py [live | sample | device]`.

S, M and L with the reward model on held-out Countdown puzzles, 12 budgets in tokens and 12 in seconds. Plans that only draw are replayed over
recorded answers with the seconds of this machine; searches ran live, under each budget in tokens, and in seconds as far as they came: one
that the clock cuts off counts as wrong, for its answers come with its last level. The planner is calibrated on half of the puzzles and judged
on the others, over 100 splits, against the fixed strategy that the same half prefers at that budget, and against the one that it prefers over
all budgets. `live`, `sample` and `device` are what must run before, in any order; each resumes. What has run so far is judged.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import _answers
import _trees
import numpy as np
import numpy.typing as npt
import torch
from _measure import report
from _trees import LEAST, TOKENS, TREES, UNLIMITED, Live

from langchain_pareto.budget import Budget
from langchain_pareto.planning.catalogue import Option, options_for
from langchain_pareto.planning.measure import measure
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.profile import Profile, Runs
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.strategies import Vote

Floats = npt.NDArray[np.float64]

HERE = Path(__file__).parent / "results"
SECONDS = tuple(float(f"{x:.3g}") for x in np.geomspace(0.1, 2.0, 12))
FIXED = (4, 8, 16, 32)  # samples of votes that do not stop early
ORDERS = 2
SPLITS = 100


@dataclass(frozen=True)
class Table:
    """Every run of every strategy under every budget in one resource."""

    resource: str
    options: tuple[Option, ...]
    runs: Runs

    @cached_property
    def right(self) -> Floats:
        """(options, budgets, puzzles); NaN where a search did not run."""
        table: Floats = self.runs.right.mean(3, dtype=np.float64)
        return table

    @cached_property
    def cost(self) -> Floats:
        """What was taken of the resource, likewise."""
        table: Floats = self.runs.costs[..., TERMS.index(self.resource)].mean(3, dtype=np.float64)
        return table


@dataclass(frozen=True, slots=True)
class Judged:
    """One resource over all splits; arrays of (splits, budgets), shares of right answers on the judged puzzles."""

    planned: Floats
    preferred: Floats  # the strategy that the calibration prefers at that budget
    constant: Floats  # the one that it prefers over all budgets
    envelope: Floats  # the best at each budget, in hindsight
    spent: Floats  # share of the budget
    leads: Floats  # (2, puzzles): over the preferred and the constant one, mean over budgets and splits
    chosen: list[dict[str, int]]  # how often what was planned, by budget


def options(of: Mapping[str, Pool]) -> tuple[Option, ...]:
    """All fixed strategies: the catalogue, votes that do not stop early, and the searches that ran."""
    votes = [
        Option(Vote(n=n, adaptive=False), {"policy": model})
        for model in _trees.POLICIES
        for n in FIXED
    ]
    return (*options_for(of), *votes, *TREES)


def tables(of: Mapping[str, Pool], lives: Sequence[Live]) -> list[Table]:
    """Replays what only draws, and puts the searches beside it."""
    every, recorded = options(of), _answers.recordings(of, lives)
    count = len(of["S"].questions)
    found = list[Table]()
    for resource, grid in (("tokens", TOKENS), ("seconds", SECONDS)):
        budgets = np.array(grid, np.float64)
        runs = measure(every, recorded, budgets, resource=resource, orders=ORDERS)
        for i, option in enumerate(every):
            if not option.drawn:
                mine = [one for one in lives if one.plan == str(option) and one.puzzle < count]
                _place(runs, i, resource, mine)
        found.append(Table(resource, every, runs))
    return found


def _place(runs: Runs, i: int, resource: str, lives: Sequence[Live]) -> None:
    """Puts the live runs of one search into its row."""
    limited = {(one.puzzle, one.limit): one for one in lives}
    for one in lives:
        if one.limit is not None:
            continue
        for j, limit in enumerate(runs.budgets):
            if resource == "tokens":
                if limit < LEAST[one.plan]:
                    continue  # it never ran under so little
                ran = one if limit > UNLIMITED * one.tokens else limited[one.puzzle, int(limit)]
                right, share = ran.right, 1.0
            else:
                ran, share = one, min(1.0, limit / (one.seconds or np.inf))
                right = one.right and share == 1.0
            runs.right[i, j, one.puzzle] = right
            took = {"tokens": ran.tokens, "flops": ran.flops, "seconds": one.seconds or 0.0}
            runs.costs[i, j, one.puzzle] = [
                share * took.get(term, ran.samples if term == "samples" else 0) for term in TERMS
            ]


def judge(found: Sequence[Table], seed: int = 0) -> dict[str, Judged]:
    """Calibrates on half of the puzzles, judges on the others."""
    puzzles = found[0].right.shape[2]
    rng = np.random.default_rng(seed)
    halves = [np.split(rng.permutation(puzzles), [puzzles // 2]) for _ in range(SPLITS)]
    profiles = [
        Profile("half", found[0].options, {t.resource: t.runs.cells(seen) for t in found})
        for seen, _ in halves
    ]
    return {t.resource: _judge(t, halves, profiles) for t in found}


def _judge(
    table: Table, halves: Sequence[list[npt.NDArray[np.int64]]], profiles: Sequence[Profile]
) -> Judged:
    budgets = table.runs.budgets
    places = {str(option): i for i, option in enumerate(table.options)}
    figures = np.zeros((5, len(halves), len(budgets)))
    leads = np.full((len(halves), 2, table.right.shape[2]), np.nan)
    chosen: list[dict[str, int]] = [{} for _ in budgets]
    for s, ((seen, judged), profile) in enumerate(zip(halves, profiles, strict=True)):
        known = np.nan_to_num(table.right[:, :, seen].mean(2), nan=-1.0)
        right = table.right[:, :, judged]
        over_all = int(np.maximum(known, 0.0).mean(1).argmax())
        planner = Planner(profile)
        ahead = np.zeros((2, len(judged)))
        for j, budget in enumerate(budgets):
            plan = planner.plan(Budget.parse({table.resource: _limit(table.resource, budget)}))
            told = str(Option(plan.strategy, plan.roles))
            i, liked = places[told], int(known[:, j].argmax())
            chosen[j][told] = chosen[j].get(told, 0) + 1
            constant = np.nan_to_num(right[over_all, j])  # where it cannot run nothing is right
            figures[:, s, j] = [
                right[i, j].mean(),
                right[liked, j].mean(),
                constant.mean(),
                np.nanmax(right[:, j].mean(1)),
                table.cost[i, j, judged].mean() / budget,
            ]
            ahead += [right[i, j] - right[liked, j], right[i, j] - constant]
        leads[s][:, judged] = ahead / len(budgets)
    return Judged(*figures, leads=np.nanmean(leads, axis=0), chosen=chosen)


def _limit(resource: str, budget: float) -> float:
    return int(budget) if resource == "tokens" else float(budget)


def points(values: Floats) -> list[float]:
    """Mean and the ends of its 90 % interval by the bootstrap over puzzles, in points."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (1000, len(values)))].mean(1)
    return [round(100 * float(x), 2) for x in (values.mean(), *np.quantile(means, (0.05, 0.95)))]


def tell(judged: Mapping[str, Judged], puzzles: int) -> None:
    """One row a resource, and one for all budgets together."""
    both = together(list(judged.values()))
    for name, found in {**judged, "all budgets": both}.items():
        ours, theirs = 100 * found.planned.mean(), 100 * found.preferred.mean()
        by_budget = 100 * (found.planned - found.preferred).mean(0)
        report(
            "end_to_end", f"{name}: planned against the best fixed strategy chosen on other puzzles",
            ours, theirs, ours / theirs, "% right", bar="ours >= theirs - 1.0",
            ahead=points(found.leads[0]), worst_budget=round(float(by_budget.min()), 2),
            ahead_of_one_for_all_budgets=points(found.leads[1]),
            one_for_all_budgets=round(100 * float(found.constant.mean()), 2),
            best_in_hindsight=round(100 * float(found.envelope.mean()), 2),
            spent=round(100 * float(found.spent.mean()), 1), puzzles=puzzles, splits=SPLITS,
        )  # fmt: skip


def together(parts: Sequence[Judged]) -> Judged:
    """All budgets of several resources as one."""
    first = parts[0]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts], axis=1)
        for name in ("planned", "preferred", "constant", "envelope", "spent")
    }
    leads = np.mean([part.leads for part in parts], axis=0)
    return replace(first, **joined, leads=leads, chosen=[c for part in parts for c in part.chosen])


def main() -> None:
    """Reads the command line of the module's docstring."""
    torch.set_num_threads(1)
    before = {"live": _trees.measure, "sample": _answers.sample, "device": _answers.calibrate_all}
    if len(sys.argv) > 1:
        before[sys.argv[1]]()
        return
    lives = _trees.lives()
    count = min(_trees.complete(lives), _answers.sampled()) // 4 * 4
    if not count:
        told = "nothing has run yet that could be judged: run this script with `device`, `sample` and `live` first"
        print(told, file=sys.stderr)
        return
    lives = [one for one in lives if one.puzzle < count]
    of = _answers.pools(count)
    found = tables(of, lives)
    judged = judge(found)
    tell(judged, count)
    recorded = _answers.recordings(of, lives)
    print(json.dumps({"seconds, measured and told": _answers.off(recorded, lives)}))
    for table in found:
        for budget, chosen in zip(table.runs.budgets, judged[table.resource].chosen, strict=True):
            print(json.dumps({table.resource: float(budget), "planned": chosen}))
    from _end_to_end_figure import draw  # matplotlib is an extra

    draw(found, judged, HERE / "end-to-end.png")


if __name__ == "__main__":
    main()
