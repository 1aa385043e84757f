"""
A reply as chunks: a single sample as it grows, any other strategy's winner after the decision.

Knows text, think tags and message chunks; knows neither budgets nor models.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

from langchain_core.messages import AIMessage, AIMessageChunk, ToolCallChunk
from langchain_core.messages.tool import tool_call_chunk

from langchain_pareto.forms.tool_stream import ToolSplitter
from langchain_pareto.messages import ReasoningSplitter
from langchain_pareto.reply import Reply

Respond = Callable[[Callable[[str], None]], Coroutine[object, object, Reply]]


async def chunks(
    respond: Respond, *, thinking: bool, calls: ToolSplitter | None = None
) -> AsyncIterator[AIMessageChunk]:
    """Runs `respond`, which may call its `on_text` from any thread; leaving the iterator cancels it.

    The last chunk carries usage and metadata, and no other does. `thinking` says that the prompt has opened the think block; `calls`
    finds tool calls in the text after it.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    splitter = ReasoningSplitter(thinking=thinking)
    shown = thought = False

    def on_text(piece: str) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    replying = asyncio.ensure_future(respond(on_text))
    replying.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            shown = True
            reasoning, text = splitter.feed(piece)
            thought = thought or bool(reasoning)
            for chunk in _show(reasoning, text, calls):
                yield chunk
        reply = await replying
    finally:
        if not replying.done():
            replying.cancel()
            await asyncio.wait({replying})
    message = reply.message()
    if shown:
        reasoning, text = splitter.flush()
        thought = thought or bool(reasoning)
        for chunk in _show(reasoning, text, calls):
            yield chunk
        for part in () if calls is None else calls.flush():
            yield _part(part)
        if not thought:  # what a response template knows at the end
            for chunk in _show(message.additional_kwargs.get("reasoning_content", ""), "", calls):
                yield chunk
    else:  # nothing was streamed: the winner comes now
        yield _whole(message)
    yield AIMessageChunk(
        content="",
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
        chunk_position="last",
    )


def _show(reasoning: str, text: str, calls: ToolSplitter | None) -> Iterator[AIMessageChunk]:
    if reasoning:
        yield AIMessageChunk(content="", additional_kwargs={"reasoning_content": reasoning})
    if text:
        for part in (text,) if calls is None else calls.feed(text):
            yield _part(part)


def _part(part: str | ToolCallChunk) -> AIMessageChunk:
    if isinstance(part, str):
        return AIMessageChunk(content=part)
    return AIMessageChunk(content="", tool_call_chunks=[part])


def _whole(message: AIMessage) -> AIMessageChunk:
    """All that a message says, in one piece."""
    written = [
        tool_call_chunk(
            name=call["name"],
            args=json.dumps(call["args"], ensure_ascii=False),
            id=call["id"],
            index=i,
        )
        for i, call in enumerate(message.tool_calls)
    ]
    broken = [
        tool_call_chunk(name=call["name"], args=call["args"], id=call["id"], index=i)
        for i, call in enumerate(message.invalid_tool_calls, len(written))
    ]
    return AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        tool_call_chunks=[*written, *broken],
    )
