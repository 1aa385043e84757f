"""
Strategies at equal cost: `python examples/bench/strategies.py [countdown | words | wall] [--problems 1000] [--n 4 16 64]`.

`countdown`: REBASE, beam search, DVTS, MCTS, tree of thought, best of n, weighted vote and one sample on held-out puzzles of four numbers,
scored by the bundled reward model; what each reaches, what it costs in FLOPs (the scorer's too), generated tokens and measured seconds of
the processor, and how far it is ahead of best-of-n at equal cost, paired by problem, with 95 % intervals. Searches that vote by score are
told a second time with their best-scored answer, as best-of-n chooses. `words`: one sample, majority and weighted vote on held-out word
problems of 4 to 6 facts, drawn once: a vote of n is over the first n samples of the widest. `wall`: REBASE of 16 paths against 16 samples
one after another, seconds of 20 puzzles, each alone.

The exact checker judges the answers; no strategy sees it. Results lie in examples/nano/work until all are there, so that a run that
was stopped goes on; then one line each is printed, and the curves of `countdown` are drawn beside this file's results.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from _equal_cost import FIRST, RIVAL, Result, draw, rights, rows
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
)
from langchain_pareto.strategies.process_reward import ProcessReward
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.settings import Role, Settings
from langchain_pareto.strategies.thoughts import Answer, Choice, chosen

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano import growing
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
SEED = 0
BETWEEN = (2, 3, 6, 8, 11, 23, 32, 45)  # widths of best-of-n that are told by its widest run
_VOTES: Mapping[Choice, str] = {
    "best": "best of n",
    "majority": "majority vote",
    "weighted": "weighted vote",
}


@dataclass(frozen=True, slots=True)
class Pick:
    """How one answer is chosen among those that a run found, or among its first so many samples."""

    how: Choice
    first: int | None = None

    def result(self, ref: ProblemRef, out: Outcome) -> Result:
        """What the run would have given, had it chosen so; of the first samples only the tokens are known."""
        drawn = out.thoughts[: self.first]
        leaves = [thought for thought in drawn if thought.finished]
        if self.how == "majority":  # whose ties are told by likelihood alone
            leaves = [replace(thought, score=None) for thought in leaves]
        right = bool(leaves) and _right(ref, chosen(leaves, self.how))
        if self.first is None:
            return Result(right, out.spent.tokens, out.spent.flops)
        return Result(right, sum(thought.length for thought in drawn))


def _right(ref: ProblemRef, answer: Answer) -> bool:
    return bool(is_right(ref.problem, answer_of(answer.thought.whole_text)))


@dataclass(frozen=True, slots=True)
class Run:
    """A strategy to run, and the lines that are told of it, by "name, n"."""

    strategy: Strategy
    lines: Mapping[str, Pick]


BEST, WEIGHTED = Pick("best"), Pick("weighted")


def runs(task: str, widths: Sequence[int]) -> list[Run]:
    """All that is to run."""
    if task == "words":
        lines = {"one sample, 1": Pick("best", 1)}
        for n in widths:
            lines |= {f"{_VOTES[how]}, {n}": Pick(how, n) for how in get_args(Choice)}
        return [Run(BestOfN(n=max(widths)), lines)]
    out = [Run(Single(), {"one sample, 1": BEST})]
    for n in widths:
        width = max(1, n // 4)
        voting = {
            "REBASE": Rebase(n=n),
            "beam": Beam(n=n),
            "beam, distinct": Beam(n=n, distinct=True),
            "DVTS": DVTS(n=n),
        }
        choosing = {
            "MCTS": MCTS(expansions=n, parallel=width),
            "tree of thought": TreeOfThought(samples=4, breadth=width),
        }
        lines = {f"{RIVAL}, {n}": BEST, f"weighted vote, {n}": WEIGHTED}
        if n == max(widths):
            lines |= {f"{FIRST}, {k}": Pick("best", k) for k in BETWEEN if k < n}
        out.append(Run(BestOfN(n=n), lines))
        out += [
            Run(strategy, {f"{name}, {n}": WEIGHTED, f"{name}, by best, {n}": BEST})
            for name, strategy in voting.items()
        ]
        out += [Run(strategy, {f"{name}, {n}": BEST}) for name, strategy in choosing.items()]
    return out


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
        self, run_: Run, refs: Sequence[ProblemRef], seed: int
    ) -> dict[str, list[Result]]:
        """Of each line one result a problem, in order; a few problems at a time share the engine's steps."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(ref: ProblemRef) -> dict[str, Result]:
            question = ref.problem.question
            prompt = self.policy.tokenizer.encode(prompt_of(question))
            async with gate:
                out = await run(
                    run_.strategy,
                    self.policy,
                    prompt,
                    question=question,
                    settings=self.settings,
                    seed=seed,
                )
            return {line: pick.result(ref, out) for line, pick in run_.lines.items()}

        began = time.process_time()
        found = await asyncio.gather(*map(one, refs))
        seconds = round((time.process_time() - began) / len(refs), 5)
        return {
            line: [
                replace(each[line], seconds=seconds if pick.first is None else None)
                for each in found
            ]
            for line, pick in run_.lines.items()
        }


