"""
When two answers that are written differently are the same maths.

Knows numbers, and what is cheap to compare; imports nothing heavy: `math-verify` is used when it is installed, and only for short,
harmless-looking maths. Knows no text that an answer is part of.
"""

import importlib
import logging
import math
import re
import threading
from collections.abc import Iterable
from fractions import Fraction
from functools import cache, lru_cache
from types import ModuleType
from typing import SupportsFloat

from langchain_pareto.strategies.arithmetic import value_of

Key = str | Fraction  # a number where one is spelled or comes of arithmetic, else a normal form

_LONGEST_MATHS = 100  # characters
_LONGEST_RELATION = 40  # characters
_SCIENTIFIC = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]{1,3}")
_RATIONAL = re.compile(r"(-?)(?:([0-9]+) )?([0-9]+(?:\.[0-9]+)?)(?:/([0-9]+(?:\.[0-9]+)?))?")
# Numbers, single letters, and what is cheap to parse and compare: no factorials, sums or functions.
_MATHS = re.compile(
    r"(?:\\(?:frac|sqrt|pi|infty|cup|leq?|geq?|neq?|pm|[{}])(?![A-Za-z])"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z]|(?<=[0-9].)[0-9])| (?!(?<=[0-9] )[0-9])|[-0-9.,+*/^=<>(){}\[\]])+"
)
_UNIT = re.compile(r"[0-9.] ?[cdeghlmostI]\Z")  # 5 m and 5 g would both be read as 5
# Ranges, dates, telephone numbers and versions would be read as sums and products.
_DASHED = re.compile(r"[0-9.]+(?:-[0-9.]+)+|[0-9]+(?:/[0-9]+){2,}|[0-9]+(?:\.[0-9]+){2,}")
_RELATION = re.compile(r"[=<>]|\\[lgn]eq?")
_VALUE = re.compile(  # x=5, f(x)=2x, 2+3=5
    r"(?:([A-Za-z])(?:\([A-Za-z]\))?|[^A-Za-z=<>,]+)=(?:[^=<>,]*=)*([^=<>]+)"
)
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_BRACKETS = re.compile(r"[(\[]([^()\[\]]*)[)\]]")  # innermost ones
_POWER = re.compile(
    r"\^(?:([0-9]{1,2}(?![0-9]))|[A-Za-z]"
    r"|\{[-+]?([0-9]{0,2})[A-Za-z]?(?:[-+]([0-9]{1,2})|/[0-9]{1,2})?\})?"
)
_HIGHEST_POWER = 32  # the product of all exponents, so that towers of powers are out
_MOST_TERMS = 500  # sympy takes up to half a second to multiply out so many
_MOST_UNKNOWN = 50  # of sets and relations: nothing tells beforehand that they differ
_MATHS_LOCK = threading.Lock()  # sympy promises nothing about threads


def key_of(form: str) -> Key:
    """The number that a normal form spells exactly, as 0.5, 1/2 and (3-2)/2 do, or else the form."""
    if len(form) > _LONGEST_MATHS:
        return form
    if _SCIENTIFIC.fullmatch(form):
        return Fraction(form)
    match = _RATIONAL.fullmatch(form)
    if match is None:
        value = None if _DASHED.fullmatch(form) else value_of(form)
        return form if value is None else value
    sign, whole, numerator, denominator = match.groups()
    if denominator is None:
        return form if whole else Fraction(sign + numerator)
    if not Fraction(denominator):
        return form
    value = int(whole or 0) + Fraction(numerator) / Fraction(denominator)
    return -value if sign else value


def classes(keys: Iterable[Key]) -> list[list[Key]]:
    """The keys in classes of the same answer; their order changes no class.

    "x=5" is also the answer 5, where no other letter is given a value.
    """
    values = {key: _value(key) for key in keys}
    named = len({name for name, _ in values.values() if name}) == 1
    readings = {
        key: [key] if value is None or (name and not named) else [key, value]
        for key, (name, value) in values.items()
    }
    out = list[list[Key]]()
    for key, ways in readings.items():
        others = list[list[Key]]()
        joined = [key]
        for members in out:
            if any(same(a, b) for member in members for a in readings[member] for b in ways):
                joined = members + joined
            else:
                others.append(members)
        out = [*others, joined]
    return out


def _value(key: Key) -> tuple[str, Key | None]:
    """The letter to which an equation gives a value, if any, and that value."""
    match = _VALUE.fullmatch(key) if isinstance(key, str) else None
    if match is None or _RELATION.search(match[2]):
        return "", None
    if match[1] is None and _LETTER.search(match[2]):
        return "", None  # 5=x
    return (match[1] or "").lower(), key_of(match[2])


def same(a: Key, b: Key) -> bool:
    """Whether two keys are the same answer.

    They are if they agree or are the same rational number. If not, `math-verify` decides where it is
    installed and both are short and plainly maths of one kind; it runs without its timeout (which
    needs the main thread), so whatever might be slow to compare is left as different.
    """
    if a == b:
        return True
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return False
    if not (_is_maths(a) and _is_maths(b)):
        return False
    one, other = sorted((str(a), str(b)))
    return _kind(one) == _kind(other) and _verified(one, other)


