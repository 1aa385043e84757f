"""
What single steps of one model take on one device: those that draw, and those that read.

Knows counts of tokens and coefficients; knows no model, and neither measures nor fits. A step of B sequences takes a + b B + c S: reading
the weights, computing the rows, reading contexts of S tokens together. b may be another from some width on, for the kernels are. Forks of
one prompt do not read S tokens: `StepCost.sharing` says what the engine reads instead.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from pydantic import ConfigDict

from langchain_pareto.errors import SettingError

# How forks of one prompt attend: each to its own context; to the union of all while that is cheaper, as the torch runner does; or each to its
# own context after looking at every cell that is in use, as llama.cpp does.
Sharing = Literal["none", "union", "scan"]

PREFILL_CHUNK = 2048  # tokens of a prompt in one step
COLUMN_ROWS = 8  # rows that attending to a column costs as much as fetching it: backends/attention_groups.py goes by that
FEWEST_COLUMNS = 128  # of the torch runner's attention, as there
_WIDEST = 256  # sequences that strategies draw side by side


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step in which B sequences draw a token each."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    a: float
    b: float  # a sequence, up to the first bend
    c: float  # a token of context that a sequence reads
    # "union": a fork that attends apart, and a column that is fetched anew since a fork has ended.
    # "scan": a cell that a sequence looks at, and a cell that is in use.
    d: float = 0.0
    e: float = 0.0
    bends: tuple[tuple[int, float], ...] = ()  # (width, what a sequence takes beyond it)
    sharing: Sharing = "none"
    padded: bool = False  # whether rows are computed in few numbers, as captured graphs need them

    def seconds(self, rows: int, context: int) -> float:
        """One step of `rows` sequences that share nothing, whose contexts are `context` tokens together."""
        total = self.width(rows) + self.c * context
        if self.sharing == "scan":
            return total + (self.d * rows + self.e) * context
        return total + (self.d * rows if self.sharing == "union" and rows > 1 else 0.0)

    def width(self, rows: int) -> float:
        """What a step takes by its width alone."""
        return self._widths[rows] if rows <= _WIDEST else self._at(rows)

    def between(self, rows: int, prompt: int, start: int, stop: int, dead: int = 0) -> float:
        """The steps that draw tokens number `start` to `stop` of each of `rows` forks of one prompt, of `prompt` tokens.

        `dead` tokens more lie in the cache, of forks that have ended.
        """
        steps, half = stop - start, (start + stop - 1) / 2  # tokens that a fork has on average
        total = steps * self.width(rows)
        if self.sharing == "scan":
            cells = prompt + dead + rows * half
            read = self.c * rows * (prompt + half) + (self.d * rows + self.e) * cells
            return total + steps * read
        if self.sharing == "none":
            return total + self.c * steps * rows * (prompt + half)
        parting = stop if rows == 1 else min(max(start, _parting(rows, prompt)), stop)
        together = _columns(prompt, rows, start, parting) * (COLUMN_ROWS + rows)
        reads = together / (COLUMN_ROWS + 1) + rows * _columns(prompt, 1, parting, stop)
        fetched = (1, rows) if parting > start else (rows, 1)
        anew = fetched[0] * max(FEWEST_COLUMNS, prompt + fetched[1] * start)
        return total + self.c * reads + self.d * rows * (stop - parting) + self.e * anew

    def drawing(self, lengths: Sequence[int], prompt: int) -> float:
        """All steps until forks of one prompt have drawn so many tokens each."""
        total, dead, at = 0.0, 0, 0
        ordered = sorted(lengths)
        for i, length in enumerate(ordered):
            if length > at:
                total += self.between(len(ordered) - i, prompt, at, length, dead)
                at = length
            dead += length
        return total

    def drawn(self, lengths: Sequence[int], prompt: int, seconds: float) -> int:
        """How many tokens the longest of these forks has after so many seconds; a step that has begun is ended."""
        if seconds <= 0:
            return 0
        dead = at = 0
        ordered = sorted(lengths)
        for i, length in enumerate(ordered):
            if length > at:
                rows, start, of = len(ordered) - i, at, dead
                took = self.between(rows, prompt, start, length, of)
                if took >= seconds:
                    ends = range(start + 1, length + 1)
                    found = bisect_left(
                        ends, seconds, key=lambda end: self.between(rows, prompt, start, end, of)
                    )
                    return ends[min(found, len(ends) - 1)]
                seconds -= took
                at = length
            dead += length
        return at

    def guessing(self, draft: StepCost | None, *, guesses: int, acceptance: float) -> StepCost:
        """The same for draws whose tokens a draft guesses, `guesses` a round, each right with this chance; None guesses for free.

        A round verifies B (guesses + 1) rows and gives (1 - p^(guesses + 1)) / (1 - p) tokens a sequence on average (Leviathan et al. 2023,
        arXiv 2211.17192, equation 1).
        """
        if guesses < 1 or not 0 <= acceptance < 1:
            msg = f"a draft guesses at least 1 token, right with a chance from 0 to below 1; got {guesses} and {acceptance}"
            raise SettingError(msg)
        tokens = (1 - acceptance ** (guesses + 1)) / (1 - acceptance)
        widths = [1 << k for k in range(_WIDEST.bit_length())]
        rounds = [
            self._at(n * (guesses + 1)) + (guesses * draft.width(n) if draft else 0.0)
            for n in widths
        ]
        slopes = [
            (y - x) / (m - n) / tokens
            for n, m, x, y in zip(widths, widths[1:], rounds, rounds[1:], strict=False)
        ]
        read = guesses * draft.c if draft else 0.0
        return replace(
            self,
            a=rounds[0] / tokens - slopes[0],
            b=slopes[0],
            c=(self.c + read) / tokens,
            d=self.d / tokens,
            e=self.e / tokens if self.sharing == "scan" else self.e,  # a fork ends but once
            bends=tuple(zip(widths[1:-1], slopes[1:], strict=True)),
        )

    @cached_property
    def _widths(self) -> tuple[float, ...]:
        rows = map(padded_rows, range(_WIDEST + 1)) if self.padded else range(_WIDEST + 1)
        return tuple(map(self._at, rows))

    def _at(self, rows: int) -> float:
        total, last, slope = self.a, 0, self.b
        for width, beyond in self.bends:
            if rows <= width:
                break
            total += slope * (width - last)
            last, slope = width, beyond
        return total + slope * (rows - last)


def _parting(rows: int, prompt: int) -> int:
    """The first token at which forks attend apart.

    The union pays while (8 + B) [P + B x] <= 9 B [P + x], where the runner makes at least 128 columns of those in brackets: while
    B x <= 8 P, or longer for short prompts, whose forks would be padded.
    """
    short = ((COLUMN_ROWS + 1) * FEWEST_COLUMNS * rows // (COLUMN_ROWS + rows) - prompt) // rows
    if prompt + short <= FEWEST_COLUMNS:
        return max(0, short) + 1
    return COLUMN_ROWS * prompt // rows + 1


def _columns(prompt: int, rows: int, start: int, stop: int) -> float:
    """Columns of a union of `rows` forks, over the steps from `start` to `stop`; the torch runner pads what is narrow."""
    wide = min(max(start, -(-(FEWEST_COLUMNS - prompt) // rows)), stop)
    return FEWEST_COLUMNS * (wide - start) + (stop - wide) * (prompt + rows * (wide + stop - 1) / 2)


def padded_rows(rows: int) -> int:
    """The rows that the torch runner computes on a GPU: the next of 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, then in eighths."""
    least, parts = (4, 1) if rows <= 64 else (64, 3)
    if rows <= least:
        return 1 << max(0, rows - 1).bit_length()
    step = max(least >> parts, 1 << (rows.bit_length() - 1 - parts))
    return -(-rows // step) * step


@dataclass(frozen=True)
class PrefillCost:
    """Seconds of reading n tokens: a + b n + c n (tokens before them + n / 2), and `a` once for each chunk."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    a: float
    b: float
    c: float

    def seconds(self, tokens: int, cached: int = 0) -> float:
        """Reading `tokens` tokens after `cached` ones that are read already."""
        if tokens <= 0:
            return 0.0
        chunks = -(-tokens // PREFILL_CHUNK)
        return self.a * chunks + tokens * (self.b + self.c * (cached + tokens / 2))
