"""Structured output under hostile input: every form of schema, every text, every budget gives an object or an error that says why."""

import enum
import json
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict as PlainTypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import Generation
from pydantic import BaseModel, Field, RootModel, field_validator
from typing_extensions import TypedDict

from langchain_pareto import ChatPareto
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import BudgetExceeded, SettingError
from langchain_pareto.forms.given_schemas import given_schema

pytest.importorskip("llguidance")

METHODS = ["json_schema", "function_calling", "json_mode"]


class Node(BaseModel):
    """One that must hold another one."""

    next: "Node"


class Tree(BaseModel):
    """One that may hold others."""

    v: Literal[1, 2]
    kids: list["Tree"] = []


class Left(BaseModel):
    """Half of a pair of types."""

    x: "Left | Right | None"


class Right(BaseModel):
    """The other half."""

    x: "Left | Right | None"


class Size(enum.Enum):
    """A size."""

    S = "s"
    L = "l"


class Cat(BaseModel):
    """A cat."""

    kind: Literal["cat"]
    size: Size


class Dog(BaseModel):
    """A dog."""

    kind: Literal["dog"]
    good: bool


class Pet(BaseModel):
    """Some pet."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Fussy(BaseModel):
    """Takes nothing."""

    n: bool

    @field_validator("n")
    @classmethod
    def _never(cls, value: bool) -> bool:
        raise KeyError(value)


class Told(TypedDict):
    """A fact."""

    right: Annotated[bool, ..., "whether it is so"]
    size: NotRequired[Annotated[Literal["s", "l"], ..., "how large"]]


class Facts(TypedDict):
    """Some facts."""

    facts: list[Told]


@dataclass
class Point:
    """A point."""

    x: bool
    y: bool


Numbers = RootModel[list[bool]]

FORMS = {
    "recursive": Tree,
    "mutual": Left,
    "reference": {**Left.model_json_schema(), "title": "t"},
    "union": Pet,
    "optional key": Told,
    "nested optional key": Facts,
    "dataclass": Point,
    "unicode": {
        "title": "t",
        "type": "object",
        "properties": {'größe ☃\n"': {"type": "boolean"}},
        "required": ['größe ☃\n"'],
    },
    "mixed enum": {
        "title": "t",
        "type": "object",
        "properties": {"a": {"enum": ["x", 1, None, True, 2.5, {"k": [1]}, []]}},
        "required": ["a"],
    },
    "const": {
        "title": "t",
        "type": "object",
        "properties": {"a": {"const": {"b": [1, None]}}},
        "required": ["a"],
    },
    "many": {
        "title": "t",
        "type": "object",
        "properties": {"a": {"enum": [f"value number {i}" for i in range(5000)]}},
        "required": ["a"],
    },
    "patterns": {
        "title": "t",
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "any": {"title": "t"},
    "an impossible part": {
        "title": "t",
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "boolean"}},
        "required": ["b"],
        "$defs": {
            "n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}
        },
    },
    "what nobody names is required": {
        "title": "t",
        "type": "object",
        "properties": {},
        "required": ["a"],
    },
    "a limit beyond all numbers": {
        "title": "t",
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 10**30, "minimum": 10**29}},
    },
}


# strict, LangChain has a tool require all of its parameters and take no other, which these cannot
LOOSE = {"patterns", "an impossible part", "what nobody names is required"}


@pytest.fixture(scope="module")
def nano():
    with load("nano") as loaded:
        yield loaded


def says(*texts, **settings):
    """A model that says these texts, in turn."""
    return ChatPareto(backend=ScriptedBackend(list(texts)), strategy="single", **settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_any_budget_gives_an_object_or_an_error(nano, form, method):
    """From one token to enough: what comes fits, and what does not says that it was cut off; nothing else is raised."""
    if form == "any" and method == "function_calling":
        pytest.skip("a tool of any arguments is one of none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what no grammar holds is told
        parsed = []
        for tokens in (1, 2, 5, 20, 150):
            llm = ChatPareto(backend=nano, strategy="single", seed=1, budget=f"{tokens} tokens")
            strict = None if form in LOOSE else [None, True, False][tokens % 3]
            chain = llm.with_structured_output(
                FORMS[form], method=method, include_raw=True, strict=strict
            )
            shown = chain.invoke("?")
            error = shown["parsing_error"]
            assert (error is None) == (shown["parsed"] is not None)
            assert error is None or isinstance(error, OutputParserException)
            parsed += [shown["parsed"]] if error is None else []
    # by "json_mode" a model is told of no form, and seldom finds that of a class
    assert parsed or (method == "json_mode" and form in ("recursive", "mutual", "union"))


def test_a_root_may_be_a_list(nano):
    """As an answer, not as a tool's arguments."""
    llm = ChatPareto(backend=nano, strategy="single", seed=1, max_tokens=100)
    assert isinstance(llm.with_structured_output(Numbers).invoke("?"), Numbers)
    with pytest.raises(SettingError, match="a tool takes an object"):
        llm.with_structured_output(Numbers, method="function_calling")


