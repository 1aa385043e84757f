"""
Two verifiable reasoning tasks, drawn at random: word problems over a dependency graph, and Countdown.

Knows how to draw a problem, how to write its solution down, and how to check an answer exactly. The bundled models were
trained on these texts, so the same state of `random.Random` draws the same problem for ever. Knows no model.
"""

import ast
import operator
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

NAMES = (
    "Ava Ben Cal Dee Eli Fay Gus Hal Ida Jon Kim Leo Mia "
    "Ned Oli Pam Quin Ray Sue Tom Uma Vic Wes Xia Yan Zoe"
).split()
ITEMS = "apples pens books coins cards shells stamps marbles pears plums cups keys".split()

_LONGEST_EXPRESSION = 500  # characters; no honest answer comes near


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the lines of one solution, and its answer."""

    question: str
    steps: tuple[str, ...]
    answer: str
    task: Literal["word_problem", "countdown"]


def render(problem: Problem) -> str:
    """The text that a model learns: question, steps, answer, one a line."""
    return "\n".join((problem.question, *problem.steps, f"Answer: {problem.answer}"))


def is_right(problem: Problem, answer: str | None) -> bool:
    """Whether `answer` solves the problem: the same integer, or any expression that makes the target.

    A Countdown expression has integers, `+ - * /` and parentheses, uses every given number exactly once, and divides
    without remainder. No answer is too hostile: what is not such an expression is wrong, and found so quickly.
    """
    if answer is None:
        return False
    if problem.task == "countdown":
        return _makes(answer.strip(), *_given(problem.question))
    return re.fullmatch("-?[0-9]{1,18}", answer.strip()) is not None and (
        int(answer) == int(problem.answer)
    )


# --- Word problems ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fact:
    """What one person has: as the question says it, as a step repeats it, and how it follows from others."""

    value: int
    sentence: str
    short: str
    formula: str | None = None  # None: known outright
    needs: tuple[str, ...] = ()


def word_problem(rng: random.Random, steps: int | None = None) -> Problem:
    """Who has how many: `steps` linked facts (1 to 6 by default) lead to the answer, and up to two others do not.

    The solution traces back from the question, then computes forward.
    """
    linked = steps or rng.choice([1, 2, 2, 3, 3, 4, 4, 5, 6])
    names = rng.sample(NAMES, linked + rng.randint(0, 2))
    item = rng.choice(ITEMS)
    facts: dict[str, _Fact] = {}
    for i, name in enumerate(names):
        facts[name] = _draw_fact(rng, name, item, facts, linked_left=linked - 1 - i)
    asked = names[linked - 1]
    sentences = [fact.sentence for fact in facts.values()]
    rng.shuffle(sentences)
    return Problem(
        question=f"{' '.join(sentences)} How many {item} does {asked} have?",
        steps=tuple(_solve(facts, asked)),
        answer=str(facts[asked].value),
        task="word_problem",
    )


def _draw_fact(
    rng: random.Random, name: str, item: str, known: dict[str, _Fact], *, linked_left: int
) -> _Fact:
    """A number outright, or a relation to someone before; `linked_left` is negative for a distraction."""
    outright = 0.4 if linked_left < 0 else 0.15 if linked_left > 0 else 0.0
    if not known or rng.random() < outright:
        value = rng.randint(2, 60)
        return _Fact(value, f"{name} has {value} {item}.", f"{name}: {value}")
    people = list(known)
    while True:
        on_chain = linked_left >= 0 and rng.random() < 0.75
        other = people[-1] if on_chain else rng.choice(people)
        fact = _draw_relation(rng, name, other, item, known)
        if fact is not None and 1 <= fact.value <= 999:
            return fact


def _draw_relation(
    rng: random.Random, name: str, other: str, item: str, known: dict[str, _Fact]
) -> _Fact | None:
    """One relation of `name` to `other`; None where the one drawn does not fit."""
    base = known[other].value
    needs: tuple[str, ...] = (other,)
    match rng.choice(["more", "fewer", "times", "sum", "half"]):
        case "more":
            n = rng.randint(2, 60)
            value, formula = base + n, f"{base} + {n}"
            sentence, short = f"{n} more {item} than {other}", f"{n} more than {other}"
        case "fewer" if base > 4:
            n = rng.randint(2, min(60, base - 2))
            value, formula = base - n, f"{base} - {n}"
            sentence, short = f"{n} fewer {item} than {other}", f"{n} fewer than {other}"
        case "times":
            n = rng.randint(2, 9)
            value, formula = base * n, f"{n} * {base}"
            sentence, short = f"{n} times as many {item} as {other}", f"{n} times {other}"
        case "half" if base % 2 == 0:
            value, formula = base // 2, f"{base} / 2"
            sentence, short = f"half as many {item} as {other}", f"half of {other}"
        case "sum" if len(known) > 1:
            third = rng.choice([person for person in known if person != other])
            value, formula = base + known[third].value, f"{base} + {known[third].value}"
            sentence = f"as many {item} as {other} and {third} together"
            short, needs = f"{other} and {third}", (other, third)
        case _:
            return None
    return _Fact(value, f"{name} has {sentence}.", f"{name}: {short}", formula, needs)


def _solve(facts: dict[str, _Fact], asked: str) -> Iterator[str]:
    """The facts that the answer needs, from the question back, then the calculations, forward."""
    order = list(dict.fromkeys(_trace(facts, asked)))
    yield from (facts[name].short for name in order)
    done = {name for name in order if facts[name].formula is None}
    while len(done) < len(order):
        for name in reversed(order):
            if name not in done and done.issuperset(facts[name].needs):
                yield f"{name} = {facts[name].formula} = {facts[name].value}"
                done.add(name)


def _trace(facts: dict[str, _Fact], name: str) -> Iterator[str]:
    """Everyone on whom `name` depends, depth first, repeats included."""
    yield name
    for other in facts[name].needs:
        yield from _trace(facts, other)


# --- Countdown -------------------------------------------------------------------------------------------------------

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,  # only where nothing remains
}
_SYMBOLS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}

_Term = tuple[int, str]  # a value, and the expression that makes it


def countdown(rng: random.Random, numbers: int | None = None) -> Problem:
    """Three or four numbers by default, and a target from 10 to 100 that they make, each used once.

    The solution combines two numbers a line; the answer is the whole expression.
    """
    count = numbers or rng.choice([3, 4, 4])
    while True:
        given = [rng.randint(1, 50) for _ in range(count)]
        steps, left = _combine_all(rng, [(n, str(n)) for n in given])
        if len(left) == 1 and 10 <= left[0][0] <= 100:
            break
    rng.shuffle(given)
    target, expression = left[0]
    return Problem(
        question=f"Use {' '.join(map(str, given))} to make {target}.",
        steps=tuple(steps),
        answer=expression[1:-1],
        task="countdown",
    )


def solve_countdown(numbers: Iterable[int], target: int) -> str | None:
    """An expression that `is_right` accepts, or None where none exists: the search is exhaustive."""
    expression = _search([(n, str(n)) for n in numbers], target, set())
    return None if expression is None else expression.removeprefix("(").removesuffix(")")


def _combine_all(rng: random.Random, left: list[_Term]) -> tuple[list[str], list[_Term]]:
    """Combines pairs until one term is left, or until a dozen draws find no pair that combines."""
    steps: list[str] = []
    while len(left) > 1:
        drawn = _draw_pair(rng, left)
        if drawn is None:
            break
        i, j, symbol, value = drawn
        (a, first), (b, second) = left[i], left[j]
        left = [term for k, term in enumerate(left) if k not in {i, j}]
        left.append((value, f"({first} {symbol} {second})"))
        rest = f", left {' '.join(str(n) for n, _ in left)}" if len(left) > 1 else ""
        steps.append(f"{a} {symbol} {b} = {value}{rest}")
    return steps, left


def _draw_pair(rng: random.Random, left: list[_Term]) -> tuple[int, int, str, int] | None:
    """Two positions, an operation and its value, from 1 to 999; times one and over one are too easy."""
    for _ in range(12):
        i, j = rng.sample(range(len(left)), 2)
        a, b = left[i][0], left[j][0]
        symbol = rng.choice("+-*/")
        value = _apply(symbol, a, b)
        trivial = symbol in "*/" and b == 1
        if value is not None and 0 < value < 1000 and not trivial:
            return i, j, symbol, value
    return None


def _apply(symbol: str, a: int, b: int) -> int | None:
    """The value of `a symbol b`; None for a division that leaves something."""
    if symbol == "/" and (b == 0 or a % b != 0):
        return None
    return _OPERATIONS[symbol](a, b)


def _search(left: list[_Term], target: int, failed: set[tuple[int, ...]]) -> str | None:
    """Depth first over every pair, both ways round, remembering the multisets of values that led nowhere."""
    if len(left) == 1:
        return left[0][1] if left[0][0] == target else None
    state = tuple(sorted(value for value, _ in left))
    if state in failed:
        return None
    for i, (a, first) in enumerate(left):
        for j, (b, second) in enumerate(left):
            if i == j:
                continue
            rest = [term for k, term in enumerate(left) if k not in {i, j}]
            for symbol in _OPERATIONS:
                value = _apply(symbol, a, b)
                if value is None:
                    continue
                combined = (value, f"({first} {symbol} {second})")
                if (found := _search([*rest, combined], target, failed)) is not None:
                    return found
    failed.add(state)
    return None


def _given(question: str) -> tuple[list[int], int]:
    """The numbers and the target of a Countdown question."""
    *numbers, target = map(int, re.findall("[0-9]+", question))
    return numbers, target


def _makes(expression: str, numbers: list[int], target: int) -> bool:
    """Whether the expression makes the target from exactly these numbers.

    Length, alphabet and numbers are checked before anything is parsed, so the tree is as small as the question.
    """
    if len(expression) > _LONGEST_EXPRESSION or not re.fullmatch("[0-9+*/() -]+", expression):
        return False
    if sorted(re.findall("[0-9]+", expression)) != sorted(map(str, numbers)):
        return False
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, RecursionError, MemoryError):
        return False
    return _value(tree.body) == target


def _value(node: ast.expr) -> int | None:
    """The value of a parsed expression; None where it has anything but integers and the four operations."""
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SYMBOLS:
            a, b = _value(left), _value(right)
            return None if a is None or b is None else _apply(_SYMBOLS[type(op)], a, b)
        case _:
            return None
