"""
Tools that a call may use: what they are called, what they take, and whether one must be called.

Knows the forms in which LangChain's users write tools; knows neither how a model writes a call nor what a tool does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic.errors import PydanticInvalidForJsonSchema

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.given_schemas import own_schema
from langchain_pareto.forms.schemas import check_schema, sealed

CHOICES = ("auto", "any", "none")  # what a choice is when it is no tool's name
_ANY = ("any", "required")
_LONGEST_NAME = 128
_NAMING = ("title", "description")  # of a class: in a tool they are beside its parameters
# words of a schema that say what an object holds; with none of them, a tool takes nothing
_SAYING = {
    *("properties", "additionalProperties", "patternProperties", "propertyNames"),
    *("$ref", "allOf", "anyOf", "oneOf"),
}
_FORMS = (
    "a function, a LangChain tool, a pydantic class, a TypedDict, or a dict in OpenAI's or Anthropic's form, "
    "or a JSON schema with a title"
)


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools as OpenAI writes them, and how they may be used.

    `choice` is "auto" (the model may call), "any" (it must), "none" (it must not), or the name of the tool that it must call.
    Without `parallel`, an answer holds one call at most.
    """

    specs: tuple[dict[str, object], ...]
    choice: str = "auto"
    parallel: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tools, in order."""
        return tuple(str(_function(spec)["name"]) for spec in self.specs)

    @property
    def callable_names(self) -> tuple[str, ...]:
        """The names of those that an answer may call."""
        if self.choice == "none":
            return ()
        return self.names if self.choice in CHOICES else (self.choice,)

    def parameters(self, name: str) -> Mapping[str, object]:
        """The JSON schema of what a tool takes; KeyError for a name that no tool has."""
        for spec in self.specs:
            function = _function(spec)
            if function["name"] == name:
                parameters = function["parameters"]
                assert isinstance(parameters, Mapping)
                return parameters
        raise KeyError(name)

    def forced(self) -> Tools:
        """The same, of which one must be called."""
        return replace(self, choice="any") if self.choice == "auto" else self


def read_tools(
    tools: Sequence[Any] | None,
    tool_choice: object = None,
    parallel_tool_calls: bool | None = None,
    strict: bool | None = None,
) -> Tools | None:
    """What `bind_tools` was given; None for no tools.

    `tool_choice` is None or "auto"; "any", "required" or True; "none" or False; the name of a tool; or one of these as OpenAI or
    Anthropic write it, {"type": "function", "function": {"name": ...}}. With `strict`, every parameter is required and no other is
    taken. A tool that is given twice counts once. Raises SettingError.
    """
    if parallel_tool_calls is not None and not isinstance(parallel_tool_calls, bool):
        msg = f"parallel_tool_calls cannot be {parallel_tool_calls!r:.80}"
        raise SettingError(msg, hint="Give True, False or None.")
    if strict is not None and not isinstance(strict, bool):
        msg = f"strict cannot be {strict!r:.80}"
        raise SettingError(msg, hint="Give True, False or None.")
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence | None):
        msg = f"tools must be a list, got {type(tools).__name__}"
        raise SettingError(msg, hint="Put the tools into a list, one of them as well.")
    found: dict[str, dict[str, object]] = {}
    for tool in tools or ():
        spec = _spec(tool, strict=strict)
        first = found.setdefault(str(_function(spec)["name"]), spec)
        if _bare(_function(first)["parameters"]) != _bare(_function(spec)["parameters"]):
            msg = f"two tools are called {_function(spec)['name']!r}"
            raise SettingError(msg, hint="Rename one: a call says nothing but the name.")
    choice = _choice(tool_choice, list(found))
    if not found:
        return None
    return Tools(tuple(found.values()), choice, parallel=parallel_tool_calls is not False)


def _choice(asked: object, names: Sequence[str]) -> str:
    told = _unwrapped(asked)
    if told is None or told == "auto":
        return "auto"
    if told is False or told == "none":
        return "none"
    if not names:
        msg = f"tool_choice is {asked!r:.200}, and there are no tools"
        raise SettingError(msg, hint="Bind the tools in the same call, or leave tool_choice out.")
    if told is True or told in _ANY:
        return "any"
    if isinstance(told, str) and told in names:
        return told
    msg = f"tool_choice cannot be {asked!r:.200}"
    hint = f'Take "auto", "any", "none", or the name of a tool: {", ".join(names)}.'
    raise SettingError(msg, hint=hint)


def _unwrapped(asked: object) -> object:
    """A choice in OpenAI's or Anthropic's form as a word; anything else as it is."""
    if not isinstance(asked, Mapping):
        return asked
    inner = asked.get("function", asked)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if name is not None else asked.get("type", asked)


def _spec(tool: Any, *, strict: bool | None) -> dict[str, object]:
    """A tool in OpenAI's form, with a description and parameters that are an object."""
    source = tool
    if isinstance(tool, Mapping):
        source = deepcopy(dict(tool))
        if source.get("type") == "function":  # converting would pass it on unread
            source = source.get("function", {k: v for k, v in source.items() if k != "type"})
    try:
        made = convert_to_openai_tool(source, strict=strict)
        own = own_schema(tool)
    except (TypeError, ValueError, KeyError, AttributeError, PydanticInvalidForJsonSchema) as error:
        msg = f"this is not a tool: {tool!r:.200}: {error!s:.300}"
        raise SettingError(msg, hint=f"A tool is {_FORMS}.") from error
    function = made.get("function")
    if not isinstance(function, Mapping):
        msg = f"a tool of type {made.get('type')!r:.80} runs at a hosted model's own service"
        raise SettingError(msg, hint=f"Give {_FORMS}.")
    name = _checked_name(function.get("name"), tool)
    parameters = function.get("parameters")
    if own is not None:
        parameters = {k: v for k, v in own.items() if k not in _NAMING}
        parameters = sealed(parameters) if strict else parameters
    description = function.get("description") or ""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": str(description),
            "parameters": _parameters(parameters, name),
        },
    }


