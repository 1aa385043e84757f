"""Budgets as people write them, and costs as they add up."""

import json
import math
import pickle

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel, ValidationError

from langchain_pareto.budget import Budget, Cost, Limits
from langchain_pareto.errors import BudgetError

counts = st.integers(1, 10**12)
amounts = st.floats(1e-9, 1e18)
budgets = st.builds(
    Budget,
    tokens=st.none() | counts,
    seconds=st.none() | st.floats(1e-300, 1e300),
    flops=st.none() | st.floats(1, 1e300),
    joules=st.none() | amounts,
    usd=st.none() | amounts,
    memory=st.none() | counts,
    calls=st.none() | counts,
    on_limit=st.sampled_from(["best", "error"]),
)
costs = st.builds(Cost, *[st.integers(0, 10**20)] * 6)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("8k tokens, 20s", Budget(tokens=8000, seconds=20)),
        ("2000 tokens", Budget(tokens=2000)),
        ("2000", Budget(tokens=2000)),
        ("1.5K", Budget(tokens=1500)),
        ("1M tokens, on error", Budget(tokens=10**6, on_limit="error")),
        ("1 token; ON BEST", Budget(tokens=1)),
        ("5s", Budget(seconds=5)),
        (" 500 ms ", Budget(seconds=0.5)),
        ("2 min and 3 calls", Budget(seconds=120, calls=3)),
        ("1h", Budget(seconds=3600)),
        ("$0.01", Budget(usd=0.01)),
        ("0.01 USD", Budget(usd=0.01)),
        ("3 cents", Budget(usd=0.03)),
        ("50 J", Budget(joules=50)),
        ("2 kJ", Budget(joules=2000)),
        ("1 Wh", Budget(joules=3600)),
        ("1e12 flops", Budget(flops=1e12)),
        ("3 TFLOPs", Budget(flops=3e12)),
        ("2 GB", Budget(memory=2 * 10**9)),
        ("512 MiB memory", Budget(memory=512 * 2**20)),
        ("100 bytes", Budget(memory=100)),
        ("unlimited", Budget()),
    ],
)
def test_text(text: str, budget: Budget) -> None:
    """Amounts with units, in any case, with or without spaces, separated by comma, semicolon or and."""
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("value", [1, 10**12])
def test_a_count_is_tokens(value: int) -> None:
    """One token is a budget, and so is 10^12."""
    assert Budget.parse(value) == Budget(tokens=value)


def test_other_doors() -> None:
    """A budget stays itself, and a dict is its fields."""
    budget = Budget(usd=0.5)
    assert Budget.parse(budget) is budget
    assert Budget.parse({"usd": 0.5, "tokens": None, "memory": 2e9}) == Budget(
        usd=0.5, memory=2 * 10**9
    )


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            ",",
            "5 parsecs",
            "s",
            "5s, 3 ms",
            "on error, on best",
            "five tokens",
            "nan s",
            "inf s",
        ),
        *("-5 tokens", "0 s", "1.5 tokens", "2,000 tokens", "1e999 s", "1e-999 s", "$5 tokens"),
        *("1e-12 usd", "5s,", "on fire", "9" * 5000, None, True, 2.5, 0, -1, [], b"5s", {1: 2}),
        *({"token": 5}, {"tokens": "5"}, {"tokens": True}, {"seconds": math.nan}, {"on_limit": 1}),
        *(
            {"seconds": math.inf},
            {"usd": 0.0},
            {"tokens": 2.5},
            {"flops": 0.5},
            {"seconds": 10**400},
        ),
    ],
)
def test_what_cannot_be_understood(value: object) -> None:
    """Anything else is a BudgetError of one paragraph, which says what was got and shows an example."""
    with pytest.raises(BudgetError) as caught:
        Budget.parse(value)  # type: ignore[arg-type]
    message = str(caught.value)
    assert '"8k tokens, 20s"' in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    "text",
    ["$1,500", "2,500 J", "1,5s", "10,500 calls", "2,000 tokens", "3 calls, 1,000,000 flops"],
)
def test_a_comma_between_two_digits_is_refused(text: str) -> None:
    """It may separate thousands, decimals or limits: the error says how to write what was meant."""
    with pytest.raises(BudgetError, match="Leave thousands separators out") as caught:
        Budget.parse(text)
    assert "space after a comma" in str(caught.value)
    assert Budget.parse("2000, 5s") == Budget.parse("2000;5s") == Budget(tokens=2000, seconds=5)
    assert Budget.parse("200 tokens,2s") == Budget(tokens=200, seconds=2)


