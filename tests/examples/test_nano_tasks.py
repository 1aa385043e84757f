"""The tasks of the bundled models: the same problems for ever, and judges that cannot be fooled."""

import hashlib
import importlib.util
import random
import re
import sys
from itertools import permutations
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, strategies as st

from nano import countdown, tasks, word_problems

ROOT = Path(__file__).parents[2]
# The script that the first pair was trained with: beside the checkout where the project is developed.
ORIGINAL = next(
    (p for p in (ROOT / "shared", ROOT.parent / "shared") if (p / "nano/tasks.py").is_file()), None
)
CHAIN = tasks.Problem(
    question="Ben has 3 more cups than Ava. Ava has 5 cups. Cal has 9 cups. How many cups does Ben have?",
    steps=(
        "Ben has 3 more cups than Ava.",
        "Ava has 5 cups.",
        "Ava = 5",
        "Ben = Ava + 3 = 5 + 3 = 8",
    ),
    answer="8",
    task="word_problem",
)
TARGET = tasks.Problem(
    question="Use 3 4 5 to make 35.",
    steps=("Take 3 + 4 = 7, left 5 7", "Take 7 * 5 = 35"),
    answer="(3 + 4) * 5",
    task="countdown",
)
LEVELS = [(task, level) for task in tasks.TASKS for level in tasks.DIFFICULTIES[task]]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_same_problems_for_ever() -> None:
    """Fifty problems of each difficulty and split are, to the byte, those that the bundled models learned and were judged on."""
    digest = hashlib.sha256()
    for task, level in LEVELS:
        for split in ("train", "validation", "test"):
            for i in range(50):
                problem = tasks.draw(task, i, split=split, difficulty=level)
                digest.update(f"{problem.question}\n{problem.solution}".encode())
    expected = "59c5f7302205f3f73e37c01f20aabfad6c5e5d4060b3066d0d393dca2b977822"
    assert digest.hexdigest() == expected


