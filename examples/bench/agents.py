"""
Agents whose model knows nothing of tools: `python examples/bench/agents.py [RUNS] [TIMED]`.

RUNS of create_agent with three tools at temperature 1, every call forced, under a budget of tokens and calls: over the bundled policy, and
over a small Llama with random weights. How many calls were made, how many of them break their tool's schema, how many cannot even be read
as calls and how many of those were cut off, how many runs raised or spent more than they may, and how many came to their last answer.

TIMED runs of up to ten turns under a budget of seconds, in which one answer in five gets lost and is tried again, and then another model
is asked: by how much they took longer than they may, what a step took meanwhile, how many came to a last answer of the model's, and of how
many others that answer was lost with no time left to ask again, or had no words.
"""

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from _measure import Shape
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
)
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph.state import CompiledStateGraph
from transformers import AutoTokenizer

from langchain_pareto import BudgetMiddleware, ChatPareto
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.forms.schemas import violation
from langchain_pareto.forms.tools import read_tools

TOKENS, CALLS, EACH, AT_ONCE = 600, 5, 140, 16
BUDGET = f"{TOKENS} tokens, {CALLS} calls"
TURNS, SECONDS, RESERVE, TIMED_AT_ONCE = 10, (1.0, 12.0), 0.2, 4
LOST = 0.2  # of the answers


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> str:
    """The weather of a city."""
    return f"{city}: 20 {unit} for {days} days"


def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


def order(items: list[str], address: dict[str, str]) -> str:
    """Orders things to an address."""
    return f"{len(items)} things to {len(address)} lines"


TOOLS = [weather, add, order]


class Forced(AgentMiddleware):
    """Makes the model call a tool, unless something else was asked for."""

    async def awrap_model_call(self, request, handler):  # noqa: ANN001, ANN201
        """With tool_choice="any"."""
        if request.tools and request.tool_choice is None:
            request = request.override(tool_choice="any")
        return await handler(request)


class Unreliable(ChatPareto):
    """Loses some answers after they were drawn."""

    lost: object

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):  # noqa: ANN001, ANN202, ANN003
        result = await super()._agenerate(messages, stop, run_manager, **kwargs)
        if self.lost():
            msg = "lost"
            raise ConnectionError(msg)
        return result


@contextmanager
def random_llama() -> Iterator[LocalBackend]:
    """A small Llama with random weights and the bundled tokenizer, from files as any other model."""
    with TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path())
        tokenizer.save_pretrained(folder)
        shape = Shape(64, 2, 4, 2, 128, len(tokenizer), 4096)
        shape.model().save_pretrained(folder)
        with load(Path(folder), memory="256 MB") as backend:
            yield backend


class Found:
    """What came of some runs."""

    def __init__(self) -> None:
        names = "calls wrong invalid cut raised overrun answered tokens".split()
        self.sums = dict.fromkeys(names, 0)
        self._schemas = read_tools(TOOLS)

    def add(self, messages: list[AnyMessage]) -> bool:
        """Counts what the models of one run said; whether there is a last answer."""
        for message in (one for one in messages if isinstance(one, AIMessage)):
            cut = message.response_metadata.get("finish_reason") == "length"
            self.sums["invalid"] += len(message.invalid_tool_calls)
            self.sums["cut"] += len(message.invalid_tool_calls) if cut else 0
            for call in message.tool_calls:
                self.sums["calls"] += 1
                wrong = violation(call["args"], self._schemas.parameters(call["name"]))
                self.sums["wrong"] += wrong is not None
        last = messages[-1]
        ended = last.response_metadata.get("finish_reason") == "budget"  # not the model's words
        words = isinstance(last, AIMessage) and not last.tool_calls and bool(last.text.strip())
        answered = words and not ended
        self.sums["answered"] += answered
        return answered

    async def asked(self, agent: CompiledStateGraph, number: int) -> dict[str, Any] | None:
        """What an agent ends with; None where it raises, which must not happen and is counted."""
        try:
            return await agent.ainvoke({"messages": [("human", f"Question {number}")]})
        except Exception as error:  # noqa: BLE001 - whatever it is
            print(repr(error), file=sys.stderr)
            self.sums["raised"] += 1
            return None