@pytest.mark.parametrize("field", ["tokens", "seconds", "usd", "calls", "on_limit", "nobody"])
def test_a_number_that_python_does_not_write_is_a_budget_error(field: str) -> None:
    """Beyond 4300 digits an int has no text, and the error does without."""
    huge = 10**5000
    for value in ({field: huge}, {field: -huge}, {field: [huge]}, huge, -huge, [huge]):
        with pytest.raises(BudgetError) as caught:
            Budget.parse(value)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 600


def test_keywords_are_checked_too() -> None:
    """Budget(...) raises the same error, naming each field, what it got and why it cannot be."""
    with pytest.raises(
        BudgetError, match=r"tokens=0 \(must be above zero\), joules='5' \(must be a n"
    ):
        Budget(tokens=0, joules="5")  # type: ignore[arg-type]


def test_nested_in_another_model() -> None:
    """Inside another pydantic model the mistake is a ValidationError that carries our message."""

    class Settings(BaseModel):
        budget: Budget

    with pytest.raises(ValidationError, match=r"token=5 .is not a resource"):
        Settings.model_validate({"budget": {"token": 5}})
    assert Settings.model_validate({"budget": {"tokens": 5}}).budget == Budget(tokens=5)


@given(budgets)
def test_round_trips(budget: Budget) -> None:
    """A budget survives its text, JSON, a dict and pickle; its text is one line and stable."""
    assert Budget.parse(str(budget)) == budget
    assert str(Budget.parse(str(budget))) == str(budget)
    assert "\n" not in str(budget)
    assert Budget.model_validate_json(budget.model_dump_json()) == budget
    assert Budget.parse(json.loads(json.dumps(budget.model_dump()))) == budget
    assert pickle.loads(pickle.dumps(budget)) == budget
    assert hash(Budget.parse(str(budget))) == hash(budget)


@given(st.text(alphabet="0123456789.ekmMgGiBbJjstokens$ ,;-+", max_size=20) | st.text(max_size=20))
def test_any_text_is_a_budget_or_a_budget_error(text: str) -> None:
    """No text makes parse raise anything but a BudgetError."""
    try:
        budget = Budget.parse(text)
    except BudgetError:
        return
    assert Budget.parse(str(budget)) == budget


def test_text_is_readable() -> None:
    """Numbers are as short as they can be without losing a digit."""
    budget = Budget(tokens=8000, seconds=20, flops=1e12, usd=0.1, memory=2**30, on_limit="error")
    assert str(budget) == "8000 tokens, 20 s, 1e+12 flops, $0.1, 1 GiB, on error"
    assert str(Budget()) == "unlimited"


@given(budgets, budgets)
def test_tightest(a: Budget, b: Budget) -> None:
    """The tightest of two budgets is the smaller of each limit, and "error" wins."""
    both = a.tightest(b)
    assert both == b.tightest(a)
    assert both.tightest(a) == both
    for name in ("tokens", "seconds", "flops", "joules", "usd", "memory", "calls"):
        given_limits = [x for x in (getattr(a, name), getattr(b, name)) if x is not None]
        assert getattr(both, name) == min(given_limits, default=None)
    assert (both.on_limit == "error") == ("error" in (a.on_limit, b.on_limit))