@pytest.mark.skipif(ORIGINAL is None, reason="the original script is not part of a checkout")
@pytest.mark.parametrize("size", [3, 4, 5, 6])
@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_questions_of_the_original(
    task: tasks.Task, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one random state both draw the same questions and answers, and leave the same state.

    The numbers of a puzzle are drawn alike, and which of them are combined does not depend on their places; so that the original
    shuffles them once more changes no probability.
    """
    original = load("nano_tasks_original", ORIGINAL / "nano/tasks.py")
    ours, theirs = random.Random(7), random.Random(7)
    draw = {"word_problem": word_problems.draw, "countdown": countdown.draw}[task]
    if task == "countdown":
        monkeypatch.setattr(theirs, "shuffle", lambda _: None)
    for _ in range(500):
        problem = draw(ours, size)
        question, _, answer = getattr(original, task)(theirs, size)
        assert (problem.question, problem.answer.replace(" ", "")) == (
            question,
            answer.replace(" ", ""),
        )
    assert ours.getstate() == theirs.getstate()


@pytest.mark.parametrize(("task", "level"), LEVELS)
def test_splits_share_no_problem(task: tasks.Task, level: int) -> None:
    """What makes a problem that problem occurs in one split only; the order of facts and numbers does not count."""
    key = {"word_problem": word_problems, "countdown": countdown}[task].key_of
    found = [
        {key(tasks.draw(task, i, split=split, difficulty=level).question) for i in range(300)}
        for split in ("train", "validation", "test")
    ]
    assert not found[0] & found[1]
    assert not found[0] & found[2]
    assert not found[1] & found[2]


def test_order_makes_no_other_problem() -> None:
    """The order of facts, or of numbers, does not count."""
    asked = "How many cups does Ava have?"
    assert word_problems.key_of(f"Ava has 5 cups. Ben has 3 cups. {asked}") == word_problems.key_of(
        f"Ben has 3 cups. Ava has 5 cups. {asked}"
    )
    assert countdown.key_of("Use 3 4 to make 7.") == countdown.key_of("Use 4 3 to make 7.")


def test_numbers_are_of_different_problems() -> None:
    """Three numbers from 1 to 50 often come again; the indices skip those that do."""
    indices = tasks.numbers("countdown", 400, split="test", difficulty=3)
    drawn = {
        countdown.key_of(tasks.draw("countdown", i, split="test", difficulty=3).question)
        for i in indices
    }
    assert len(drawn) == len(indices) == 400


@pytest.mark.parametrize(("task", "level"), LEVELS)
def test_a_solution_is_sound(task: tasks.Task, level: int) -> None:
    """Every problem's own solution is right, and each of its steps is good."""
    for i in range(40):
        problem = tasks.draw(task, i, split="test", difficulty=level)
        judgement = tasks.judge(problem, problem.solution)
        assert judgement.sound
        assert len(judgement.steps) == len(problem.steps) + 1
        assert problem.difficulty == level


@given(seed=st.integers(0, 2**32))
def test_an_answer_solves_its_problem(seed: int) -> None:
    """Every problem accepts its own answer, with space around it, and no answer at all is wrong."""
    for rules in (word_problems, countdown):
        problem = rules.draw(random.Random(seed), 4)
        assert tasks.is_right(problem, problem.answer)
        assert tasks.is_right(problem, f" {problem.answer} ")
        assert not tasks.is_right(problem, None)


@pytest.mark.parametrize("facts", range(1, 9))
def test_a_question_says_all(facts: int) -> None:
    """What is read from a question is what it was drawn from: everyone's number follows, and the answer is the asked one's."""
    for seed in range(50):
        problem = word_problems.draw(random.Random(seed), facts)
        known, asked = word_problems.read(problem.question)
        assert str(known[asked].value) == problem.answer
        assert facts <= len(known) <= facts + 2
        assert 1 <= sum(" has " in step for step in problem.steps) <= facts


@pytest.mark.parametrize(
    "question",
    [
        "",
        "How many cups does Ben have?",
        "Ben has 3 cups. How many cups does Ava have?",
        "Ben has 3 more cups than Ava. Ava has 3 more cups than Ben. How many cups does Ava have?",
    ],
)
def test_what_is_no_word_problem(question: str) -> None:
    """A question that lacks a fact, or whose facts go round in a circle, is refused."""
    with pytest.raises(ValueError, match=r"word problem|build on each other"):
        word_problems.read(question)


@pytest.mark.parametrize("answer", ["+8", "8.0", "9", "", "eight", "8 cups", "٨", "8" * 10**6])
def test_a_word_problem_takes_the_integer_only(answer: str) -> None:
    """The integer itself is right, in plain digits, and nothing else is."""
    assert tasks.is_right(CHAIN, "8")
    assert not tasks.is_right(CHAIN, answer)


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("Ben has 3 more cups than Ava.", True),
        ("  Ben has 3 more cups than Ava.  ", True),
        ("Ben has 3 more cups than Ava", False),
        ("Ben has 4 more cups than Ava.", False),
        ("Cal has 9 cups.", False),  # true, but nothing depends on it
        ("Cal = 9", False),
        ("Ava = 5", True),
        ("Ben = Ava + 3 = 5 + 3 = 8", True),
        ("Ben = 3 + Ava = 3 + 5 = 8", True),
        ("Ben = Ava + 3 = 5 + 3 = 9", False),
        ("Ben = Ava - 3 = 5 - 3 = 2", False),
        ("Answer: 8", True),
        ("Answer: 9", False),
        ("Answer:", False),
        ("I do not know.", False),
    ],
)
def test_a_line_of_a_word_problem(line: str, good: bool) -> None:
    """A line is good if it is true and about someone on whom the answer depends."""
    assert tasks.judge(CHAIN, line).steps == (good,)


def test_a_line_said_twice_is_useless() -> None:
    """The second time a line brings nothing, and so does whatever follows the answer; neither makes the answer wrong."""
    assert tasks.judge(CHAIN, "Ava = 5\nAva = 5").steps == (True, False)
    judgement = tasks.judge(CHAIN, "\nAva = 5\n\nAnswer: 8\nBen = Ava + 3 = 5 + 3 = 8\n")
    assert judgement == tasks.Judgement((True, True, False), right=True)
    assert not judgement.sound
    assert tasks.judge(CHAIN, "Answer: 8\nAnswer: 9") == tasks.Judgement((True, False), right=False)
    assert tasks.judge(CHAIN, "") == tasks.Judgement((), right=False)


@pytest.mark.parametrize("answer", ["(3 + 4) * 5", "5*(4+3)", "((5)) * (3+4)", "(3 + 4) * 5\n"])
def test_countdown_takes_any_expression(answer: str) -> None:
    """Any expression that makes the target of the given numbers is right."""
    assert tasks.is_right(TARGET, answer)


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
        "3*5 + 4*5 - 0*0",  # makes it, of other numbers
        "3 * 5",
        "35",
        "(3 + 4) * 5 = 35",
        "(3 + 4) // 5",
        "(03 + 4) * 5",
        "3 ** 4 ** 5",
        "9**9**9**9",
        "5(3 + 4)",
        "3, 4, 5",
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
@pytest.mark.timeout(10)  # what parses or computes them takes for ever
def test_countdown_refuses_the_rest(answer: str) -> None:
    """Whatever is not such an expression is wrong, and never runs."""
    assert not tasks.is_right(TARGET, answer)


