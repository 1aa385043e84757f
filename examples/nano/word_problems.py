"""
Word problems: who has how many, over a graph of facts that build on each other.

Knows how a question is drawn, read and solved, and what a line of a solution is worth. Knows no model.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nano.problem import ANSWER, OPERATIONS, Judgement, Problem, answer_of, lines_of

NAMES = (
    "Ava Ben Cal Dee Eli Fay Gus Hal Ida Jon Kim Leo Mia "
    "Ned Oli Pam Quin Ray Sue Tom Uma Vic Wes Xia Yan Zoe"
).split()
ITEMS = "apples pens books coins cards shells stamps marbles pears plums cups keys".split()
HARDEST = 8  # linked facts

# A relation's sentence and its formula: `{a}` is described by `{b}`, in a sum also by `{c}`; `{n}` is a number.
_RELATIONS = {
    "more": ("{a} has {n} more {item} than {b}.", "{b} + {n}"),
    "fewer": ("{a} has {n} fewer {item} than {b}.", "{b} - {n}"),
    "times": ("{a} has {n} times as many {item} as {b}.", "{n} * {b}"),
    "half": ("{a} has half as many {item} as {b}.", "{b} / 2"),
    "sum": ("{a} has as many {item} as {b} and {c} together.", "{b} + {c}"),
}
_SENTENCE = re.compile(
    r"(?P<a>[A-Z]\w*) has (?:"
    r"(?P<given>[0-9]+) \w+"
    r"|(?P<more>[0-9]+) more \w+ than (?P<b1>\w+)"
    r"|(?P<fewer>[0-9]+) fewer \w+ than (?P<b2>\w+)"
    r"|(?P<times>[0-9]+) times as many \w+ as (?P<b3>\w+)"
    r"|(?P<half>half) as many \w+ as (?P<b4>\w+)"
    r"|(?P<sum>as many) \w+ as (?P<b5>\w+) and (?P<c>\w+) together"
    r")\."
)
_ASKED = re.compile(r"How many \w+ does (?P<a>\w+) have\?")


@dataclass(frozen=True, slots=True)
class Fact:
    """What one person has: as the question says it, and how it follows from others."""

    name: str
    value: int
    sentence: str
    formula: str = ""  # over names, "Kim + 3"; empty where the number is given outright
    needs: tuple[str, ...] = ()


def draw(rng: random.Random, linked: int) -> Problem:
    """Who has how many: `linked` facts, of which the last one is asked about, and up to two others on which nothing depends.

    Not every linked fact is needed: of eight, the answer depends on five on average, as some say a number outright.
    The solution traces back from the question, then computes forward.
    """
    names = rng.sample(NAMES, linked + rng.randint(0, 2))
    item = rng.choice(ITEMS)
    known: dict[str, Fact] = {}
    for i, name in enumerate(names):
        known[name] = _draw_fact(rng, name, item, known, linked_left=linked - 1 - i)
    asked = names[linked - 1]
    sentences = [fact.sentence for fact in known.values()]
    rng.shuffle(sentences)
    return Problem(
        question=f"{' '.join(sentences)} How many {item} does {asked} have?",
        steps=tuple(_solve(known, asked)),
        answer=str(known[asked].value),
        task="word_problem",
        difficulty=linked,
    )


def key_of(question: str) -> str:
    """What makes it that problem: its sentences, in whatever order."""
    *facts, asked = re.split(r"(?<=\.) ", question)
    return " ".join([*sorted(facts), asked])


def read(question: str) -> tuple[dict[str, Fact], str]:
    """The facts of a question, each with its value, and who is asked about; ValueError where it is no word problem."""
    found = {m["a"]: m for m in _SENTENCE.finditer(question)}
    asked = _ASKED.search(question)
    if asked is None or asked["a"] not in found:
        raise ValueError(f"not a word problem: {question!r}")
    facts: dict[str, Fact] = {}
    while len(facts) < len(found):
        before = len(facts)
        for name, m in found.items():
            needs = tuple(b for b in (m["b1"], m["b2"], m["b3"], m["b4"], m["b5"], m["c"]) if b)
            if name not in facts and facts.keys() >= set(needs):
                facts[name] = _read_fact(m, needs, facts)
        if len(facts) == before:
            raise ValueError(f"these facts do not build on each other: {question!r}")
    return facts, asked["a"]


def facts_needed(problem: Problem) -> int:
    """On how many facts the answer depends."""
    return len(needed(*read(problem.question)))


def needed(facts: dict[str, Fact], asked: str) -> list[str]:
    """Everyone on whom what `asked` has depends, from `asked` back."""
    return list(dict.fromkeys(_trace(facts, asked)))


def is_right(problem: Problem, answer: str | None) -> bool:
    """Whether `answer` is the number that the problem asks for, in plain digits."""
    return (
        answer is not None
        and re.fullmatch("-?(0|[1-9][0-9]{0,17})", answer.strip()) is not None
        and int(answer) == int(problem.answer)
    )


def judge(problem: Problem, solution: str) -> Judgement:
    """A line is good if it is true, new, and about someone on whom the answer depends; the last one if it is right."""
    facts, asked = read(problem.question)
    # what is yet to be said, each with every way to say it
    good = [ways for name in needed(facts, asked) for ways in _true_lines(facts, name)]
    verdicts, answered = [], False
    for line in lines_of(solution):
        if line.startswith(ANSWER):
            verdicts.append(not answered and is_right(problem, line.removeprefix(ANSWER)))
            answered = True
        else:
            said = next((ways for ways in good if line in ways), None)
            verdicts.append(said is not None and not answered)
            if said is not None:
                good.remove(said)
    return Judgement(tuple(verdicts), is_right(problem, answer_of(solution)))


def _draw_fact(
    rng: random.Random, name: str, item: str, known: dict[str, Fact], *, linked_left: int
) -> Fact:
    """A number outright, or a relation to someone before; `linked_left` is negative for a distraction."""
    outright = 0.4 if linked_left < 0 else 0.15 if linked_left > 0 else 0.0
    if not known or rng.random() < outright:
        value = rng.randint(2, 60)
        return Fact(name, value, f"{name} has {value} {item}.")
    people = list(known)
    while True:
        on_chain = linked_left >= 0 and rng.random() < 0.75
        other = people[-1] if on_chain else rng.choice(people)
        fact = _draw_relation(rng, name, other, item, known)
        if fact is not None and 1 <= fact.value <= 999:
            return fact


def _draw_relation(
    rng: random.Random, name: str, other: str, item: str, known: dict[str, Fact]
) -> Fact | None:
    """One relation of `name` to `other`; None where the one drawn does not fit."""
    base, n, third = known[other].value, 0, ""
    relation = rng.choice(["more", "fewer", "times", "sum", "half"])
    match relation:
        case "more":
            n = rng.randint(2, 60)
            value = base + n
        case "fewer" if base > 4:
            n = rng.randint(2, min(60, base - 2))
            value = base - n
        case "times":
            n = rng.randint(2, 9)
            value = base * n
        case "half" if base % 2 == 0:
            value = base // 2
        case "sum" if len(known) > 1:
            third = rng.choice([person for person in known if person != other])
            value = base + known[third].value
        case _:
            return None
    words = {"a": name, "b": other, "c": third, "n": n, "item": item}
    sentence, formula = (pattern.format(**words) for pattern in _RELATIONS[relation])
    return Fact(name, value, sentence, formula, (other, third) if third else (other,))


def _read_fact(m: re.Match[str], needs: tuple[str, ...], facts: dict[str, Fact]) -> Fact:
    """One sentence of a question, its people known."""
    if m["given"]:
        return Fact(m["a"], int(m["given"]), m.group())
    relation = next(r for r in _RELATIONS if m[r])
    words = {"b": needs[0], "c": needs[-1], "n": m[relation]}
    formula = _RELATIONS[relation][1].format(**words)
    return Fact(m["a"], _value(formula, facts), m.group(), formula, needs)


def _value(formula: str, facts: dict[str, Fact]) -> int:
    """What a formula over names comes to."""
    a, symbol, b = _in_numbers(formula, facts).split()
    return OPERATIONS[symbol](int(a), int(b))


def _in_numbers(formula: str, facts: dict[str, Fact]) -> str:
    """`Kim + 3` with what Kim has in Kim's place."""
    return " ".join(str(facts[w].value) if w in facts else w for w in formula.split())


