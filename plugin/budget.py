"""
What a user may spend (`Budget`), what a request costs (`Cost`), and what is left (`Limits`).

Knows units, rounding and how a budget is written. Deliberately does not know who spends (see
`ledger`) or what anything costs on a device (see `planning`). A Budget is written in units people
use and a Cost is counted in exact integers, so that sums never drift: limits round down, costs up.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from numbers import Integral, Real
from operator import add, attrgetter, sub
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from langchain_pareto.errors import BudgetError

Resource = Literal["tokens", "flops", "joules", "usd", "calls", "memory"]
RESOURCES: tuple[Resource, ...] = ("tokens", "flops", "joules", "usd", "calls", "memory")

_Number = TypeVar("_Number", int, float)
_FIELDS = (
    "A budget is any of tokens, seconds, flops, joules, usd, memory (bytes) and calls, each above "
    'zero or left out, and on_limit="best" or "error"; for example '
    'Budget(tokens=8000, seconds=20), "8k tokens, 20s" or 8000.'
)
_TEXTS = (
    'Write each amount once, with its unit, for example "8k tokens, 20s"; the units are tokens, '
    "k or M tokens, ms s min h, flops to Eflops, J kJ Wh kWh, $ usd cents, B to TB, KiB to TiB, "
    "calls; add 'on error' to raise at a limit."
)
_NUMBER = r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:e[+-]?[0-9]{1,3})?"
_AMOUNT = re.compile(rf"(?P<dollar>\$?)\s*(?P<number>{_NUMBER})\s*(?P<unit>[^0-9]*)")
_ON_LIMIT = re.compile(r"on\s+(best|error)")
_AMBIGUOUS = re.compile(r"[0-9],[0-9]")  # of thousands, of decimals, or between two limits
_SEPARATOR = re.compile(r"\s*(?:[,;]|\band\b)\s*")
_SCALES = {"": 1} | {prefix: 1000**n for n, prefix in enumerate("kmgtpe", start=1)}
_SCALES |= {prefix + "i": 1024**n for n, prefix in enumerate("kmgt", start=1)}
_ROWS: tuple[tuple[str, str, Fraction, str], ...] = (  # resource, names, scale, prefixes
    ("tokens", "token tokens", Fraction(1), "k m"),
    ("seconds", "s sec secs second seconds", Fraction(1), ""),
    ("seconds", "ms millisecond milliseconds", Fraction(1, 1000), ""),
    ("seconds", "min mins minute minutes", Fraction(60), ""),
    ("seconds", "h hour hours", Fraction(3600), ""),
    ("flops", "flop flops", Fraction(1), "k m g t p e"),
    ("joules", "j joule joules", Fraction(1), "k"),
    ("joules", "wh", Fraction(3600), "k"),
    ("usd", "$ usd $usd dollar dollars", Fraction(1), ""),
    ("usd", "cent cents", Fraction(1, 100), ""),
    ("memory", "b bmemory", Fraction(1), "k m g t ki mi gi ti"),
    ("memory", "byte bytes", Fraction(1), ""),
    ("calls", "call calls", Fraction(1), ""),
)
_UNITS = {
    prefix + name: (resource, scale * _SCALES[prefix])
    for resource, names, scale, prefixes in _ROWS
    for name in names.split()
    for prefix in ("", *prefixes.split())
} | {"": ("tokens", Fraction(1)), "k": ("tokens", Fraction(1000))}
_WHOLE = ("tokens", "memory", "calls")
_SMALLEST = {"flops": 1.0, "joules": 1e-9, "usd": 1e-9}  # one unit of a Cost


class Budget(BaseModel):
    """What one call or run may spend at most; every limit is hard, and None is no limit.

    At a limit, `on_limit="best"` answers with the best so far and "error" raises BudgetExceeded.
    Raises BudgetError for what cannot be understood.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int | None = None  # sampled by generating models, kept or not
    seconds: float | None = None  # wall time from admission
    flops: float | None = None
    joules: float | None = None
    usd: float | None = None
    memory: int | None = None  # bytes, at peak
    calls: int | None = None
    on_limit: Literal["best", "error"] = "best"

    if not TYPE_CHECKING:  # type checkers see the fields as keywords

        def __init__(self, /, **fields: object) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise BudgetError(_explain(error)) from None

    @field_validator(
        "tokens", "seconds", "flops", "joules", "usd", "memory", "calls", mode="before"
    )
    @classmethod
    def _above_zero(cls, value: object, info: ValidationInfo) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError("must be a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError("must be finite")
        if number <= 0:
            raise ValueError("must be above zero")
        if info.field_name in _WHOLE:
            whole = int(value) if isinstance(value, Integral) else int(number)
            if whole != value:
                raise ValueError("must be a whole number")
            return whole
        smallest = _SMALLEST.get(info.field_name or "", 0.0)
        if number < smallest:
            raise ValueError(f"must be at least {smallest:g}")
        return number

    @classmethod
    def parse(cls, value: "BudgetLike") -> Self:
        """The budget meant by a Budget, a dict, a count of tokens, or "8k tokens, 20s"."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls._from_text(value)
        if not isinstance(value, bool) and isinstance(value, Integral):
            return cls(tokens=int(value))
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return cls(**value)  # type: ignore[arg-type]  # the fields check their values
        raise BudgetError(f"Cannot read {_shown(value):.80} as a budget. {_FIELDS}")

    @classmethod
    def _from_text(cls, text: str) -> Self:
        if _AMBIGUOUS.search(text):
            raise BudgetError(
                f"The budget {text!r:.80} has a comma between two digits. Leave thousands "
                f"separators out, and write a space after a comma between two limits. {_TEXTS}"
            )
        fields: dict[str, object] = {}
        for part in _SEPARATOR.split(text.strip().lower()):
            if part == "unlimited":
                continue
            name, value = _read(part, text)
            if name in fields:
                raise BudgetError(f"The budget {text!r:.80} gives {name} twice. {_TEXTS}")
            fields[name] = value
        return cls.parse(fields)

    def __str__(self) -> str:
        """One line which `parse` reads back to an equal budget."""
        parts = [
            f"{self.tokens} tokens" if self.tokens else "",
            f"{_short(self.seconds)} s" if self.seconds else "",
            f"{_short(self.flops)} flops" if self.flops else "",
            f"{_short(self.joules)} J" if self.joules else "",
            f"${_short(self.usd)}" if self.usd else "",
            _bytes(self.memory) if self.memory else "",
            f"{self.calls} calls" if self.calls else "",
        ]
        limits = [part for part in parts if part] or ["unlimited"]
        return ", ".join([*limits, *(["on error"] if self.on_limit == "error" else [])])

    def tightest(self, other: "Budget") -> "Budget":
        """The budget that keeps both; `on_limit="error"` wins."""
        return Budget(
            tokens=_least(self.tokens, other.tokens),
            seconds=_least(self.seconds, other.seconds),
            flops=_least(self.flops, other.flops),
            joules=_least(self.joules, other.joules),
            usd=_least(self.usd, other.usd),
            memory=_least(self.memory, other.memory),
            calls=_least(self.calls, other.calls),
            on_limit="error" if "error" in (self.on_limit, other.on_limit) else "best",
        )

    def limits(self) -> "Limits":
        """The limits in the units of a Cost, rounded down; seconds are a deadline, not a sum."""
        return Limits(
            tokens=self.tokens,
            flops=_floor(self.flops, 0),
            nanojoules=_floor(self.joules, 9),
            nanodollars=_floor(self.usd, 9),
            calls=self.calls,
            memory=self.memory,
        )


BudgetLike: TypeAlias = Budget | Mapping[str, object] | int | str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request takes; `memory` (bytes) is held and given back, the rest adds up."""

    tokens: int = 0
    flops: int = 0
    nanojoules: int = 0
    nanodollars: int = 0
    calls: int = 0
    memory: int = 0

    @classmethod
    def of(
        cls,
        *,
        tokens: int = 0,
        flops: float = 0,
        joules: float = 0,
        usd: float = 0,
        calls: int = 0,
        memory: float = 0,
    ) -> Self:
        """The cost in the units of a Budget, fractions rounded up."""
        return cls(
            tokens=tokens,
            flops=_ceil(flops, 0),
            nanojoules=_ceil(joules, 9),
            nanodollars=_ceil(usd, 9),
            calls=calls,
            memory=_ceil(memory, 0),
        )

    @property
    def joules(self) -> float:
        return self.nanojoules / 10**9

    @property
    def usd(self) -> float:
        return self.nanodollars / 10**9

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(add, _amounts(self), _amounts(other)))

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(*map(sub, _amounts(self), _amounts(other)))

    def __mul__(self, n: int) -> "Cost":
        return Cost(*(amount * n for amount in _amounts(self)))

    def is_negative(self) -> bool:
        """Whether any resource is below zero, as a difference may be."""
        return min(_amounts(self)) < 0

    def takes(self) -> frozenset[Resource]:
        """The resources of which it takes some."""
        pairs = zip(RESOURCES, _amounts(self), strict=True)
        return frozenset(resource for resource, amount in pairs if amount)


