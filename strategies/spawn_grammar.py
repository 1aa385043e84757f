"""
How a model writes a spawn, what each of its children is asked, and how what they found is joined back.

Knows text, and the marks in it; knows neither how a thread is drawn nor what it costs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.prompts import fill


@dataclass(frozen=True, slots=True)
class SpawnCall:
    """One child of a spawn: what the parent calls it, and what it is asked; None where the parent names nothing that there is."""

    name: str
    prompt: str | None


class SpawnGrammar(BaseModel):
    """A spawn is a block from the mark `spawn` to the mark `end`: words, or special tokens of the model's.

    `results` begins what the host writes in its place; a model that writes it by itself is made to spawn instead. `condition` is put
    before the question to tell the model how many children, {n}, to start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    spawn: str = Field(min_length=1)
    end: str = Field(min_length=1)
    results: str | None = Field(default=None, min_length=1)
    condition: str = "Sub Call Budget: {n} "

    def calls(self, question: str, text: str, block: str) -> list[SpawnCall]:
        """The children that `block` asks for, in order; `text` is what the thread had written before it."""
        raise NotImplementedError

    def result(self, text: str) -> str | None:
        """What a child that wrote `text` gives back; None where it found nothing."""
        raise NotImplementedError

    def join(self, calls: Sequence[SpawnCall], results: Sequence[str | None], level: int) -> str:
        """What the parent reads instead of its spawn; its children are at `level`, 1 for those of the first thread."""
        raise NotImplementedError


class TaskList(SpawnGrammar):
    """A spawn lists tasks, one child each; by default a line each, between the nano family's own tokens.

    `task` is a regular expression with the one group that is the task. Places: {question} and {task} in a child's `prompt`; {task} and
    {result} in `found`, the line of a child that found something; {task} in `missing`, that of another; {results}, all these lines, in
    `joined`. `find` is a regular expression of what a child gives back, its group or all of it; None for its whole text.
    """

    kind: Literal["task_list"] = "task_list"
    spawn: str = Field(default="<|spawn|>", min_length=1)
    end: str = Field(default="<|join|>", min_length=1)
    task: str = r"(?m)^[ \t]*(\S.*?)[ \t]*$"
    prompt: str = "{task}"
    find: str | None = None
    found: str = "{task}\n{result}\n<|join|>"
    missing: str = "{task}\n<|join|>"
    joined: str = "<|spawn|>{results}"

    @field_validator("task", "find")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        try:
            groups = 1 if value is None else re.compile(value).groups
        except re.error as error:
            msg = f"{value!r} is no regular expression: {error}"
            raise SettingError(msg) from None
        if groups != 1:
            msg = f"{value!r} has {groups} groups, expected the one that is wanted"
            raise SettingError(msg)
        return value

    def calls(
        self,
        question: str,
        text: str,  # noqa: ARG002 - a task says all that its child needs
        block: str,
    ) -> list[SpawnCall]:
        """A child for each task; a blank one asks for nothing."""
        tasks: list[str] = re.findall(self.task, block.replace(self.spawn, "\n"))
        return [
            SpawnCall(t, fill(self.prompt, question=question, task=t) if t.strip() else None)
            for t in tasks
        ]

    def result(self, text: str) -> str | None:
        """The last match, or all that it wrote."""
        if self.find is None:
            return text.strip() or None
        found: list[str] = re.findall(self.find, text)
        return found[-1] if found else None

    def join(
        self,
        calls: Sequence[SpawnCall],
        results: Sequence[str | None],
        level: int,  # noqa: ARG002 - the same words at every level
    ) -> str:
        """A line for each task, in order."""
        lines = [
            fill(self.missing, task=call.name)
            if result is None
            else fill(self.found, task=call.name, result=result)
            for call, result in zip(calls, results, strict=True)
        ]
        return fill(self.joined, results="".join(lines))


_NODE = r"(#[0-9]+(?:,[0-9]+)*)"
_NUMBERS = r"([0-9]+):\[((?:[0-9]+(?:, ?[0-9]+)*)?)\]"
_STATE = re.compile(
    rf"Moving to Node {_NODE}[ \t]*\n.*?Current State: {_NUMBERS}, Operations: \[([^\]\n]*)\]"
)
_GENERATED = re.compile(rf"Generated Node {_NODE}: {_NUMBERS} Operation: (\S+)")
_CALL = re.compile(rf"<Start Sub Search [^>\n]*>.*?Moving to Node {_NODE}")
_GOAL = "Goal Reached"


class SubSearches(SpawnGrammar):
    """The published wire format of adaptive parallel reasoning on Countdown (Pan et al. 2025, arXiv 2504.15466), byte for byte.

    The parent names nodes of its search; a child is given the node's state, its numbers and the operations that led there, which the
    host reads off the parent's trace. What it gives back is the path from its node to the goal, which it restates at its end.
    """

    kind: Literal["sub_searches"] = "sub_searches"
    spawn: str = Field(default="<Calling Sub Searches>", min_length=1)
    end: str = Field(default="<End Calling Sub Searches>", min_length=1)
    results: str | None = Field(default="<Sub Searches>", min_length=1)

    def calls(self, question: str, text: str, block: str) -> list[SpawnCall]:
        """A child for each node; one that the trace does not tell about cannot be asked anything."""
        states = _states(f"{question}{text}")
        nodes = _CALL.findall(block.rpartition(self.spawn)[2])
        return [SpawnCall(node, states.get(node)) for node in nodes]

    def result(self, text: str) -> str | None:
        """What follows the last but one "Goal Reached": the restated path."""
        parts = text.split(_GOAL)
        return f"{parts[-2]}{_GOAL}{parts[-1]}".rstrip()[1:] if len(parts) > 2 else None

    def join(self, calls: Sequence[SpawnCall], results: Sequence[str | None], level: int) -> str:
        """The children's paths, in the order of the calls."""
        lines = [
            f"<No Solution in Sub Search {i} at level {level} at Node {call.name}>\n"
            if result is None
            else f"<{_GOAL} in Sub Search {i} at level {level} at Node {call.name}>\n{result}\n"
            for i, (call, result) in enumerate(zip(calls, results, strict=True))
        ]
        return f"{self.results}\n{''.join(lines)}<End Sub Searches>\n"


def _states(trace: str) -> dict[str, str]:
    """What a child at each node of a trace is given; where a node was moved to, its own statement counts."""
    found = dict[str, tuple[str, str, list[str]]]()
    for node, target, numbers, operations in _STATE.findall(trace):
        found[node] = target, numbers, re.findall("'([^']*)'", operations)
    moved = frozenset(found)
    for node, target, numbers, operation in _GENERATED.findall(trace):
        parent = found.get(node.rpartition(",")[0])
        if node not in moved and parent is not None:
            found[node] = target, numbers, [*parent[2], operation]
    return {
        node: f"Moving to Node {node}\n"
        f"Current State: {target}:[{', '.join(re.split(', ?', numbers))}], Operations: {operations}"
        for node, (target, numbers, operations) in found.items()
    }


AnyGrammar = Annotated[SubSearches | TaskList, Field(discriminator="kind")]
