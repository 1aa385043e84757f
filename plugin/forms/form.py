"""
What an answer must look like: tool calls, an object of a schema, or either; and how such an answer is read, counted and shown.

Knows tools, schemas and grammars; knows no model and no budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_core.messages import AIMessage

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.fitting import coerced
from langchain_pareto.forms.schema_grammar import json_rule
from langchain_pareto.forms.schemas import (
    canonical,
    canonical_json,
    check_schema,
    closed,
    violation,
)
from langchain_pareto.forms.tool_arguments import read_json
from langchain_pareto.forms.tool_formats import Parsed, ToolFormat, format_of, shows_tools
from langchain_pareto.forms.tools import Tools
from langchain_pareto.strategies.answers import Exact, Reads, split_thinking

Thinking = Literal["never", "may", "open"]
"""Whether a text begins with a think block: it cannot, it can, or the prompt has opened one."""

_SPACE = r"/[ \n\r\t]*/"
_THOUGHT = r"thought[lazy]: /(?s:.*)<\/think>/"


@dataclass(frozen=True, slots=True)
class Form:
    """Tools that may or must be called, and the schema of an answer that is no call; None where it may be any text."""

    tools: Tools | None = None
    schema: Mapping[str, object] | None = None

    @property
    def forced(self) -> bool:
        """Whether a text without a grammar might miss it."""
        return self.schema is not None or (
            self.tools is not None and self.tools.choice not in ("auto", "none")
        )

    def shown(self, template: str | None) -> tuple[list[dict[str, object]] | None, str]:
        """How a prompt tells of it: tools for a chat template that has words for them, and a text for what it has none for."""
        told = list[str]()
        tools = None
        if self.tools is not None and shows_tools(template):
            tools = [dict(spec) for spec in self.tools.specs]
        elif self.tools is not None:
            told.append(format_of(template).describe(self.tools))
        if self.schema is not None:
            schema = json.dumps(self.schema, ensure_ascii=False)
            called = "If you call no tool, answer" if self.tools is not None else "Answer"
            told.append(
                f"{called} with one JSON value that follows this schema, and nothing else:\n{schema}"
            )
        return tools, "\n\n".join(told)

    def grammar(self, written_as: ToolFormat, thinking: Thinking) -> str | None:
        """Lark of every text that has this form; None where every text has it."""
        rules = self._rules(written_as)
        if not rules:
            return None
        before = {
            "never": "",
            "may": f'( "<think>" thought {_SPACE} )? ',
            "open": f"thought {_SPACE} ",
        }[thinking]
        return "\n".join([f"start: {before}body", *([_THOUGHT] if before else []), *rules])

    def _rules(self, written_as: ToolFormat) -> list[str]:
        """Rules of `body`, the text without its think block; none where that may be any text."""
        tools, may = self.tools, self.tools is not None and self.tools.choice == "auto"
        if tools is not None and may and self.schema is not None:
            tools = tools.forced()  # words that are no call follow the schema
        calls = None if tools is None else written_as.grammar(tools)
        called = None if calls is None else f"%lark {{\n{calls}\n}}"
        said = None if self.schema is None else json_rule(self.schema, what="an answer")
        if called is not None and said is not None and may:
            return ["body: called | said", f"called: {called}", f"said: {said}"]
        body = called or said
        return [] if body is None else [f"body: {body}"]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads texts of a form: what they say, and what a vote compares.

    `formats` are the ways in which the models of the call write calls, that of the policy first; `plain` reads texts without one.
    """

    form: Form
    formats: Sequence[ToolFormat]
    plain: Reads

    def read(self, text: str) -> Parsed:
        """The calls in a text without its think block, and the rest of it."""
        if self.form.tools is None or self.form.tools.choice == "none":
            return Parsed(text)
        parsed = [one.parse(text, self.form.tools) for one in dict.fromkeys(self.formats)]
        return next((p for p in parsed if p.calls or p.invalid), parsed[0])

    def extract(self, text: str) -> str | None:
        """What a text votes for: its calls, or its object, in one form; else its answer, or no call. What breaks the form has no vote."""
        rest = split_thinking(text)[1]
        parsed = self.read(rest)
        if parsed.invalid:
            return None
        if any(violation(call["args"], self._schema_of(call["name"])) for call in parsed.calls):
            return None
        if parsed.calls:
            names = [call["name"] for call in parsed.calls]
            said = [
                [call["name"], canonical(call["args"], self._schema_of(call["name"]))]
                for call in parsed.calls
            ]
            return Exact(canonical_json(said), shape=canonical_json(names))
        if self.form.schema is not None:
            return _object(rest, self.form.schema)
        # Words without an answer vote as well: that nothing is to be called.
        return self.plain.extract(text) or Exact("")

    def message(self, text: str) -> AIMessage:
        """The message that a text without its think block is."""
        parsed = self.read(text)
        message = AIMessage(
            content=parsed.content,
            tool_calls=list(parsed.calls),
            invalid_tool_calls=list(parsed.invalid),
        )
        if parsed.reasoning is not None:
            message.additional_kwargs["reasoning_content"] = parsed.reasoning
        return message

    def _schema_of(self, name: str) -> Mapping[str, object]:
        assert self.form.tools is not None
        return self.form.tools.parameters(name)


def read_response_format(value: object) -> Mapping[str, object] | None:
    """The schema that an OpenAI `response_format` asks for, None for plain text; raises SettingError.

    {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, {"type": "json_object"} or {"type": "text"}.
    """
    kind = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping) and isinstance(schema, Mapping):
            check_schema(schema)
            return schema if inner.get("strict") is False else closed(schema)
    if kind == "json_object":
        return {"type": "object"}
    if kind == "text":
        return None
    msg = f"response_format cannot be {value!r:.200}"
    hint = (
        'Give {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}} or '
        '{"type": "json_object"}; with_structured_output makes one of a class.'
    )
    raise SettingError(msg, hint=hint)


def _object(text: str, schema: Mapping[str, object]) -> Exact | None:
    try:
        value = read_json(text)
    except ValueError:
        return None
    value, wrong = coerced(value, schema)
    if wrong is not None:
        return None
    return Exact(canonical_json(canonical(value, schema)))
