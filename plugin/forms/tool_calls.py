"""
What was written as one call, made into one of LangChain's: a call, or an invalid one with the reason.

Knows which tools there are and what they take; knows no format of calls and no text around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call

from langchain_pareto.forms.fitting import coerced
from langchain_pareto.forms.tool_shapes import ARGUMENT_KEYS
from langchain_pareto.forms.tools import Tools
from langchain_pareto.forms.validity import TOO_DEEP

_TOLD = 300  # characters of an error


@dataclass(frozen=True, slots=True)
class Written:
    """Name and arguments of a call, the text that it was, and what is wrong with that."""

    name: str | None
    arguments: object
    raw: str
    error: str | None = None


class CallMaker:
    """Makes the calls of one text, one after the other.

    An object of arguments for a tool that may be called is a call, made to fit where the meaning is plain. It is one as well where it
    breaks the schema: whoever makes the call says what is wrong, and the model tries again. Where one call at a time was asked for, the
    first is it, and the others are invalid.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._called = False

    def make(self, written: Written, call_id: str) -> ToolCall | InvalidToolCall:
        """The call, with this id."""
        name, made = written.name, None
        error = written.error or self._refusal(name)
        if error is None and name is not None:
            made, wrong = coerced(written.arguments, self._tools.parameters(name))
            if wrong == TOO_DEEP or not isinstance(made, dict):
                error = f"the arguments do not fit: {wrong or 'they are not an object'}"
        if error is None and self._called and not self._tools.parallel:
            error = "one call at a time was asked for, and this is a further one"
        if error is None and isinstance(made, dict) and name is not None:
            self._called = True
            return tool_call(name=name, args=made, id=call_id)
        told = None if error is None else error[:_TOLD]
        return invalid_tool_call(
            name=name, args=_not_an_object(written.raw), id=call_id, error=told
        )

    def _refusal(self, name: str | None) -> str | None:
        if name is None:
            return "the call has no name"
        if name not in self._tools.names:
            return f"there is no tool {name!r:.80}; there are: {', '.join(self._tools.names)}"
        if name not in self._tools.callable_names:
            return f"the tool {name!r} was called where {self._tools.choice!r} was asked for"
        return None


def as_written(value: object, raw: str, name: str | None = None) -> Written:
    """A call of the JSON that it was written as; `name` where that is known already."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping):
        return Written(name, None, raw, "the call is not an object with a name and arguments")
    told = value.get("name")
    name = name if name is not None else told if isinstance(told, str) and told else None
    arguments: object = next(
        (value[key] for key in ARGUMENT_KEYS if value.get(key) is not None), {}
    )
    return Written(name, arguments, raw)


def fresh_id() -> str:
    """Nine letters and digits, the one form of id that the templates of all models take (Mistral's are strict)."""
    return uuid4().hex[:9]


def _not_an_object(raw: str) -> str:
    """The text of an invalid call.

    One that begins like an object gets brackets: LangChain would read it as arguments, and make the call a valid one.
    """
    return f"[{raw}]" if raw.lstrip()[:1] == "{" else raw
