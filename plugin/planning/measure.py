"""
Measures every plan of a catalogue on recorded answers: what it answers and takes at each budget, question by question.

All plans meet a question's samples in the same orders, so that they are compared in pairs. Knows replays and tables; knows no device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from langchain_pareto.budget import Budget
from langchain_pareto.planning.catalogue import LARGE, Option
from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.profile import Family, Runs
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.planning.recording import Recording
from langchain_pareto.planning.replay import Played, Replayer
from langchain_pareto.strategies import Cascade, Single, Vote

ORDERS = 16  # of a question's samples
GRID = 14  # budgets
_WIDEST = 64  # times one sample of the dearest model: the largest budget


def budgets(pools: Mapping[str, Pool]) -> npt.NDArray[np.float64]:
    """Budgets in tokens from less than one sample of the cheapest model to many of the dearest."""
    means = [float(pool.tokens.mean()) for pool in pools.values()]
    least, most = max(1.0, 0.7 * min(means)), max(2.0, _WIDEST * max(means))
    return np.unique(np.geomspace(least, most, GRID).round())  # short samples have fewer


def seconds_grid(recordings: Mapping[str, Recording]) -> npt.NDArray[np.float64]:
    """The same in seconds, for models of which it is known what they take."""
    each = [_one_sample(recording) for recording in recordings.values()]
    return np.geomspace(0.7 * min(each), _WIDEST / 4 * max(each), GRID)


def measure(
    options: Sequence[Option],
    recordings: Mapping[str, Recording],
    grid: npt.NDArray[np.float64],
    *,
    resource: str = "tokens",
    orders: int = ORDERS,
    on_option: Callable[[], None] = lambda: None,
) -> Runs:
    """Every run of every option under each budget of `grid` in one resource; `recordings` are by model.

    An option that does more than draw answers is not measured here, and has NaN.
    """
    assert len({recording.pool.questions for recording in recordings.values()}) == 1, (
        "rows must mean the same question"
    )
    questions = len(next(iter(recordings.values())).pool.questions)
    limits = [Budget.parse({resource: _limit(resource, x)}) for x in grid]
    shape = (len(options), len(grid), questions, orders)
    right = np.full(shape, np.nan, np.float32)
    answers = np.full(shape, -2, np.int32)
    costs = np.full((*shape, len(TERMS)), np.nan, np.float32)
    replayers = dict[tuple[tuple[str, str], ...], Replayer]()
    for i, option in enumerate(options):
        on_option()
        if not option.drawn:
            continue
        key = tuple(sorted(option.roles.items()))
        if key not in replayers:
            replayers[key] = Replayer({role: recordings[model] for role, model in key})
        for question, order in product(range(questions), range(orders)):
            for j, limit in enumerate(limits):
                played = replayers[key].play(option.strategy, question, limit, seed=order)
                same = slice(j, None) if played.free else j
                right[i, same, question, order] = played.right or 0.0
                answers[i, same, question, order] = played.answer
                costs[i, same, question, order] = list(_took(played))
                if played.free:  # larger limits change nothing
                    break
    return Runs(grid, right, costs, answers)


def family(
    options: Sequence[Option], runs: Runs, models: Sequence[str], *, labelled: bool
) -> Family | None:
    """The plans that may be certified against the largest vote of the dearest model, safest first; None where there is no such vote.

    Their order is the catalogue's and not the data's, as a fixed sequence must be: cascades from the cheapest to the dearest model, the
    surest first, and after them the cheapest model's vote; with one model ever smaller votes.
    """
    small, large = models[0], models[-1]
    votes = {
        o.strategy.n: i
        for i, o in enumerate(options)
        if isinstance(o.strategy, Vote) and o.model == large
    }
    if not votes:
        return None
    reference = votes.pop(max(votes))
    sequence = [votes[n] for n in sorted(votes, reverse=True)]
    if small == large:
        sequence += _single(options, large)
    else:
        sequence = sequence[:1] + _cascades(options, small, large) + _single(options, small)
    last = runs.answers[:, -1, :, 0]  # one run a question: each counts once
    right = runs.right[:, -1, :, 0] > 0
    differs = last[sequence] != last[reference]
    lost = right[reference] & ~right[sequence] if labelled else None
    return Family(reference, tuple(sequence), differs, lost)


def _cascades(options: Sequence[Option], small: str, large: str) -> list[int]:
    found = [
        (-o.strategy.n, -(o.strategy.agreement or 2.0), i)
        for i, o in enumerate(options)
        if isinstance(o.strategy, Cascade) and (o.model, o.roles[LARGE]) == (small, large)
    ]
    return [i for *_, i in sorted(found)]


def _single(options: Sequence[Option], model: str) -> list[int]:
    return [i for i, o in enumerate(options) if isinstance(o.strategy, Single) and o.model == model]


def _took(played: Played) -> Iterator[float]:
    """The terms of a run; unknown ones are zero."""
    for term in TERMS:
        yield float(getattr(played, term) or 0)


def _limit(resource: str, amount: float) -> float:
    return max(1, int(amount)) if resource == "tokens" else float(amount)


def _one_sample(recording: Recording) -> float:
    assert recording.timing is not None
    pool = recording.pool
    return recording.timing.batch_seconds(
        [max(1, int(pool.tokens.mean()))], int(pool.prompts.mean())
    )
