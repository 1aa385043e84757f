"""The tasks of the bundled models: the texts they were trained on, and checkers that cannot be fooled."""

import hashlib
import importlib.util
import random
import re
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, strategies as st

ROOT = Path(__file__).parents[2]
# The script that the first pair was trained with: beside the checkout where the project is developed.
ORIGINAL = next(
    (p for p in (ROOT / "shared", ROOT.parent / "shared") if (p / "nano/tasks.py").is_file()), None
)


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tasks = load("nano_tasks", ROOT / "examples/nano/tasks.py")
CHAIN = tasks.Problem(
    question="Ben has 3 more cups than Ava. Ava has 5 cups. How many cups does Ben have?",
    steps=("Ben: 3 more than Ava", "Ava: 5", "Ben = 5 + 3 = 8"),
    answer="8",
    task="word_problem",
)
TARGET = tasks.Problem(
    question="Use 3 4 5 to make 35.",
    steps=("3 + 4 = 7, left 5 7", "7 * 5 = 35"),
    answer="(3 + 4) * 5",
    task="countdown",
)


def test_the_same_texts_for_ever() -> None:
    """A thousand problems of each task are, to the byte, those that the bundled models learned."""
    rng, digest = random.Random(0), hashlib.sha256()
    for _ in range(1000):
        digest.update(tasks.render(tasks.word_problem(rng)).encode())
        digest.update(tasks.render(tasks.countdown(rng)).encode())
    expected = "4b9f98eb37757c4776b52ec755ce53e5402d82f3266ac7d30599e12a7965789a"
    assert digest.hexdigest() == expected


@pytest.mark.skipif(ORIGINAL is None, reason="the original script is not part of a checkout")
@pytest.mark.parametrize("size", [None, 3, 4, 5, 6])
def test_the_same_problems_as_the_original(size: int | None) -> None:
    """From one random state both draw the same problems, of every size, and leave the same state."""
    original = load("nano_tasks_original", ORIGINAL / "nano/tasks.py")
    ours, theirs = random.Random(7), random.Random(7)
    for _ in range(500):
        for name in ("word_problem", "countdown"):
            problem = getattr(tasks, name)(ours, size)
            question, steps, answer = getattr(original, name)(theirs, size)
            assert (problem.question, list(problem.steps), problem.answer) == (
                question,
                steps,
                answer,
            )
    assert ours.getstate() == theirs.getstate()


@given(seed=st.integers(0, 2**32))
def test_an_answer_solves_its_problem(seed: int) -> None:
    """Every problem accepts its own answer, with space around it, and no answer at all is wrong."""
    for draw in (tasks.word_problem, tasks.countdown):
        problem = draw(random.Random(seed))
        assert tasks.is_right(problem, problem.answer)
        assert tasks.is_right(problem, f" {problem.answer} ")
        assert not tasks.is_right(problem, None)


@pytest.mark.parametrize("steps", range(1, 7))
def test_a_word_problem_needs_its_steps(steps: int) -> None:
    """The solution names at least the person asked about, and never more than `steps` people."""
    for seed in range(50):
        problem = tasks.word_problem(random.Random(seed), steps)
        stated = [line for line in problem.steps if ": " in line]
        assert 1 <= len(stated) <= steps
        assert problem.steps[-1].endswith((f" = {problem.answer}", f": {problem.answer}"))


@pytest.mark.parametrize("answer", ["8", "+8", "8.0", "9", "", "eight", "8 cups", "٨", "8" * 10**6])
def test_a_word_problem_takes_the_integer(answer: str) -> None:
    """Only the integer itself is right, in plain digits."""
    assert tasks.is_right(CHAIN, answer) == (answer == "8")


@pytest.mark.parametrize("answer", ["(3 + 4) * 5", "5*(4+3)", "((5)) * (3+4)", "3*5 + 4*5 - 0*0"])
def test_countdown_takes_any_expression(answer: str) -> None:
    """Any expression that makes the target is right, as long as each number is used once."""
    assert tasks.is_right(TARGET, answer) == (answer.count("5") == 1)


