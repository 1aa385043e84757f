"""
Notes: what a model is told of the budget of its run, and where that stands in what it reads.

Knows messages; knows no purse and no hook. A note stands in the text of the message that is answered, the last one: a system message of
its own, or a second message of the user, is what many chat templates and hosted models refuse. It stands there in every later call of the
run as well, so that the prompt only grows, and all but its end is in the cache; the answer's metadata say what it was. The messages of
the agent's state are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from langchain_pareto.budget import Budget

KEY = "budget_note"
"""Where the metadata of an answer have the note that it was given after."""
_LOW = (
    "Note on your budget: {left} are left for work, then a last answer is due. "
    "Use a tool only if you need it, and answer as soon as you can."
)
_LAST = (
    "Note on your budget: it is nearly spent ({left} are left), and tools are no longer available. "
    "Give your final answer now, from what you know."
)


@dataclass(frozen=True, slots=True)
class Note:
    """What is said before one answer of a run."""

    run: str
    text: str

    @classmethod
    def low(cls, run: str, room: Budget) -> Note:
        """That little is left for work."""
        return cls(run, _LOW.format(left=_readable(room)))

    @classmethod
    def last(cls, run: str, room: Budget) -> Note:
        """That the last answer is due."""
        return cls(run, _LAST.format(left=_readable(room)))


def noted(messages: Sequence[AnyMessage], run: str, note: Note | None) -> list[AnyMessage]:
    """The messages with the notes of the run's earlier answers, and with this one at the end.

    Those of earlier runs are left out: what they say is no longer so.
    """
    out = list[AnyMessage]()
    for message in messages:
        if isinstance(message, AIMessage) and (earlier := _kept(message, run)) is not None:
            out = _with(out, earlier)
        out.append(message)
    return out if note is None else _with(out, note.text)


def answered(message: AIMessage, note: Note) -> AIMessage:
    """The answer, with the note that it was given after."""
    kept = {**message.response_metadata, KEY: {"run": note.run, "text": note.text}}
    return message.model_copy(update={"response_metadata": kept})


def _kept(message: AIMessage, run: str) -> str | None:
    found = message.response_metadata.get(KEY)
    return found["text"] if isinstance(found, dict) and found.get("run") == run else None


def _with(messages: Sequence[AnyMessage], text: str) -> list[AnyMessage]:
    """With a text at the end of the last message; in one of the user's where that is an answer, or where there is none."""
    last = messages[-1] if messages else None
    if not isinstance(last, HumanMessage | ToolMessage):
        return [*messages, HumanMessage(text)]
    content: Any = (
        f"{last.content}\n\n{text}"
        if isinstance(last.content, str)
        else [*last.content, {"type": "text", "text": text}]
    )
    return [*messages[:-1], last.model_copy(update={"content": content})]


def _readable(room: Budget) -> str:
    """The room in round numbers."""
    seconds = None if room.seconds is None else max(1.0, round(room.seconds))
    return str(room.model_copy(update={"seconds": seconds, "memory": None}))
