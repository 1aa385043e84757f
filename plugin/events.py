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

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.runnables import RunnableConfig

from langchain_pareto.strategies.thoughts import Thought

THOUGHT = "pareto_thought"

OnThought = Callable[[Thought], None]


def describe(thought: Thought) -> dict[str, object]:
    """A thought as traces and reports show it: plain JSON, the parent by its id (0 is the prompt)."""
    return {
        "id": thought.number,
        "parent": 0 if thought.parent is None else thought.parent.number,
        "text": thought.text,
        "tokens": len(thought.tokens),
        "finish": thought.finish,
        "role": thought.role,
        "answer": thought.answer,
        "score": _json_number(thought.score),
        "mean_logprob": _json_number(thought.mean_logprob),
    }


def _json_number(value: float | None) -> float | None:
    """JSON has no infinity: a thought that could not be scored has no score."""
    return value if value is not None and math.isfinite(value) else None


def progress(run_manager: CallbackManagerForLLMRun | None) -> OnThought:
    """Sends each thought to the handlers of a sync run, or of the run around it."""
    config: RunnableConfig | None = None
    if run_manager is not None:
        manager = CallbackManager(handlers=[], parent_run_id=run_manager.run_id)
        manager.set_handlers(run_manager.inheritable_handlers, inherit=True)
        config = {"callbacks": manager}

    def on_thought(thought: Thought) -> None:
        with contextlib.suppress(RuntimeError):  # there is no run to attach to
            dispatch_custom_event(THOUGHT, describe(thought), config=config)

    return on_thought


@asynccontextmanager
async def aprogress(
    run_manager: AsyncCallbackManagerForLLMRun | None,
) -> AsyncIterator[OnThought]:
    """As `progress`, for an async run; the handlers run beside the search, and have ended at the end."""
    config: RunnableConfig | None = None
    if run_manager is not None:
        manager = AsyncCallbackManager(handlers=[], parent_run_id=run_manager.run_id)
        manager.set_handlers(run_manager.inheritable_handlers, inherit=True)
        config = {"callbacks": manager}
    sending = list[asyncio.Task[None]]()

    async def send(thought: Thought) -> None:
        with contextlib.suppress(RuntimeError):
            await adispatch_custom_event(THOUGHT, describe(thought), config=config)

    def on_thought(thought: Thought) -> None:
        sending.append(asyncio.ensure_future(send(thought)))

    try:
        yield on_thought
    finally:
        await asyncio.gather(*sending)
