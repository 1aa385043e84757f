"""
`pareto bench`: how good the planner is on recorded answers of one's own models.

Knows folders of pools and lines of JSON; what is measured is the planning room's.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from langchain_pareto.budget import Budget
from langchain_pareto.errors import SettingError
from langchain_pareto.planning.evaluation import Arena, arena, summary
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.pool import Pool, apart, read_pool
from langchain_pareto.planning.profile import Profile
from langchain_pareto.planning.savings import spending, stopping, stopping_by_score

Row = dict[str, object]

_HINT = "Give a folder of files DATASET.MODEL.jsonl.gz."
_FEWEST = 2  # questions to calibrate on, and as many to judge on


def sets_of(folder: Path) -> dict[str, dict[str, Pool]]:
    """The pools of a folder, files DATASET.MODEL.jsonl.gz, by dataset and model, the cheapest model first.

    Where rows do not say who is right, class 0 is, and no other class means the same for two models. Raises SettingError.
    """
    if not folder.is_dir():
        msg = f"{folder} is no folder" if folder.exists() else f"there is no folder {folder}"
        raise SettingError(msg, hint=_HINT)
    found = defaultdict[str, dict[str, Pool]](dict)
    for path in sorted(folder.glob("*.jsonl.gz")):
        dataset, _, model = path.name.removesuffix(".jsonl.gz").partition(".")
        found[dataset][model or dataset] = read_pool(path, model=model)
    if not found:
        raise SettingError(f"the folder {folder} has no pools", hint=_HINT)
    return {dataset: _set(folder, dataset, pools) for dataset, pools in found.items()}


def rows(
    dataset: str, pools: dict[str, Pool], *, calibrated: int, splits: int = 100, orders: int = 4
) -> Iterator[Row]:
    """Everything that is measured of one set, as lines of JSON."""
    questions = len(next(iter(pools.values())).questions)
    there = "1 question" if questions == 1 else f"{questions} questions"
    if questions < 2 * _FEWEST:
        msg = f"{dataset} has {there}, too few to calibrate on some and judge on others"
        raise SettingError(msg, hint=f"Record at least {2 * _FEWEST}; 100 tell plans apart.")
    if not _FEWEST <= calibrated <= questions - _FEWEST:
        why = "are too few" if calibrated < _FEWEST else "leave too few to judge"
        msg = f"{dataset} has {there}: {calibrated} to calibrate on {why}"
        raise SettingError(msg, hint=f"Take {_FEWEST} to {questions - _FEWEST}.")
    found = arena(pools, orders=orders)
    yield {"set": dataset, "bench": "regret"} | summary(found, calibrated=calibrated, count=splits)
    yield {"set": dataset, "bench": "plan()"} | _speed(found)
    for model, pool in pools.items():
        yield {"set": dataset, "bench": "adaptive stop", "model": model} | stopping(
            pool, orders=orders
        )
        if (by_score := stopping_by_score(pool, orders=orders)) is not None:
            yield {"set": dataset, "bench": "stop by score", "model": model} | by_score
        for row in spending(pool, orders=orders):
            yield {"set": dataset, "bench": "whole budget", "model": model} | row


def _set(folder: Path, dataset: str, pools: dict[str, Pool]) -> dict[str, Pool]:
    """Pools over the questions that all of them have."""
    first = next(iter(pools.values())).questions
    common = [q for q in first if all(q in pool.questions for pool in pools.values())]
    if not common:
        msg = f"the pools of {dataset} in {folder} have no question in common"
        raise SettingError(msg, hint="Record the same questions for all models of a set.")
    kept = dict[str, Pool]()
    for model, pool in pools.items():
        places = {question: i for i, question in enumerate(pool.questions)}
        kept[model] = pool.part([places[question] for question in common])
        if not kept[model].tokens.any():
            msg = f"all samples of {model} in {dataset} have 0 tokens: there is nothing to plan"
            raise SettingError(msg, hint="Record how many tokens each sample has.")
    ordered = dict(sorted(kept.items(), key=lambda pair: float(pair[1].tokens.mean())))
    if all(pool.right is not None for pool in ordered.values()):
        return ordered
    judged = {model: replace(pool, right=pool.answers == 0) for model, pool in ordered.items()}
    return apart(judged, shared=0)


def _speed(found: Arena) -> Row:
    """How long one plan takes."""
    cells = found.seen.cells().part(range(len(found.options)))
    planner = Planner(Profile("bench", found.options, {"tokens": cells}))
    took = []
    for budget in np.geomspace(cells.budgets[0], cells.budgets[-1], 200):
        began = time.perf_counter()
        planner.plan(Budget(tokens=int(budget)))
        took.append(time.perf_counter() - began)
    return {"median ms": round(1e3 * statistics.median(took), 3), "options": len(found.options)}
