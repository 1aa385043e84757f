"""
Strategies at equal cost: `python examples/bench/strategies.py [countdown | words | wall] [--problems 1000] [--n 4 16 64]`.

`countdown`: REBASE, beam search, DVTS, MCTS, tree of thought, best of n, weighted vote, majority vote and one sample on held-out puzzles
of four numbers, scored by the bundled reward model; what each reaches, what it costs in FLOPs (the scorer's too), generated tokens and
measured seconds, and how far it is ahead of best-of-n at equal cost, paired by problem, with 95 % intervals. `words`: one sample,
majority and weighted vote on held-out word problems of 4 to 6 facts. `wall`: REBASE of 16 paths against 16 samples one after another,
seconds of 20 puzzles, each alone.

The exact checker judges the answers; no strategy sees it. Results lie in examples/nano/work until all are there, so that a run that
was stopped goes on; then one line each is printed, and the curves are drawn beside this file's results.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _measure import alternate, report

from langchain_pareto.backends.base import Backend, Sampling
from langchain_pareto.backends.loading import load
from langchain_pareto.strategies import (
    DVTS,
    MCTS,
    Beam,
    BestOfN,
    Rebase,
    Single,
    Strategy,
    TreeOfThought,
    Vote,
    WeightedVote,
)
from langchain_pareto.strategies.process_reward import ProcessReward
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.settings import Role, Settings
from langchain_pareto.strategies.thoughts import Answer

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano import growing, measures
from nano.bands import problems_of
from nano.paths import TOKENIZER, WORK, trained_or_shipped
from nano.problem import answer_of
from nano.samples import ProblemRef, weights_of
from nano.tasks import is_right
from nano.tokenizer import prompt_of

HERE = Path(__file__).parent / "results"
BANDS = {"countdown": "Countdown, 4 numbers", "words": "word problems, 4-6 facts"}
TEMPERATURE = 0.9  # chosen on validation problems for M, see examples/nano
AT_ONCE = 8  # problems side by side
SEED = 0  # of all: votes of one width are over the same samples
COSTS = ("flops", "tokens", "seconds")


def searches(task: str, n: int) -> dict[str, Strategy]:
    """The contenders at width `n`, by their names in the table."""
    votes: dict[str, Strategy] = {
        "best of n": BestOfN(n=n),
        "majority vote": Vote(n=n, adaptive=False),
        "weighted vote": WeightedVote(n=n),
    }
    if task == "words":
        return votes
    width = max(1, n // 4)
    return votes | {
        "REBASE": Rebase(n=n),
        "beam": Beam(n=n),
        "DVTS": DVTS(n=n),
        "MCTS": MCTS(expansions=n, parallel=width),
        "tree of thought": TreeOfThought(samples=4, breadth=width),
    }


@dataclass(frozen=True, slots=True)
class Result:
    """What one strategy made of one problem."""

    right: bool
    flops: int
    tokens: int
    seconds: float  # of the device, this run's share


class Bench:
    """The bundled models, and who runs on them."""

    def __init__(self, policy: Backend, reward: Backend) -> None:
        sampling = Sampling(temperature=TEMPERATURE)

        def role(backend: Backend) -> Role:
            encode = backend.tokenizer.encode
            return Role(backend, sampling, lambda: (), lambda text: encode(prompt_of(text)))

        self.policy = policy
        self.settings = Settings(
            sampling=sampling,
            max_tokens=400,
            scorer=ProcessReward(),
            roles={"policy": role(policy), "scorer": role(reward)},
        )

    async def results(
        self, strategy: Strategy, refs: Sequence[ProblemRef], seed: int
    ) -> list[Result]:
        """One result a problem, in order; a few problems at a time share the engine's steps."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(ref: ProblemRef) -> Result:
            question = ref.problem.question
            prompt = self.policy.tokenizer.encode(prompt_of(question))
            async with gate:
                out = await run(
                    strategy,
                    self.policy,
                    prompt,
                    question=question,
                    settings=self.settings,
                    seed=seed,
                )
            right = _right(ref, out.answer)
            return Result(right, out.spent.flops, out.spent.tokens, _seconds(out))

        return await asyncio.gather(*map(one, refs))


def _right(ref: ProblemRef, answer: Answer | None) -> bool:
    if answer is None or not answer.thought.finished:
        return False
    return bool(is_right(ref.problem, answer_of(answer.thought.whole_text)))


def _seconds(out: Outcome) -> float:
    return round(out.usage.device_seconds, 5)


