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
from fractions import Fraction
from functools import cache, lru_cache
from types import ModuleType

_LONGEST_MATHS = 100  # characters
_LONGEST_RELATION = 40  # characters
_RATIONAL = re.compile(r"(-?)(?:([0-9]+) )?([0-9]+(?:\.[0-9]+)?)(?:/([0-9]+(?:\.[0-9]+)?))?")
# Numbers, single letters, and what is cheap to parse and compare: no factorials, sums or functions.
_MATHS = re.compile(
    r"(?:\\(?:frac|sqrt|pi|infty|cup|leq?|geq?|neq?|pm|[{}])(?![A-Za-z])"
    r"|(?<![A-Za-z])[A-Za-z](?![A-Za-z])| (?!(?<=[0-9] )[0-9])|[-0-9.,+*/^=<>(){}\[\]])+"
)
_UNIT = re.compile(r"[0-9.] ?[cdeghlmostI]\Z")  # 5 m and 5 g would both be read as 5
_RELATION = re.compile(r"[=<>]|\\[lgn]eq?")
_POWER = re.compile(
    r"\^(?:([0-9]{1,2}(?![0-9]))|[A-Za-z]|\{[-+]?([0-9]{0,2})[A-Za-z]?(?:[-+/][0-9]{1,2})?\})?"
)
_HIGHEST_POWER = 32  # the product of all exponents, so that towers of powers are out
_MATHS_LOCK = threading.Lock()  # sympy promises nothing about threads


def key_of(form: str) -> str | Fraction:
    """The number that a normal form spells exactly, or else the form."""
    match = _RATIONAL.fullmatch(form) if len(form) <= _LONGEST_MATHS else None
    if match is None:
        return form
    sign, whole, numerator, denominator = match.groups()
    if denominator is None:
        return form if whole else Fraction(sign + numerator)
    if not Fraction(denominator):
        return form
    value = int(whole or 0) + Fraction(numerator) / Fraction(denominator)
    return -value if sign else value


def same(a: str | Fraction, b: str | Fraction) -> bool:
    """Whether two normal forms are the same answer.

    They are if they agree or are the same rational number. If not, `math-verify` decides where it is
    installed and both are short and plainly maths; it runs without its timeout (which needs the main
    thread), so whatever might be slow to compare is left as different.
    """
    if a == b:
        return True
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return False
    return _is_maths(a) and _is_maths(b) and _verified(str(a), str(b))


def _is_maths(form: str | Fraction) -> bool:
    """Whether `form` is maths that can be compared in milliseconds (there is no timeout)."""
    if isinstance(form, Fraction):
        return True
    if len(form) > _LONGEST_MATHS or not _MATHS.fullmatch(form) or _UNIT.search(form):
        return False
    if _RELATION.search(form) and (len(form) > _LONGEST_RELATION or re.search(r"\^|sqrt", form)):
        return False  # it would be solved
    powers = list(_POWER.finditer(form))
    if any(power[0] == "^" for power in powers):  # an exponent that is not plain
        return False
    product = math.prod(max(1, int(power[1] or power[2] or 1)) for power in powers)
    return product <= _HIGHEST_POWER


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
            # Gold and target are not symmetric; the default rounding makes 1e-7 and 2e-7 the same.
            return any(
                library.verify(*pair, float_rounding=12, timeout_seconds=None)
                for pair in ((gold, target), (target, gold))
            )
        except Exception:  # noqa: BLE001  what cannot be compared is not the same
            return False


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
