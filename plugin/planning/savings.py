"""
What one model's recorded answers say of spending: what it saves to stop early, and how much of a hard budget a vote can use.

Knows replays; knows no planner and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from langchain_pareto.budget import Budget
from langchain_pareto.planning.figures import points, rounded
from langchain_pareto.planning.planner import TOLERANCE
from langchain_pareto.planning.pool import Floats, Pool
from langchain_pareto.planning.recording import Recording
from langchain_pareto.planning.replay import Replayer
from langchain_pareto.planning.thresholds import thresholds
from langchain_pareto.strategies import BestOfN, Strategy, Vote
from langchain_pareto.strategies.thoughts import POLICY


def stopping(pool: Pool, *, orders: int = 4) -> dict[str, object]:
    """The adaptive vote against all of 32 samples, with no limit: how many times fewer tokens, and what that loses."""
    n = min(32, pool.samples)
    right, tokens = _unlimited(pool, [Vote(n=n), Vote(n=n, adaptive=False)], orders)
    return {
        "times fewer tokens": rounded(tokens[1].sum() / max(1, tokens[0].sum())),
        "points lost": points(right[1] - right[0]),
    }


def stopping_by_score(pool: Pool, *, orders: int = 4, seed: int = 0) -> dict[str, object] | None:
    """Best of n that stops at a threshold, against all of 32 samples: their vote, and the best of them.

    The threshold is the cheapest that is within half a point of the best on one half of the questions; the other half judges it. Those
    to choose from are of the scores of all questions, which say nothing of what is right. None where no score is better than others.
    """
    n = min(32, pool.samples)
    enough = () if pool.scores is None else thresholds(pool.scores)
    if not enough:
        return None
    stops = [BestOfN(n=n, threshold=score) for score in enough]
    rivals = {"the vote": Vote(n=n, adaptive=False), "the best": BestOfN(n=n)}
    right, tokens = _unlimited(pool, [*stops, *rivals.values()], orders)
    order = np.random.default_rng(seed).permutation(len(pool.questions))
    seen, judged = order[: len(order) // 2], order[len(order) // 2 :]
    known, price = right[: len(stops), seen].mean(1), tokens[: len(stops), seen].mean(1)
    ours = int(np.where(known >= known.max() - TOLERANCE, price, np.inf).argmin())
    out: dict[str, object] = {"threshold": enough[ours]}
    for theirs, name in enumerate(rivals, len(stops)):
        times = tokens[theirs, judged].sum() / max(1, tokens[ours, judged].sum())
        out[f"times fewer tokens than {name} of all"] = rounded(times)
        out[f"points lost to {name} of all"] = points(right[theirs, judged] - right[ours, judged])
    return out


def _unlimited(pool: Pool, plans: Sequence[Strategy], orders: int) -> tuple[Floats, Floats]:
    """What plans get right, and their tokens, without a limit; (plans, questions), means over orders of the samples."""
    replayer = Replayer({POLICY: Recording(pool)})
    plays = [
        [
            [replayer.play(plan, i, seed=order) for order in range(orders)]
            for i in range(len(pool.questions))
        ]
        for plan in plans
    ]
    right = np.array([[[bool(p.right) for p in row] for row in rows] for rows in plays])
    tokens = np.array([[[p.tokens for p in row] for row in rows] for rows in plays])
    return right.mean(2), tokens.mean(2)


def spending(pool: Pool, *, orders: int = 4) -> list[dict[str, object]]:
    """A vote that wants the whole budget against one that splits it into equal parts, at multiples of a mean sample."""
    replayer = Replayer({POLICY: Recording(pool)})
    longest, mean = max(1, int(pool.tokens.max())), float(pool.tokens.mean())
    most = min(32, pool.samples)
    rows = list[dict[str, object]]()
    for times in (2, 4, 8, 16):
        budget = max(1, int(times * mean))
        parts = min(most, max(1, budget // longest))  # whole samples at their worst case
        split = Replayer({POLICY: Recording(pool)}, max_tokens=min(longest, budget))
        played = [
            (
                replayer.play(Vote(n=most, adaptive=False), i, Budget(tokens=budget), seed=order),
                split.play(Vote(n=parts, adaptive=False), i, seed=order),
            )
            for i in range(len(pool.questions))
            for order in range(orders)
        ]
        cut = [ours.tokens / budget for ours, _ in played if ours.stopped_by == "tokens"]
        fullest = [fullest_of(row.tolist(), budget) / budget for row in pool.tokens[:, :most]]
        rows.append(
            {
                "times one sample": times,
                "spent, %": rounded(100 * np.mean([ours.tokens / budget for ours, _ in played])),
                # a vote that had all its samples wanted no more
                "spent where the budget ended it, %": rounded(100 * np.mean(cut)) if cut else None,
                "ended by the budget, %": rounded(100 * len(cut) / len(played)),
                # by whoever knows all lengths beforehand, and picks the samples that fill it best
                "whole samples can spend, %": rounded(100 * np.mean(fullest)),
                "right, %": rounded(100 * np.mean([bool(ours.right) for ours, _ in played])),
                "split, right, %": rounded(
                    100 * np.mean([bool(theirs.right) for _, theirs in played])
                ),
                "split, spent, %": rounded(
                    100 * np.mean([theirs.tokens / budget for _, theirs in played])
                ),
            }
        )
    return rows


def fullest_of(lengths: Iterable[int], budget: int) -> int:
    """The most tokens up to `budget` that some of these samples come to: which sums can be made, as bits of one number."""
    sums, kept = 1, (1 << (budget + 1)) - 1
    for length in lengths:
        sums |= (sums << length) & kept
    return sums.bit_length() - 1
