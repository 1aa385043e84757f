"""
Hard budgets on live calls of the nano family: `python examples/bench/live.py [--calls 500] [--seed 0]`.

Every call draws its own question, strategy, decoder, model, and limits in up to three resources of tokens, flops, usd, memory, calls, joules and
seconds, from hopeless to ample. `ours` is how many calls overran, `theirs` how many had such a limit. Tokens and flops are held against what
the engine counted, memory against the caches' slots in use after each step, calls in a run of so many. Of seconds, and of joules and hourly
usd, which are seconds, one step may run on (with a draft, one round of guesses and its check): an overrun is a call in which more than one
step ended after its time was up, or that took HOST seconds more after the last. Calls run one after another.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from _measure import report

from langchain_pareto import BudgetExceeded, ChatPareto, run_budget
from langchain_pareto.backends.base import Logits
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.budget import Budget
from langchain_pareto.strategies import (
    DVTS,
    MCTS,
    Beam,
    BestOfN,
    Cascade,
    Rebase,
    Single,
    Strategy,
    TreeOfThought,
    Vote,
    WeightedVote,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano.paths import SHIPPED, TOKENIZER
from nano.tasks import TASKS, draw

EXACT = ("tokens", "flops", "memory", "calls", "usd")
TIMED = ("seconds", "joules", "usd of time")
WATTS, PER_HOUR, PER_MILLION = 45.0, 1.8, 60.0  # joules a second, usd
HOST = 0.25  # seconds that the host may take to end a call, on a machine that others use
STEP = 0.005  # seconds of a step, for drawing limits
Limits = dict[str, float]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a model, in seconds of the monotonic clock."""

    of: LocalBackend
    began: float
    ended: float


@dataclass(slots=True)
class Steps:
    """All steps of all models, and the most bytes of cache in use after one."""

    times: list[Step] = field(default_factory=list)
    memory: int = 0
    backends: list[LocalBackend] = field(default_factory=list)

    def begin(self) -> None:
        """Forgets what was."""
        self.times.clear()
        self.memory = 0

    def watch(self, backend: LocalBackend) -> None:
        """Notes the steps of a backend from now on."""
        step = backend.runner.step
        self.backends.append(backend)

        def watched(chunks: Sequence[Chunk]) -> Logits:
            began = time.monotonic()
            try:
                return step(chunks)
            finally:
                self.times.append(Step(backend, began, time.monotonic()))
                held = (b.runner.pool.live * b.spec.kv_bytes_per_token for b in self.backends)
                self.memory = max(self.memory, sum(held))

        backend.runner.step = watched  # type: ignore[method-assign]  # of this bench's own backends


@dataclass(frozen=True, slots=True)
class Late:
    """How a call with a limit in time ended: seconds after it, how many steps ended after it, and seconds from the last of them to the end."""

    over: float
    steps: int
    host: float


@contextmanager
def family() -> Iterator[dict[str, LocalBackend]]:
    """The models that ship."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                load(SHIPPED[name], tokenizer=TOKENIZER, memory="64 MB", self_check=False)
            )
            for name in ("S", "M", "L", "PRM")
        }


def faces(models: dict[str, LocalBackend]) -> list[ChatPareto]:
    """Chat models that answer with S and M, with a price of tokens or of time."""
    roles = {"scorer": models["PRM"], "large": models["L"], "judge": models["M"]}
    prices = ({"usd_per_million_tokens": PER_MILLION}, {"usd_per_hour": PER_HOUR})
    return [
        ChatPareto(
            backend=models[name],
            draft=models["S"] if name == "M" else None,
            roles=roles,
            scorer="process_reward",
            watts=WATTS,
            temperature=0.8,
            max_tokens=200,
            **price,
        )
        for name in ("S", "M")
        for price in prices
    ]


def strategy(rng: random.Random) -> Strategy | str:
    """The planner's choice half the time, else any of them."""
    n = rng.choice([2, 4, 8, 16])
    fixed: list[Strategy] = [
        Single(),
        Vote(n=n),
        Vote(n=n, adaptive=False),
        WeightedVote(n=n),
        BestOfN(n=n),
        BestOfN(n=2, of=Vote(n=2)),
        Cascade(n=4, n_large=n),
        Rebase(n=n),
        Beam(n=n),
        DVTS(n=n),
        MCTS(expansions=n, parallel=2),
        TreeOfThought(samples=4, breadth=2),
    ]
    return rng.choice([*["auto"] * len(fixed), *fixed])


