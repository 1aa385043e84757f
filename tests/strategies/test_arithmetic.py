"""Tests of the exact values of expressions; each docstring states the fact."""

import operator
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from langchain_pareto.strategies.arithmetic import value_of
from langchain_pareto.strategies.equivalence import key_of

_NUMBERS = st.decimals(0, 999, places=2).map(lambda d: (str(d), Fraction(d))) | st.integers(
    0, 99
).map(lambda n: (str(n), Fraction(n)))


_OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


@st.composite
def expressions(draw: st.DrawFn) -> tuple[str, Fraction]:
    """An expression of up to four numbers and its value, worked out beside it."""
    text, value = draw(_NUMBERS)
    for op in draw(st.lists(st.sampled_from("+-*/"), min_size=1, max_size=3)):
        other, y = draw(_NUMBERS)
        if op == "/" and not value:
            continue
        text, value = f"({other} {op} {text})", _OPERATIONS[op](y, value)
    return text, value


@given(expressions())
def test_the_value_is_exact(case: tuple[str, Fraction]) -> None:
    """Whatever it is made of, in fractions and decimals too."""
    text, value = case
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("2 + 3 * 4", 14), ("20 - 3 - 4", 13), ("48 / 4 / 2", 6), ("-(3 + 4)", -7)),
        *(
            ("3 * -2", -6),
            (" 7 ", 7),
            ("1/3 + 1/6", Fraction(1, 2)),
            ("0.1 + 0.2", Fraction(3, 10)),
        ),
    ],
)
def test_operations_bind_as_they_do_in_maths(text: str, value: Fraction) -> None:
    """From left to right, products first."""
    assert value_of(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "(",
            "()",
            "3 +",
            "(3",
            "3)",
            "1 2",
            "(5)(3)",
            "3 (4)",
            "2 ** 3",
            "7 // 2",
            "007",
        ),
        *("+3 - 2", "1,5", "x + 1", "5 / 0", "4 / (2 - 2)", "1..2", "1.2.3", "1_0", "0x1f", "1e3"),
        *("(" * 99 + "1", "1" * 101, "9 ** 9 ** 9", "3\\n+ 4", "٣ + 1", ". + 1"),
    ],
)
def test_what_is_no_arithmetic_has_no_value(text: str) -> None:
    """Nothing is guessed, nothing hangs, and nothing raises."""
    assert value_of(text) is None


@given(st.text("0123456789.+-*/() ", max_size=120))
def test_junk_has_a_value_or_none(text: str) -> None:
    """Whatever is written with these signs."""
    assert isinstance(value_of(text), Fraction | None)


@pytest.mark.parametrize(
    "text", ["3-5", "2024-05-01", "1/2/2024", "555-1234", "1.2.3", "4-3-2", "192.168.0.1"]
)
def test_ranges_dates_and_numbers_of_telephones_are_no_arithmetic(text: str) -> None:
    """Two of them that would come to the same value are two answers."""
    assert key_of(text) == text
