"""One rule for tools and for answers: what no grammar can hold loosens it, and is checked when the text is read."""

import json
import random
import warnings

import pytest
from langchain_core.exceptions import OutputParserException
from pydantic import BaseModel

from langchain_pareto import ChatPareto
from langchain_pareto.backends.grammar import compile_grammar
from langchain_pareto.backends.loading import load
from langchain_pareto.errors import SettingError
from langchain_pareto.forms import schema_grammar
from langchain_pareto.forms.schema_grammar import json_rule
from langchain_pareto.forms.schemas import check_schema, closed, violation

llguidance = pytest.importorskip("llguidance")

NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
SHORT = {"type": "string", "maxLength": 4}
# what a grammar holds a text to only in part, and whether that is said
KEYWORDS = {
    "uniqueItems": ({"type": "array", "items": NUMBER, "maxItems": 2, "uniqueItems": True}, False),
    "format": ({**SHORT, "format": "colour"}, False),
    "oneOf": ({"oneOf": [NUMBER, {**NUMBER, "minimum": 50}]}, False),
    "pattern": ({**SHORT, "pattern": "^(?=.)"}, True),
    "not": ({**SHORT, "not": {"const": "x"}}, True),
    "if": ({**NUMBER, "if": {"const": 0}, "then": {"maximum": 0}}, True),
}


class Bag(BaseModel):
    """A set of small numbers."""

    numbers: set[bool]


def of(part):
    return {"title": "thing", "type": "object", "properties": {"a": part}, "required": ["a"]}


@pytest.fixture(scope="module")
def nano():
    with load("nano") as loaded:
        yield ChatPareto(backend=loaded, strategy="single", seed=1, max_tokens=120)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_no_keyword_is_refused(nano, keyword, method):
    """As an answer's schema and as a tool's: what comes fits, or its reader says what it breaks."""
    part, told = KEYWORDS[keyword]
    schema_grammar._compilable.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shown = nano.with_structured_output(of(part), method=method, include_raw=True).invoke("?")
    assert [
        str(one.message) for one in caught if "no grammar can hold" in str(one.message)
    ] != [] or not told
    assert told or not caught
    if shown["parsed"] is not None:
        assert violation(shown["parsed"], of(part)) is None
    else:
        assert "breaks its schema" in str(shown["parsing_error"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_class_may_hold_a_set(nano, method):
    """Repeats, which no grammar forbids, are dropped, as they are from a set."""
    assert isinstance(nano.with_structured_output(Bag, method=method).invoke("?"), Bag)


@pytest.mark.parametrize(
    ("schema", "kept", "lost"),
    [
        (of({"type": "string", "pattern": "(?=x)y"}), ['"type": "string"'], "(?=x)"),
        (of({"enum": []}), ['"a": true'], "enum"),
        ({"type": "array", "items": False, "minItems": 1}, ['"type": "array"'], "minItems"),
        ({"enum": []}, [], "enum"),
        (
            {**of(NUMBER), "properties": {"pattern": NUMBER, "a": {"pattern": "(?=x)"}}},
            ['"pattern": {'],
            "(?=",
        ),
    ],
)
def test_a_schema_that_no_grammar_takes_is_loosened(schema, kept, lost):
    """With a warning, once, that names whose it is; an answer need not be an object."""
    schema_grammar._compilable.cache_clear()
    with pytest.warns(UserWarning, match="the tool 'odd'"):
        rule = json_rule(schema, what="the tool 'odd'")
    assert json_rule(schema, what="the tool 'odd'") == rule
    assert llguidance.LLMatcher.validate_grammar(f"start: {rule}") == ""
    assert lost not in rule
    assert all(one in rule for one in kept)
    assert ('"object"' in rule) == (schema.get("type") == "object")


@pytest.mark.parametrize(
    ("part", "kept", "lost"),
    [
        ({"type": "integer", "minimum": 10**29}, '"type": "integer"', "minimum"),
        ({"type": "string", "minLength": 10**30}, '"type": "string"', "minLength"),
        ({"type": "array", "items": NUMBER, "maxItems": 10**30}, '"items": {', "maxItems"),
    ],
)
def test_a_limit_beyond_what_the_library_counts_is_loosened_alone(part, kept, lost):
    """The type stays, and the reader checks the limit."""
    schema_grammar._compilable.cache_clear()
    with pytest.warns(UserWarning, match="no grammar can hold an answer"):
        rule = json_rule(of(part), what="an answer")
    assert kept in rule
    assert lost not in rule


NODE = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}


@pytest.mark.parametrize(
    "part",
    [
        {"$ref": "#/$defs/n"},
        {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"enum": []},
        {"allOf": [{"type": "string"}, {"type": "null"}]},
    ],
)
def test_a_part_without_a_value_is_never_begun(part):
    """A text that began it would have no end: by the grammar the property cannot come, nor the option be taken."""
    schema = {
        "type": "object",
        "properties": {"a": part, "b": {"anyOf": [part, NUMBER]}},
        "required": ["b"],
        "additionalProperties": False,
        "$defs": {"n": NODE},
    }
    check_schema(schema)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule = json_rule(schema, what="an answer")
    with load("nano") as backend:
        make = compile_grammar(backend.tokenizer, f"start: {rule}")
        for seed in range(5):
            rng, constraint, tokens = random.Random(seed), make(), []
            while not constraint.complete:
                tokens.append(rng.choice(list(constraint.allowed())))
                constraint.advance(tokens[-1])
            assert json.loads(backend.tokenizer.decode(tokens)).keys() == {"b"}


def test_what_is_in_a_grammar_is_said_by_no_warning():
    """Words of a rule are those of the schema, and JSON is on one line."""
    rule = json_rule(of(NUMBER), what="an answer")
    held = json.loads(rule.removeprefix("%json "))
    assert held.pop("x-guidance")["whitespace_flexible"] is False
    assert held == of(NUMBER)


# --- what a schema may be


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"$ref": "#/$defs/none"}, "does not hold"),
        ({"$ref": "#none"}, "does not hold"),
        ({"$ref": "http://example.org/x.json"}, "elsewhere"),
        ({"$ref": "x.json"}, "elsewhere"),
        ({"$dynamicRef": "#none"}, "does not hold"),
        ({"$ref": "#/properties/a"}, "without end"),
        ({"anyOf": [{"allOf": [{"$ref": "#/properties/a"}]}]}, "without end"),
        ({"$ref": "#/title"}, "not a JSON schema"),
        ({"pattern": "(("}, "regex"),
        ({"patternProperties": {"((": {}}}, "regex"),
        ({"$ref": "#/x-more", "x-more": {}}, "does not hold"),
        ({"default": {1, 2}}, "not a JSON schema"),
    ],
)
def test_what_would_fail_later_is_refused(part, words):
    """For answers and for tools, with what to do, before anything is drawn."""
    with pytest.raises(SettingError, match=words) as caught:
        check_schema(of(part))
    assert caught.value.hint
    for method in ("json_schema", "function_calling"):
        with pytest.raises(SettingError, match=words):
            ChatPareto().with_structured_output(of(part), method=method)


