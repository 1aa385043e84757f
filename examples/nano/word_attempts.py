"""
Attempts at word problems by somebody who knows the way and misreads a number now and then, without ever noticing.

M fails like that: four of five of its first wrong lines name the right calculation and put somebody else's number into it. What follows is
computed from the wrong value, so all of it is wrong. Knows word problems; knows no model.
"""

import random
from collections.abc import Iterator

from nano.problem import ANSWER, OPERATIONS, Problem

SLIPS = (0.0, 0.06, 0.16)  # how often a calculation goes wrong; each attempt has one of them
MISREADS = 0.85  # of these, how many put another person's number in; the rest get the value wrong
STRAYS = (
    0.012  # how often a line is one that should not be there: said twice, or of the wrong person
)


def attempt(rng: random.Random, problem: Problem) -> list[str]:
    """The lines of one attempt; right if no line of it is wrong."""
    slips = rng.choice(SLIPS)
    lines: list[str] = []
    known: dict[str, int] = {}  # what everybody has, as far as this attempt knows
    for step in problem.steps:
        lines += _stray(rng, problem, lines)
        lines.append(
            step
            if step.endswith(".")
            else _calculate(rng, step, known, slipping=rng.random() < slips)
        )
    asked = step.split()[0]  # the last step is about whom the question asks
    others = [value for name, value in known.items() if name != asked]
    answer = rng.choice(others) if others and rng.random() < STRAYS else known[asked]
    return [*lines, f"{ANSWER} {answer}"]


def _calculate(rng: random.Random, step: str, known: dict[str, int], *, slipping: bool) -> str:
    """The line `Zoe = Sue + 46 = 18 + 46 = 64` of whom believes what `known` says, which learns what Zoe has."""
    name, formula, *_ = step.split(" = ")
    if formula.isdigit():
        known[name] = _other_digit(rng, int(formula)) if slipping else int(formula)
        return f"{name} = {known[name]}"
    a, symbol, b = formula.split()
    right = {term: known[term] if term in known else int(term) for term in (a, b)}
    read = dict(right)
    wrong_value = slipping
    if slipping and rng.random() < MISREADS:
        term = rng.choice([t for t in (a, b) if t in known])
        others = sorted({*known.values(), *right.values()} - {right[term]})
        if others:
            read[term] = rng.choice(others)
            wrong_value = False
    value = OPERATIONS[symbol](read[a], read[b])
    known[name] = _other_digit(rng, abs(value)) if wrong_value else value
    return f"{name} = {formula} = {read[a]} {symbol} {read[b]} = {known[name]}"


def _stray(rng: random.Random, problem: Problem, lines: list[str]) -> Iterator[str]:
    """Now and then a line that says nothing new, or says a fact of somebody else."""
    if rng.random() >= STRAYS or not lines:
        return
    line = rng.choice(lines)
    if rng.random() < 0.5:
        yield line
        return
    words = problem.question.rsplit(".", 1)[0].replace(".", " ").split()
    people = sorted({word for word in words if word[0].isupper()})
    _, rest = line.split(" ", 1)
    yield f"{rng.choice(people)} {rest}"


def _other_digit(rng: random.Random, value: int) -> int:
    """A number with one digit of it changed."""
    digits = list(str(value))
    k = rng.randrange(len(digits))
    digits[k] = rng.choice([d for d in "123456789" if d != digits[k]])
    return int("".join(digits))
