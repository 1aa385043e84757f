"""
The places of a JSON schema, and where its references lead.

Knows the words under which schemas stand and how a reference is resolved; fetches nothing, and knows nothing of values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.exceptions import NoSuchResource, Unresolvable
from referencing.jsonschema import DRAFT202012, SchemaResource

from langchain_pareto.errors import SettingError

NOWHERE: Registry[Any] = Registry()  # nothing is fetched


@dataclass(frozen=True, slots=True)
class Place:
    """One schema within another, and the schemas that its references lead to."""

    schema: Mapping[str, object]
    targets: tuple[object, ...]


def places(schema: Mapping[str, object]) -> list[Place]:
    """Every schema within one, itself first; raises SettingError where a reference leads nowhere or elsewhere.

    What is no place of schemas and is referred to all the same is checked to be one: SchemaError.
    """
    root = DRAFT202012.create_resource(schema)
    todo = [(root, NOWHERE.resolver_with_root(root))]
    found = dict[int, Place]()
    known = {id(one.contents) for one in _parts(root)}
    while todo:
        resource, resolver = todo.pop()
        contents = resource.contents
        if id(contents) in found or not isinstance(contents, Mapping):
            continue
        todo += [(one, resolver.in_subresource(one)) for one in resource.subresources()]
        targets = list[object]()
        for ref in (contents[key] for key in ("$ref", "$dynamicRef") if key in contents):
            try:
                led = resolver.lookup(ref)
            except (Unresolvable, NoSuchResource) as error:
                place = "what it does not hold" if ref.startswith("#") else "a schema elsewhere"
                msg = f"a JSON schema refers to {ref!r:.200}, {place}"
                hint = "Put the definition under $defs, and refer to #/$defs/..."
                raise SettingError(msg, hint=hint) from error
            if id(led.contents) not in known:
                Draft202012Validator.check_schema(led.contents)
            targets.append(led.contents)
            todo.append((DRAFT202012.create_resource(led.contents), led.resolver))
        found[id(contents)] = Place(contents, tuple(targets))
    return list(found.values())


def check_ends(found: Sequence[Place]) -> None:
    """Raises SettingError where a schema refers back to itself for the same value."""
    beside = {
        id(one.schema): [*map(id, _same_value(one.schema)), *map(id, one.targets)] for one in found
    }
    try:
        TopologicalSorter(beside).prepare()
    except CycleError as error:
        msg = "a JSON schema refers to itself for the same value, without end"
        hint = "Let it refer to itself from a property or an item."
        raise SettingError(msg, hint=hint) from error


def listed(value: object) -> Sequence[object]:
    """The schemas of an allOf and its like."""
    return value if isinstance(value, list) else ()


def _parts(resource: SchemaResource) -> Iterator[Resource[Any]]:
    yield resource
    for one in resource.subresources():
        yield from _parts(one)


def _same_value(schema: Mapping[str, object]) -> Iterator[object]:
    for key in ("allOf", "anyOf", "oneOf"):
        yield from listed(schema.get(key))
    yield from (schema[key] for key in ("if", "then", "else", "not") if key in schema)
    dependent = schema.get("dependentSchemas")
    yield from dependent.values() if isinstance(dependent, Mapping) else ()
