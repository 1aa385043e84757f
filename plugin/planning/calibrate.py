"""
Calibration of quality: samples of every model on many questions, kept in a file that resumes, then every plan replayed over them.

Many questions and few samples of each tell more than the other way round. Knows questions, answers and files; what a model is, the caller's
`draw` knows.
"""

from __future__ import annotations

import asyncio
import json
import math
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from langchain_pareto.errors import ParetoError, SettingError
from langchain_pareto.planning.files import append, held, write
from langchain_pareto.planning.identity import (
    differences,
    key_of as key_of,  # noqa: PLC0414 - others take it from here
)
from langchain_pareto.planning.pool import NO_ANSWER, Pool, column
from langchain_pareto.strategies.answers import group

QUESTIONS, SAMPLES = 100, 16  # enough to tell plans apart by one or two points
_AT_ONCE = 8  # questions in flight
_SHOWN = 5  # questions that a message names


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its right answer if somebody said it, and where it stood, for messages."""

    id: str
    text: str
    label: str | None = None
    place: str = ""

    def __str__(self) -> str:
        """Where it stood, or how it begins."""
        return self.place or f"the question {self.text!r:.60}"


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of one model to one question; an answer is None where a sample has none."""

    answers: list[str | None]
    tokens: list[int]
    prompt: int  # tokens
    scores: list[float] | None = None
    logprobs: list[float] | None = None


Draw = Callable[[str, Asked, int], Awaitable[Drawn | None]]
"""`n` samples of a model, by its name, to a question; None where the budget does not hold them all."""


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: dict[str, str]
    samples: int


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")  # a score may be -inf

    model: str
    question: str
    text: str
    label: str | None
    answers: list[str | None]
    tokens: list[int]
    prompt: int
    scores: list[float] | None
    logprobs: list[float] | None

    def holds(self, samples: int) -> bool:
        """Whether everything is there once a sample."""
        columns = (self.answers, self.tokens, self.scores, self.logprobs)
        return all(len(column) == samples for column in columns if column is not None)


@dataclass(frozen=True, slots=True)
class Samples:
    """The file of what was drawn so far; `keys` tells each model from any other."""

    path: Path
    keys: Mapping[str, str]
    samples: int = SAMPLES

    def lines(self) -> list[_Line]:
        """What was drawn; SettingError where the file is of other models, or damaged."""
        if not self.path.exists():
            return []
        if not (found := self._whole_lines()):
            return []
        head, *rest = found
        try:
            header = _Header.model_validate_json(head)
            lines = [_Line.model_validate_json(line) for line in rest]
        except ValidationError as error:
            msg = f"{self.path} holds no samples of a calibration: {error.errors()[0]['msg']}"
            raise SettingError(msg, hint="Move it away, or take another name.") from None
        for number, line in enumerate(lines, start=2):
            if not line.holds(header.samples):
                msg = f"{self.path}, line {number}: it does not hold {header.samples} samples"
                raise SettingError(msg, hint="Take the line out: it is drawn again.")
        if others := self._misfits(header):
            msg = (
                f"{self.path} has other samples a question than are asked for: {'; '.join(others)}"
            )
            raise SettingError(
                msg,
                hint="Move it away, or take another name: samples of different models do not mix.",
            )
        return lines

    def _misfits(self, header: _Header) -> list[str]:
        """What was otherwise when the file was begun."""
        found = list[str]()
        if header.samples != self.samples:
            found.append(f"{header.samples} of each, not {self.samples}")
        for verb, one, other in (
            ("there are some of", header.keys, self.keys),
            ("there are none of", self.keys, header.keys),
        ):
            if names := [name for name in one if name not in other]:
                found.append(f"{verb} {', '.join(names)}")
        for name in self.keys:
            if name in header.keys:
                ways = differences(header.keys[name], self.keys[name])
                found += [f"{name}: {way}" for way in ways]
        return found

    async def draw(
        self,
        questions: Sequence[Asked],
        draw: Draw,
        on_row: Callable[[], None] = lambda: None,
    ) -> int:
        """Draws what is missing, a question of one model at a time; how many rows are missing still, when the budget has ended.

        What is drawn is kept at once: the same call again goes on where this one was interrupted. Raises SettingError where another one
        is drawing into the same file; what `draw` raises names its question.
        """
        with held(self.path):
            return await self._draw(questions, draw, on_row)

    async def _draw(
        self, questions: Sequence[Asked], draw: Draw, on_row: Callable[[], None]
    ) -> int:
        done = {(line.model, line.question) for line in self.lines()}
        missing = [
            (model, question)
            for question in questions
            for model in self.keys
            if (model, question.id) not in done
        ]
        for _ in range(len(questions) * len(self.keys) - len(missing)):
            on_row()
        self._begin()
        queue, ended = iter(missing), False
        drawn = 0

        async def work() -> None:
            nonlocal ended, drawn
            for model, question in queue:
                if ended:
                    return
                try:
                    found = await draw(model, question, self.samples)
                except ParetoError as error:
                    error.args = (f"{question}: {error}",)  # one of many
                    raise
                if found is None:
                    ended = True
                    return
                self._add(model, question, found)
                drawn += 1
                on_row()

        try:
            async with asyncio.TaskGroup() as group_:
                for _ in range(_AT_ONCE):
                    group_.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # what was drawn before is kept
        return len(missing) - drawn

    def _begin(self) -> None:
        """Makes the file ready to be appended to: a line that was cut off goes."""
        whole = self._whole_lines() if self.path.exists() else []
        head = json.dumps({"keys": dict(self.keys), "samples": self.samples})
        write(self.path, "".join(f"{line}\n" for line in whole or [head]))

    def _add(self, model: str, question: Asked, drawn: Drawn) -> None:
        line = _Line(
            model=model,
            question=question.id,
            text=question.text,
            label=question.label,
            **asdict(drawn),
        )
        append(self.path, line.model_dump_json() + "\n")

    def _whole_lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{self.path} holds no samples of a calibration: {getattr(error, 'strerror', None) or error}"
            raise SettingError(msg, hint="Move it away, or take another name.") from None


