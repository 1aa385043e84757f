"""What calls take now is learned from calls, and changes what is planned under a limit on seconds, and nothing else."""

import math
from dataclasses import replace

import pytest
from profiles import OPTIONS, cells

from langchain_pareto import Budget, ChatPareto
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.planning import device, drift
from langchain_pareto.planning.drift import Drift, as_measured, as_now, learn, pace_of
from langchain_pareto.planning.plan import Plan, Spend
from langchain_pareto.planning.profile import Profile
from langchain_pareto.strategies import Single

HERE = "this one"


def test_drift_follows_the_machine():
    """Calls that take half as long again raise predictions by that much, kind by kind."""
    drift = Drift()
    for _ in range(60):
        drift.observe("decode", 1.0, 1.5)
    assert drift.factor("decode") == pytest.approx(1.5, rel=0.05)
    assert drift.factor("prefill") == 1.0


def test_drift_forgets_by_half_in_twenty_calls():
    """Once there is a history, twenty calls as predicted halve it."""
    drift = Drift()
    for _ in range(400):
        drift.observe("x", 1.0, 1.8)
    before = math.log(drift.factor("x"))
    for _ in range(20):
        drift.observe("x", 1.0, 1.0)
    assert math.log(drift.factor("x")) == pytest.approx(before / 2, rel=0.01)


def test_drift_has_bounds():
    """An interruption is no drift beyond a factor of two, and what took no time says nothing."""
    drift = Drift()
    for _ in range(50):
        drift.observe("slow", 1.0, 1000.0)
        drift.observe("fast", 1000.0, 1.0)
        drift.observe("none", 0.0, 1.0)
    assert [drift.factor(kind) for kind in ("slow", "fast", "none")] == [2.0, 0.5, 1.0]


def test_a_plan_is_told_in_the_seconds_of_now():
    """It is made for fewer of the measured seconds, and tells its limit and its means as they are now."""
    budget = Budget(seconds=3.0, tokens=100)
    measured = as_measured(budget, 1.5)
    assert (measured.seconds, measured.tokens) == (2.0, 100)
    plan = Plan(
        strategy=Single(),
        budget=measured,
        expected={"seconds": Spend(1.0, 1.5, 2.0), "tokens": Spend(40, 60, 100)},
    )
    now = as_now(plan, budget, 1.5)
    assert now.budget == budget
    assert now.expected == {"seconds": Spend(1.5, 2.25, 3.0), "tokens": Spend(40, 60, 100)}
    assert "calls take 1.50 times the measured seconds" in now.explain()
    assert as_now(plan, measured, 1.0) is plan
    assert not as_now(plan, budget, 1.05).notes
    assert as_measured(None, 1.5) is None


def test_only_limits_on_seconds_are_planned_with_it(monkeypatch):
    """On the slowest device that a profile knows."""
    known = Drift()
    known.observe("b", 1.0, 1.8)
    monkeypatch.setattr(drift, "calls", known)
    devices = {"small": "a", "large": "b"}
    assert pace_of(devices, Budget(seconds=1)) == pytest.approx(math.sqrt(1.8))
    assert pace_of({"small": "a"}, Budget(seconds=1)) == 1.0
    assert pace_of({}, Budget(seconds=1)) == 1.0
    assert pace_of(devices, Budget(tokens=1)) == pace_of(devices, None) == 1.0


def test_seconds_are_compared_by_token(monkeypatch):
    """A call of twice the tokens that were expected may take twice the seconds; what is not known teaches nothing."""
    known = Drift()
    monkeypatch.setattr(drift, "calls", known)
    plan = Plan(
        strategy=Single(),
        expected={"seconds": Spend(1.0, 1.0), "tokens": Spend(50, 60)},
        device=HERE,
    )
    learn(plan, 100, 2.0)
    assert known.factor(HERE) == pytest.approx(1.0)
    learn(replace(plan, pace=2.0), 100, 2.0)  # its second was half a measured one
    assert known.factor(HERE) > 1.1
    seen = known.factor(HERE)
    learn(replace(plan, device=""), 100, 9.0)
    learn(replace(plan, expected={}), 100, 9.0)
    assert known.factor(HERE) == seen


def test_a_slow_device_is_planned_for(monkeypatch):
    """Calls teach how long they take; a plan under a limit on seconds then is one that still fits, and says why."""
    known = Drift()
    monkeypatch.setattr(drift, "calls", known)
    monkeypatch.setattr(device, "is_here", lambda _: True)
    backends = {
        "small": ScriptedBackend(["7\nAnswer: 7"], name="small"),
        "large": ScriptedBackend(["7\nAnswer: 7"], name="large"),
    }
    llm = ChatPareto(models=backends, max_tokens=100)
    table = replace(cells(), budgets=cells().budgets / 1000)  # the same, in seconds
    llm.task = Profile(
        "by hand",
        OPTIONS,
        {"tokens": cells(), "seconds": table},
        keys=dict(llm.plans().keys),
        devices=dict.fromkeys(backends, HERE),
    )
    within = Budget(seconds=0.9)
    before = llm.plans().plan(within)
    assert before.device == HERE
    llm.invoke("7?", budget=within)
    assert known.factor(HERE) != 1.0  # it has learned
    for _ in range(50):
        known.observe(HERE, 1.0, 2.0)
    after = llm.plans().plan(within)
    assert after.expected["seconds"].mean <= 0.9
    assert after.quality.mean < before.quality.mean
    assert any("times the measured seconds" in note for note in after.notes)
    assert after.expected["seconds"].limit == pytest.approx(0.9)
    assert llm.plans().plan(Budget(tokens=900)).pace == 1.0
    for backend in backends.values():
        backend.close()
