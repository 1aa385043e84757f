"""What a problem is, what judging a solution says, and which problems are held out. Knows neither task."""

import hashlib
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Task = Literal["word_problem", "countdown"]
Split = Literal["train", "validation", "test"]

TASKS: tuple[Task, ...] = ("word_problem", "countdown")
ANSWER = "Answer:"
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,  # only where nothing remains
}
_BUCKETS: dict[int, Split] = {0: "test", 1: "validation"}  # of 16; the others are for training


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the lines of one solution, and its answer.

    `difficulty` counts the linked facts that a word problem was drawn with (1 to 8), or the numbers of a Countdown puzzle.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    task: Task
    difficulty: int = 0

    @property
    def solution(self) -> str:
        """The text that a model learns: steps, then the answer, one a line."""
        return "\n".join([*self.steps, f"{ANSWER} {self.answer}"])


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a solution is worth: one verdict a line, and whether the answer is right."""

    steps: tuple[bool, ...]
    right: bool

    @property
    def sound(self) -> bool:
        """Whether the answer is right and every step that led to it is good."""
        return self.right and all(self.steps)


def lines_of(solution: str) -> list[str]:
    """The steps of a solution: its lines, without the blank ones."""
    return [line.strip() for line in written_lines(solution)]


def written_lines(solution: str) -> list[str]:
    """The same lines as they were written, space and all: what a model read or wrote, token for token."""
    return [line for line in solution.split("\n") if line.strip()]


def answer_of(solution: str) -> str | None:
    """The text after the last `Answer:`; None where a solution gives none."""
    for line in reversed(lines_of(solution)):
        if line.startswith(ANSWER):
            return line.removeprefix(ANSWER).strip()
    return None


def slipped(rng: random.Random, value: int) -> int:
    """A wrong value: one digit of it is another."""
    digits = list(str(value))
    k = rng.randrange(len(digits))
    digits[k] = rng.choice([d for d in "123456789" if d != digits[k]])
    return int("".join(digits))


def split_of(key: str) -> Split:
    """Where a problem belongs, by a hash of what makes it that problem: one of 16 is for the test, one for validation.

    No problem is ever in two splits, whoever draws it and whenever.
    """
    return _BUCKETS.get(hashlib.blake2b(key.encode(), digest_size=8).digest()[0] % 16, "train")