def test_countdown_divides_without_remainder() -> None:
    """7 / 2 is no integer, so an expression through it is wrong even where the numbers would come out."""
    problem = tasks.Problem("Use 7 2 4 to make 14.", (), "7 * 4 / 2", "countdown")
    assert tasks.is_right(problem, "7 * 4 / 2")
    assert tasks.is_right(problem, "7 * (4 / 2)")
    assert not tasks.is_right(problem, "7 / 2 * 4")
    assert not tasks.is_right(problem, "7 / (2 - 2) * 4")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "3 + 4 * 5",
        "3 * 5",
        "35",
        "(3 + 4) * 5 = 35",
        "(3 + 4) // 5",
        "(03 + 4) * 5",
        "3 ** 4 ** 5",
        "9**9**9**9",
        "5(3 + 4)",
        "3, 4, 5",
        "(3 + 4) * 5\n",
        "(3 + 4) * 5 #",
        "(3\t+ 4) * 5 \x00",
        "__import__('os').abort()",
        "٣ + 4 * 5",
        "1" * 10**6,
        "(" * 10**6,
        "-" * 10**6 + "3",
        "(" * 240 + "3 + 4 * 5" + ")" * 240,
        "(" * 150 + "3" + ")" * 150 + "+ 4 * 5",
        "-" * 490 + "3 + 4 * 5",
    ],
    ids=lambda answer: repr(answer[:24]),
)
def test_countdown_refuses_the_rest_quickly(answer: str) -> None:
    """Whatever is not such an expression is wrong, in well under a second, and never runs."""
    start = time.perf_counter()
    right = tasks.is_right(TARGET, answer)
    assert time.perf_counter() - start < 1
    assert right == (answer.strip() == TARGET.answer)


@given(text=st.text(alphabet="0123456789+-*/() ", max_size=60))
def test_countdown_never_raises(text: str) -> None:
    """Any text over the alphabet of expressions is judged, not raised about."""
    assert tasks.is_right(TARGET, text) in {True, False}


@given(seed=st.integers(0, 2**32), count=st.integers(2, 4))
def test_what_was_drawn_is_solvable(seed: int, count: int) -> None:
    """The solver finds an expression for every drawn problem, and the checker accepts it."""
    problem = tasks.countdown(random.Random(seed), count)
    *numbers, target = map(int, re.findall(r"\d+", problem.question))
    assert tasks.is_right(problem, tasks.solve_countdown(numbers, target))


@pytest.mark.parametrize(
    ("numbers", "target", "expected"),
    [([7], 7, "7"), ([7], 8, None), ([2, 2], 5, None), ([1, 1, 1], 100, None), ([], 0, None)],
)
def test_the_solver_is_exhaustive(numbers: list[int], target: int, expected: str | None) -> None:
    """None means that no expression exists."""
    assert tasks.solve_countdown(numbers, target) == expected


def test_the_solver_agrees_with_brute_force() -> None:
    """For three small numbers the solvable targets are those of every order, operation and grouping."""
    numbers, reachable = [2, 3, 7], set()
    for a, b, c in {(2, 3, 7), (2, 7, 3), (3, 2, 7), (3, 7, 2), (7, 2, 3), (7, 3, 2)}:
        for p in "+-*/":
            for q in "+-*/":
                for text in (f"({a} {p} {b}) {q} {c}", f"{a} {p} ({b} {q} {c})"):
                    for target in range(50):
                        problem = tasks.Problem(f"Use 2 3 7 to make {target}.", (), "", "countdown")
                        if tasks.is_right(problem, text):
                            reachable.add(target)
    solvable = {t for t in range(50) if tasks.solve_countdown(numbers, t) is not None}
    assert solvable == reachable
