"""Tools are read in every form in which LangChain's users write them, and what cannot be honoured is refused in words."""

import warnings
from typing import Annotated, Literal, TypedDict

import pytest
from hypothesis import given, strategies as st
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import StructuredTool, tool
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as OldModel

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.given_schemas import given_schema
from langchain_pareto.forms.schemas import violation
from langchain_pareto.forms.tools import Tools, read_tools


def weather(city: str, unit: Literal["c", "f"] = "c") -> str:
    """Tells the weather.

    Args:
        city: Where.
        unit: Of the temperature.
    """
    return f"{city} {unit}"


class Weather(BaseModel):
    """Tells the weather."""

    city: str = Field(description="Where.")


class OldWeather(OldModel):
    """Tells the weather."""

    city: str


class TypedWeather(TypedDict):
    """Tells the weather."""

    city: Annotated[str, ..., "Where."]


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}


def as_tool():
    runnable = RunnableLambda(lambda asked: asked["city"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LangChain calls the method a beta
        return runnable.as_tool(name="weather", description="w", arg_types={"city": str})


@pytest.mark.parametrize(
    "given",
    [
        weather,
        tool(weather),
        StructuredTool.from_function(weather),
        Weather,
        OldWeather,
        TypedWeather,
        {"type": "function", "function": FUNCTION},
        {"type": "function", **FUNCTION},
        FUNCTION,
        {"name": "weather", "description": "w", "input_schema": SCHEMA},
        {"title": "weather", "description": "w", **SCHEMA},
        as_tool(),
    ],
)
def test_every_form_becomes_the_same(given):
    """A name, a description, and parameters that are an object with a required city."""
    tools = read_tools([given])
    [spec] = tools.specs
    assert spec["type"] == "function"
    assert spec["function"].keys() >= {"name", "description", "parameters"}
    assert tools.names[0].lower().endswith("weather")
    parameters = tools.parameters(tools.names[0])
    assert parameters["type"] == "object"
    assert parameters["properties"]["city"]["type"] == "string"
    assert parameters["required"] == ["city"]


def test_a_tool_may_take_nothing():
    """Then its parameters are an object without properties."""
    for now in ({"name": "now"}, {"name": "now", "parameters": {"type": "object"}}):
        assert read_tools([now]).parameters("now") == {"type": "object", "properties": {}}


def test_what_a_user_gave_is_not_changed():
    """A dict of the user's stays as it is, also by `strict`."""
    given = {"type": "function", "function": {**FUNCTION, "parameters": dict(SCHEMA)}}
    [spec] = read_tools([given], strict=True).specs
    assert spec["function"]["parameters"]["additionalProperties"] is False
    assert "additionalProperties" not in given["function"]["parameters"]


class Day(BaseModel):
    """A day, which may have a night."""

    hour: int = 12
    unit: str | None = None


class Days(BaseModel):
    """Some days."""

    first: Day
    rest: list[Day] = []
    words: dict[str, int] = {}


class Node(BaseModel):
    """One that may hold others."""

    v: int
    kids: list["Node"] = []


def test_strict_reaches_a_class_within_a_class():
    """Every object that names its properties requires all of them, and takes no other; a dict stays one."""
    parameters = read_tools([Days], strict=True).parameters("Days")
    day = parameters["$defs"]["Day"]
    assert (parameters["required"], day["required"]) == (
        ["first", "rest", "words"],
        ["hour", "unit"],
    )
    assert (parameters["additionalProperties"], day["additionalProperties"]) == (False, False)
    assert parameters["properties"]["words"]["additionalProperties"] == {"type": "integer"}
    for strict in (False, None):
        loose = read_tools([Days], strict=strict).parameters("Days")
        assert loose["required"] == ["first"]
        assert "additionalProperties" not in loose


@pytest.mark.parametrize("strict", [True, None])
def test_a_type_that_holds_itself_stays_whole_in_a_function(strict):
    """What is given to the tool is held to it at every depth; a type that does not hold itself is written in place."""

    def grow(node: Node, times: int = 1) -> str:
        """Grows.

        Args:
            node: What grows.
            times: How often.
        """
        return f"{node} {times}"

    def sleep(day: Day) -> str:
        """Sleeps."""
        return str(day)

    by_dict = StructuredTool(
        name="grow",
        description="Grows.",
        args_schema={
            "type": "object",
            "properties": {"node": {"$ref": "#/$defs/Node"}},
            "required": ["node"],
            "$defs": {"Node": Node.model_json_schema()["$defs"]["Node"]},
        },
        func=grow,
    )
    for given_tool in (grow, tool(grow), by_dict):
        [spec] = read_tools([given_tool], strict=strict).specs
        parameters = spec["function"]["parameters"]
        assert spec["function"]["description"].startswith("Grows.")
        assert parameters.keys().isdisjoint({"title", "description"})
        assert violation({"node": {"v": 1, "kids": []}, "times": 1}, parameters) is None or (
            given_tool is by_dict
        )
        wrong = {"node": {"v": 1, "kids": [{"v": 2, "kids": [{"v": "x", "kids": []}]}]}}
        assert "'x' is not of type 'integer'" in violation({**wrong, "times": 1}, parameters)
        node = parameters["$defs"]["Node"]
        assert node["required"] == (["v", "kids"] if strict else ["v"])
        if given_tool is not by_dict:
            assert parameters["properties"]["times"]["default"] == 1
    assert given_schema(grow)["$defs"].keys() == {"Node"}
    assert given_schema(grow)["title"] == "grow"
    assert "$defs" not in read_tools([sleep]).parameters("sleep")
    assert "$defs" not in read_tools([tool(sleep)]).parameters("sleep")


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ({"type": "auto"}, "auto"),
        ("any", "any"),
        ("required", "any"),
        (True, "any"),
        ({"type": "any"}, "any"),
        ("none", "none"),
        (False, "none"),
        ("weather", "weather"),
        ({"type": "function", "function": {"name": "weather"}}, "weather"),
        ({"type": "tool", "name": "weather"}, "weather"),
    ],
)
def test_every_form_of_a_choice(asked, choice):
    """OpenAI's, Anthropic's and LangChain's."""
    tools = read_tools([weather, Weather], asked)
    assert tools.choice == choice
    callables = {"none": (), "weather": ("weather",)}.get(choice, ("weather", "Weather"))
    assert tools.callable_names == callables


