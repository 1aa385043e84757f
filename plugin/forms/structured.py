"""
Structured output: a chain from a question to an object of a schema.

Knows schemas, LangChain's parsers and the names under which a call takes them; knows no model.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Literal, get_args

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, BaseMessageChunk
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
)
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import run_in_executor
from langchain_core.utils.function_calling import convert_to_openai_tool
from typing_extensions import override

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.fitting import coerced
from langchain_pareto.forms.given_schemas import (
    given_class,
    given_schema,
    given_tool,
    told_schema,
)
from langchain_pareto.forms.schemas import closed
from langchain_pareto.forms.tool_arguments import read_json

Method = Literal["json_schema", "function_calling", "json_mode"]
ANY_OBJECT: Mapping[str, object] = {"type": "object"}
_NOTHING = object()


def structured(
    model: Any,
    schema: Any,
    *,
    method: Method = "json_schema",
    include_raw: bool = False,
    strict: bool | None = None,
    **settings: Any,
) -> Runnable[LanguageModelInput, Any]:
    """A chain of `model` that gives objects of `schema`; `settings` are those of its calls.

    `schema` is a pydantic class, a TypedDict, an OpenAI tool or a JSON schema with a title: an instance comes back for a pydantic class,
    else a dict. "json_schema" holds the text to the schema by a grammar, "function_calling" makes it the arguments of a tool, and
    "json_mode" asks for any JSON object, whose form the prompt must tell. With `include_raw` it gives `raw`, `parsed` and
    `parsing_error`. Stop strings do not apply: an object ends where it ends. Raises OutputParserException for a text that was cut
    off, or that breaks the schema; SettingError for a schema that is none, or that no value fits.
    """
    if method not in get_args(Method):
        msg = f"method cannot be {method!r:.40}"
        raise SettingError(msg, hint=f"Take one of {', '.join(get_args(Method))}.")
    if schema is None and method != "json_mode":
        msg = f"structured output by {method} needs a schema"
        raise SettingError(msg, hint="Give a pydantic class, a TypedDict or a JSON schema.")
    asked = dict(ANY_OBJECT) if schema is None else given_schema(schema)
    told = {"kwargs": {"method": method}, "schema": told_schema(schema)}
    made = given_class(schema)
    if method == "function_calling":
        tool = given_tool(schema)
        name = convert_to_openai_tool(tool)["function"]["name"]
        llm = model.bind_tools(
            [tool],
            tool_choice=name,
            parallel_tool_calls=False,
            strict=strict,
            ls_structured_output_format=told,
            **settings,
        )
        parser: ObjectParser = CallParser(json_schema=asked, pydantic_class=made)
    else:
        asked = dict(ANY_OBJECT) if method == "json_mode" else asked  # the prompt tells the schema
        held = asked if strict is False else closed(asked)
        llm = model.bind(
            response_format=_response_format(method, held),
            ls_structured_output_format=told,
            **settings,
        )
        parser = ObjectParser(json_schema=asked, pydantic_class=made)
    return _with_raw(llm, parser) if include_raw else llm | parser


class ObjectParser(JsonOutputParser):
    """Reads an object of a JSON schema, and makes an instance of a class of it; what is cut off, or breaks the schema, is an error.

    As the arguments of a call are, the object is made to fit where the meaning is plain.

    A stream gives the object as it grows, and is an error where the whole text is one; an instance comes once, at the end.
    """

    json_schema: dict[str, Any]
    pydantic_class: Any = None

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The object of the first generation."""
        if partial and self.pydantic_class is not None:
            return None
        text = result[0].text
        try:
            return self._whole(text)
        except OutputParserException:
            if not partial:
                raise
        return self._growing(result)

    @override
    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        grown = _Grown(self)
        for piece in input:
            yield from grown.feed(piece)
        yield from grown.flush()

    @override
    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        grown = _Grown(self)
        async for piece in input:
            for value in await run_in_executor(None, grown.feed, piece):
                yield value
        for value in await run_in_executor(None, grown.flush):
            yield value

    def _growing(self, result: list[Generation]) -> Any:
        """What can be read of an object so far; None where that is nothing, or nothing that could be written again."""
        try:
            value = super().parse_result(result, partial=True)
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError):
            return None
        return value

    def _whole(self, text: str) -> Any:
        try:
            value = read_json(text)
        except ValueError as error:
            msg = f"the answer is not a complete JSON value ({error}): {text!r:.200}"
            raise OutputParserException(
                f"{msg}. Was it cut off? A larger budget or max_tokens may help.", llm_output=text
            ) from error
        return self._made(value, text)

    def _made(self, value: object, text: str) -> Any:
        value, wrong = coerced(value, self.json_schema)
        if wrong is not None:
            msg = f"the answer breaks its schema: {wrong}"
            raise OutputParserException(msg, llm_output=text)
        if self.pydantic_class is None:
            return value
        try:
            read = (
                getattr(self.pydantic_class, "model_validate", None)
                or self.pydantic_class.parse_obj
            )
            return read(value)
        except Exception as error:  # a validator of the user's can fail in any way
            msg = f"the answer is not a {self.pydantic_class.__name__}: {error or type(error).__name__}"
            raise OutputParserException(msg, llm_output=text) from error


