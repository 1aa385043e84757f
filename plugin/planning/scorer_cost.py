"""
What a scorer's own work takes: so much a time that it is asked, so much a text, and so much a token of the texts.

Knows measured askings and what they are fitted to; knows no scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from langchain_pareto.errors import SettingError
from langchain_pareto.planning.fitting import fit

_STRICT = ConfigDict(extra="forbid")
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Work:
    """What is taken of one resource: by an asking, by each text in it, and by each token of these."""

    __pydantic_config__ = _STRICT

    call: _Amount = 0.0
    text: _Amount = 0.0
    token: _Amount = 0.0

    def of(self, texts: int, tokens: int) -> float:
        """What one asking takes."""
        return self.call + self.text * texts + self.token * tokens


@dataclass(frozen=True, slots=True)
class Scored:
    """A measured asking: how many texts of how many tokens in all were scored, and what that took."""

    texts: int
    tokens: int
    seconds: float
    flops: int
    drawn: int  # tokens that the scorer's own model wrote


@dataclass(frozen=True)
class ScorerCost:
    """What a scorer takes of seconds, FLOPs and drawn tokens (a judge's own; one that only reads draws none)."""

    __pydantic_config__ = _STRICT

    seconds: Work = Work()
    flops: Work = Work()
    drawn: Work = Work()

    @classmethod
    def fitted(cls, askings: Sequence[Scored]) -> ScorerCost:
        """The non-negative amounts that explain what was measured, each error relative to what was measured; SettingError for nothing."""
        if not askings:
            raise SettingError("a scorer's cost needs askings that were measured")
        return cls(
            _fit(askings, [one.seconds for one in askings]),
            _fit(askings, [one.flops for one in askings]),
            _fit(askings, [one.drawn for one in askings]),
        )

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ScorerCost:
        """Raises SettingError for what is no cost of a scorer."""
        try:
            found = _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc'])) or 'its text'}: {first['msg']}"
        else:
            if found.seconds != Work():
                return found
            why = "it takes no time"
        msg = f"this is no cost of a scorer: {why}"
        raise SettingError(msg, hint="Delete the file: it is measured again.")


_ADAPTER = TypeAdapter(ScorerCost)


def _fit(askings: Sequence[Scored], amounts: Sequence[float]) -> Work:
    """Over the askings that took any."""
    known = [(one, amount) for one, amount in zip(askings, amounts, strict=True) if amount > 0]
    if not known:
        return Work()
    features = [(1.0, one.texts, one.tokens) for one, _ in known]
    return Work(*fit(features, [amount for _, amount in known]))
