"""
LangChain messages to prompt tokens, and what came back to a message.

Knows messages and the tokenizer's chat template; knows no strategy and no device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from langchain_pareto.backends.thinking import THINK, THINK_END
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.errors import SettingError
from langchain_pareto.forms.form import Form
from langchain_pareto.forms.tool_formats import ToolFormat, format_of, shows_tools
from langchain_pareto.forms.tool_shapes import overlap

_ROLES = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}
_KINDS = {  # the sum of a stream is a turn like any other
    "AIMessageChunk": "ai",
    "HumanMessageChunk": "human",
    "SystemMessageChunk": "system",
    "ToolMessageChunk": "tool",
    "FunctionMessageChunk": "function",
}
_MEDIA = ("image", "audio", "video", "file", "document", "media")  # in the names of blocks


def to_chat(messages: Sequence[BaseMessage]) -> list[dict[str, object]]:
    """Messages as a chat template wants them; raises SettingError for content that is no text."""
    return [_to_turn(message) for message in messages]


def prompt_text(
    tokenizer: Tokenizer,
    messages: Sequence[BaseMessage],
    template_kwargs: Mapping[str, object],
    form: Form | None = None,
) -> str:
    """The rendered prompt, with the tools and the schema of `form`.

    Where the template has no words for tools, they are described in a system message, and past calls and their results are text.
    """
    turns, template = to_chat(messages), tokenizer.template
    if not shows_tools(template):
        turns = [_in_words(turn, format_of(template)) for turn in turns]
    if form is None:
        return tokenizer.render(turns, template_kwargs=template_kwargs)
    tools, told = form.shown(template)
    if told:
        turns = _told(turns, told)
    return tokenizer.render(turns, tools=tools, template_kwargs=template_kwargs)


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a rendered prompt; a template writes its own special tokens, plain text gets the tokenizer's."""
    return tokenizer.encode(text) if tokenizer.has_template else tokenizer.encode_prompt(text)


def last_question(messages: Sequence[BaseMessage]) -> str:
    """The text of the last human message, or of the last message."""
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            return _text(message)
    return _text(messages[-1]) if messages else ""


class ReasoningSplitter:
    """Splits streamed text into reasoning and answer at the think tags; a tag that arrives in pieces is held back.

    As in a text that is split whole, the space around both parts goes when there is reasoning.
    """

    def __init__(self, *, thinking: bool) -> None:
        self._thinking = thinking
        self._begun = thinking
        self._held = ""
        self._reasoning = _Stripped()
        self._answer: _Stripped | None = _Stripped() if thinking else None

    def feed(self, piece: str) -> tuple[str, str]:
        """(reasoning, answer) text that is certain now."""
        text, self._held = self._held + piece, ""
        if not self._begun:
            start = text.lstrip()
            if len(start) < len(THINK) and THINK.startswith(start):
                self._held = text
                return "", ""
            self._begun = True
            if start.startswith(THINK):
                self._thinking, self._answer = True, _Stripped()
                text = start[len(THINK) :]
        if not self._thinking:
            return "", self._told(text)
        before, found, after = text.partition(THINK_END)
        if found:
            self._thinking = False
            return self._reasoning.feed(before), self._told(after)
        keep = overlap(text, THINK_END)
        self._held = text[len(text) - keep :]
        return self._reasoning.feed(text[: len(text) - keep]), ""

    def flush(self) -> tuple[str, str]:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return (self._reasoning.feed(held), "") if self._thinking else ("", self._told(held))

    def _told(self, text: str) -> str:
        return text if self._answer is None else self._answer.feed(text)


class _Stripped:
    """A text that comes in pieces, without the space around it."""

    def __init__(self) -> None:
        self._begun = False
        self._space = ""

    def feed(self, piece: str) -> str:
        text = self._space + piece if self._begun else piece.lstrip()
        certain = text.rstrip()
        self._begun = self._begun or bool(certain)
        self._space = text[len(certain) :]
        return certain


def _to_turn(message: BaseMessage) -> dict[str, object]:
    kind = _KINDS.get(message.type, message.type)
    role = getattr(message, "role", None) or _ROLES.get(kind, kind)
    turn: dict[str, object] = {"role": role, "content": _text(message)}
    if message.name:
        turn["name"] = message.name
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": c["id"],
                "function": {"name": c["name"], "arguments": c["args"]},
            }
            for c in message.tool_calls
        ]
    elif isinstance(message, AIMessage) and message.invalid_tool_calls:
        # the model sees what it wrote
        written = [str(call["args"] or "") for call in message.invalid_tool_calls]
        turn["content"] = "\n".join(filter(None, [_text(message), *written]))
    return turn


def _told(turns: list[dict[str, object]], words: str) -> list[dict[str, object]]:
    """With words of ours at the end of the first system message."""
    if turns and turns[0]["role"] == "system":
        first = {**turns[0], "content": f"{turns[0]['content']}\n\n{words}".lstrip()}
        return [first, *turns[1:]]
    return [{"role": "system", "content": words}, *turns]


def _in_words(turn: dict[str, object], written_as: ToolFormat) -> dict[str, object]:
    """A turn whose calls, or whose result of a call, are part of its text."""
    if turn["role"] == "tool":
        return {"role": "user", "content": written_as.result(str(turn["content"]))}
    calls = turn.get("tool_calls")
    if not isinstance(calls, list):
        return turn
    said = written_as.write([(c["function"]["name"], c["function"]["arguments"]) for c in calls])
    content = f"{turn['content']}\n{said}" if turn["content"] else said
    return {"role": turn["role"], "content": content}


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = list[str]()
    for block in message.content:
        text = block if isinstance(block, str) else block.get("text")
        kind = "text" if isinstance(block, str) else str(block.get("type"))
        media = any(word in kind for word in _MEDIA)
        if isinstance(text, str) and not media:
            parts.append(text)
        elif isinstance(message, ToolMessage) and not media:
            parts.append(json.dumps(block, ensure_ascii=False, default=str))
        elif media or not isinstance(message, AIMessage):
            msg = f"a message has content of type {kind!r}; this model reads text only"
            raise SettingError(msg, hint="Leave the block out, or describe it in words.")
        # what is left are notes of another model beside its words: reasoning, signatures, calls
    return "".join(parts)