@lru_cache(maxsize=4096)
def _is_maths(form: Key) -> bool:
    """Whether `form` is maths that can be read and compared quickly (there is no timeout)."""
    if isinstance(form, Fraction):
        return len(str(form)) <= _LONGEST_MATHS
    if len(form) > _LONGEST_MATHS or not _MATHS.fullmatch(form):
        return False
    if _UNIT.search(form) or _DASHED.fullmatch(form):
        return False
    if _RELATION.search(form) and not _LETTER.search(form):
        return False  # 2+3=5 and 1+1=2 are both true
    if _RELATION.search(form) and (len(form) > _LONGEST_RELATION or re.search(r"\^|sqrt", form)):
        return False  # it would be solved
    powers = list(_POWER.finditer(form))
    if any(power[0] == "^" for power in powers):  # an exponent that is not plain
        return False
    product = math.prod(
        max(1, int(power[1] or power[2] or 1) + int(power[3] or 0)) for power in powers
    )
    return product <= _HIGHEST_POWER


@lru_cache(maxsize=4096)
def _kind(form: str) -> tuple[bool, list[str], int]:
    """What the same answers share: being a relation, brackets around commas (sets need none), and how many values there are."""
    values = len(re.findall(r",|\\pm(?![A-Za-z])", form))
    relation, brackets = _RELATION.search(form) is not None, list[str]()
    while match := _BRACKETS.search(form):
        if "," in match[1]:
            brackets.append(match[0][0] + match[0][-1])
        form = form[: match.start()] + form[match.end() :]
    return relation, sorted(brackets), values


@lru_cache(maxsize=4096)
def _verified(a: str, b: str) -> bool:
    library = _math_verify()
    if library is None:
        return False
    with _MATHS_LOCK:
        (gold, x), (target, y) = _parse(a), _parse(b)
        try:
            if x is not None and y is not None and not abs(x - y) <= 1e-9 * max(abs(x), abs(y)):
                return False  # spares nearly all of the symbolic comparisons; NaN is like nothing
            most = _MOST_UNKNOWN if x is None or y is None else _MOST_TERMS
            trees = (*gold, *target)
            if any(math.prod(_terms(tree)) > most for tree in trees):
                return False
            if _RELATION.search(a) and not all(map(_is_linear, trees)):
                return False  # it would be solved
            # Gold and target are not symmetric; the default rounding makes 1e-7 and 2e-7 the same.
            return any(
                library.verify(*pair, float_rounding=12, timeout_seconds=None)
                for pair in ((gold, target), (target, gold))
            )
        except Exception:  # noqa: BLE001  what cannot be compared is not the same
            return False


def _terms(tree: object) -> tuple[int, int]:
    """How many terms a formula has at most when it is multiplied out: its numerator, its denominator."""
    args: tuple[object, ...] = getattr(tree, "args", ())
    if not args or getattr(tree, "is_rational", False):
        return 1, 1
    if getattr(tree, "is_Pow", False):
        power = max(1, math.ceil(_sum(args[1])))
        above, below = (math.comb(terms + power - 1, power) for terms in _terms(args[0]))
        return (below, above) if getattr(args[1], "is_negative", False) else (above, below)
    parts = [_terms(arg) for arg in args]
    if getattr(tree, "is_Add", False):
        below = math.prod(part[1] for part in parts)
        return sum(part[0] * below // part[1] for part in parts), below
    if getattr(tree, "is_Mul", False):
        return math.prod(part[0] for part in parts), math.prod(part[1] for part in parts)
    return sum(map(math.prod, parts)), 1  # a set, a relation: each is compared by itself


def _is_linear(tree: object) -> bool:
    """Whether no letter is multiplied by another, below a line, in a power or in a function."""
    if not getattr(tree, "free_symbols", ()):
        return True
    args: tuple[object, ...] = getattr(tree, "args", ())
    if getattr(tree, "is_Pow", False) or getattr(tree, "is_Function", False):
        return False
    if (
        getattr(tree, "is_Mul", False)
        and sum(bool(getattr(arg, "free_symbols", ())) for arg in args) > 1
    ):
        return False
    return all(map(_is_linear, args))


def _sum(tree: object) -> float:
    """The sum of the sizes of all numbers in an exponent."""
    if isinstance(tree, SupportsFloat) and getattr(tree, "is_Number", False):
        return abs(float(tree))
    return math.fsum(map(_sum, getattr(tree, "args", ())))


@lru_cache(maxsize=1024)
def _parse(form: str) -> tuple[list[object], complex | None]:
    """What math-verify reads, and its value at a fixed point where it has one."""
    library = _math_verify()
    try:
        parsed: list[object] = library.parse(f"${form}$", parsing_timeout=None) if library else []
    except Exception:  # noqa: BLE001  whatever a parser makes of junk
        return [], None
    symbols = getattr(parsed[0], "free_symbols", ()) if parsed else ()
    evaluate = getattr(parsed[0], "evalf", None) if parsed else None
    if evaluate is None or _RELATION.search(form):
        return parsed, None  # a relation, or nothing that can be read
    try:
        point = {symbol: 1 + (ord(symbol.name[0]) % 32) / 37 for symbol in symbols}
        return parsed, complex(evaluate(subs=point))
    except Exception:  # noqa: BLE001  a set or a tuple
        return parsed, None


@cache
def _math_verify() -> ModuleType | None:
    try:
        library = importlib.import_module("math_verify")
    except ImportError:
        return None
    for module in ("parser", "grader"):  # each warns once that its timeout is off, as it must be
        logging.getLogger(f"math_verify.{module}").addFilter(
            lambda record: not record.getMessage().startswith("Timeout is disabled")
        )
    return library
