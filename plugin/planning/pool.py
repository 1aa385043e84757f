"""
Recorded answers of one model to many questions: what quality is measured on, and what strategies are replayed over.

A pool says of every sample which class of equal answers it gave, how long it was, and, where that is known, whether it was right, what
a scorer gave it and how likely it was. It has no texts. Knows files and arrays; knows no strategy and no model.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from langchain_pareto.errors import SettingError

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_APART = 1_000_000  # more classes than a question has answers
NO_ANSWER = -1  # the class of a sample that has none: it was cut off, or could not be read


@dataclass(frozen=True, slots=True)
class Pool:
    """Samples of one model as arrays of (questions, samples); classes of answers mean something within their question only."""

    model: str
    questions: tuple[str, ...]
    answers: Ints  # classes; NO_ANSWER does not vote
    tokens: Ints
    prompts: Ints  # (questions,): tokens of the prompt
    right: Bools | None = None
    scores: Floats | None = None  # a scorer's, of the whole text
    logprobs: Floats | None = None  # mean of a sample's tokens, nats

    @property
    def samples(self) -> int:
        """Samples of each question."""
        return int(self.answers.shape[1])

    def part(self, rows: Sequence[int] | Ints) -> Pool:
        """The pool of some questions."""
        index = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            questions=tuple(self.questions[i] for i in index),
            answers=self.answers[index],
            tokens=self.tokens[index],
            prompts=self.prompts[index],
            right=None if self.right is None else self.right[index],
            scores=None if self.scores is None else self.scores[index],
            logprobs=None if self.logprobs is None else self.logprobs[index],
        )

    def first(self, samples: int) -> Pool:
        """The pool of the first samples of each question."""
        return replace(
            self,
            answers=self.answers[:, :samples],
            tokens=self.tokens[:, :samples],
            right=None if self.right is None else self.right[:, :samples],
            scores=None if self.scores is None else self.scores[:, :samples],
            logprobs=None if self.logprobs is None else self.logprobs[:, :samples],
        )


def apart(pools: Mapping[str, Pool], *, shared: int) -> dict[str, Pool]:
    """The same pools where only class `shared` means the same in all of them: what else two models say is not taken to be equal."""
    return {
        name: replace(
            pool,
            answers=np.where(pool.answers > shared, pool.answers + i * _APART, pool.answers),
        )
        for i, (name, pool) in enumerate(pools.items())
    }


_Class = Annotated[int, Field(ge=NO_ANSWER, lt=_APART)]
_Length = Annotated[int, Field(ge=0, lt=2**48)]


class Row(BaseModel):
    """One line of a pool's file: a question and its samples."""

    model_config = ConfigDict(extra="ignore")

    question: str | int
    answer: list[_Class] = Field(min_length=1)
    tokens: list[_Length] = Field(min_length=1)
    prompt: _Length = 0
    right: list[bool] | None = None
    score: list[FiniteFloat] | None = None
    logprob: list[FiniteFloat] | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> Row:
        columns = (self.answer, self.tokens, self.right, self.score, self.logprob)
        if len({len(column) for column in columns if column is not None}) > 1:
            raise ValueError("its columns have different lengths")
        if any(c != NO_ANSWER and not n for c, n in zip(self.answer, self.tokens, strict=True)):
            raise ValueError(f"an answer has 0 tokens; no answer is {NO_ANSWER}")
        return self


def read_pool(path: Path, *, model: str | None = None, right_class: int | None = None) -> Pool:
    """A pool from JSON lines, gzipped or not; `model` is by default the file's name.

    `right_class` is the class of the right answer where rows do not say who is right. Raises SettingError.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        rows = [_row(path, i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        msg = f"cannot read the pool {path}: {error}"
        raise SettingError(msg) from None
    if not rows:
        msg = f"the pool {path} has no question"
        raise SettingError(msg, hint="Sample some first.")
    twice = [q for q, n in Counter(str(row.question) for row in rows).items() if n > 1]
    if twice:
        msg = f"the pool {path} has the question {twice[0]!r:.80} more than once"
        raise SettingError(msg, hint="Leave the others out.")
    least = min(len(row.answer) for row in rows)  # arrays: every question has as many samples
    answers = np.array([row.answer[:least] for row in rows], np.int64)
    judged = column([row.right for row in rows], least)
    right = None if judged is None else judged > 0
    if right is None and right_class is not None:
        right = answers == right_class
    return Pool(
        model=model or path.name.split(".jsonl")[0],
        questions=tuple(str(row.question) for row in rows),
        answers=answers,
        tokens=np.array([row.tokens[:least] for row in rows], np.int64),
        prompts=np.array([row.prompt for row in rows], np.int64),
        right=right,
        scores=column([row.score for row in rows], least),
        logprobs=column([row.logprob for row in rows], least),
    )


def _row(path: Path, number: int, line: str) -> Row:
    try:
        return Row.model_validate(json.loads(line))
    except (ValidationError, ValueError, RecursionError) as error:
        reason = (
            error.errors()[0]["msg"].removeprefix("Value error, ")
            if isinstance(error, ValidationError)
            else error
        )
        msg = f"line {number} of the pool {path} is no question with its samples: {reason}"
        raise SettingError(msg) from None


def column(values: Sequence[Sequence[float] | None], least: int | None = None) -> Floats | None:
    """An array of the first `least` of what every row has, by default of all; None where one has it not."""
    known = [value[:least] for value in values if value is not None]
    return np.array(known, np.float64) if len(known) == len(values) else None