def test_a_reference_to_no_place_of_schemas_is_checked_as_well():
    """What it leads to may be anything."""
    with pytest.raises(SettingError, match="regex"):
        check_schema({"$ref": "#/x", "x": {"pattern": "(("}})
    check_schema({"$ref": "#/x", "x": {"pattern": "y"}})


@pytest.mark.parametrize(
    "part",
    [
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"items": {"$ref": "#/properties/a"}},
        {"enum": [{"$ref": "nowhere"}]},
        {"properties": {"$ref": {"type": "string"}}},
    ],
)
def test_a_schema_may_refer_to_itself_from_within(part):
    """A tree is no loop, and data that looks like a reference is none."""
    check_schema(of(part))


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (1, {"$ref": "#/$defs/none"}),
        (1, {"$ref": "http://example.org/x.json"}),
        ("x", {"pattern": "(("}),
        (1, {"$ref": "#"}),
        (10**400, {"multipleOf": 1e-300}),
    ],
)
def test_a_violation_is_words_whatever_the_schema(value, schema):
    """Also one that nobody has checked: nothing of the library's reaches the reader of a text."""
    assert isinstance(violation(value, schema), str)


def test_an_answer_beyond_its_schema_is_an_output_error(nano):
    """A number that the library cannot count with is told as any other break."""
    parser = nano.with_structured_output(of({"type": "number", "multipleOf": 1e-300})).last
    with pytest.raises(OutputParserException, match="breaks its schema"):
        parser.invoke(f'{{"a": {10**400}}}')


# --- closed schemas

A, B = {"properties": {"a": NUMBER}}, {"properties": {"b": NUMBER}}


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"allOf": [A, B]}, [{"a": 1, "b": 2}]),
        ({**A, "allOf": [B]}, [{"a": 1, "b": 2}]),
        ({**A, "anyOf": [B]}, [{"a": 1, "b": 2}]),
        ({**A, "$ref": "#/$defs/b", "$defs": {"b": B}}, [{"a": 1, "b": 2}]),
        ({"allOf": [{"$ref": "#/$defs/b"}, A], "$defs": {"b": B}}, [{"a": 1, "b": 2}]),
        (
            {"allOf": [{"$ref": "#/$defs/c"}, A], "$defs": {"b": B, "c": {"$ref": "#/$defs/b"}}},
            [{"a": 1, "b": 2}],
        ),
        ({**A, "if": A, "then": B}, [{"a": 1, "b": 2}]),
    ],
)
def test_an_object_that_several_schemas_describe_stays_open(schema, fits):
    """Closed, each would forbid what the others name."""
    check_schema(schema)
    assert all(violation(value, closed(schema)) is None for value in fits)


@pytest.mark.parametrize(
    "schema",
    [
        A,
        {"allOf": [A]},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": A}},
        {**A, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"anyOf": [A, {"type": "null"}]},
        {"items": A},
        {"properties": {"default": A}},
        {**A, "required": ["a"]},
    ],
)
def test_an_object_of_one_schema_is_closed(schema):
    """Wherever it stands: it takes what it names, and nothing else."""
    for value, fits in (({"a": 1}, True), ({"a": 1, "c": 2}, False)):
        whole = [value] if "items" in schema else value
        whole = {"default": value} if "default" in schema.get("properties", {}) else whole
        assert (violation(whole, closed(schema)) is None) == fits


def test_a_closed_schema_that_says_so_stays_open():
    """And the user's own is not changed."""
    given = {**A, "additionalProperties": True}
    assert closed(given) == given
    assert closed(A) is not A
    assert "additionalProperties" not in A


def test_an_object_that_requires_what_it_does_not_name_stays_open():
    """Closed, it would have no value."""
    given = {**A, "type": "object", "required": ["a", "b"]}
    assert violation({"a": 1, "b": 2}, closed(given)) is None
    assert violation({"a": 1}, closed(given)) is not None