def checked(questions: Sequence[Asked], *, judged: bool = False) -> list[Asked]:
    """The questions, each once; SettingError, with their places, for those that contradict each other.

    Labels are of all questions or of none, unless answers are `judged` otherwise; numbers become texts. Warns of what is left out.
    """
    found = dict[str, Asked]()
    ids = dict[str, Asked]()
    again = list[Asked]()
    for given in questions:
        question = given if judged else replace(given, label=label_of(given.label, str(given)))
        first = found.setdefault(question.text, question)
        if first is not question:
            if not judged and first.label != question.label:
                msg = (
                    f"{first} and {question} ask the same: {question.text!r:.60}, and their answers "
                    f"are {_answer(first)} and {_answer(question)}"
                )
                raise SettingError(msg, hint="Leave one of them out.")
            again.append(question)
        elif ids.setdefault(question.id, question) is not question:
            msg = f"two questions have the id {question.id!r:.80}, and other texts"
            raise SettingError(msg, hint="Give each its own.")
    if not judged:
        _check_all_labelled(list(found.values()))
    if again:
        count = len(again)
        what = "1 question was" if count == 1 else f"{count} questions were"
        warnings.warn(f"{what} there before: {_some(again)}; each counts once", stacklevel=3)
    return list(found.values())


def label_of(value: object, place: str) -> str | None:
    """A right answer as text, None where it is not known; SettingError for what is neither text nor a number."""
    if value is None:
        return None
    if isinstance(value, str):
        if value.strip():
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    msg = f"{place}: {value!r:.60} is no right answer"
    raise SettingError(msg, hint="It is a text or a number; leave it out where it is not known.")


def labelled_as(lines: Sequence[_Line], questions: Sequence[Asked]) -> list[_Line]:
    """The lines of these questions, with the labels that are known now; SettingError where a question has another text than then."""
    asked = {question.id: question for question in questions}
    found = list[_Line]()
    for line in lines:
        question = asked.get(line.question)
        if question is None:
            continue
        if question.text != line.text:
            msg = f"the question {line.question!r} was another text when its samples were drawn"
            raise SettingError(msg, hint="Give it another id, or take another name.")
        found.append(line.model_copy(update={"label": question.label}))
    return found