@given(costs, costs, costs)
def test_sums_are_exact(a: Cost, b: Cost, c: Cost) -> None:
    """Costs add and subtract without rounding, in any order."""
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + b - b == a
    assert (a - b).is_negative() == (not Limits(*_fields(a)).hold(b))


def _fields(cost: Cost) -> tuple[int, ...]:
    return tuple(getattr(cost, name) for name in Cost.__slots__)


@given(amounts)
def test_a_cost_never_slips_under_its_limit(amount: float) -> None:
    """Costs round up and limits down: the same number fits, the next larger float does not fit less."""
    limits = Budget(joules=amount, usd=amount).limits()
    cost = Cost.of(joules=amount, usd=amount)
    assert limits.nanojoules is not None
    assert 0 <= cost.nanojoules - limits.nanojoules <= 1
    assert cost.nanojoules >= amount * 1e9 * (1 - 1e-15)
    assert limits.nanojoules <= amount * 1e9 * (1 + 1e-15)


def test_decimals_mean_what_they_say() -> None:
    """A limit of $0.29 is 290 000 000 nanodollars, and a cost of $0.29 fits it."""
    assert Budget(usd=0.29).limits() == Limits(nanodollars=290_000_000)
    assert Cost.of(usd=0.29, joules=0.1) == Cost(nanodollars=290_000_000, nanojoules=10**8)
    assert Cost.of(flops=0.5, memory=1.5) == Cost(flops=1, memory=2)
    assert Cost.of(flops=10**30).flops == 10**30
    assert Cost.of(joules=1.5).joules == 1.5
    assert Cost.of(usd=0.25).usd == 0.25


def test_limits() -> None:
    """Limits name the first resource that lacks, shrink by a cost, and combine to the tighter."""
    limits = Budget(tokens=10, calls=2, seconds=5).limits()
    assert limits == Limits(tokens=10, calls=2)
    assert limits.hold(Cost(tokens=10, flops=10**30))
    assert limits.lack(Cost(tokens=10, calls=3)) == "calls"
    assert limits.less(Cost(tokens=4, memory=9)) == Limits(tokens=6, calls=2)
    assert limits.tightest(Limits(tokens=3, memory=7)) == Limits(tokens=3, calls=2, memory=7)


@given(st.builds(Limits, *[st.none() | st.integers(1, 10**15)] * 6), st.none() | amounts)
def test_limits_are_a_budget_and_back(limits: Limits, seconds: float | None) -> None:
    """Nothing is rounded on the way, and it is the budget that a user could have written."""
    budget = limits.budget(seconds)
    assert budget == Budget(**budget.model_dump())
    assert (budget.limits(), budget.seconds) == (limits, seconds)


def test_what_is_used_up_is_the_least_there_is_or_nothing() -> None:
    """A budget that can be asked for holds one unit of it; one that tells what is left holds 0."""
    spent = Limits(tokens=0, flops=-3, nanojoules=0, nanodollars=-1, calls=0, memory=-9)
    least = Budget(tokens=1, seconds=1e-9, flops=1, joules=1e-9, usd=1e-9, calls=1, memory=1)
    assert spent.budget(-0.5) == least
    nothing = dict.fromkeys(("tokens", "seconds", "flops", "joules", "usd", "calls", "memory"), 0)
    assert spent.budget(-0.5, least=0).model_dump() == nothing | {"on_limit": "best"}
    assert Limits().budget(least=0) == Budget()


@given(
    st.builds(Limits, *[st.none() | st.integers(-5, 1000)] * 6),
    st.builds(Cost, *[st.integers(0, 20)] * 6),
    st.integers(0, 100),
)
def test_times(limits: Limits, cost: Cost, most: int) -> None:
    """A cost fits as many times as its multiple does, and no more often than asked."""
    n = limits.times(cost, most)
    assert 0 <= n <= most
    assert n == 0 or limits.hold(cost * n)
    assert n == most or not limits.hold(cost * (n + 1))