def limits(rng: random.Random, llm: ChatPareto) -> Limits:
    """Limits in up to three resources, each in proportion to a sample of its own luck."""

    def tokens() -> float:
        return 50 * 10 ** rng.uniform(-1, 1.8)

    amounts = {
        "tokens": max(1, int(tokens())),
        "flops": 6e6 * tokens(),
        "memory": max(1, int(1e4 * tokens())),
        "seconds": STEP * tokens(),
        "joules": WATTS * STEP * tokens(),
        "usd": tokens()
        * (PER_MILLION / 1e6 if llm.usd_per_hour is None else PER_HOUR / 3600 * STEP),
        "calls": rng.randint(1, 3),
    }
    return {name: amounts[name] for name in rng.sample(sorted(amounts), rng.randint(1, 3))}


class Count:
    """What was found: calls by resource, overruns, and how late calls were."""

    def __init__(self) -> None:
        self.limited = Counter[str]()
        self.overran = defaultdict[str, list[dict[str, object]]](list)
        self.late = defaultdict[str, list[Late]](list)
        self.ended = Counter[str]()
        self.strategies = Counter[str]()


def call(
    llm: ChatPareto, models: dict[str, LocalBackend], steps: Steps, rng: random.Random, count: Count
) -> None:
    """One call, and whether it stayed within its limits."""
    wanted = limits(rng, llm)
    task = rng.choice(TASKS)
    problem = draw(task, rng.randrange(10**6), split="validation", difficulty=rng.choice((3, 4)))
    question = problem.question
    chosen = strategy(rng)
    decoder = rng.choice(["plain", "lookup", "speculative"] if llm.draft else ["plain", "lookup"])
    asked: dict[str, object] = {
        "limits": wanted,
        "strategy": str(chosen),
        "decoder": decoder,
        "question": question,
    }
    if "memory" in wanted:  # what is cached is no memory that a call adds
        for backend in models.values():
            backend.engine.call(backend.runner.forget).result()
    before = _meters(models)
    steps.begin()
    began = time.monotonic()
    with run_budget({"tokens": 10**12}) as account:
        try:
            message = llm.invoke(
                question,
                budget=Budget(**wanted, on_limit=rng.choice(["best", "best", "error"])),
                strategy=chosen,
                decoder=decoder,
                seed=rng.randrange(2**31),
            )
        except BudgetExceeded:
            message = None
    ended, drafting = time.monotonic(), decoder == "speculative"
    times = [step for step in steps.times if not (drafting and step.of is llm.draft)]
    spent = account.spent
    metered = {name: after - before[name] for name, after in _meters(models).items()}
    told = {} if message is None else message.response_metadata["pareto"]["spent"]
    used = {
        "tokens": max(metered["tokens"], spent.tokens, told.get("tokens", 0)),
        "flops": max(metered["flops"], spent.flops, told.get("flops", 0)),
        "usd": max(spent.usd, told.get("usd", 0.0)),
        "memory": max(steps.memory, told.get("memory", 0)),
        "calls": spent.calls if "calls" not in wanted else _run(llm, int(wanted["calls"])),
    }
    count.ended[
        "refused" if message is None else message.response_metadata["pareto"]["stopped_by"]
    ] += 1
    count.strategies[chosen if isinstance(chosen, str) else chosen.kind] += 1
    if (spent.tokens, spent.flops) != (metered["tokens"], metered["flops"]):
        count.overran["report"].append(
            asked | {"booked": [spent.tokens, spent.flops], "metered": metered}
        )
    for name, limit in wanted.items():
        of_time = name in ("seconds", "joules") or (name == "usd" and llm.usd_per_hour is not None)
        kind = "usd of time" if of_time and name == "usd" else name
        count.limited[kind] += 1
        if not of_time:
            if used[name] > limit:
                count.overran[kind].append(asked | {"used": used[name]})
            continue
        seconds = {"seconds": limit, "joules": limit / WATTS, "usd": limit / PER_HOUR * 3600}[name]
        late = _late(times, began, ended, told, seconds)
        count.late[kind].append(late)
        if late.steps > 1 or late.host > HOST:
            count.overran[kind].append(asked | {"answered": bool(told)} | asdict(late))


