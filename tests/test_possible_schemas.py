"""Schemas that no value fits: found wherever that is so by types, limits and what must be there, and never where a value fits."""

import random

import pytest
from jsonschema import Draft202012Validator

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.possible import Possible
from langchain_pareto.forms.references import places
from langchain_pareto.forms.schemas import check_schema

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}


def of(part, **more):
    return {"type": "object", "properties": {"a": part}, "required": ["a"], **more}


def why_not(schema):
    return Possible(places(schema)).why_not()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (False, "$.a must be there, and may not"),
        ({"enum": []}, "$.a has an enum or a const"),
        ({"type": "string", "enum": [1, None]}, "$.a has an enum or a const"),
        ({"type": "integer", "const": 2.5}, "$.a has an enum or a const"),
        ({"enum": [True, 1.5], "const": 1}, "$.a has an enum or a const"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "$.a has minItems 3 above maxItems 2"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength 3 above maxLength 2"),
        ({"type": "object", "minProperties": 2, "maxProperties": 1}, "minProperties 2"),
        ({"type": "object", "required": ["x", "y"], "maxProperties": 1}, "requires 2 properties"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no number from minimum 3 to maximum 2"),
        ({"type": "integer", "minimum": 3.2, "maximum": 3.7}, "no number from minimum 3.2"),
        ({"type": "integer", "exclusiveMinimum": 3, "maximum": 3.9}, "exclusiveMinimum 3"),
        ({"type": "number", "exclusiveMinimum": 3, "maximum": 3}, "exclusiveMinimum 3"),
        ({"allOf": [{"type": "string"}, {"type": ["integer", "null"]}]}, "exclude each other"),
        ({"allOf": [{"type": "string"}, False]}, "$.a is forbidden"),
        ({"anyOf": [False, {"enum": []}]}, "$.a is forbidden"),
        ({"oneOf": [of({"enum": []})]}, "$.a.a has an enum"),
        ({"type": "array", "items": False, "minItems": 1}, "$.a.0 must be there"),
        ({"type": "array", "prefixItems": [True, {"enum": []}], "minItems": 2}, "$.a.1 has an enum"),
        (of(True, required=["b"], additionalProperties=False), "$.a.b must be there, and may not"),
        (of({"$ref": "#/$defs/none"}), "$.a.a has an enum"),
        ({"$ref": "#/$defs/n"}, "$.a.next must hold itself, without end"),
        ({"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1}, "$.a.0.next must hold"),
        ({"anyOf": [{"$ref": "#/$defs/n"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]}, "$.a.next must"),
    ],
)  # fmt: skip
def test_a_schema_without_values_is_refused(schema, words):
    """With the place and the words that forbid, before anything is drawn."""
    whole = of(schema, **{"$defs": {"n": NODE, "none": {"enum": []}}})
    assert words in why_not(whole)
    with pytest.raises(SettingError, match="no value can fit") as caught:
        check_schema(whole)
    assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": ["integer", "null"], "minimum": 3, "maximum": 2},
        {"minItems": 3, "maxItems": 2},
        {"type": "number", "minimum": 3.2, "maximum": 3.7},
        {"type": "array", "items": False},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]},
        {"type": "object", "required": ["x1"], "patternProperties": {"^x": True}, "additionalProperties": False},
        {"type": "number", "const": 3},
        {"type": "integer", "const": 3.0},
        {"enum": [[1], {"a": 1}], "type": ["array", "object"]},
        {"not": {"type": "null"}},
    ],
)  # fmt: skip
def test_a_schema_with_values_is_none_of_them(schema):
    """An end that may be taken is enough, and limits count for their own type alone."""
    whole = of(schema, **{"$defs": {"n": NODE}})
    check_schema(whole)
    assert why_not(whole) is None


def part(rng, depth):
    """A schema that may contradict itself, with references to two definitions."""
    some = lambda: rng.choice([0, 1, 2, 3])  # noqa: E731 - short, and used a dozen times
    if depth == 0 or rng.random() < 0.2:
        return rng.choice([True, False, {"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}, {}])
    made = {}
    if rng.random() < 0.7:
        kinds = ["object", "array", "string", "integer", "number", "null", "boolean"]
        made["type"] = rng.sample(kinds, rng.randint(1, 2))
    for word in ("Items", "Length", "Properties"):
        if rng.random() < 0.2:
            made |= {f"min{word}": some(), f"max{word}": some()}
    for word in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        if rng.random() < 0.2:
            made[word] = some() / 2
    if rng.random() < 0.5:
        made["properties"] = {name: part(rng, depth - 1) for name in "ab"}
        made["required"] = rng.sample(["a", "b", "c"], rng.randint(0, 2))
        made["additionalProperties"] = rng.choice([True, False])
    if rng.random() < 0.4:
        made["items"] = part(rng, depth - 1)
    if rng.random() < 0.2:
        made["prefixItems"] = [part(rng, depth - 1)]
    if rng.random() < 0.2:
        made["enum"] = rng.sample([0, 1, 1.5, "x", None, True, [], {"a": 1}], rng.randint(0, 2))
    if rng.random() < 0.1:
        made["const"] = rng.choice([0, "x", [1]])
    for word in ("allOf", "anyOf", "oneOf"):
        if rng.random() < 0.2:
            # what is referred to for the same value could come back to where it began
            made[word] = [one for _ in range(2) if "$ref" not in str(one := part(rng, depth - 1))]
            made = made if made[word] else {k: v for k, v in made.items() if k != word}
    return made


def value(rng, depth=3):
    """Any small value."""
    kind = rng.randrange(6 if depth else 4)
    if kind == 4:
        return [value(rng, depth - 1) for _ in range(rng.randint(0, 2))]
    if kind == 5:
        return {name: value(rng, depth - 1) for name in rng.sample("abc", rng.randint(0, 2))}
    return rng.choice([0, 1, 1.5, 0.5, 2, "x", "", "xyz", None, True, False])


def test_whatever_has_a_value_is_called_possible():
    """Of random schemas, the whole and every part: a value that the library finds valid is one that may be."""
    rng, impossible, fitting = random.Random(0), 0, 0
    values = [value(rng) for _ in range(150)]
    for _ in range(250):
        defs = {name: part(rng, 2) for name in "xy"}
        inner = {
            name: one if isinstance(one, dict) and "$ref" not in one else {}
            for name, one in defs.items()
        }
        schema = {"properties": {"a": part(rng, 3)}, "$defs": inner}
        found = places(schema)
        possible = Possible(found)
        root = Draft202012Validator(schema)
        for place in found:
            fits = any(root.evolve(schema=place.schema).is_valid(one) for one in values)
            fitting += fits
            impossible += not possible.has_value(place.schema)
            assert possible.has_value(place.schema) or not fits, (place.schema, schema)
    assert impossible > 100
    assert fitting > 500
