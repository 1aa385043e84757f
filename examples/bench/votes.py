"""
The weighted vote against the majority over recorded answers: `python examples/bench/votes.py`.

S and M on the shipped pools of examples/nano, 1,000 held-out problems a band and 32 samples each, scored by the bundled reward model. Both
strategies are replayed over the same samples, in several orders of them; per cent right, the difference, and its standard error, paired by
problem. `all n` is the mean over the four widths.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from langchain_pareto.planning.pool import read_pool
from langchain_pareto.planning.recording import Recording
from langchain_pareto.planning.replay import Replayer
from langchain_pareto.strategies import Vote, WeightedVote

POOLS = Path(__file__).parents[1] / "nano/pools"
BANDS = {
    "word problems, 4-6 facts": ("word_problem", {"4", "5", "6"}),
    "Countdown, 4 numbers": ("countdown", {"4"}),
}
WIDTHS = (4, 8, 16, 32)
ORDERS = 8  # of each problem's samples

Floats = npt.NDArray[np.float64]


def rights(replayer: Replayer, strategy: Vote | WeightedVote) -> Floats:
    """How often a strategy is right, of each problem."""
    orders = range(ORDERS if strategy.n < WIDTHS[-1] else 1)
    questions = range(len(replayer.questions))
    return np.array(
        [np.mean([replayer.play(strategy, q, seed=s).right for s in orders]) for q in questions]
    )


def row(band: str, model: str, n: int | str, majority: Floats, weighted: Floats) -> None:
    """Prints one line."""
    lead = weighted - majority
    error = lead.std(ddof=1) / len(lead) ** 0.5
    told = {
        "majority": round(100 * majority.mean(), 2),
        "weighted": round(100 * weighted.mean(), 2),
        "difference": round(100 * lead.mean(), 2),
        "standard error": round(100 * error, 2),
    }
    name = f"{band}: {model}, " + (n if isinstance(n, str) else f"n = {n}")
    print(json.dumps({"bench": "votes", "row": name, **told, "problems": len(lead)}), flush=True)


def main() -> None:
    """A line for each band, model and width."""
    for band, (task, levels) in BANDS.items():
        for model in ("S", "M"):
            pool = read_pool(POOLS / f"{task}.{model}.jsonl.gz")
            rows = [i for i, q in enumerate(pool.questions) if q.split("/")[1] in levels]
            replayer = Replayer({"policy": Recording(pool.part(rows))})
            found = [
                (rights(replayer, Vote(n=n, adaptive=False)), rights(replayer, WeightedVote(n=n)))
                for n in WIDTHS
            ]
            for n, (majority, weighted) in zip(WIDTHS, found, strict=True):
                row(band, model, n, majority, weighted)
            row(band, model, "all n", *np.mean(found, 0))


if __name__ == "__main__":
    main()
