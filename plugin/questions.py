"""
The questions of a command line: an argument, a pipe, or a file of JSON lines.

Knows files and their mistakes, and names each before anything runs; knows no model and no answer.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from langchain_pareto.errors import SettingError

# What a row of `pareto ask --json` says; whatever else stood on a question's line comes after it.
_COLUMNS = "question answer text strategy plan stopped_by budget spent samples usage error".split()

_LINE_HINT = 'Write one JSON object a line: {"question": "..."}'


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, what else stood on its line, its answer as it was written there, and where that line is."""

    text: str
    extra: Mapping[str, object] = field(default_factory=dict)
    label: object = None
    place: str = ""

    @property
    def answer(self) -> str | None:
        """The right answer as text, None where it is not known; raises SettingError for what cannot be one."""
        from langchain_pareto.planning.calibrate import label_of

        return label_of(self.label, self.place or "the question")


def read_questions(question: str | None, file: Path | None) -> list[Question]:
    """The questions from wherever they come; raises SettingError before anything runs."""
    if file is not None and question is not None:
        msg = "a question and --file were given"
        raise SettingError(msg, hint="Leave one of them out.")
    if file is not None:
        return _read_file(file)
    if question is None or question == "-":
        question = _read_stdin(question)
    if not question.strip():
        msg = "the question is empty"
        raise SettingError(
            msg, hint='Try: pareto ask "Use 11 7 3 to make 74." --budget "300 tokens"'
        )
    return [Question(question)]


def _read_stdin(asked_for: str | None) -> str:
    if sys.stdin is None or (asked_for is None and sys.stdin.isatty()):
        msg = "there is no question"
        raise SettingError(msg, hint='Give one, "-" to type it in, or --file questions.jsonl.')
    try:
        return sys.stdin.read().rstrip("\r\n")
    except UnicodeDecodeError as error:
        msg = f"what was piped in is not text: {error}"
        raise SettingError(msg) from error


def _read_file(path: Path) -> list[Question]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        raise SettingError(msg) from error
    questions = [_parse(path, i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        msg = f"{path} has no line with a question"
        raise SettingError(msg, hint=_LINE_HINT)
    return questions


def _refuse(constant: str) -> object:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)


def _finite(digits: str) -> float:
    """What is too large would be written out again as Infinity, which is no JSON."""
    if math.isinf(number := float(digits)):
        msg = f"{digits:.40} is too large a number"
        raise ValueError(msg)
    return number


def _parse(path: Path, number: int, line: str) -> Question:
    try:
        row = json.loads(line, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        msg = f"{path}, line {number}: not JSON: {error}"
        raise SettingError(msg, hint=_LINE_HINT) from None
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        msg = f'{path}, line {number}: no JSON object with a text as its "question"'
        raise SettingError(msg, hint=_LINE_HINT)
    if not row["question"].strip():
        msg = f"{path}, line {number}: the question is empty"
        raise SettingError(msg)
    return Question(
        row["question"],
        {k: v for k, v in row.items() if k not in _COLUMNS},
        row.get("answer"),
        f"line {number} of {path.name}",
    )
