"""Attempts at word problems that read another person's number, and exercises in looking up: what the PRM learns on."""

import random
import re

import pytest

from nano import misreadings
from nano.problem import OPERATIONS, answer_of
from nano.tasks import draw, judge

PROBLEMS = [draw("word_problem", i, difficulty=4 + i % 5) for i in range(100)]


def follows(line: str) -> bool:
    """Whether the last number of a calculation is what its numbers come to, which is nothing below zero."""
    found = re.search(r"= (\d+) ([-+*/]) (\d+) = (\d+)$", line)
    if found is None:
        return True
    a, symbol, b, value = found.groups()
    return max(OPERATIONS[symbol](int(a), int(b)), 0) == int(value)


def test_who_makes_no_error_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines are good, and the answer is."""
    monkeypatch.setattr(misreadings, "CLEAN", 1.0)
    monkeypatch.setattr(misreadings, "FACTS", 0.0)
    for i, problem in enumerate(PROBLEMS):
        assert judge(problem, "\n".join(misreadings.attempt(random.Random(i), problem))).sound


def test_a_misreader_errs_first_in_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever misreads in sums alone has no other first error: up to it every line is good, and what follows from it is not."""
    monkeypatch.setattr(misreadings, "CLEAN", 0.0)
    for name in ("FACTS", "ELSEWHERE", "GIVEN", "SLIPS", "ANSWERS"):
        monkeypatch.setattr(misreadings, name, 0.0)
    wrong = 0
    for i, problem in enumerate(PROBLEMS):
        lines = misreadings.attempt(random.Random(i), problem)
        found = judge(problem, "\n".join(lines))
        if False in found.steps:
            wrong += 1
            assert misreadings.adds(lines[found.steps.index(False)])
    assert wrong > 10


def test_attempts_are_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was misread, what follows from it does, and the attempt comes to an answer: a wrong one cannot be told from its form."""
    monkeypatch.setattr(misreadings, "SLIPS", 0.0)
    for i, problem in enumerate(PROBLEMS):
        lines = misreadings.attempt(random.Random(i), problem)
        assert answer_of("\n".join(lines)) is not None
        assert all(map(follows, lines))


def test_an_exercise_is_judged_exactly() -> None:
    """A line is good if its numbers are those of whom it names and its result follows; what is bad is not used again."""
    for i in range(200):
        lines, good = misreadings.exercise(random.Random(i))
        has: dict[str, int] = {}
        for line, told in zip(lines, good, strict=True):
            name, *parts = line.split(" = ")
            if len(parts) == 1:
                true = True
            else:
                terms = parts[0].split(" ")[::2]
                numbers = parts[1].split(" ")[::2]
                wanted = [str(has[t]) if t.isalpha() else t for t in terms]
                true = wanted == numbers and follows(line)
            assert told == true, line
            if true:
                has[name] = int(parts[-1])
        assert 0 < max(has.values()) <= misreadings.LARGEST
        assert len(lines) in misreadings.PEOPLE


def test_sums_are_counted() -> None:
    """Only what adds what two people have."""
    assert misreadings.adds("Wes = Tom + Cal = 32 + 37 = 69")
    assert not misreadings.adds("Wes = Tom + 4 = 32 + 4 = 36")
    assert not misreadings.adds("Wes has as many cards as Tom and Cal together.")
