"""
Tool calls in a text that is streamed: the text around them as it comes, and the calls as LangChain's chunks.

Knows message chunks; what a call looks like is its format's knowledge.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from langchain_core.messages import ToolCallChunk
from langchain_core.messages.tool import tool_call_chunk

from langchain_pareto.forms.tool_format import ToolFormat
from langchain_pareto.forms.tool_reader import Begun, Ended
from langchain_pareto.forms.tools import Tools


class ToolSplitter:
    """Splits streamed text into what is said and what is called.

    A call comes as a chunk with its name and id, as soon as the name is known, and one with its arguments once they are complete: not
    before, since arguments are made to fit the tool, and a call that is cut off is not valid. What a response template reads comes at
    the end, but for the words before it. The sum of the chunks is what the format's `parse` gives for the whole text, but for the ids,
    the reasoning, and the errors of invalid calls, which a chunk has no place for.
    """

    def __init__(self, format: ToolFormat, tools: Tools) -> None:  # noqa: A002 - as it is called everywhere
        self._reader = format.reader(tools)

    def feed(self, piece: str) -> Iterator[str | ToolCallChunk]:
        """What is certain with this piece."""
        return _chunks(self._reader.feed(piece))

    def flush(self) -> Iterator[str | ToolCallChunk]:
        """What was held back, once no more text comes."""
        return _chunks(self._reader.flush())


def _chunks(parts: Iterator[str | Begun | Ended]) -> Iterator[str | ToolCallChunk]:
    for part in parts:
        if isinstance(part, str):
            if part:
                yield part
        elif isinstance(part, Begun):
            yield tool_call_chunk(name=part.name, args="", id=part.id, index=part.index)
        else:
            call = part.call
            if not part.begun:
                yield tool_call_chunk(name=call["name"], args="", id=call["id"], index=part.index)
            args = call["args"]
            text = args if isinstance(args, str) else json.dumps(args, ensure_ascii=False)
            yield tool_call_chunk(args=text, index=part.index)
