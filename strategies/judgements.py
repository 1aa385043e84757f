"""
How a judge's reply is read: a score, a choice, a side; None for whatever says anything more or less.

Knows text; knows no judge and no prompt.
"""

from __future__ import annotations

import re
from typing import Literal

_MARKS = r"[\s*_`\"'\[\]()]*"  # markdown around a word
_SCORE = r"(\d+(?:\.\d+)?)(?:\s*/\s*10|\s+out of 10)?"


def read_score(text: str) -> float | None:
    """The number after "Score:", from 0 to 10."""
    found = _read(text, "score", _SCORE)
    return float(found) if found is not None and float(found) <= 10 else None


def read_choice(text: str, n: int) -> int | None:
    """The index, from 0, of the one of `n` whose number, from 1, is after "Best:"."""
    found = _read(text, "best", r"(?:answer )?(\d+)")
    return int(found) - 1 if found is not None and 1 <= int(found) <= n else None


def read_side(text: str) -> Literal["A", "B"] | None:
    """The letter after "Better:"."""
    found = _read(text, "better", r"(?:answer )?([ab])")
    if found is None:
        return None
    return "A" if found.upper() == "A" else "B"


def _read(text: str, label: str, value: str) -> str | None:
    """The value on the last line that begins with the label, or all there is; None where that is anything more."""
    label = rf"{_MARKS}(?:final |overall )?{label}\b"
    labelled = [line for line in text.splitlines() if re.match(label, line, re.IGNORECASE)]
    whole = rf"(?:{label}{_MARKS}[:=])?{_MARKS}{value}[.\s*_`\"'\[\]()]*"
    found = re.fullmatch(whole, labelled[-1] if labelled else text, re.IGNORECASE)
    return found[1] if found else None