async def forced(backend: LocalBackend, count: int) -> dict[str, object]:
    """Runs whose every call is forced, some at a time."""
    found, free = Found(), asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        llm = ChatPareto(
            backend=backend, strategy="single", temperature=1.0, seed=number, max_tokens=EACH
        )
        budget = BudgetMiddleware(BUDGET, reserve="60 tokens, 1 call")
        agent = create_agent(llm, TOOLS, middleware=[Forced(), budget])
        async with free:
            out = await found.asked(agent, number)
        if out is None:
            return
        spent = out["budget_spent"]["spent"]
        found.sums["tokens"] += spent["tokens"]
        found.sums["overrun"] += spent["tokens"] > TOKENS or spent["calls"] > CALLS
        found.add(out["messages"])

    began = time.perf_counter()
    await asyncio.gather(*map(one, range(count)))
    return {"runs": count, **found.sums, "seconds": round(time.perf_counter() - began, 1)}


@contextmanager
def steps_of(*backends: LocalBackend) -> Iterator[list[float]]:
    """Seconds of each step that the backends take meanwhile."""
    taken = list[float]()

    def timed(step):  # noqa: ANN001, ANN202
        def run(chunks):  # noqa: ANN001, ANN202
            began = time.perf_counter()
            logits = step(chunks)
            taken.append(time.perf_counter() - began)
            return logits

        return run

    steps = [(backend.runner, backend.runner.step) for backend in backends]
    for runner, step in steps:
        runner.step = timed(step)
    try:
        yield taken
    finally:
        for runner, step in steps:
            runner.step = step


async def in_time(backend: LocalBackend, other: LocalBackend, count: int) -> dict[str, object]:
    """Runs under a budget of seconds; a lost answer is tried again, and then the other model is asked."""
    found, over, free = Found(), list[float](), asyncio.Semaphore(TIMED_AT_ONCE)
    turns = lost = last_lost = 0

    async def one(number: int) -> None:
        nonlocal turns, lost, last_lost
        rng = random.Random(number)
        seconds, losses = rng.uniform(*SECONDS), list[bool]()

        def loses() -> bool:
            losses.append(rng.random() < LOST)
            return losses[-1]

        settings = {"strategy": "single", "temperature": 1.0, "seed": number, "max_tokens": EACH}
        llm = Unreliable(backend=backend, lost=loses, **settings)
        around = [
            Forced(),
            ModelFallbackMiddleware(ChatPareto(backend=other, **settings)),
            ModelRetryMiddleware(
                max_retries=2, on_failure="error", initial_delay=0.0, backoff_factor=0.0
            ),
            BudgetMiddleware(f"{seconds} s, {TURNS + 1} calls", reserve=RESERVE),
        ]
        agent = create_agent(llm, TOOLS, middleware=around)
        async with free:
            out = await found.asked(agent, number)
        if out is None:
            return
        spent = out["budget_spent"]["spent"]
        over.append(spent["microseconds"] / 1e6 - seconds)
        found.sums["tokens"] += spent["tokens"]
        turns, lost = turns + spent["calls"], lost + sum(losses)
        answered = found.add(out["messages"])
        last_lost += not answered and losses[-1]

    await forced(backend, AT_ONCE)  # what is done once, such as compiling grammars, is done
    await forced(other, AT_ONCE)
    with steps_of(backend, other) as taken:
        await asyncio.gather(*map(one, range(count)))
    longest = max(taken)
    found.sums["overrun"] = sum(seconds > longest for seconds in over)
    return {
        "runs": count,
        **found.sums,
        "model_calls": turns,
        "lost": lost,
        "last_lost": last_lost,
        "last_without_words": count - found.sums["raised"] - found.sums["answered"] - last_lost,
        "step_median_s": round(statistics.median(taken), 4),
        "step_longest_s": round(longest, 4),
        "over_max_s": round(max(over), 4),
    }


def report(row: str, found: dict[str, object]) -> None:
    """Prints one row as a line of JSON."""
    print(json.dumps({"bench": "agents", "row": row, **found}), flush=True)


def main() -> None:
    """A row for each."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    timed = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    with load("nano") as policy, random_llama() as noise:
        for row, backend in (
            ("a policy that knows no JSON, forced calls", policy),
            ("random weights, forced calls", noise),
        ):
            report(row, asyncio.run(forced(backend, count)))
        row = "budgets of seconds, with retries and another model"
        report(row, asyncio.run(in_time(policy, noise, timed)))


if __name__ == "__main__":
    main()
