"""
The two tasks of the nano family, both checked exactly: word problems over a graph of facts, and Countdown.

One door to both: a problem by its number, its text, and judges of an answer and of a whole solution. Knows no model.
"""

import random
from typing import Protocol

from nano import countdown, word_problems
from nano.problem import TASKS, Judgement, Problem, Split, Task, split_of

__all__ = [
    "DIFFICULTIES",
    "TASKS",
    "Judgement",
    "Problem",
    "Split",
    "Task",
    "draw",
    "is_right",
    "judge",
    "numbers",
]

DIFFICULTIES: dict[Task, tuple[int, ...]] = {
    "word_problem": tuple(range(1, word_problems.HARDEST + 1)),
    "countdown": (3, 4),
}


class _Rules(Protocol):
    """What the module of a task has."""

    def draw(self, rng: random.Random, difficulty: int, /) -> Problem: ...

    def key_of(self, question: str) -> str: ...

    def is_right(self, problem: Problem, answer: str | None) -> bool: ...

    def judge(self, problem: Problem, solution: str) -> Judgement: ...


_RULES: dict[Task, _Rules] = {"word_problem": word_problems, "countdown": countdown}


def draw(task: Task, index: int, *, split: Split = "train", difficulty: int) -> Problem:
    """Problem number `index` of a split: always the same one, and in no other split."""
    rng = random.Random(f"{task}/{difficulty}/{split}/{index}")
    while True:
        problem = _RULES[task].draw(rng, difficulty)
        if _split(problem) == split:
            return problem


def numbers(task: Task, count: int, *, split: Split, difficulty: int) -> list[int]:
    """The indices of the first `count` different problems of a split."""
    found: dict[str, int] = {}
    index = 0
    while len(found) < count:
        problem = draw(task, index, split=split, difficulty=difficulty)
        found.setdefault(_RULES[task].key_of(problem.question), index)
        index += 1
    return list(found.values())


def is_right(problem: Problem, answer: str | None) -> bool:
    """Whether `answer` solves the problem: the same integer, or any expression that makes the target."""
    return _RULES[problem.task].is_right(problem, answer)


def judge(problem: Problem, solution: str) -> Judgement:
    """The verdict on each line of a solution, exactly, and on its answer."""
    return _RULES[problem.task].judge(problem, solution)


def _split(problem: Problem) -> Split:
    return split_of(_RULES[problem.task].key_of(problem.question))