@pytest.mark.parametrize(
    "asked", ["rain", {"type": "function", "function": {"name": "rain"}}, 3, [], {}, "", 1.5]
)
def test_a_choice_of_no_tool_is_refused(asked):
    """The hint names the tools that there are."""
    with pytest.raises(SettingError, match="tool_choice") as caught:
        read_tools([weather], asked)
    assert "weather" in caught.value.hint


@pytest.mark.parametrize("asked", ["any", True, "weather", {"type": "any"}])
def test_a_choice_needs_tools(asked):
    """To call one of none is impossible."""
    with pytest.raises(SettingError, match="there are no tools"):
        read_tools([], asked)


@pytest.mark.parametrize("asked", [None, "auto", "none", False])
def test_no_tools_are_none(asked):
    """As agents without tools bind them."""
    assert read_tools([], asked) is None
    assert read_tools(None, asked) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "not a tool"),
        ("weather", "not a tool"),
        (None, "not a tool"),
        ({}, "not a tool"),
        ({"type": "object", "properties": {}}, "not a tool"),
        ({"type": "function", "function": None}, "not a tool"),
        ({"type": "web_search"}, "hosted"),
        ({"name": ""}, "called"),
        ({"name": 3}, "called"),
        ({"name": "a\nb"}, "called"),
        ({"name": 'a"b'}, "called"),
        ({"name": "any"}, "tool_choice"),
        ({"name": "a", "parameters": 3}, "parameters"),
        ({"name": "a", "parameters": {"type": "string"}}, "parameters"),
        ({"name": "a", "parameters": {"type": "object", "properties": 3}}, "cannot be read"),
        (
            {"name": "a", "parameters": {"properties": {"b": {"$ref": "http://x.org/y"}}}},
            "elsewhere",
        ),
        ({"name": "a", "parameters": {"properties": {"b": {"$ref": "#/$defs/b"}}}}, "not hold"),
        ({"name": "a", "parameters": {"properties": {"b": {"pattern": "(("}}}}, "regex"),
    ],
)
def test_what_is_no_tool_is_refused(given, words):
    """With what was got, and with what to do."""
    with pytest.raises(SettingError, match=words) as caught:
        read_tools([given])
    assert caught.value.hint


def test_two_tools_of_one_name_are_refused():
    """A call could mean either."""
    with pytest.raises(SettingError, match="two tools"):
        read_tools([weather, FUNCTION])


@pytest.mark.parametrize("given", ["weather", FUNCTION, 3, weather])
def test_tools_are_a_list(given):
    """A single tool is not taken for one."""
    with pytest.raises(SettingError, match="list"):
        read_tools(given)


def test_switches_are_yes_or_no():
    """Anything else is refused; nothing said means calls side by side."""
    assert read_tools([weather]).parallel
    assert not read_tools([weather], None, parallel_tool_calls=False).parallel
    for wrong in ({"parallel_tool_calls": "no"}, {"strict": 1}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            read_tools([weather], **wrong)


def test_tools_that_may_be_called_can_be_made_a_must():
    """A choice that is made already stays."""
    assert read_tools([weather]).forced().choice == "any"
    assert read_tools([weather], "weather").forced().choice == "weather"
    assert read_tools([weather], "none").forced().choice == "none"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "function", "name", "title", "parameters", "properties", "input_schema"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(_json, max_size=2), _json)
def test_whatever_is_given_is_read_or_refused(given, choice):
    """No other error than ours."""
    try:
        tools = read_tools(given, choice)
    except SettingError:
        return
    assert tools is None or isinstance(tools, Tools)
