"""
Where one step of a solution ends and the next begins: what a search branches at, and what a process reward is of.

Knows text; knows neither how a step is drawn nor what it is worth.
"""

from __future__ import annotations

import re
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from langchain_pareto.backends.stops import step_ends
from langchain_pareto.errors import SettingError

_HINT = r'Give delimiters=("\n\n",), a pattern=r"\nStep \d+:" (its flags as in "(?i:step)"), or tokens=64.'


class Steps(BaseModel):
    r"""A step ends with the first of `delimiters`, with `pattern` instead of them, or after `tokens`; whichever comes first.

    By default a step is a line; blank lines belong to the step after them, so that reasoning in paragraphs has no empty steps. `pattern`
    is the user's own regular expression for the end of a step, for example `r"\nStep \d+:"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delimiters: tuple[str, ...] = ("\n",)
    pattern: str | None = None
    tokens: int | None = Field(default=None, ge=1)

    def __init__(self, **settings: object) -> None:
        """Raises SettingError for what can end no step; a delimiter may come bare."""
        try:
            super().__init__(**settings)
        except ValidationError as error:
            problems = "; ".join(
                f"{e['loc'][0]}={e['input']!r}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            msg = f"no step can end like this: {problems}"
            raise SettingError(msg, hint=_HINT) from None

    @field_validator("delimiters", mode="before")
    @classmethod
    def _check_delimiters(cls, value: object) -> object:
        value = (value,) if isinstance(value, str) else value
        if isinstance(value, tuple | list) and "" in value:
            msg = "a delimiter must not be empty"
            raise ValueError(msg)
        return value

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            re.compile(_end(value))
            empty = re.compile(value).search("") is not None
        except (re.error, RecursionError, OverflowError) as error:
            msg = f"it is no regular expression that can follow a text: {error}"
            raise ValueError(msg) from None
        if empty:
            msg = "it matches nothing at all, so that a step would be one character"
            raise ValueError(msg)
        return value

    @cached_property
    def end(self) -> str | None:
        """A regular expression that a step's text matches once it is whole; None where only tokens count."""
        ends = self.pattern or "|".join(map(re.escape, self.delimiters))
        return _end(ends) if ends else None

    def split(self, text: str) -> list[str]:
        """The steps of a text, which join to it; blank ends belong to the last step."""
        if self.end is None:
            return [text] if text.strip() else []
        cuts = list(step_ends(re.compile(self.end), text))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        if len(parts) > 1 and not parts[-1].strip():
            parts[-2:] = [parts[-2] + parts[-1]]
        return [part for part in parts if part.strip()]


def _end(pattern: str) -> str:
    """What a text that ends with `pattern` matches: there is something before it."""
    return rf"(?s:\S.*?)(?:{pattern})"