def pools_of(
    lines: Sequence[_Line],
    models: Sequence[str],
    is_right: Callable[[str, str], bool] | None = None,
) -> dict[str, Pool]:
    """A pool of each model over the questions that all have answered; equal answers have one class in all of them.

    `is_right(question, answer)` judges, by default each answer is compared with its question's label; without labels the pools do not
    say who is right. Raises SettingError where no question was answered by all.
    """
    by = {(line.model, line.question): line for line in lines}
    questions = [
        q
        for q in dict.fromkeys(line.question for line in lines)
        if all((m, q) in by for m in models)
    ]
    if not questions:
        msg = "no question was answered by every model"
        raise SettingError(msg, hint="Give the calibration a larger budget, or go on with it.")
    labelled = is_right is not None or all(by[models[0], q].label is not None for q in questions)
    answers: dict[str, list[list[int]]] = {model: [] for model in models}
    right: dict[str, list[list[bool]]] = {model: [] for model in models}
    for question in questions:
        rows = [by[model, question] for model in models]
        *classes, of_label = _classes(rows)
        for model, row, found in zip(models, rows, classes, strict=True):
            answers[model].append(found)
            right[model].append(_rights(row, found, of_label[0], is_right))
    return {
        model: Pool(
            model=model,
            questions=tuple(questions),
            answers=np.array(answers[model], np.int64),
            tokens=np.array([by[model, q].tokens for q in questions], np.int64),
            prompts=np.array([by[model, q].prompt for q in questions], np.int64),
            right=np.array(right[model], bool) if labelled else None,
            scores=column([by[model, q].scores for q in questions]),
            logprobs=column([by[model, q].logprobs for q in questions]),
        )
        for model in models
    }


def classes_of(answers: Sequence[str | None]) -> list[int]:
    """The class of each of some answers to one question, as a vote takes them for equal; NO_ANSWER for None."""
    numbers = [NO_ANSWER] * len(answers)
    for number, members in enumerate(group(answers)):
        for i in members:
            numbers[i] = number
    return numbers


def pseudo_labelled(pools: Mapping[str, Pool]) -> dict[str, Pool]:
    """The same pools with the answer of most samples of all models for the right one.

    It ranks plans as well as labels do, and flatters all of them: what comes of it is no accuracy.
    """
    stacked = np.concatenate([pool.answers for pool in pools.values()], axis=1)
    winners = np.array([_mode(row) for row in stacked])
    return {
        name: replace(pool, right=(pool.answers == winners[:, None]) & (pool.answers >= 0))
        for name, pool in pools.items()
    }


def _check_all_labelled(questions: Sequence[Asked]) -> None:
    without = [question for question in questions if question.label is None]
    if without and len(without) < len(questions):
        told = f"{len(without)} of {len(questions)} questions"
        msg = f"the right answer is missing for {told}: {_some(without)}"
        hint = "Give them one, or leave them out; or leave the answers of all out, and plans are ranked without."
        raise SettingError(msg, hint=hint)


def _some(questions: Sequence[Asked]) -> str:
    shown = ", ".join(map(str, questions[:_SHOWN]))
    more = len(questions) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _answer(question: Asked) -> str:
    return "not known" if question.label is None else f"{question.label!r:.40}"


def _classes(rows: Sequence[_Line]) -> list[list[int]]:
    """The class of each answer of each row of one question, and last that of its label."""
    given = [*(row.answers for row in rows), [rows[0].label]]
    each = iter(classes_of(list(chain.from_iterable(given))))
    return [list(islice(each, len(answers))) for answers in given]


def _rights(
    row: _Line, classes: list[int], of_label: int, is_right: Callable[[str, str], bool] | None
) -> list[bool]:
    """Which answers are right. Each spelling is judged by itself: equal answers need not be equally right, as (2+3)*4 and 20 are not of a puzzle."""
    if is_right is None:
        return [number == of_label != NO_ANSWER for number in classes]
    judged = {a: is_right(row.text, a) for a in dict.fromkeys(row.answers) if a is not None}
    return [answer is not None and judged[answer] for answer in row.answers]


def _mode(row: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
    known = row[row >= 0]
    return int(np.bincount(known).argmax()) if known.size else NO_ANSWER
