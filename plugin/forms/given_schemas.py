"""
The JSON schema of what a user gives as one: a class, a tool, or the schema itself.

Knows the forms that LangChain knows, and the types for which it has no words; knows no model and no text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from langchain_core.tools import BaseTool, create_schema_from_function
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import TypeAdapter
from typing_extensions import is_typeddict

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.schemas import check_schema

_OF_TOOLS = {"function", "parameters", "input_schema"}  # words of a tool, not of a schema
_REFERENCE = re.compile(r'"\$ref": "#/\$defs/([^"]+)"')
_HINT = "Give a pydantic class, a TypedDict, or a JSON schema with a title."


def given_schema(given: Any) -> dict[str, Any]:
    """A JSON schema as it is; that of a class or a tool. Raises SettingError for what is none, or is one that no value fits."""
    try:
        found = _schema_of(given)
    except Exception as error:
        msg = f"this is not a schema: {error!s:.300}"
        raise SettingError(msg, hint=_HINT) from error
    check_schema(found)
    return found


def given_tool(given: Any) -> Any:
    """What `bind_tools` takes for a schema of an object; raises SettingError for any other, or one without a name."""
    found = given_schema(given)
    if found.get("type", "object") != "object":
        msg = f"a tool takes an object, and this schema is of {found['type']!r}"
        raise SettingError(msg, hint='Take method="json_schema".')
    if isinstance(given, Mapping) and not given.keys() & {*_OF_TOOLS, "name", "title"}:
        msg = "this schema has no title: a tool needs a name"
        raise SettingError(msg, hint='Give it a "title", or take method="json_schema".')
    if isinstance(given, Mapping) and "$ref" in given:  # which LangChain would leave out
        words = {
            "name": given.get("title", given.get("name")),
            "description": given.get("description", ""),
        }
        return {**words, "parameters": found}
    return told_schema(given)


def told_schema(given: Any) -> Any:
    """The same, in a form that LangChain can read."""
    return {"title": given.__name__, **_schema_of(given)} if _has_optional_keys(given) else given


def given_class(given: Any) -> Any:
    """The pydantic class of which instances are wanted; None where dicts are."""
    return given if isinstance(given, type) and is_basemodel_subclass(given) else None


def own_schema(given: Any) -> dict[str, Any] | None:
    """The schema, with its $defs, of what LangChain's form has no words for; None for all else.

    That is a class with others in it, and a tool or a function one of whose types holds itself.
    """
    if isinstance(given, type):
        own = getattr(given, "model_json_schema", None)
        found = {} if own is None else own()
        return found if "$defs" in found else None
    if isinstance(given, BaseTool):
        made = given.tool_call_schema
    elif callable(given):
        made = create_schema_from_function(
            given.__name__, given, filter_args=(), parse_docstring=True, include_injected=False
        )
    else:
        return None
    if not isinstance(made, Mapping):
        made = made.model_json_schema() if hasattr(made, "model_json_schema") else {}
    return dict(made) if _holds_itself(made) else None


def _holds_itself(schema: Mapping[str, Any]) -> bool:
    """Whether one of its $defs leads back to itself."""
    defined = schema.get("$defs", {})
    leads = {name: _REFERENCE.findall(json.dumps(one)) for name, one in defined.items()}
    try:
        TopologicalSorter(leads).prepare()
    except CycleError:
        return True
    return False


def _schema_of(given: Any) -> dict[str, Any]:
    """The schema that LangChain makes, unless a type might hold itself or a key may be left out, for which it has no words."""
    if isinstance(given, Mapping) and not given.keys() & _OF_TOOLS:
        return dict(given)
    if _has_optional_keys(given):
        return _of_typed_dict(given)
    own = own_schema(given)
    return convert_to_json_schema(given) if own is None else own


def _has_optional_keys(given: Any) -> bool:
    """Whether a TypedDict has keys that may be left out, or holds one that has."""
    todo, seen = [given], list[object]()
    while todo:
        one = todo.pop()
        if is_typeddict(one) and one not in seen:
            seen.append(one)
            if one.__optional_keys__:
                return True
            todo += get_type_hints(one).values()
        else:
            todo += get_args(one)
    return False


def _of_typed_dict(given: Any) -> dict[str, Any]:
    """As pydantic reads it, with LangChain's way to describe a key: Annotated[type, default, "description"]."""
    found = TypeAdapter(given).json_schema()
    named = found.get("properties", {})
    for name, hint in get_type_hints(given, include_extras=True).items():
        while (origin := get_origin(hint)) is not Annotated and _marks(origin):
            hint = get_args(hint)[0]
        words = get_args(hint)[2:3] if origin is Annotated else ()
        if name in named and words and isinstance(words[0], str):
            named[name].setdefault("description", words[0])
    return found


def _marks(origin: object) -> bool:
    """Whether it is a word around a type, and no type that has others within."""
    return origin is not None and not isinstance(origin, type)