def _run(llm: ChatPareto, calls: int) -> int:
    """How many calls of a token each a run of so many made, before one more was refused."""
    with run_budget({"calls": calls}) as account:
        for _ in range(calls + 1):
            try:
                llm.invoke("?", budget=1, strategy="single")
            except BudgetExceeded:
                break
        else:
            return calls + 1
    return account.spent.calls


def _late(
    steps: Sequence[Step], began: float, ended: float, told: dict[str, float], seconds: float
) -> Late:
    """Against the latest time at which the limit can have ended: a call is admitted before its first step, and its seconds are from then on."""
    first = steps[0].began if steps else began
    deadline = min(first, ended - told.get("seconds", 0.0)) + seconds
    if ended <= deadline:
        return Late(0.0, 0, 0.0)
    late = [step.ended for step in steps if step.ended > deadline]
    return Late(ended - deadline, len(late), ended - max(late, default=deadline))


def _meters(models: dict[str, LocalBackend]) -> dict[str, int]:
    """What the engines have counted so far."""
    engines = {id(one.engine): one.engine for one in models.values()}
    for engine in engines.values():
        engine.call(lambda: None).result()
    meters = [engine.meter for engine in engines.values()]
    return {
        "tokens": sum(meter.new_tokens for meter in meters),
        "flops": sum(meter.flops for meter in meters),
    }


def rows(count: Count, calls: int) -> None:
    """One row a resource."""
    for name in (*EXACT, "report"):
        of = calls if name == "report" else count.limited[name]
        overran = len(count.overran[name])
        report("live", f"{name}: calls that overran", overran, of, overran / max(1, of), "calls", bar="0")  # fmt: skip
    for name in TIMED:
        late, of = count.late[name], count.limited[name]
        overran = len(count.overran[name])
        over = sorted(one.over for one in late if one.over) or [0.0]
        report(
            "live", f"{name}: calls that overran by more than a step", overran, of, overran / max(1, of), "calls",
            bar="0", late=len([one for one in late if one.over]), most_steps_late=max((one.steps for one in late), default=0),
            median_seconds_late=round(statistics.median(over), 4), most_seconds_late=round(over[-1], 4),
            most_host_seconds=round(max((one.host for one in late), default=0.0), 4),
        )  # fmt: skip


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, count, steps = random.Random(options.seed), Count(), Steps()
    with family() as models:
        for backend in models.values():
            steps.watch(backend)
        llms = faces(models)
        for llm in llms:
            llm.invoke("Use 3 7 8 to make 29.", budget=20)  # what comes first allocates
        for _ in range(options.calls):
            call(rng.choice(llms), models, steps, rng, count)
    rows(count, options.calls)
    print(json.dumps({"ended": count.ended, "strategies": count.strategies}), file=sys.stderr)
    for name, found in count.overran.items():
        for one in found[:5]:
            print(json.dumps({"overran": name} | one), file=sys.stderr)


if __name__ == "__main__":
    main()