@dataclass(frozen=True, slots=True)
class Limits:
    """At most this much of each resource, in the units of a Cost; None is no limit."""

    tokens: int | None = None
    flops: int | None = None
    nanojoules: int | None = None
    nanodollars: int | None = None
    calls: int | None = None
    memory: int | None = None

    def lack(self, cost: Cost) -> Resource | None:
        """The first resource in which `cost` does not fit."""
        for resource, limit, amount in zip(RESOURCES, _bounds(self), _amounts(cost), strict=True):
            if limit is not None and amount > limit:
                return resource
        return None

    def hold(self, cost: Cost) -> bool:
        """Whether `cost` fits in every resource."""
        return self.lack(cost) is None

    def times(self, cost: Cost, most: int) -> int:
        """How many times `cost` fits, at most `most`."""
        if not self.hold(cost):
            return 0
        pairs = zip(_bounds(self), _amounts(cost), strict=True)
        fits = (limit // amount for limit, amount in pairs if limit is not None and amount > 0)
        return min((most, *fits))

    def less(self, cost: Cost) -> "Limits":
        """What is left of these limits after `cost`."""
        pairs = zip(_bounds(self), _amounts(cost), strict=True)
        return Limits(*(None if limit is None else limit - amount for limit, amount in pairs))

    def tightest(self, other: "Limits") -> "Limits":
        """The limits that keep both."""
        return Limits(*map(_least, _bounds(self), _bounds(other)))

    def budget(self, seconds: float | None = None, *, least: int = 1) -> Budget:
        """These limits and a time in the units of a Budget; of what is used up, `least` is there.

        By default that is the smallest amount that a user may ask for; 0 says that nothing is left.
        """

        def kept(limit: int | None) -> int | None:
            return None if limit is None else max(least, limit)

        flops, joules, usd = kept(self.flops), kept(self.nanojoules), kept(self.nanodollars)
        return Budget.model_construct(  # 0 would be refused
            tokens=kept(self.tokens),
            seconds=None if seconds is None else max(least / 10**9, seconds),
            flops=None if flops is None else float(flops),
            joules=None if joules is None else joules / 10**9,
            usd=None if usd is None else usd / 10**9,
            memory=kept(self.memory),
            calls=kept(self.calls),
        )


_in_order = attrgetter("tokens", "flops", "nanojoules", "nanodollars", "calls", "memory")
_amounts: Callable[[Cost], tuple[int, ...]] = _in_order
_bounds: Callable[[Limits], tuple[int | None, ...]] = _in_order


def _least(a: _Number | None, b: _Number | None) -> _Number | None:
    return b if a is None else a if b is None else min(a, b)


def _decimal(value: float, exponent: int) -> Decimal:
    """`value` times 10^exponent, by the decimal digits that a person would write for it."""
    return Decimal(repr(float(value))).scaleb(exponent)


def _floor(value: float | None, exponent: int) -> int | None:
    return None if value is None else int(_decimal(value, exponent).to_integral_value(ROUND_FLOOR))


def _ceil(value: float, exponent: int) -> int:
    if isinstance(value, int):
        return int(value * 10**exponent)
    return int(_decimal(value, exponent).to_integral_value(ROUND_CEILING))


def _read(part: str, text: str) -> tuple[str, object]:
    """One lower-case part of a budget's text as a field and its value."""
    if match := _ON_LIMIT.fullmatch(part):
        return "on_limit", match[1]
    match = _AMOUNT.fullmatch(part)
    unit = match["dollar"] + "".join(match["unit"].split()) if match else ""
    if match is None or unit not in _UNITS:
        raise BudgetError(f"Cannot read {part!r:.40} in the budget {text!r:.80}. {_TEXTS}")
    resource, scale = _UNITS[unit]
    amount = Fraction(match["number"]) * scale
    return resource, amount.numerator if amount.denominator == 1 else float(amount)


def _short(value: float) -> str:
    return short if float(short := f"{value:g}") == value else repr(value)


def _bytes(count: int) -> str:
    names = {
        "GiB": 2**30,
        "GB": 10**9,
        "MiB": 2**20,
        "MB": 10**6,
        "KiB": 2**10,
        "kB": 10**3,
        "B": 1,
    }
    return next(f"{count // size} {name}" for name, size in names.items() if count % size == 0)


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no int of more than 4300 digits
        return f"<{type(value).__name__} too long to show>"


def _explain(error: ValidationError) -> str:
    faults = []
    for fault in error.errors():
        reason = "is not a resource" if fault["type"] == "extra_forbidden" else fault["msg"]
        got = f"{'.'.join(map(str, fault['loc']))}={_shown(fault['input']):.40}"
        faults.append(f"{got} ({reason.removeprefix('Value error, ')})")
    return f"Cannot read this budget: {', '.join(faults)}. {_FIELDS}"