def _checked_name(name: object, tool: object) -> str:
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _LONGEST_NAME
        or name != name.strip()
        or not name.isprintable()
        or any(sign in name for sign in '"\\{}[]<>')
    ):
        msg = f"a tool cannot be called {name!r:.200}: {tool!r:.200}"
        raise SettingError(msg, hint="Letters, digits, _ and - make a name, 128 at most.")
    if name in (*CHOICES, *_ANY):
        msg = f"a tool cannot be called {name!r}, which is a tool_choice"
        raise SettingError(msg, hint="Rename it.")
    return name


def _parameters(found: object, name: str) -> dict[str, object]:
    schema = dict(found) if isinstance(found, Mapping) else {} if found is None else None
    if schema is None or schema.get("type", "object") != "object":
        msg = f"the parameters of the tool {name!r} are not a JSON schema of an object: {found!r:.200}"
        raise SettingError(msg, hint='Give {"type": "object", "properties": {...}}.')
    schema.setdefault("type", "object")
    if not schema.keys() & _SAYING:
        schema["properties"] = {}
    try:
        check_schema(schema)
    except SettingError as error:
        msg = f"the parameters of the tool {name!r} cannot be read: {error}"
        raise SettingError(msg, hint=error.hint) from error
    return schema


def _bare(schema: object) -> object:
    """A schema without titles and descriptions, which constrain nothing."""
    if isinstance(schema, Mapping):
        return {
            key: _bare(value)
            for key, value in schema.items()
            if key not in ("title", "description") or not isinstance(value, str)
        }
    return [_bare(one) for one in schema] if isinstance(schema, list | tuple) else schema


def _function(spec: Mapping[str, object]) -> Mapping[str, object]:
    function = spec["function"]
    assert isinstance(function, Mapping)
    return function