def test_a_call_has_a_vote_of_objects_too(nano):
    """Types that hold each other are compared in a vote as any other."""
    llm = ChatPareto(backend=nano, strategy={"kind": "vote", "n": 4}, seed=1, max_tokens=100)
    assert isinstance(llm.with_structured_output(Left).invoke("?"), Left)


# --- schemas that are none


class Undefined(BaseModel):
    """Of a type that nobody has defined."""

    x: "Nowhere"  # noqa: F821 - that is the point


class Old(PlainTypedDict, total=False):
    """Of the standard library, which pydantic does not read in all versions."""

    a: bool


def cyclic():
    made = {"title": "t", "type": "object", "properties": {}}
    made["properties"]["a"] = made
    return made


def tower(levels):
    made = {"type": "integer"}
    for _ in range(levels):
        made = {"type": "object", "properties": {"a": made}}
    return {"title": "t", **made}


def of(part):
    return {"title": "t", "type": "object", "properties": {"a": part}, "required": ["a"]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (5, "not a schema"),
        ("text", "not a schema"),
        (True, "not a schema"),
        (int, "not a schema"),
        (list[int], "not a schema"),
        (Cat | Dog, "not a schema"),
        (BaseModel, "not a schema"),
        (Cat(kind="cat", size="s"), "not a schema"),
        (Undefined, "not fully defined"),
        ({"parameters": None}, "not a schema"),
        ({"name": "f", "parameters": 5}, "not a schema"),
        ({"title": 5}, r"5 is not of type 'string' \(at \$.title\)"),
        ({"title": "t", 1: 2}, "which is no text"),
        ({"title": "t", "properties": {None: {}}}, "which is no text"),
        (of({"type": "any"}), r"at \$.properties.a.type"),
        (of({"items": [{"type": "integer"}]}), r"at \$.properties.a.items"),
        (of({"const": float("nan")}), "not JSON compliant"),
        (of({"maximum": float("inf")}), "not JSON compliant"),
        (of({"enum": ["\ud800"]}), "surrogates"),
        (of({"default": {1}}), "not JSON serializable"),
        (cyclic(), "Circular"),
        (tower(1000), "nested too deeply"),
        (of({"$ref": "#/properties/a"}), "without end"),
        (Node, r"\$.next must hold itself, without end"),
        (of(False), r"\$.a must be there, and may not"),
        (of({"type": "array", "minItems": 3, "maxItems": 2}), "minItems 3 above maxItems 2"),
        ({**of(True), "required": ["b"], "additionalProperties": False}, r"\$.b must be there"),
    ],
)
def test_what_is_no_schema_is_refused_with_what_to_do(schema, words, method):
    """By every method, before a model is loaded."""
    with pytest.raises(SettingError, match=words) as caught:
        ChatPareto().with_structured_output(schema, method=method)
    assert caught.value.hint


@pytest.mark.parametrize("schema", [{}, {"type": "object"}])
def test_a_tool_needs_a_name(schema):
    """A schema without a title is one of an answer, not of a tool."""
    ChatPareto().with_structured_output(schema)
    with pytest.raises(SettingError, match="no title"):
        ChatPareto().with_structured_output(schema, method="function_calling")


def test_a_tool_keeps_what_its_schema_refers_to():
    """Also where the schema is nothing but a reference."""
    llm = says("?").with_structured_output(FORMS["reference"], method="function_calling")
    [tool] = llm.first.kwargs["tools"]
    assert tool["function"]["name"] == "t"
    assert tool["function"]["parameters"]["$ref"] == "#/$defs/Left"
    assert tool["function"]["parameters"]["$defs"].keys() == {"Left", "Right"}


def test_a_key_that_may_be_left_out_is_not_required():
    """Nor one within; what describes a key is kept, and a class without such keys is read as LangChain reads it."""
    schema = given_schema(Told)
    assert schema["required"] == ["right"]
    assert {name: one["description"] for name, one in schema["properties"].items()} == {
        "right": "whether it is so",
        "size": "how large",
    }
    assert given_schema(Facts)["$defs"]["Told"]["required"] == ["right"]
    [call] = (
        says('<tool_call>\n{"name": "Told", "arguments": {"right": "true"}}\n</tool_call>')
        .with_structured_output(Told, method="function_calling", include_raw=True)
        .invoke("?")["raw"]
        .tool_calls
    )
    assert call["name"] == "Told"
    whole = given_schema(TypedDict("Whole", {"a": Annotated[int, ..., "a number"]}))
    assert whole["properties"]["a"]["description"] == "a number"


