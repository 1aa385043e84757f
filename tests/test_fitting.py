"""Values against schemas: what the library says, in time that does not explode, and made to fit where the meaning is plain."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from jsonschema import Draft202012Validator

from langchain_pareto.forms import validity
from langchain_pareto.forms.fitting import coerced
from langchain_pareto.forms.form import Form, Reader
from langchain_pareto.forms.schemas import check_schema, violation
from langchain_pareto.forms.tool_formats import format_of
from langchain_pareto.forms.tools import read_tools
from langchain_pareto.strategies.answers import AnswerFormat

HERMES = format_of(None)


def either(*options):
    return {"type": "object", "properties": {"x": {"anyOf": list(options)}}, "required": ["x"]}


A, B, NULL = {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"type": "null"}
MUTUAL = {**A, "$defs": {"a": either(A, B, NULL), "b": either(B, A, NULL)}}
TWICE = {
    "type": ["object", "integer"],
    "allOf": [{"properties": {"x": {"$ref": "#"}}}, {"properties": {"x": {"$ref": "#"}}}],
}
THEN = {
    "type": ["object", "integer"],
    "if": {"properties": {"x": {"$ref": "#"}}},
    "then": {"properties": {"x": {"$ref": "#"}}},
}
LAUGHS = {
    "properties": {"x": {"$ref": "#/$defs/30"}},
    "$defs": {"0": {"type": "integer"}}
    | {str(i): {"anyOf": 2 * [{"$ref": f"#/$defs/{i - 1}"}]} for i in range(1, 31)},
}
DEEP = 40


def nested(leaf, depth=DEEP):
    for _ in range(depth):
        leaf = {"x": leaf}
    return leaf


@pytest.fixture
def followed(monkeypatch):
    """How often a reference was followed."""
    found, follow = [], validity._follow

    def counted(*given):
        found.append(given)
        return follow(*given)

    monkeypatch.setattr(validity, "_follow", counted)
    return found


@pytest.mark.parametrize(
    ("schema", "leaf", "made", "fits"),
    [
        (MUTUAL, None, None, True),
        (MUTUAL, "null", None, True),
        (MUTUAL, 5, 5, False),
        (TWICE, "7", 7, True),
        (TWICE, "x", "x", False),
        (THEN, 7, 7, True),
        (THEN, [], [], True),  # the last "if" is not met, and so on upwards
    ],
)
def test_types_that_hold_each_other_are_read_in_few_steps(followed, schema, leaf, made, fits):
    """Of the 2^40 ways to a leaf 40 levels down, each reference is followed once for each value."""
    check_schema(schema)
    wanted = nested(made)
    found, wrong = coerced(nested(leaf), schema)
    assert found == wanted
    assert (wrong is None) == fits
    assert 0 < len(followed) < 20 * DEEP


def test_a_tower_of_references_is_no_work(followed):
    """Thirty definitions of two references each lead to the lowest one in a billion ways."""
    check_schema(LAUGHS)
    assert coerced({"x": "7"}, LAUGHS) == ({"x": 7}, None)
    assert "not valid under any" in coerced({"x": []}, LAUGHS)[1]
    assert len(followed) < 1000


def test_what_is_wrong_is_told_at_each_place_where_it_is():
    """A value that stands twice, and whose fault is known the second time, is at fault in both places."""
    inner = {"x": 5}
    schema = {"properties": {"p": A, "q": A}, "$defs": MUTUAL["$defs"]}
    checks = validity.Validity(schema)
    for name in "pqp":
        assert checks.violation({name: inner}, schema).endswith(f"(at $.{name}.x)")


def test_the_answers_are_the_librarys():
    """Over random schemas with references, and random values: the same verdict, also of parts, from many threads."""

    def look(seed):
        rng = random.Random(seed)
        names = ["a", "b", "c"]
        refs = [{"$ref": f"#/$defs/{name}"} for name in names]
        leaves = [{"type": "integer"}, {"type": "string"}, NULL, {"const": 1}, {"maximum": 3}]

        def some(depth=2):
            kind = rng.randrange(6) if depth else rng.randrange(2)
            if kind == 0:
                return rng.choice(leaves)
            if kind == 1:
                return {"properties": {name: rng.choice(refs) for name in "xy"}}
            if kind == 2:
                return {"items": rng.choice(refs), "properties": {"x": some(depth - 1)}}
            if kind == 3:
                return {"not": some(depth - 1)}
            word = rng.choice(["anyOf", "oneOf", "allOf"])
            return {word: [some(depth - 1) for _ in range(2)]}

        def value(depth=4):
            kind = rng.randrange(5) if depth else rng.randrange(3)
            if kind == 3:
                return {name: value(depth - 1) for name in rng.sample("xyz", 2)}
            if kind == 4:
                return [value(depth - 1) for _ in range(2)]
            return rng.choice([1, 5, "t", None])

        schema = {**some(), "$defs": {name: some() for name in names}}
        plain = Draft202012Validator(schema)
        checks = validity.Validity(schema)
        found = []
        for _ in range(20):
            one = value()
            for part in (schema, *schema["$defs"].values()):
                wanted = plain.evolve(schema=part).is_valid(one)
                assert (checks.violation(one, part) is None) == wanted
                assert (violation(one, part, root=schema) is None) == wanted
                found.append(wanted)
        return found

    with ThreadPoolExecutor(4) as pool:
        verdicts = [one for found in pool.map(look, range(60)) for one in found]
    assert 500 < sum(verdicts) < len(verdicts) - 500


def test_a_dynamic_reference_is_followed_on_each_way():
    """What it means depends on the way there: a tree of extended nodes, and the same one of plain nodes."""
    tree = {
        "$id": "http://example.org/tree",
        "$dynamicAnchor": "node",
        "properties": {"kids": {"items": {"$dynamicRef": "#node"}}},
    }
    strict = {
        "$id": "http://example.org/strict",
        "$dynamicAnchor": "node",
        "$ref": "tree",
        "required": ["v"],
        "$defs": {"tree": tree},
    }
    leaf = {}
    assert violation({"v": 1, "kids": [leaf]}, strict) is not None
    assert violation({"v": 1, "kids": [{"v": 2}]}, strict) is None


@pytest.mark.parametrize("depth", [validity.DEEPEST + 1, 1000, 100_000])
@pytest.mark.parametrize("schema", [{}, {"type": "object"}, MUTUAL, TWICE])
def test_a_value_that_is_nested_too_deeply_is_told_so(schema, depth):
    """Whether or not the schema looks into it: whoever writes or compares it would fail."""
    for value in (nested(1, depth), nested([], depth)):
        assert coerced(value, schema) == (value, "it is nested too deeply")


def test_the_deepest_value_is_read():
    """It can be written as JSON, and compared."""
    value = nested(None, validity.DEEPEST - 2)
    assert json.loads(json.dumps(coerced(value, {})[0])) == value


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$"])
def test_a_pattern_takes_no_longer_for_an_evil_text(pattern):
    """Where a backtracking engine would try 2^50 ways."""
    assert violation("a" * 50, {"pattern": pattern}) is None
    assert "does not match" in violation("a" * 50 + "!", {"pattern": pattern})


@pytest.mark.parametrize(
    ("pattern", "fits", "breaks"),
    [
        ("b", "abc", "ac"),
        ("^[a-c]{2}$", "ab", "abc"),
        (r"^\d+\.\w$", "12.é", "12x"),
        ("(?=ab)a", "xab", "xa"),
        (r"(.)\1", "aa", "ab"),
        ("^größe$", "größe", "gröse"),
    ],
)
def test_a_pattern_is_searched_for(pattern, fits, breaks):
    """As the standard says, also one that only the other engine reads; what is no text has none."""
    assert violation(fits, {"pattern": pattern}) is None
    assert "does not match" in violation(breaks, {"pattern": pattern})
    assert violation(7, {"pattern": pattern}) is None


def test_calls_and_votes_read_such_types_as_well(followed):
    """The arguments of a call, and the objects that samples say."""
    tools = read_tools([{"name": "f", "description": "", "parameters": MUTUAL}], "any")
    value = json.dumps(nested("null"))
    [call] = HERMES.parse(
        f'<tool_call>\n{{"name": "f", "arguments": {value}}}\n</tool_call>', tools
    ).calls
    assert call["args"] == nested(None)
    for text, counts in ((value, True), (json.dumps(nested(5)), False), ("[" * 100_000, False)):
        found = Reader(Form(schema=MUTUAL), (HERMES,), AnswerFormat()).extract(text)
        assert (found is not None) == counts
    assert len(followed) < 100 * DEEP


# --- made to fit


@pytest.mark.parametrize(
    ("schema", "value", "made"),
    [
        ({"type": "integer"}, "7", 7),
        ({"type": "integer"}, 7.0, 7),
        ({"type": "string"}, 7, "7"),
        ({"type": "boolean"}, "True", True),
        ({"type": "null"}, "None", None),
        ({"type": "array"}, "[1]", [1]),
        ({"enum": [1, "x"]}, "1", 1),
        ({"const": None}, "None", None),
        ({"type": "array", "uniqueItems": True}, [2, 1, 2], [2, 1]),
        ({"items": {"type": "integer"}}, ["1", 2], [1, 2]),
        ({"properties": {"a": {"type": "integer"}}}, {"a": None, "b": None}, {"b": None}),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": "3"}, {"a": 3}),
        ({"anyOf": [{"type": "integer"}, NULL]}, "8", 8),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, "8", "8"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}, "8", 8),
        ({"$ref": "#n", "$defs": {"n": {"$anchor": "n", "type": "integer"}}}, "8", 8),
        ({"properties": {"a/b~c": {"$ref": "#/$defs/x~1y"}}, "$defs": {"x/y": {"type": "integer"}}}, {"a/b~c": "8"}, {"a/b~c": 8}),
        ({"type": ["integer", "object"], "properties": {"a": {"$ref": "#"}}}, {"a": {"a": "4"}}, {"a": {"a": 4}}),
    ],
)  # fmt: skip
def test_a_value_is_made_to_fit_where_the_meaning_is_plain(schema, value, made):
    """And the one that was given is not changed."""
    before = json.dumps(value)
    assert coerced(value, schema) == (made, None)
    assert json.dumps(value) == before


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"$ref": "#/nowhere"}, {"$ref": "http://x.org/"}]
)
def test_a_schema_that_nobody_has_checked_is_told_in_words(schema):
    """Nothing is raised."""
    value, wrong = coerced({"a": "1"}, schema)
    assert value == {"a": "1"}
    assert wrong
