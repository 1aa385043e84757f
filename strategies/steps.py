"""
Where one step of a solution ends and the next begins: what a search branches at, and what a process reward is of.

Knows text; knows neither how a step is drawn nor what it is worth.
"""

from __future__ import annotations

import re
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field, field_validator

from langchain_pareto.errors import SettingError


class Steps(BaseModel):
    r"""A step ends with the first of `delimiters`, with `pattern` instead of them, or after `tokens`; whichever comes first.

    By default a step is a line; blank lines belong to the step after them, so that reasoning in paragraphs has no empty steps. `pattern`
    is the user's own regular expression for the end of a step, for example `r"\nStep \d+:"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    delimiters: tuple[str, ...] = ("\n",)
    pattern: str | None = None
    tokens: int | None = Field(default=None, ge=1)

    @field_validator("delimiters")
    @classmethod
    def _check_delimiters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            msg = f"a delimiter of steps must not be empty; got {value!r}"
            raise SettingError(msg)
        return value

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            empty = re.compile(value).search("") is not None
        except re.error as error:
            msg = f"the pattern of a step's end, {value!r}, is no regular expression: {error}"
            raise SettingError(msg) from None
        if empty:
            msg = f"the pattern {value!r} matches nothing at all, so no step would have a text"
            raise SettingError(msg)
        return value

    @cached_property
    def end(self) -> str | None:
        """A regular expression that a step's text matches once it is whole; None where only tokens count."""
        ends = self.pattern or "|".join(map(re.escape, self.delimiters))
        return rf"(?s:\S.*?)(?:{ends})" if ends else None

    def split(self, text: str) -> list[str]:
        """The steps of a text, which join to it; blank ends belong to the last step."""
        if self.end is None:
            return [text] if text.strip() else []
        cuts = [match.end() for match in re.finditer(self.end, text)]
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        if len(parts) > 1 and not parts[-1].strip():
            parts[-2:] = [parts[-2] + parts[-1]]
        return [part for part in parts if part.strip()]