def test_a_typed_dict_that_pydantic_cannot_read_is_refused_in_words():
    """On the versions of Python where that is so."""
    try:
        assert given_schema(Old)["properties"].keys() == {"a"}
    except SettingError as error:
        assert "typing_extensions.TypedDict" in str(error)  # noqa: PT017 - either is right


# --- texts


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": NaN}',
        '{"a": [Infinity, -Infinity]}',
        '{"a": 1',
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 400 + "]" * 400,
        '{"a": ' + "1" * 5000 + "}",
        "not JSON",
        '{"a": 1} and more',
        "null",
        '"\\ud800"',
    ],
)
def test_a_text_that_is_no_object_is_an_output_error(text, method):
    """However it is broken; the same as it grows, and in a message that is read apart."""
    chain = says("?").with_structured_output({"title": "t", "type": "object"}, method=method)
    parser = chain.last
    with pytest.raises(OutputParserException) as caught:
        parser.parse(text)
    assert caught.value.llm_output == text
    growing = parser.parse_result([Generation(text=text)], partial=True)
    json.dumps(growing, allow_nan=False)
    assert "NaN" not in str(growing)


def test_a_number_and_a_character_that_json_has_no_words_for_are_mended():
    """What is read can be written again."""
    parser = says("?").with_structured_output({"title": "t", "type": "object"}).last
    found = parser.parse('{"a": 1e999, "b": "\\ud800", "c": "\n"}')
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["b"] == "\ufffd"


@pytest.mark.parametrize("include_raw", [True, False])
@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("json_schema", '{"n": true}'),
        ("json_mode", '{"n": true}'),
        ("function_calling", '<tool_call>\n{"name": "Fussy", "arguments": {"n": true}}\n</tool_call>'),
    ],
)  # fmt: skip
def test_a_validator_may_fail_in_any_way(method, text, include_raw):
    """What it raises is the cause of an output error, which chains try again after."""
    chain = says(text).with_structured_output(Fussy, method=method, include_raw=include_raw)
    if include_raw:
        error = chain.invoke("?")["parsing_error"]
    else:
        with pytest.raises(OutputParserException, match="is not a Fussy") as caught:
            chain.invoke("?")
        error = caught.value
    assert isinstance(error, OutputParserException)
    assert isinstance(error.__cause__, KeyError)


def test_a_call_that_breaks_its_schema_is_no_object():
    """Whether it stands as a call in the message or not: as by a grammar, the object fits or there is none."""
    said = '<tool_call>\n{"name": "t", "arguments": {"a": "x"}}\n</tool_call>'
    chain = says(said).with_structured_output(of({"type": "integer"}), method="function_calling")
    with pytest.raises(OutputParserException, match="'x' is not of type 'integer'"):
        chain.invoke("?")


def test_an_object_of_types_that_hold_each_other_is_read():
    """Sixty levels of a union of both, right and wrong at the end."""
    for leaf in ("null", "7"):
        text = '{"x": ' * 60 + leaf + "}" * 60
        # as a dict: to make instances, pydantic itself goes every way
        parser = says("?").with_structured_output(Left.model_json_schema()).last
        if leaf == "null":
            assert parser.parse(text) == json.loads(text)
        else:
            with pytest.raises(OutputParserException, match="breaks its schema"):
                parser.parse(text)


# --- streams


class Idle(BaseModel):
    """One that says nothing by itself."""

    n: int = 0


def said_by(method, arguments):
    """Half an object, or half a call."""
    if method != "function_calling":
        return arguments
    return f'<tool_call>\n{{"name": "Idle", "arguments": {arguments}'


def whole_by(method, arguments):
    return said_by(method, arguments) + ("}\n</tool_call>" if method == "function_calling" else "")


async def streamed(chain, door):
    return (
        list(chain.stream("?")) if door == "stream" else [one async for one in chain.astream("?")]
    )


