"""
Attempts at word problems by somebody who knows the way, but now and then takes another person's number, with an exact verdict on each line.

M fails like that: two of three of its first errors are sums with a number that somebody else has. An exercise is the same without the
facts: nothing but looking up who has how many. Knows word problems; knows no model.
"""

import random
import re

from nano import word_problems
from nano.problem import ANSWER, OPERATIONS, Problem, slipped
from nano.word_problems import NAMES, Fact

FACTS = 0.06  # how often one of the facts is drawn anew, or is left out
CLEAN = 0.35  # how often all that is calculated is right, else:
IN_SUMS, ELSEWHERE = 0.25, 0.05  # how often a number is looked up where it does not stand
UNSEEN = 0.1  # of these, how often among the question's numbers, and not with another person
LAST = 0.4  # and else, how often with the person of the line before
GIVEN, SLIPS, ANSWERS = 0.03, 0.02, 0.02  # wrong: a number given outright, a result, the answer
TURNED = 0.08  # how often a sum or a product is told the other way round
# Of an exercise:
PEOPLE = (8, 10, 12, 14)
MISREAD = 0.15  # how often a number is looked up where it does not stand
OUTRIGHT = 0.12  # lines that look nothing up
SUMS, PRODUCTS = 0.8, 0.5  # of the others, sums; of what is none, products
MOST_GIVEN = 60  # number said outright
LARGEST = 999  # number that anybody has, as in word problems


def sums(problem: Problem) -> int:
    """How many lines of the solution add what two people have."""
    return sum(map(adds, problem.steps))


def adds(line: str) -> bool:
    """Whether a line adds what two people have: `Wes = Tom + Cal = ...`."""
    return re.match(r"\w+ = [A-Z]\w* \+ [A-Z]", line) is not None


def attempt(rng: random.Random, problem: Problem) -> list[str]:
    """The lines of one attempt; what is wrong in one line is used in those after it."""
    facts, asked = word_problems.read(problem.question)
    numbers = [int(n) for n in re.findall(r"\b\d+\b", problem.question)]
    order = word_problems.needed(facts, asked)
    lines = [facts[name].sentence for name in _told(rng, order, list(facts))]
    has: dict[str, int] = {}
    clean = rng.random() < CLEAN

    def errs(share: float) -> bool:
        return not clean and rng.random() < share

    def seen(term: str, share: float) -> int:
        if term not in facts:
            return int(term)
        return _another(rng, term, has, numbers) if errs(share) else has[term]

    while len(has) < len(order):
        for name in reversed(order):
            fact = facts[name]
            if name in has or not has.keys() >= set(fact.needs):
                continue
            if not fact.formula:
                has[name] = rng.choice(numbers) if errs(GIVEN) else fact.value
                lines.append(f"{name} = {has[name]}")
                continue
            a, symbol, b = _formula(rng, fact)
            share = IN_SUMS if len(fact.needs) == 2 else ELSEWHERE
            x, y = seen(a, share), seen(b, share)
            value = max(OPERATIONS[symbol](x, y), 0)
            has[name] = slipped(rng, value) if errs(SLIPS) else value
            lines.append(_calculated(name, (a, symbol, b), (x, y), has[name]))
    answer = rng.choice(list(has.values())) if errs(ANSWERS) else has[asked]
    return [*lines, f"{ANSWER} {answer}"]


def exercise(rng: random.Random) -> tuple[list[str], list[bool]]:
    """Who has how many, line by line, about nothing; and whether each line is true. What is not true is not used again."""
    has: dict[str, int] = {}
    lines, good = [], []
    for name in rng.sample(NAMES, rng.choice(PEOPLE)):
        formula = _drawn(rng, has)
        if formula is None:
            value, true = rng.randint(2, MOST_GIVEN), True
            lines.append(f"{name} = {value}")
        else:
            a, symbol, b = formula
            terms = [has[term] if term in has else int(term) for term in (a, b)]
            x, y = (
                _another(rng, term, has, [n]) if term in has and rng.random() < MISREAD else n
                for term, n in zip((a, b), terms, strict=True)
            )
            value = max(OPERATIONS[symbol](x, y), 0)
            if slips := rng.random() < SLIPS:
                value = slipped(rng, value)
            true = [x, y] == terms and not slips
            lines.append(_calculated(name, formula, (x, y), value))
        good.append(true)
        if true:
            has[name] = value
    return lines, good


def _told(rng: random.Random, order: list[str], people: list[str]) -> list[str]:
    """Whose facts are told: now and then a wrong one, or one too few."""
    told = list(order)
    if rng.random() < FACTS:
        k = rng.randrange(len(told))
        if rng.random() < 0.5 or len(told) < 3:
            told[k] = rng.choice(people)
        else:
            del told[k]
    return told


def _formula(rng: random.Random, fact: Fact) -> tuple[str, str, str]:
    """The terms of a fact's formula, and its symbol between them."""
    a, symbol, b = fact.formula.split()
    turned = symbol in "+*" and rng.random() < TURNED
    return (b, symbol, a) if turned else (a, symbol, b)


def _drawn(rng: random.Random, has: dict[str, int]) -> tuple[str, str, str] | None:
    """A formula over those who have something, mostly a sum; None where a number is to be given outright."""
    if len(has) < 2 or rng.random() < OUTRIGHT:
        return None
    people = list(has)
    a = people[-1] if rng.random() < LAST else rng.choice(people)
    b = rng.choice([person for person in people if person != a])
    if rng.random() < SUMS and has[a] + has[b] <= LARGEST:
        return (a, "+", b) if rng.random() < 0.5 else (b, "+", a)
    if has[a] <= LARGEST // 2 and rng.random() < PRODUCTS:
        return str(rng.randint(2, min(9, LARGEST // has[a]))), "*", a
    if has[a] > 4:
        return a, "-", str(rng.randint(2, min(MOST_GIVEN, has[a] - 2)))
    return a, "+", str(rng.randint(2, MOST_GIVEN))


def _another(rng: random.Random, name: str, has: dict[str, int], numbers: list[int]) -> int:
    """A number in the place of what `name` has: mostly another person's."""
    others = [number for person, number in has.items() if person != name]
    if not others or rng.random() < UNSEEN:
        return rng.choice(numbers)
    return others[-1] if rng.random() < LAST else rng.choice(others)


def _calculated(
    name: str, formula: tuple[str, str, str], numbers: tuple[int, int], value: int
) -> str:
    a, symbol, b = formula
    x, y = numbers
    return f"{name} = {a} {symbol} {b} = {x} {symbol} {y} = {value}"
