"""
Progress of a search as LangChain custom events.

Knows callbacks; what it sends is plain JSON. Best effort: where LangChain gives no run to attach to, nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.runnables import RunnableConfig

from langchain_pareto.strategies.answers import Exact
from langchain_pareto.strategies.thoughts import Thought

if TYPE_CHECKING:
    from langchain_pareto.call import Call
    from langchain_pareto.reply import Reply

PLAN, THOUGHT, SPEND = "pareto_plan", "pareto_thought", "pareto_spend"

OnThought = Callable[[Thought], None]
Send = Callable[[str, dict[str, object]], None]
"""Sends an event by its name and what it says."""


@dataclass(frozen=True, slots=True)
class Events:
    """What a call tells while it runs: its plan once, each thought as it is drawn, and in the end what it took."""

    send: Send

    def plan(self, call: Call) -> None:
        """Which strategy runs; where it was planned, also why, and what it should take."""
        plan = {} if call.plan is None else call.plan.as_dict()
        self.send(PLAN, {**plan, "strategy": call.effective.model_dump(mode="json")})

    def thought(self, thought: Thought) -> None:
        """One thought."""
        self.send(THOUGHT, describe(thought))

    def spend(self, reply: Reply) -> None:
        """What the call took, of which budget, and why it ended."""
        report = reply.report()
        self.send(SPEND, {name: report[name] for name in ("budget", "spent", "stopped_by")})


SILENT = Events(lambda _name, _told: None)


def describe(thought: Thought) -> dict[str, object]:
    """A thought as traces and reports show it: plain JSON, the parent by its id (0 is the prompt).

    JSON does not keep what an answer is: `exact` tells of one that is compared letter by letter.
    """
    return {
        "id": thought.number,
        "parent": 0 if thought.parent is None else thought.parent.number,
        "text": thought.text,
        "tokens": len(thought.tokens),
        "finish": thought.finish,
        "role": thought.role,
        "answer": thought.answer or None,
        **({"exact": True} if isinstance(thought.answer, Exact) else {}),
        "score": _json_number(thought.score),
        "mean_logprob": _json_number(thought.mean_logprob),
    }


def _json_number(value: float | None) -> float | None:
    """JSON has no infinity: a thought that could not be scored has no score."""
    return value if value is not None and math.isfinite(value) else None


def progress(run_manager: CallbackManagerForLLMRun | None) -> Events:
    """Events for the handlers of a sync run, or of the run around it."""
    config: RunnableConfig | None = None
    if run_manager is not None:
        manager = CallbackManager(handlers=[], parent_run_id=run_manager.run_id)
        manager.set_handlers(run_manager.inheritable_handlers, inherit=True)
        config = {"callbacks": manager}

    def send(name: str, told: dict[str, object]) -> None:
        with contextlib.suppress(RuntimeError):  # there is no run to attach to
            dispatch_custom_event(name, told, config=config)

    return Events(send)


@asynccontextmanager
async def aprogress(
    run_manager: AsyncCallbackManagerForLLMRun | None,
) -> AsyncIterator[Events]:
    """As `progress`, for an async run; the handlers run beside the search, and have ended at the end."""
    config: RunnableConfig | None = None
    if run_manager is not None:
        manager = AsyncCallbackManager(handlers=[], parent_run_id=run_manager.run_id)
        manager.set_handlers(run_manager.inheritable_handlers, inherit=True)
        config = {"callbacks": manager}
    sending = list[asyncio.Task[None]]()

    async def dispatch(name: str, told: dict[str, object]) -> None:
        with contextlib.suppress(RuntimeError):
            await adispatch_custom_event(name, told, config=config)

    def send(name: str, told: dict[str, object]) -> None:
        sending.append(asyncio.ensure_future(dispatch(name, told)))

    try:
        yield Events(send)
    finally:
        await asyncio.gather(*sending)
