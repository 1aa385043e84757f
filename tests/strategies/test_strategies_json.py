"""A strategy is its JSON, and mistakes in it are named."""

import json
from typing import get_args

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from langchain_pareto.errors import SettingError
from langchain_pareto.strategies import (
    AnyStrategy,
    Auto,
    BestOfN,
    Single,
    Strategy,
    Vote,
    parse_strategy,
)

TEMPERATURES = st.none() | st.floats(0, allow_nan=False, allow_infinity=False)
COUNTS = st.integers(1, 10**6)
SINGLE = st.builds(Single, temperature=TEMPERATURES)
AUTO = st.builds(Auto, temperature=TEMPERATURES, most=COUNTS, unasked=COUNTS)


def nested(inner: st.SearchStrategy[Strategy]) -> st.SearchStrategy[Strategy]:
    votes = st.builds(
        Vote,
        temperature=TEMPERATURES,
        n=COUNTS,
        adaptive=st.booleans(),
        threshold=st.floats(0.5, 1, exclude_min=True),
        wave=st.none() | COUNTS,
        of=inner,
    )
    stopped = st.builds(
        BestOfN,
        temperature=TEMPERATURES,
        n=COUNTS,
        threshold=st.floats(allow_nan=False, allow_infinity=False),
        wave=st.none() | COUNTS,
        of=inner,
    )
    return votes | stopped | st.builds(BestOfN, temperature=TEMPERATURES, n=COUNTS, of=inner)


STRATEGIES = st.recursive(SINGLE | AUTO, nested, max_leaves=4)


@given(STRATEGIES)
def test_every_strategy_goes_through_json_and_back(strategy):
    """As text, as plain data, and as itself; equal strategies have equal hashes."""
    text = strategy.model_dump_json()
    for again in (parse_strategy(text), parse_strategy(json.loads(text)), parse_strategy(strategy)):
        assert again == strategy
        assert type(again) is type(strategy)
        assert hash(again) == hash(strategy)


@pytest.mark.parametrize("kind", get_args(get_args(AnyStrategy)[0]), ids=lambda kind: kind.__name__)
def test_a_name_is_a_strategy_with_its_defaults(kind):
    """ "vote" is Vote()."""
    assert parse_strategy(kind.model_fields["kind"].default) == kind()


@pytest.mark.parametrize(
    "value",
    [
        "bean",
        "",
        "{",
        '{"kind": "bean"}',
        '{"n": 4}',
        "[1]",
        {"kind": "bean"},
        {},
        {"kind": "vote", "n": 0},
        {"kind": "vote", "n": 2.5},
        {"kind": "vote", "m": 4},
        {"kind": "vote", "of": {"kind": "bean"}},
        {"kind": "best_of_n", "of": None},
        {"kind": "vote", "threshold": 0.5},
        {"kind": "single", "temperature": -1},
        {"kind": "single", "temperature": float("inf")},
        {"kind": "single", "temperature": float("nan")},
        None,
        3,
    ],
    ids=repr,
)
def test_a_mistake_is_a_setting_error(value):
    """Unknown kinds and fields, and values out of range, name what is known."""
    with pytest.raises(SettingError) as caught:
        parse_strategy(value)
    assert "single" in f"{caught.value} {caught.value.hint}"


def test_a_strategy_is_frozen():
    """Settings do not change under a run."""
    with pytest.raises(ValidationError):
        Vote().n = 3


def test_a_strategy_of_ones_own_needs_no_kind_of_ours():
    """A subclass is a strategy as it is."""

    class Mine(Single):
        pass

    assert type(parse_strategy(Mine())) is Mine