class CallParser(ObjectParser):
    """Reads the arguments of the one call of a message, and makes an instance of a class of them; a message without a call is an error."""

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The arguments of the first call; they come once, at the end, since only then they are whole."""
        if partial:
            return None
        generation = result[0]
        message = generation.message if isinstance(generation, ChatGeneration) else None
        if isinstance(message, AIMessage) and message.tool_calls:
            return self._made(message.tool_calls[0]["args"], generation.text)
        broken = message.invalid_tool_calls if isinstance(message, AIMessage) else []
        why = "it calls nothing"
        if broken:
            why = broken[0]["error"] or "the call is invalid"  # a chunk has no place for the error
        msg = f"the answer is not the call that was asked for: {why}. Was it cut off? A larger budget or max_tokens may help."
        raise OutputParserException(msg, llm_output=generation.text)


class _Grown:
    """An object that is streamed: what can be read of it so far, and at the end what a text that came whole would give."""

    def __init__(self, parser: ObjectParser) -> None:
        self._parser = parser
        self._found: GenerationChunk | ChatGenerationChunk | None = None
        self._last: object = _NOTHING

    def feed(self, piece: str | BaseMessage) -> list[Any]:
        """The object with this piece, where that is news."""
        more = _generation(piece)
        self._found = more if self._found is None else self._found + more  # type: ignore[operator]  # both are of one kind
        value = self._parser.parse_result([self._found], partial=True)
        return [] if value is None else self._news(value)

    def flush(self) -> list[Any]:
        """The whole object, where that is news, once nothing more comes; raises OutputParserException."""
        if self._found is None:
            return []
        return self._news(self._parser.parse_result([self._found]))

    def _news(self, value: object) -> list[Any]:
        last, self._last = self._last, value
        return [] if value == last else [value]


def _generation(piece: str | BaseMessage) -> GenerationChunk | ChatGenerationChunk:
    if isinstance(piece, str):
        return GenerationChunk(text=piece)
    if not isinstance(piece, BaseMessageChunk):  # of a model that does not stream
        piece = AIMessageChunk(**piece.model_dump(exclude={"type"}))
    return ChatGenerationChunk(message=piece)


def _response_format(method: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    if method == "json_mode":
        return {"type": "json_object"}
    name = schema.get("title", "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": dict(schema)}}


def _with_raw(
    llm: Runnable[LanguageModelInput, Any], parser: ObjectParser
) -> Runnable[LanguageModelInput, Any]:
    """Gives the message, what was read in it, and why nothing was."""

    def read(message: AIMessage, config: RunnableConfig) -> dict[str, Any]:
        parsed, wrong = None, None
        try:
            parsed = parser.invoke(message, config)
        except OutputParserException as error:
            wrong = error
        return {"raw": message, "parsed": parsed, "parsing_error": wrong}

    return llm | RunnableLambda(read)
