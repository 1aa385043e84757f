"""
What one search says of itself, checked: its thoughts, what it spent of what, and why it ended.

Knows the fields of `response_metadata["pareto"]` and their mistakes; knows neither where they come from nor how they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from langchain_pareto.errors import SettingError
from langchain_pareto.forms.tool_arguments import without_surrogates

_MOST = 10**15  # tokens: more is a mistake, and would not be exact as a float
_UNFINISHED = ("length", "deadline", "cancelled")


def _unpaired(text: object) -> object:
    """JSON can hold halves of surrogate pairs, which are not text."""
    return without_surrogates(text) if isinstance(text, str) else text


def _plain(value: object) -> object:
    """JSON as it comes back: whatever it holds can be written."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError as error:
        raise ValueError("settings are nested too deeply") from error
    return json.loads(without_surrogates(text))


_Text = Annotated[str, BeforeValidator(_unpaired)]
_Settings = Annotated[dict[str, object], BeforeValidator(_plain)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class Node(BaseModel):
    """One thought; `parent` 0 is the prompt, and a `finish` of None means that nobody sampled it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int = Field(ge=1, le=_MOST)
    parent: int = Field(default=0, ge=0, le=_MOST)
    text: _Text = ""
    tokens: int = Field(default=0, ge=0, le=_MOST)
    finish: _Text | None = None
    role: _Text = "policy"
    answer: _Text | None = None
    exact: bool = False  # whether its answer is the same as another only letter by letter
    score: _Number | None = None
    mean_logprob: _Number | None = None
    seconds: _Number | None = None
    chosen: bool = False

    @property
    def sampled(self) -> int:
        """Its tokens, as far as a model drew them."""
        return 0 if self.finish is None else self.tokens

    @property
    def cut(self) -> bool:
        """Whether something ended it before it was done."""
        return self.finish in _UNFINISHED


class Expected(BaseModel):
    """What a plan thought to take of one resource: on average, and what 9 of 10 calls stay within."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    mean: _Number
    p90: _Number | None = None


class Accuracy(BaseModel):
    """The share of right answers that a plan promised, and its 90 % interval."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    mean: _Number
    low: _Number
    high: _Number


class NotTaken(BaseModel):
    """A plan that was not taken, and why."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    plan: _Text
    why: _Text


class Planned(BaseModel):
    """What was planned before the search began."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    level: int = 0
    source: _Text = "prior"
    binding: _Text | None = None
    roles: dict[_Text, _Text] = Field(default_factory=dict)
    expected: dict[_Text, Expected] = Field(default_factory=dict)
    quality: Accuracy | None = None
    rejected: tuple[NotTaken, ...] = ()
    notes: tuple[_Text, ...] = ()


class Run(BaseModel):
    """One search; what is not known is None, and a `tree` of None was not told."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    strategy: _Settings
    spent: dict[_Text, _Number]
    stopped_by: _Text
    question: _Text | None = None
    text: _Text | None = None
    model: _Text | None = None
    prompt_tokens: int | None = None
    budget: _Text | None = None
    samples: int | None = None
    answer: _Text | None = None
    share: _Number | None = None
    figures: dict[_Text, _Number] = Field(default_factory=dict)
    seed: int | None = None
    decoder: _Settings | None = None
    speculation: dict[_Text, _Number] | None = None
    plan: Planned | None = None
    tree: tuple[Node, ...] | None = None

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Self:
        """Checked values; raises SettingError that names the first mistakes."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = error.errors(include_url=False)
            told = "; ".join(
                f"{'.'.join(str(part) for part in e['loc']) or 'tree'}: {e['msg']}"
                for e in found[:3]
            )
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            msg = f"this is not a report of a search: {told}{more}"
            hint = 'A report is what stands in response_metadata["pareto"] of an answer.'
            raise SettingError(msg, hint=hint) from None

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        """Numbers go in order of drawing: a parent comes before its children, which leaves no room for cycles."""
        seen = set[int]()
        for node in self.tree or ():
            if node.id in seen:
                raise ValueError(f"two thoughts have the number {node.id}")
            if node.parent >= node.id:
                raise ValueError(f"thought {node.id} names {node.parent} as its parent")
            seen.add(node.id)
        return self