def measure(task: str, problems: int, widths: Sequence[int], path: Path) -> dict[str, list[Result]]:
    """Results of every line, by "name, n"; what the file has is not done again."""
    refs = problems_of(BANDS[task], "test", problems)
    folders = {name: trained_or_shipped(name) for name in ("M", "PRM")}
    weights = {name: weights_of(folder) for name, folder in folders.items()}
    header = {"weights": weights, "problems": problems, "seconds": "of the processor"}
    growing.resume(path, header)
    done = {row["name"]: [Result(**r) for r in row["results"]] for row in growing.rows(path)}
    wanted = runs(task, widths)
    for run_ in wanted:
        if run_.lines.keys() <= done.keys():
            continue
        # afresh each time: nothing that another strategy computed is in the cache
        with (
            load(folders["M"], tokenizer=TOKENIZER, memory="2 GB") as policy,
            load(folders["PRM"], tokenizer=TOKENIZER, memory="2 GB") as reward,
        ):
            found = asyncio.run(Bench(policy, reward).results(run_, refs, SEED))
        with path.open("a") as file:
            for line, results in found.items():
                file.write(
                    json.dumps({"name": line, "results": [asdict(r) for r in results]}) + "\n"
                )
        done |= found
        told = ", ".join(f"{line}: {100 * rights(r).mean():.1f}" for line, r in found.items())
        print(told, file=sys.stderr, flush=True)
    return {line: done[line] for run_ in wanted for line in run_.lines}


def wall(policy: Backend, reward: Backend) -> None:
    """Seconds of REBASE-16 and of 16 single samples in turn, over the same puzzles."""
    bench, refs = Bench(policy, reward), problems_of(BANDS["countdown"], "test", 20)

    def search() -> None:
        for ref in refs:
            asyncio.run(bench.results(Run(Rebase(n=16), {}), [ref], seed=0))

    def sequential() -> None:
        for ref in refs:
            for seed in range(16):
                asyncio.run(bench.results(Run(Single(), {}), [ref], seed=seed))

    seconds = alternate({"REBASE-16": search, "16 samples in turn": sequential}, rounds=3)
    ours, theirs = seconds.values()
    report("strategies", "REBASE-16 against 16 samples in turn", ours, theirs, ours / theirs, "s", bar="<= 0.5")  # fmt: skip


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("task", nargs="?", choices=[*BANDS, "wall"], default="countdown")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--n", type=int, nargs="+", default=[4, 16, 64])
    options = parser.parse_args()
    if min(options.problems, *options.n) < 1:
        parser.error("--problems and --n are at least 1")
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
    if options.task == "countdown":
        draw(done, BANDS[options.task], HERE / "strategies-countdown.png")


if __name__ == "__main__":
    main()