@given(text=st.text(alphabet="0123456789+-*/() ", max_size=60))
def test_countdown_never_raises(text: str) -> None:
    """Any text over the alphabet of expressions is judged, not raised about."""
    assert tasks.is_right(TARGET, text) in {True, False}


@pytest.mark.parametrize(
    ("lines", "good"),
    [
        ("Take 3 + 4 = 7, left 5 7", [True]),
        ("Take 3 + 4 = 7, left 7 5", [True]),
        ("Take 4 + 3 = 7, left 7 5\nTake 5 * 7 = 35\nAnswer: 5 * (4 + 3)", [True, True, True]),
        ("Take 3 + 4 = 8, left 5 8", [False]),  # no sum
        ("Take 3 + 4 = 7, left 5", [False]),  # something is lost
        ("Take 3 + 4 = 7", [False]),  # does not say what is left
        ("3 + 4 = 7, left 5 7", [False]),  # is no line of a solution
        ("Take 3 + 6 = 9, left 4 9", [False]),  # 6 was not given
        ("Take 3 * 4 = 12, left 5 12", [False]),  # 35 is out of reach
        ("Take 5 / 3 = 1, left 4 1", [False]),  # leaves a remainder
        ("Take 3 - 4 = -1, left 5 -1", [False]),
        ("Take 3 * 4 = 12, left 5 12\nTake 3 + 4 = 7, left 5 7", [False, False]),
        ("Take 3 * 4 = 12, left 5 12\nAnswer: (3 + 4) * 5", [False, True]),
        ("Answer: (3 + 4) * 5\nTake 3 + 4 = 7, left 5 7", [True, False]),
        ("Answer: (3 + 4) * 5\nAnswer: (3 + 4) * 5", [True, False]),
        (f"Take {'9' * 5000} + 4 = 7, left 5 7", [False]),
    ],
)
def test_a_line_of_countdown(lines: str, good: list[bool]) -> None:
    """A line is good while its sum is right, says what is left, and leaves the target within reach."""
    assert list(tasks.judge(TARGET, lines).steps) == good


@given(text=st.text(alphabet="Answer: 0123456789+-*/(),left=\n", max_size=80))
def test_any_text_is_judged(text: str) -> None:
    """One verdict a line that is not blank, whatever it says."""
    for problem in (CHAIN, TARGET):
        steps = tasks.judge(problem, text).steps
        assert len(steps) == sum(bool(line.strip()) for line in text.split("\n"))


@given(seed=st.integers(0, 2**32), count=st.integers(2, 4))
def test_what_was_drawn_is_solvable(seed: int, count: int) -> None:
    """The solver finds an expression for every drawn problem, and the checker accepts it."""
    problem = countdown.draw(random.Random(seed), count)
    *given_numbers, target = map(int, re.findall(r"\d+", problem.question))
    assert tasks.is_right(problem, countdown.solve(given_numbers, target))


@pytest.mark.parametrize(
    ("given_numbers", "target", "expected"),
    [([7], 7, "7"), ([7], 8, None), ([2, 2], 5, None), ([1, 1, 1], 100, None), ([], 0, None)],
)
def test_the_solver_is_exhaustive(
    given_numbers: list[int], target: int, expected: str | None
) -> None:
    """None means that no expression exists."""
    assert countdown.solve(given_numbers, target) == expected


def test_the_solver_agrees_with_brute_force() -> None:
    """For three small numbers the solvable targets are those of every order, operation and grouping."""
    reachable = set()
    for a, b, c in permutations((2, 3, 7)):
        for p in "+-*/":
            for q in "+-*/":
                for text in (f"({a} {p} {b}) {q} {c}", f"{a} {p} ({b} {q} {c})"):
                    for target in range(50):
                        problem = tasks.Problem(f"Use 2 3 7 to make {target}.", (), "", "countdown")
                        if tasks.is_right(problem, text):
                            reachable.add(target)
    solvable = {t for t in range(50) if countdown.can_make((2, 3, 7), t)}
    assert solvable == reachable
