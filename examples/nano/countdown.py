"""
Countdown: combine the given numbers, each once, to make the target.

Knows how a puzzle is drawn and solved, which states still lead to the target, and what a line of a solution is worth. Knows no
model.
"""

import ast
import random
import re
from collections.abc import Iterable
from functools import lru_cache

from nano.problem import ANSWER, OPERATIONS, Judgement, Problem, answer_of, lines_of

_LONGEST_EXPRESSION = 500  # characters; no honest answer comes near

_SYMBOLS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}

_NUMBER = "(0|[1-9][0-9]{0,8})"
_LINE = re.compile(
    f"Take {_NUMBER} ([-+*/]) {_NUMBER} = {_NUMBER}(?:, left ({_NUMBER}(?: {_NUMBER})*))?"
)

_Term = tuple[int, str]  # a value, and the expression that makes it


def draw(rng: random.Random, count: int) -> Problem:
    """`count` numbers from 1 to 50, and a target from 10 to 100 that they make, each used once.

    The solution combines two numbers per line; the answer is the whole expression. Spaces stand around parentheses, so that a number
    is the same tokens everywhere.
    """
    while True:
        given = [rng.randint(1, 50) for _ in range(count)]
        steps, left = _combine_all(rng, [(n, str(n)) for n in given])
        if len(left) == 1 and 10 <= left[0][0] <= 100:
            break
    target, expression = left[0]
    return Problem(
        question=f"Use {' '.join(map(str, given))} to make {target}.",
        steps=tuple(steps),
        answer=expression.removeprefix("( ").removesuffix(" )"),
        task="countdown",
        difficulty=count,
    )


def key_of(question: str) -> str:
    """What makes it that puzzle: its numbers in whatever order, and its target."""
    numbers, target = read(question)
    return f"{sorted(numbers)} {target}"


def read(question: str) -> tuple[list[int], int]:
    """The numbers and the target of a question; ValueError where it is no puzzle."""
    if not re.fullmatch(r"Use [0-9]+( [0-9]+)* to make [0-9]+\.", question):
        raise ValueError(f"not a Countdown puzzle: {question!r}")
    *numbers, target = map(int, re.findall("[0-9]+", question))
    return numbers, target


def is_right(problem: Problem, answer: str | None) -> bool:
    """Whether `answer` is an expression that makes the target.

    An expression has integers, `+ - * /` and parentheses, uses every given number exactly once, and divides without remainder.
    No answer is too hostile: what is not such an expression is wrong, and found so quickly.
    """
    return answer is not None and _makes(answer.strip(), *read(problem.question))


def judge(problem: Problem, solution: str) -> Judgement:
    """A line is good if it combines two numbers that are left, rightly, and the target can still be made of the rest.

    After a line that does not, nothing is good but a right answer.
    """
    numbers, target = read(problem.question)
    left: tuple[int, ...] | None = tuple(sorted(numbers))
    verdicts, answered = [], False
    for line in lines_of(solution):
        if line.startswith(ANSWER):
            verdicts.append(not answered and is_right(problem, line.removeprefix(ANSWER)))
            answered = True
        else:
            left = None if left is None or answered else _after(left, line)
            verdicts.append(left is not None and can_make(left, target))
            left = left if verdicts[-1] else None
    return Judgement(tuple(verdicts), is_right(problem, answer_of(solution)))


@lru_cache(maxsize=1 << 20)
def can_make(left: tuple[int, ...], target: int) -> bool:
    """Whether some way to combine all of `left`, in ascending order, makes the target: the search is exhaustive."""
    return solve(left, target) is not None


def solve(numbers: Iterable[int], target: int) -> str | None:
    """An expression that `is_right` accepts, or None where none exists: the search is exhaustive."""
    expression = _search([(n, str(n)) for n in numbers], target, set())
    return None if expression is None else expression.removeprefix("(").removesuffix(")")


def _after(left: tuple[int, ...], line: str) -> tuple[int, ...] | None:
    """What is left once the line's two numbers are combined; None where the line is wrong or does not say so."""
    m = _LINE.fullmatch(line)
    if m is None:
        return None
    a, b, value = int(m[1]), int(m[3]), int(m[4])
    rest = list(left)
    for n in (a, b):
        if n not in rest:
            return None
        rest.remove(n)
    rest = sorted([*rest, value])
    said = sorted(map(int, m[5].split())) if m[5] else rest if len(rest) == 1 else None
    return tuple(rest) if apply(m[2], a, b) == value and said == rest else None


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
        left.append((value, f"( {first} {symbol} {second} )"))
        rest = f", left {' '.join(str(n) for n, _ in left)}" if len(left) > 1 else ""
        steps.append(f"Take {a} {symbol} {b} = {value}{rest}")
    return steps, left


def _draw_pair(rng: random.Random, left: list[_Term]) -> tuple[int, int, str, int] | None:
    """Two positions, an operation and its value, from 1 to 999; times one and over one are too easy."""
    for _ in range(12):
        i, j = rng.sample(range(len(left)), 2)
        a, b = left[i][0], left[j][0]
        symbol = rng.choice("+-*/")
        value = apply(symbol, a, b)
        trivial = symbol in "*/" and b == 1
        if value is not None and 0 < value < 1000 and not trivial:
            return i, j, symbol, value
    return None


def apply(symbol: str, a: int, b: int) -> int | None:
    """The value of `a symbol b`; None for a division that leaves something."""
    if symbol == "/" and (b == 0 or a % b != 0):
        return None
    return OPERATIONS[symbol](a, b)


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
            for symbol in OPERATIONS:
                value = apply(symbol, a, b)
                if value is None:
                    continue
                combined = (value, f"({first} {symbol} {second})")
                if (found := _search([*rest, combined], target, failed)) is not None:
                    return found
    failed.add(state)
    return None


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
            return None if a is None or b is None else apply(_SYMBOLS[type(op)], a, b)
        case _:
            return None