def _solve(facts: dict[str, Fact], asked: str) -> Iterator[str]:
    """The facts that the answer needs, from the question back, as the question says them; then the calculations, forward."""
    order = needed(facts, asked)
    yield from (facts[name].sentence for name in order)
    done: set[str] = set()
    while len(done) < len(order):
        for name in reversed(order):
            if name not in done and done.issuperset(facts[name].needs):
                yield _computed(facts, name, facts[name].formula)
                done.add(name)


def _trace(facts: dict[str, Fact], name: str) -> Iterator[str]:
    """Everyone on whom `name` depends, depth first, repeats included."""
    yield name
    for other in facts[name].needs:
        yield from _trace(facts, other)


def _computed(facts: dict[str, Fact], name: str, formula: str) -> str:
    """`Zoe = Sue + 46 = 18 + 46 = 64`, or `Sue = 18` where the number is given."""
    parts = [name, formula, _in_numbers(formula, facts), str(facts[name].value)]
    return " = ".join(part for part in parts if part)


def _true_lines(facts: dict[str, Fact], name: str) -> Iterator[set[str]]:
    """What is true about `name`, each in every way to say it: the fact, and its calculation either way round."""
    formula = facts[name].formula
    yield {facts[name].sentence}
    ways = {formula}
    if formula and formula.split()[1] in "+*":
        ways.add(" ".join(reversed(formula.split())))
    yield {_computed(facts, name, way) for way in ways}
