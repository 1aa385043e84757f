"""
Agents whose model knows nothing of tools: `python examples/bench/agents.py [RUNS]`.

Runs of create_agent with three tools over the bundled policy at temperature 1, every call forced, under a budget of tokens and calls: how
many calls were made, how many of them break their tool's schema, how many runs raised or spent more than they may, and how many came to
their last answer.
"""

import asyncio
import json
import sys
import time
from typing import Literal

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage

from langchain_pareto import BudgetMiddleware, ChatPareto
from langchain_pareto.backends.loading import load
from langchain_pareto.forms.schemas import violation
from langchain_pareto.forms.tools import read_tools

TOKENS, CALLS, EACH, AT_ONCE = 600, 5, 140, 16
BUDGET = f"{TOKENS} tokens, {CALLS} calls"


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


async def runs(count: int) -> dict[str, object]:
    """The runs, some at a time; what came of them."""
    found = dict.fromkeys(("calls", "wrong", "raised", "overrun", "answered", "tokens"), 0)
    schemas, free = read_tools(TOOLS), asyncio.Semaphore(AT_ONCE)
    with load("nano") as backend:

        async def one(number: int) -> None:
            llm = ChatPareto(
                backend=backend, strategy="single", temperature=1.0, seed=number, max_tokens=EACH
            )
            agent = create_agent(
                llm,
                TOOLS,
                middleware=[Forced(), BudgetMiddleware(BUDGET, reserve="60 tokens, 1 call")],
            )
            async with free:
                try:
                    out = await agent.ainvoke({"messages": [("human", f"Question {number}")]})
                except Exception as error:  # noqa: BLE001 - what must not happen is counted
                    print(repr(error), file=sys.stderr)
                    found["raised"] += 1
                    return
            spent = out["budget_spent"]["spent"]
            found["tokens"] += spent["tokens"]
            found["overrun"] += spent["tokens"] > TOKENS or spent["calls"] > CALLS
            last = out["messages"][-1]
            found["answered"] += isinstance(last, AIMessage) and not last.tool_calls
            for message in out["messages"]:
                for call in getattr(message, "tool_calls", ()):
                    found["calls"] += 1
                    wrong = violation(call["args"], schemas.parameters(call["name"]))
                    found["wrong"] += wrong is not None

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(count)))
    return {"runs": count, **found, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    """One JSON line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    row = asyncio.run(runs(count))
    print(
        json.dumps({"bench": "agents", "row": "a policy that knows no JSON, forced calls", **row}),
        flush=True,
    )


if __name__ == "__main__":
    main()
