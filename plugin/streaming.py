"""
A reply as chunks: a single sample as it grows, any other strategy's winner after the decision.

Knows text, think tags and message chunks; knows neither budgets nor models.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

from langchain_core.messages import AIMessageChunk

from langchain_pareto.call import Reply
from langchain_pareto.messages import ReasoningSplitter

Respond = Callable[[Callable[[str], None]], Coroutine[object, object, Reply]]


async def chunks(respond: Respond, *, thinking: bool) -> AsyncIterator[AIMessageChunk]:
    """Runs `respond`, which may call its `on_text` from any thread; leaving the iterator cancels it.

    The last chunk carries usage and metadata, and no other does. `thinking` says that the prompt has opened the think block.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    splitter = ReasoningSplitter(thinking=thinking)
    shown = False

    def on_text(piece: str) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    replying = asyncio.ensure_future(respond(on_text))
    replying.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            for chunk in _show(*splitter.feed(piece)):
                shown = True
                yield chunk
        reply = await replying
    finally:
        if not replying.done():
            replying.cancel()
            await asyncio.wait({replying})
    message = reply.message()
    held = splitter.flush()
    if not shown and not any(held):  # nothing was streamed: the winner comes now
        held = message.additional_kwargs.get("reasoning_content", ""), str(message.content)
    for chunk in _show(*held):
        yield chunk
    yield AIMessageChunk(
        content="",
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )


def _show(reasoning: str, text: str) -> Iterator[AIMessageChunk]:
    if reasoning:
        yield AIMessageChunk(content="", additional_kwargs={"reasoning_content": reasoning})
    if text:
        yield AIMessageChunk(content=text)
