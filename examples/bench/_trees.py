"""
Live runs of searches on held-out Countdown puzzles, kept line by line, so that a run that was stopped goes on.

Each search runs alone and without a limit, which gives its seconds; then under hard limits in tokens, from LEAST on, wherever they might
change what it does. A few plans that replays know too run alone beside them, to hold the replay's seconds against. Seconds are those of the
processor in this process, as the machine may be shared; those of one file must be of one version of the engine. Knows models and puzzles;
knows no planner.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from langchain_pareto.backends.base import Backend, Sampling
from langchain_pareto.backends.loading import load
from langchain_pareto.budget import Budget
from langchain_pareto.ledger import Account
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.strategies import (
    DVTS,
    BestOfN,
    Rebase,
    Single,
    Strategy,
    Vote,
    WeightedVote,
)
from langchain_pareto.strategies.process_reward import ProcessReward
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.settings import Role, Settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano import growing
from nano.bands import problems_of
from nano.paths import TOKENIZER, WORK, trained_or_shipped
from nano.problem import answer_of
from nano.samples import ProblemRef, weights_of
from nano.tasks import is_right
from nano.tokenizer import prompt_of

POLICIES = ("S", "M", "L")
LIVE = WORK / "live"
PATH = LIVE / "trees.jsonl"
PUZZLES = 1000
TOKENS = (40, 56, 78, 109, 153, 214, 299, 418, 584, 817, 1143, 1600)  # budgets
LONGEST = 400  # tokens of a sample
ENOUGH = 0.9  # a score at which the best of n stops, near those that the planner proposes
HOT = Sampling(temperature=0.9)  # of searches: chosen on validation puzzles for M
SAMPLINGS = {  # of whole answers, as examples/nano chose them
    "S": Sampling(temperature=0.8, top_p=0.95),
    "M": Sampling(temperature=0.6),
    "L": Sampling(temperature=0.6),
}
BLOCK = 20  # puzzles that one plan runs on before the next: more than the caches hold
AT_ONCE = 8  # limited runs side by side
CHECKED = 10  # one puzzle of so many is also for the plans that replays know
# A search with so many times what it takes is not limited: a level takes half of what is left.
UNLIMITED = 1.6
_MEMORY = {"S": "16 MB", "M": "96 MB", "L": "96 MB", "PRM": "96 MB"}  # for less than a block


def tree(strategy: Strategy, model: str) -> Option:
    """A search by one model."""
    return Option(strategy, {"policy": model}, drawn=False)


TREES = (
    tree(Rebase(n=16), "S"),
    tree(Rebase(n=4), "M"),
    tree(Rebase(n=16), "M"),
    tree(DVTS(n=16), "M"),
)
LEAST = dict(
    zip(map(str, TREES), (1143, 153, 584, 1143), strict=True)
)  # budgets that they run under
SCORED = (*(WeightedVote(n=n) for n in (1, 4, 16)), BestOfN(n=32, threshold=ENOUGH))
CHECKS = tuple(
    Option(strategy, {"policy": model})
    for model, strategies in {
        "S": (Single(), Vote(n=16, adaptive=False), *SCORED),
        "M": (Single(), Vote(n=8, adaptive=False), *SCORED),
        "L": (Single(), Vote(n=4, adaptive=False)),
    }.items()
    for strategy in strategies
)


@dataclass(frozen=True, slots=True)
class Live:
    """What one plan made of one puzzle; `limit` is in tokens, and seconds are unknown of what ran beside others."""

    puzzle: int
    plan: str
    limit: int | None
    right: bool
    tokens: int
    flops: int
    seconds: float | None = None  # of the processor
    wall: float | None = None
    samples: int = 0
    longest: int = 0  # tokens of the longest sample


def puzzles(count: int = PUZZLES) -> list[ProblemRef]:
    """Held-out puzzles of three numbers and of four, in turn."""
    three, four = (problems_of(f"Countdown, {n} numbers", each=count // 2) for n in (3, 4))
    return [ref for pair in zip(three, four, strict=True) for ref in pair]


def header() -> dict[str, object]:
    """What a file of live runs is of."""
    weights = {name: weights_of(trained_or_shipped(name)) for name in (*POLICIES, "PRM")}
    return {"weights": weights, "puzzles": PUZZLES, "temperature": HOT.temperature}


def lives(path: Path = PATH) -> list[Live]:
    """What has run so far."""
    return [Live(**row) for row in growing.rows(path)]


def complete(found: Sequence[Live]) -> int:
    """How many puzzles everything has run on: whole blocks, of which the last check is the end."""
    last = str(CHECKS[-1])
    return BLOCK * sum(one.plan == last and one.puzzle % 2 for one in found)


class Players:
    """The loaded models, and how each plan runs on them."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self.backends = backends

    def settings(self, option: Option) -> Settings:
        """Of a plan's model, scored by the reward model."""
        policy = self.backends[option.model]
        sampling = SAMPLINGS[option.model] if option.drawn else HOT
        roles = {"policy": policy, "scorer": self.backends["PRM"]}
        return Settings(
            sampling=sampling,
            max_tokens=LONGEST,
            scorer=ProcessReward(),
            roles={name: _role(backend, sampling) for name, backend in roles.items()},
        )

    async def play(
        self, option: Option, ref: ProblemRef, *, limit: int | None = None, seed: int = 0
    ) -> Outcome:
        """One plan on one puzzle, under a hard limit in tokens."""
        policy, question = self.backends[option.model], ref.problem.question
        prompt = policy.tokenizer.encode(prompt_of(question))
        account = Account() if limit is None else Account(Budget(tokens=limit))
        return await run(
            option.strategy,
            policy,
            prompt,
            question=question,
            account=account,
            settings=self.settings(option),
            seed=seed,
        )