def measure(task: str, problems: int, widths: Sequence[int], path: Path) -> dict[str, list[Result]]:
    """Results of every strategy, by "name, n"; what the file has is not done again."""
    refs = problems_of(BANDS[task], "test", problems)
    folders = {name: trained_or_shipped(name) for name in ("M", "PRM")}
    header = {"weights": {k: weights_of(v) for k, v in folders.items()}, "problems": problems}
    growing.resume(path, header)
    done = {row["name"]: [Result(**r) for r in row["results"]] for row in growing.rows(path)}
    wanted: dict[str, Strategy] = {"one sample, 1": Single()}
    for n in widths:
        wanted |= {f"{name}, {n}": strategy for name, strategy in searches(task, n).items()}
    if task == "countdown":
        wanted |= {f"beam, distinct, {n}": Beam(n=n, distinct=True) for n in widths}
    for name, strategy in wanted.items():
        if name in done:
            continue
        began = time.monotonic()
        # afresh each time: nothing that another strategy computed is in the cache
        with (
            load(folders["M"], tokenizer=TOKENIZER, memory="2 GB") as policy,
            load(folders["PRM"], tokenizer=TOKENIZER, memory="2 GB") as reward,
        ):
            done[name] = asyncio.run(Bench(policy, reward).results(strategy, refs, SEED))
        with path.open("a") as file:
            file.write(
                json.dumps({"name": name, "results": [asdict(r) for r in done[name]]}) + "\n"
            )
        right = np.mean([r.right for r in done[name]])
        print(f"{name}: {right:.3f}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {name: done[name] for name in wanted}


def wall(policy: Backend, reward: Backend) -> None:
    """Seconds of REBASE-16 and of 16 single samples in turn, over the same puzzles."""
    bench, refs = Bench(policy, reward), problems_of(BANDS["countdown"], "test", 20)

    def search() -> None:
        for ref in refs:
            asyncio.run(bench.results(Rebase(n=16), [ref], seed=0))

    def sequential() -> None:
        for ref in refs:
            for seed in range(16):
                asyncio.run(bench.results(Single(), [ref], seed=seed))

    seconds = alternate({"REBASE-16": search, "16 samples in turn": sequential}, rounds=3)
    ours, theirs = seconds.values()
    report("strategies", "REBASE-16 against 16 samples in turn", ours, theirs, ours / theirs, "s", bar="<= 0.5")  # fmt: skip


# --- at equal cost

Array = npt.NDArray[np.float64]


def _costs(results: Sequence[Result], cost: str) -> float:
    return float(np.mean([getattr(r, cost) for r in results]))


def _rights(results: Sequence[Result]) -> Array:
    return np.array([r.right for r in results], np.float64)


def at_cost(done: Mapping[str, list[Result]], name: str, cost: str, wanted: float) -> Array:
    """What a strategy reaches on each problem at a cost between two of its widths: a straight line over the logarithm of the cost.

    Beyond its widest or narrowest run, that run.
    """
    runs = [results for key, results in done.items() if key.rpartition(", ")[0] == name]
    runs = [done["one sample, 1"], *runs]
    points = sorted((np.log(_costs(results, cost)), i) for i, results in enumerate(runs))
    x = float(np.clip(np.log(wanted), points[0][0], points[-1][0]))
    for (low, a), (high, b) in pairwise(points):
        if low <= x <= high:
            share = (x - low) / (high - low) if high > low else 0.0
            return (1 - share) * _rights(runs[a]) + share * _rights(runs[b])
    return _rights(runs[points[-1][1]])


def _interval(values: Array) -> list[float]:
    low, high = measures.bootstrap(len(values), lambda rows: float(values[rows].mean()))
    return [round(100 * x, 1) for x in (float(values.mean()), low, high)]


def rows(task: str, done: Mapping[str, list[Result]]) -> list[dict[str, object]]:
    """One line for each strategy and width, with its lead over best-of-n (over the majority vote on word problems) at equal cost."""
    rival = "best of n" if task == "countdown" else "majority vote"
    out = []
    for key, results in done.items():
        name, _, n = key.rpartition(", ")
        right = _rights(results)
        row: dict[str, object] = {
            "bench": "strategies",
            "row": f"{task}: {name}, n = {n}",
            "right": [round(100 * x, 1) for x in (right.mean(), *measures.interval(right))],
            **{cost: float(f"{_costs(results, cost):.4g}") for cost in COSTS},
        }
        if name not in (rival, "one sample"):
            for cost in COSTS:
                lead = right - at_cost(done, rival, cost, _costs(results, cost))
                row[f"over {rival} at equal {cost}"] = _interval(lead)
        out.append(row | {"problems": len(results)})
    return out


def draw(task: str, done: Mapping[str, list[Result]], path: Path) -> None:
    """Three panels: what is reached against each cost."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.ticker
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, layout="constrained")
    names = dict.fromkeys(key.rpartition(", ")[0] for key in done if not key.startswith("one"))
    for axes, cost in zip(panels, COSTS, strict=True):
        for name, colour in zip(names, plt.get_cmap("tab10").colors, strict=False):
            runs = [v for key, v in done.items() if key.rpartition(", ")[0] == name]
            x = [_costs(results, cost) for results in runs]
            y = [100 * _rights(results).mean() for results in runs]
            style = "--" if name in ("best of n", "majority vote", "weighted vote") else "-"
            axes.plot(x, y, style, marker="o", markersize=4, color=colour, label=name)
        one = done["one sample, 1"]
        axes.plot(_costs(one, cost), 100 * _rights(one).mean(), "k*", label="one sample")
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.set_xlabel(f"{cost} a problem")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("right, per cent")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    figure.suptitle(f"{BANDS[task]}: {len(one)} held-out problems, nano policy and reward model")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("task", nargs="?", choices=[*BANDS, "wall"], default="countdown")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--n", type=int, nargs="+", default=[4, 16, 64])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task == "wall":
        with (
            load(trained_or_shipped("M"), tokenizer=TOKENIZER, memory="2 GB") as policy,
            load(trained_or_shipped("PRM"), tokenizer=TOKENIZER, memory="2 GB") as reward,
        ):
            wall(policy, reward)
        return
    path = WORK / f"strategies.{options.task}.{options.problems}.jsonl"
    done = measure(options.task, options.problems, options.n, path)
    for row in rows(options.task, done):
        print(json.dumps(row), flush=True)
    HERE.mkdir(exist_ok=True)
    draw(options.task, done, HERE / f"strategies-{options.task}.png")


if __name__ == "__main__":
    main()