@pytest.mark.parametrize("door", ["stream", "astream"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Idle, Idle.model_json_schema()])
async def test_a_stream_of_what_is_no_object_ends_in_an_error(schema, method, door):
    """As a call that is not streamed does, whether it was cut off or breaks the schema; include_raw tells it."""
    texts = {"cut off": said_by(method, '{"n": ')}
    if schema is Idle or method != "json_mode":  # which holds a dict to no schema
        texts["breaks|is not"] = whole_by(method, '{"n": "x"}')
    for words, text in texts.items():
        chain = says(text).with_structured_output(schema, method=method)
        with pytest.raises(OutputParserException, match=words):
            await streamed(chain, door)
        chain = says(text).with_structured_output(schema, method=method, include_raw=True)
        [shown] = await streamed(chain, door)
        assert list(shown) == ["raw", "parsed", "parsing_error"]
        assert shown["parsed"] is None
        assert isinstance(shown["parsing_error"], OutputParserException)
        assert shown["raw"].usage_metadata is not None
        assert str(shown["parsing_error"]) not in ("", "None")


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("door", ["stream", "astream"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ['{"n": 1}', "{}", '{"n": "1"}'])
async def test_a_stream_ends_with_what_a_call_gives(text, method, door, streams):
    """An instance once, a dict last; also where the model does not stream, and with include_raw."""
    text = whole_by(method, text)
    for schema in (Idle, Idle.model_json_schema()):
        llm = says(text, disable_streaming=not streams)
        chain = llm.with_structured_output(schema, method=method)
        whole, found = chain.invoke("?"), await streamed(chain, door)
        assert found[-1] == whole
        assert len(found) == 1 or schema is not Idle
        chain = llm.with_structured_output(schema, method=method, include_raw=True)
        [shown] = await streamed(chain, door)
        assert (shown["parsed"], shown["parsing_error"]) == (whole, None)
        assert (await chain.ainvoke("?")).keys() == shown.keys()


def test_a_dict_is_shown_as_it_grows_and_checked_at_the_end():
    """What came before stays shown; the last piece of a text that fits is the whole."""
    parser = says("?").with_structured_output(of({"type": "integer", "minimum": 0})).last
    pieces = [*map(AIMessageChunk, ('{"a": ', "1", "2", "}", ""))]
    assert list(parser.transform(iter(pieces))) == [{}, {"a": 1}, {"a": 12}]
    grown = parser.transform(map(AIMessageChunk, ('{"a": ', "-5", "}")))
    assert [next(grown), next(grown)] == [{}, {"a": -5}]
    with pytest.raises(OutputParserException, match="breaks its schema"):
        next(grown)
    assert list(parser.transform(iter(['{"a": 1', "}"]))) == [{"a": 1}]
    assert list(parser.transform(iter([]))) == []


def test_a_stream_of_nothing_but_null_is_null():
    """A value that is None is one."""
    parser = says("?").with_structured_output({"title": "t", "type": ["object", "null"]}).last
    assert list(parser.transform(iter(["nu", "ll"]))) == [None]


# --- stops and budgets


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["model", "bound", "chain"])
def test_a_stop_string_does_not_cut_an_object(nano, method, where):
    """It stands in every object, and the object comes all the same: the end of an object is its own."""
    stop = {"stop": ['"', "{", ":"]}
    more = {"model": stop, "bound": {}, "chain": {}}[where]
    llm = ChatPareto(backend=nano, strategy="single", seed=1, max_tokens=100, **more)
    llm = llm.bind(**stop) if where == "bound" else llm
    given = stop if where == "chain" else {}
    found = llm.with_structured_output(
        Pet if method != "json_mode" else None, method=method, **given
    ).invoke("?")
    assert isinstance(found, Pet if method != "json_mode" else dict)


@pytest.mark.parametrize("streams", [True, False])
def test_a_stop_string_of_a_single_call_does_not_cut_what_has_a_form(nano, streams):
    """An object that the call asks for itself, and a call that must be made; words are cut as ever."""
    llm = ChatPareto(backend=nano, strategy="single", seed=1, max_tokens=100)

    def said(model):
        if not streams:
            return model.invoke("?", stop=['"', "{", "a"])
        first, *more = model.stream("?", stop=['"', "{", "a"])
        return sum(more, first)

    asked = {"type": "json_schema", "json_schema": {"name": "t", "schema": FORMS["mixed enum"]}}
    assert json.loads(said(llm.bind(response_format=asked)).content).keys() == {"a"}
    [call] = said(llm.bind_tools([Pet], tool_choice="Pet", parallel_tool_calls=False)).tool_calls
    assert Pet.model_validate(call["args"])
    assert "a" not in said(llm).content
    assert llm.with_structured_output(Pet).invoke("?", stop=['"']).pet.kind in ("cat", "dog")


def test_a_budget_without_a_token_is_a_budget_error(nano):
    """No object, and no parsing error either: nothing was drawn that could be parsed."""
    llm = ChatPareto(backend=nano, strategy="single", budget={"flops": 1})
    with pytest.raises(BudgetExceeded):
        llm.with_structured_output(Pet, include_raw=True).invoke("?")