def _role(backend: Backend, sampling: Sampling) -> Role:
    encode = backend.tokenizer.encode
    return Role(backend, sampling, lambda: (), lambda text: encode(prompt_of(text)))


@contextmanager
def players() -> Iterator[Players]:
    """The family, with caches that hold less than a block of puzzles: what one plan computed is no other's gift."""
    with ExitStack() as stack:
        yield Players(
            {
                name: stack.enter_context(
                    load(trained_or_shipped(name), tokenizer=TOKENIZER, memory=memory)
                )
                for name, memory in _MEMORY.items()
            }
        )


def live(
    puzzle: int, ref: ProblemRef, option: Option, out: Outcome, limit: int | None = None
) -> Live:
    """An outcome as it is kept, without seconds."""
    answer = out.answer
    ended = answer is not None and answer.thought.finished
    right = ended and is_right(ref.problem, answer_of(answer.thought.whole_text))  # type: ignore[union-attr]  # ended says so
    drawn = [len(thought.tokens) for thought in out.thoughts]
    return Live(
        puzzle,
        str(option),
        limit,
        bool(right),
        out.spent.tokens,
        out.spent.flops,
        samples=len(drawn),
        longest=max(drawn, default=0),
    )


def measure(path: Path = PATH) -> None:
    """Runs everything that the file has not yet, a block of puzzles after the other."""
    refs = puzzles()
    growing.resume(path, header())
    done = {(one.puzzle, one.plan, one.limit): one for one in lives(path)}
    with players() as of, path.open("a") as file:
        for start in range(0, len(refs), BLOCK):
            began = time.monotonic()
            block = range(start, min(start + BLOCK, len(refs)))
            for option in (*TREES, *CHECKS):
                for one in _block(of, option, refs, block, done):
                    done[one.puzzle, one.plan, one.limit] = one
                    file.write(json.dumps(asdict(one)) + "\n")
                file.flush()
            took = time.monotonic() - began
            print(f"{block.stop} of {len(refs)}, {took:.0f} s", file=sys.stderr, flush=True)


def _block(
    of: Players,
    option: Option,
    refs: Sequence[ProblemRef],
    block: range,
    done: Mapping[tuple[int, str, int | None], Live],
) -> Iterator[Live]:
    """One plan on a block of puzzles: alone, then a search under its limits side by side."""
    known = dict[int, Live]()
    for i in block:
        if option.drawn and i // 2 % CHECKED:
            continue
        if (i, str(option), None) in done:
            known[i] = done[i, str(option), None]
            continue
        known[i] = _alone(of, option, i, refs[i])
        yield known[i]
    if not option.drawn:
        wanted = [
            (i, limit)
            for i, one in known.items()
            for limit in limits(option, one)
            if (i, str(option), limit) not in done
        ]
        yield from asyncio.run(_limited(of, option, refs, wanted))


def limits(option: Option, one: Live) -> list[int]:
    """The budgets that might change what a search does, of those that it runs under."""
    return [limit for limit in TOKENS if LEAST[str(option)] <= limit <= UNLIMITED * one.tokens]


def _alone(of: Players, option: Option, i: int, ref: ProblemRef) -> Live:
    wall, began = time.perf_counter(), time.process_time()
    out = asyncio.run(of.play(option, ref, seed=i))
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    plain = asdict(live(i, ref, option, out))
    return Live(**plain | {"seconds": round(seconds, 5), "wall": round(wall, 5)})


async def _limited(
    of: Players, option: Option, refs: Sequence[ProblemRef], wanted: Sequence[tuple[int, int]]
) -> list[Live]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(i: int, limit: int) -> Live:
        async with gate:
            out = await of.play(option, refs[i], limit=limit, seed=i)
        return live(i, refs[i], option, out, limit)

    return await asyncio.gather(*(one(i, limit) for i, limit in wanted))
