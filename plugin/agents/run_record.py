"""
What a run of an agent has spent, as a checkpoint keeps it: plain JSON, whole numbers.

Knows sums and how they add up; knows no limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypedDict

Sums: TypeAlias = dict[str, int]  # in the units of a Cost, and microseconds
SUMMED = ("tokens", "flops", "nanojoules", "nanodollars", "calls")


class Record(TypedDict):
    """What the state of an agent keeps: the sums of the latest run, and of all runs of its thread."""

    run: str
    spent: Sums
    thread: Sums


class Update(TypedDict, total=False):
    """What is added to a record; `earlier` was spent before this run, and nobody had written it down."""

    run: str
    spent: Sums
    earlier: Sums


def add_up(record: Record, update: Update) -> Record:
    """The record with an update; updates of one run may come in any order, and another run starts at zero."""
    spent, earlier = update.get("spent", {}), update.get("earlier", {})
    before = record.get("spent", {}) if record.get("run") == update["run"] else {}
    thread = plus(plus(record.get("thread", {}), earlier), spent)
    return Record(run=update["run"], spent=plus(before, spent), thread=thread)


def used(sums: Sums, resource: str) -> float:
    """A sum in the units of a Budget."""
    match resource:
        case "seconds":
            return sums.get("microseconds", 0) / 1e6
        case "joules":
            return sums.get("nanojoules", 0) / 1e9
        case "usd":
            return sums.get("nanodollars", 0) / 1e9
        case _:
            return sums.get(resource, 0)


def sums_of(record: Mapping[str, object]) -> Sums:
    spent = record.get("spent")
    return spent if isinstance(spent, dict) else {}


def plus(a: Sums, b: Sums) -> Sums:
    return {name: a.get(name, 0) + b.get(name, 0) for name in a | b}


def minus(a: Sums, b: Sums) -> Sums:
    return {name: a.get(name, 0) - b.get(name, 0) for name in a | b}
