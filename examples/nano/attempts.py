"""
Attempts at puzzles by somebody who half knows the way and always claims the target in the end, with an exact verdict on each line.

M fails like that: it combines what leads nowhere, then says that the last two numbers make the target. The PRM learns from attempts
besides M's own samples, since they are cheap and without end. Knows puzzles; knows no model.
"""

import random

from nano import countdown
from nano.problem import ANSWER, OPERATIONS, Problem, slipped

KNOWS = 0.5  # how often a step is one that still leads to the target
SLIPS = 0.06  # how often a step's value is wrong
NEAREST = 0.7  # how often the last line is the operation that comes closest to the target


def attempt(rng: random.Random, problem: Problem) -> list[str]:
    """The lines of one attempt; right if the last line is true and nothing before it was wrong."""
    numbers, target = countdown.read(problem.question)
    left = [(n, str(n)) for n in numbers]
    lines = []
    while len(left) > 1:
        i, j, symbol, value = (
            _last(rng, left, target) if len(left) == 2 else _step(rng, left, target)
        )
        (a, first), (b, second) = left[i], left[j]
        left = [term for k, term in enumerate(left) if k not in {i, j}]
        left.append((value, f"( {first} {symbol} {second} )"))
        rest = f", left {' '.join(str(n) for n, _ in left)}" if len(left) > 1 else ""
        lines.append(f"Take {a} {symbol} {b} = {value}{rest}")
    expression = left[0][1].removeprefix("( ").removesuffix(" )")
    return [*lines, f"{ANSWER} {expression}"]


def _step(
    rng: random.Random, left: list[tuple[int, str]], target: int
) -> tuple[int, int, str, int]:
    """Two positions, an operation and what it is said to make."""
    knows = rng.random() < KNOWS
    for _ in range(24):
        i, j = rng.sample(range(len(left)), 2)
        symbol = rng.choice("++--*/")
        value = countdown.apply(symbol, left[i][0], left[j][0])
        if value is None or not 0 < value < 1000:
            continue
        rest = [n for k, (n, _) in enumerate(left) if k not in {i, j}]
        if not knows or countdown.can_make(tuple(sorted([*rest, value])), target):
            break
    else:
        i, j = sorted((0, 1), key=lambda k: -left[k][0])
        symbol, value = "+", left[i][0] + left[j][0]
    return i, j, symbol, slipped(rng, value) if rng.random() < SLIPS else value


def _last(
    rng: random.Random, left: list[tuple[int, str]], target: int
) -> tuple[int, int, str, int]:
    """The two that are left, and an operation that is said to make the target."""
    ways = [
        (abs(value - target), i, j, symbol)
        for i, j in ((0, 1), (1, 0))
        for symbol in OPERATIONS
        for value in [countdown.apply(symbol, left[i][0], left[j][0])]
        if value is not None and value >= 0
    ]
    _, i, j, symbol = min(ways) if rng.random() < NEAREST else rng.choice(ways)
    return i, j, symbol, target
