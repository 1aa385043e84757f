"""What calls take now is learned from calls, and changes what is planned under a limit on seconds, and nothing else."""

import math
from dataclasses import replace

import numpy as np
import pytest
from profiles import OPTIONS, cells, profile

from langchain_pareto import Budget, ChatPareto, chat_model, plans, run_budget
from langchain_pareto.backends import hardware
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.planning.drift import Drift, Margins, Paces
from langchain_pareto.planning.limits import AS_MEASURED, Pace
from langchain_pareto.planning.plan import Plan, Spend
from langchain_pareto.planning.planner import Planner
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
    before = drift.factor("x") - 1
    for _ in range(20):
        drift.observe("x", 1.0, 1.0)
    assert drift.factor("x") - 1 == pytest.approx(before / 2, rel=0.01)


def test_drift_has_bounds():
    """An interruption is no drift beyond a factor of two, and what took no time says nothing."""
    drift = Drift()
    for _ in range(50):
        drift.observe("slow", 1.0, 1000.0)
        drift.observe("fast", 1000.0, 1.0)
        drift.observe("none", 0.0, 1.0)
    assert [drift.factor(kind) for kind in ("slow", "fast", "none")] == [2.0, 0.5, 1.0]


def test_what_is_no_time_teaches_nothing():
    """Neither what is no number nor what has no end."""
    drift = Drift()
    for predicted, actual in [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]:
        drift.observe("x", predicted, actual)
    assert drift.factor("x") == 1.0


@pytest.mark.parametrize("draw", ["lengths of all kinds", "two lengths"])
def test_short_calls_are_no_drift(draw):
    """A device that is just as it was measured has no pace, though a short call takes more seconds for each of its tokens."""
    rng, drift = np.random.default_rng(0), Drift()
    tokens = np.maximum(1, rng.lognormal(4.3, 0.8, 2000).round())
    if draw == "two lengths":
        tokens = np.where(rng.random(2000) < 0.4, 3.0, 250.0)
    seconds = 0.3 + 0.01 * tokens  # the prompt is read, then a token each 10 ms
    factors = []
    for drawn, took in zip(tokens / tokens.mean(), seconds / seconds.mean(), strict=True):
        drift.observe("x", drawn, took)
        factors.append(drift.factor("x"))
    assert np.mean(factors) == pytest.approx(1.0, abs=0.01)
    assert np.exp(np.mean(np.log(seconds / tokens * tokens.mean() / seconds.mean()))) > 1.1


def test_an_interruption_is_no_drift():
    """One call of a hundred times the seconds counts as four, be it short or long, and is forgotten."""
    drift = Drift()
    for _ in range(60):
        drift.observe("x", 1.0, 1.0)
    drift.observe("x", 0.1, 100.0)
    assert drift.factor("x") < 1.2
    for _ in range(60):
        drift.observe("x", 1.0, 1.0)
    assert drift.factor("x") == pytest.approx(1.0, abs=0.02)


def shares(calls, above: float) -> float:
    """The share of calls that took longer than their margin allowed."""
    margins, longer = Margins(above, 1.2), 0
    for took in calls:
        beyond = bool(took > margins.of("x"))
        longer += beyond
        margins.observe("x", longer=beyond)
    return longer / len(calls)


@pytest.mark.parametrize("above", [0.05, 0.1])
@pytest.mark.parametrize("noise", ["none", "small", "large", "grows", "bursts"])
def test_a_margin_is_exceeded_as_often_as_it_says(noise, above):
    """Whatever the calls are like: at most the share, and what the starting margin may miss; exactly that share where calls are noisy."""
    rng, n = np.random.default_rng(0), 600
    sigma = {"none": 0.0, "small": 0.03, "large": 0.3, "grows": np.linspace(0.02, 0.4, n)}
    calls = np.exp(rng.normal(size=n) * sigma.get(noise, 0.05))
    if noise == "bursts":  # a tenth of the time everything takes twice as long
        calls[(np.arange(n) // 30) % 10 == 9] *= 2
    found = shares(calls, above)
    assert found <= above + math.log(4) / (0.1 * n)
    if noise in {"large", "grows"}:
        assert found == pytest.approx(above, abs=0.02)


def test_a_margin_has_bounds():
    """It never narrows a prediction, and no chaos makes it more than four; what no call has shown yet says nothing beside what some have."""
    margins = Margins(0.1, 1.14)
    for _ in range(500):
        margins.observe("calm", longer=False)
        margins.observe("chaos", longer=True)
    assert [margins.of(kind) for kind in ("calm", "chaos", "new")] == pytest.approx([1, 4, 1.14])
    assert margins.of("calm", "new") == pytest.approx(1)
    assert margins.of("new", "calm", "chaos") == pytest.approx(4)


# --- what calls teach


def told(**fields) -> Plan:
    """A plan of one sample by "small": 50 tokens in a second, after prompts of 20 tokens."""
    known = {
        "strategy": Single(),
        "roles": {"policy": "small"},
        "expected": {"seconds": Spend(1.0, 1.0), "tokens": Spend(50, 60)},
        "device": HERE,
        "prompt": 20.0,
    }
    return Plan(**(known | fields))


def taught(plan: Plan, tokens=50, prompt=20, seconds=1.8) -> float:
    """The pace of "small" after a first call and one that took so much."""
    paces = Paces()
    paces.learn(told(), tokens=50, prompt=20, seconds=30.0)  # the first one warms up
    paces.learn(plan, tokens=tokens, prompt=prompt, seconds=seconds)
    return paces.of({"small": HERE}).times


def test_seconds_are_compared_by_token():
    """A call of twice the tokens that were expected may take twice the seconds; what was expected is of the pace that was known."""
    slower = pytest.approx((1 + 1.8) / 2)  # one call as predicted goes before all
    assert taught(told()) == slower
    assert taught(told(), tokens=100, seconds=3.6) == pytest.approx((1 + 3.6) / (1 + 2))
    assert taught(told(), tokens=100, seconds=2.0) == pytest.approx(1.0)
    assert (
        taught(told(pace=Pace(2.0), expected={"seconds": Spend(2, 2), "tokens": Spend(50, 60)}))
        == slower
    )


@pytest.mark.parametrize(
    "plan",
    [
        told(device=""),
        told(roles={}),
        told(expected={}),
        told(prompt=0.0),
        told(expected={"seconds": Spend(1.0, 1.0), "tokens": Spend(3, 3, 3)}),
        told(expected={"seconds": Spend(0.3, 0.3, 0.25), "tokens": Spend(50, 60)}),
        told(expected={"seconds": Spend(0.0, 0.0, 0.25), "tokens": Spend(50, 60)}),
        told(expected={"seconds": Spend(1, 1), "tokens": Spend(50, 60), "flops": Spend(9, 9, 9)}),
        told(roles={"policy": "small", "large": "large"}),
    ],
)
def test_what_is_not_comparable_teaches_nothing(plan):
    """Nothing was measured, a limit cuts the call short, or two models drew the tokens."""
    assert taught(plan) == 1.0


@pytest.mark.parametrize(("prompt", "alike"), [(9, False), (10, True), (40, True), (41, False)])
def test_other_prompts_teach_nothing(prompt, alike):
    """Of less than half or more than twice the tokens."""
    assert (taught(told(), prompt=prompt) != 1.0) == alike


def margins_after(plan: Plan, seconds: float, calls: int = 30) -> float:
    """The margin of "small" after so many calls that took so long."""
    paces = Paces()
    for _ in range(calls):
        paces.learn(plan, tokens=50, prompt=20, seconds=seconds)
    return paces.of({"small": HERE}).margin


def test_calls_teach_how_far_they_go_beyond():
    """What 9 of 10 stay within narrows while all do, by the pace that is known; a limit that ends all calls at it says nothing of them."""
    at_first = Paces().of({"small": HERE}).margin
    assert at_first > 1.1
    assert margins_after(told(), 0.9) == pytest.approx(1.0, abs=0.01)
    rng = np.random.default_rng(0)
    paces, told_p90, beyond = Paces(), told().expected["seconds"].p90, 0
    for took in rng.lognormal(0.0, 0.4, 400):
        now = paces.of({"small": HERE})
        spend = Spend(now.times, told_p90 * now.times * now.margin)
        plan = told(expected={"seconds": spend, "tokens": Spend(50, 60)}, pace=now)
        beyond += took > spend.p90
        paces.learn(plan, tokens=50, prompt=20, seconds=took)
    assert beyond / 400 == pytest.approx(0.1, abs=0.02)
    ended = told(expected={"seconds": Spend(0.8, 1.0, 1.0), "tokens": Spend(50, 60)})
    assert margins_after(ended, 1.01) == at_first


def test_a_wide_margin_narrows_under_a_limit():
    """Though it makes what is told as much as the limit: calls that end before it teach that they do."""
    paces, rng = Paces(), np.random.default_rng(0)

    def calls(sigma: float, n: int) -> float:
        for took in rng.lognormal(0.0, sigma, n):
            now = paces.of({"small": HERE})
            spend = Spend(now.times, min(1.2 * now.times * now.margin, 1.62), 1.6)
            plan = told(expected={"seconds": spend, "tokens": Spend(50, 60)}, pace=now)
            paces.learn(plan, tokens=50, prompt=20, seconds=min(took, 1.61))
        return paces.of({"small": HERE}).margin

    assert calls(0.5, 60) > 1.2
    assert calls(0.02, 200) == pytest.approx(1.0)


def test_a_margin_goes_by_what_was_measured():
    """A plan that was told before the device slowed down, or with a wider margin, is held against what it would be told now."""
    paces = Paces()
    for _ in range(120):
        paces.learn(told(), tokens=50, prompt=20, seconds=1.6)
    before = paces.of({"small": HERE})
    assert before.times > 1.5
    assert before.margin < 1.1
    paces.learn(told(), tokens=50, prompt=20, seconds=1.02 * before.times)  # within it, by now
    assert paces.of({"small": HERE}).margin <= before.margin
    seen = Paces()
    wide = told(expected={"seconds": Spend(1.0, 2.0), "tokens": Spend(50, 60)}, pace=Pace(1.0, 2.0))
    first = [seen.of({"small": HERE}).margin]
    for _ in range(2):
        seen.learn(wide, tokens=50, prompt=20, seconds=1.5)
        first.append(seen.of({"small": HERE}).margin)
    assert (
        first[2] > first[1] == first[0]
    )  # the first call warms up; 1.5 is more than 1.0 with 1.14


def test_the_slowest_model_counts():
    """Each model has a pace of its own on its device."""
    paces = Paces()
    for _ in range(3):
        paces.learn(told(), tokens=50, prompt=20, seconds=1.5)
    assert paces.of({"small": HERE, "large": HERE}).times > 1.1
    assert paces.of({"large": HERE}).times == paces.of({"small": "another"}).times == 1.0
    assert paces.of({}) == AS_MEASURED


def test_calls_side_by_side_are_not_alone():
    """Both of two that overlap, and neither of two in turn."""
    paces = Paces()
    with paces.watched() as first:
        assert first.alone
        with paces.watched() as second:
            assert not second.alone
    assert not first.alone
    with paces.watched() as third:
        pass
    assert third.alone


def test_a_limit_below_all_that_was_measured_teaches_nothing():
    """What is expected is then cut to the limit, and not what so few tokens were measured to take: ten calls at just that speed are no drift."""
    table = replace(cells(), budgets=cells().budgets / 1000)
    made = profile(tables={"tokens": cells(), "seconds": table})
    made = replace(made, devices={"small": HERE, "large": HERE})
    paces = Paces()
    for seconds, learned in ((0.02, False), (1.6, True)):
        plan = Planner(made, here=[HERE]).plan(Budget(seconds=seconds))
        assert plan.device == HERE
        for _ in range(10):  # a millisecond a token
            paces.learn(plan, tokens=20, prompt=20, seconds=0.02)
        assert paces.of(made.devices).times == pytest.approx(1.0)
        paces.learn(plan, tokens=20, prompt=20, seconds=0.06)
        assert (paces.of(made.devices).times > 1.0) is learned


# --- what is planned with it


@pytest.fixture
def timed(monkeypatch):
    """A chat model of two models whose seconds were measured here, and the paces of a process of its own."""
    own = Paces()
    for module in (chat_model, plans):
        monkeypatch.setattr(module, "paces", own)
    monkeypatch.setattr(hardware, "called", lambda _: (HERE, ""))
    backends = {name: ScriptedBackend(["7\nAnswer: 7"], name=name) for name in ("small", "large")}
    llm = ChatPareto(models=backends, max_tokens=100)
    table = replace(cells(), budgets=cells().budgets / 1000)  # the same, in seconds
    llm.task = Profile(
        "by hand",
        OPTIONS,
        {"tokens": cells(), "seconds": table},
        keys=dict(llm.plans().keys),
        devices=dict.fromkeys(backends, HERE),
        prompt=4.0,
    )
    yield llm, own
    for backend in backends.values():
        backend.close()


def slowed(paces: Paces) -> None:
    """Both models take 1.8 times as long as was measured."""
    for name in ("small", "large"):
        for _ in range(60):
            plan = told(roles={"policy": name})
            paces.learn(plan, tokens=50, prompt=20, seconds=1.8)


def test_a_slow_device_is_planned_for(timed):
    """A plan under a limit on seconds is one that still fits, told in the seconds of now, and says why."""
    llm, paces = timed
    within = Budget(seconds=0.9)
    before = llm.plans().plan(within)
    assert (before.device, before.pace.times) == (HERE, 1.0)
    slowed(paces)
    after = llm.plans().plan(within)
    assert after.pace.times == pytest.approx(1.8, rel=0.01)
    assert after.expected["seconds"].mean <= 0.9
    assert after.expected["seconds"].limit == 0.9
    assert after.quality.mean < before.quality.mean
    assert after.budget == within
    assert "calls take 1.79 times the measured seconds now" in after.explain()
    same = llm.plans().plan(Budget(seconds=0.9 / 1.8))  # as if nothing had been learned
    assert same.expected["seconds"].limit == 0.5


def test_nine_of_ten_count_a_margin(timed):
    """Those of seconds are wider than the lengths of the answers make them, be it only for what no calibration has seen; a limit ends them."""
    llm, paces = timed
    margin = paces.of(llm.task.devices).margin
    known = Planner(llm.task, here=[HERE]).plan(Budget(seconds=2.0)).expected
    told = llm.plans().plan(Budget(seconds=2.0)).expected
    assert told["seconds"].p90 == pytest.approx(known["seconds"].p90 * margin)
    assert told["tokens"] == known["tokens"]
    planner, limit = Planner(llm.task, here=[HERE]), 2.0
    wide = planner.plan(Budget(seconds=limit), pace=Pace(1.0, 1000.0)).expected["seconds"]
    assert limit < wide.p90 < 1.01 * limit  # and a step


def test_joules_and_hours_are_seconds_too(timed):
    """A limit in joules is as many seconds as the device has of them, now; and the tightest limit is told as it is."""
    llm, paces = timed
    slowed(paces)
    by_hand = llm.plans().plan(Budget(seconds=0.4, tokens=10**6))
    llm.watts = 10.0
    plan = llm.plans().plan(Budget(joules=4.0, seconds=100.0))
    assert plan.expected["seconds"].limit == 0.4
    assert plan.expected["seconds"].mean == pytest.approx(by_hand.expected["seconds"].mean)


def test_no_limit_on_time_knows_no_pace(timed):
    """What was before makes no difference to it."""
    llm, paces = timed
    before = llm.plans().plan(Budget(tokens=900))
    slowed(paces)
    assert llm.plans().plan(Budget(tokens=900)) == before
    small = llm.plans().plan(Budget(seconds=0.05))
    assert any("as small as 0.05" in note for note in small.notes)


def test_calls_teach(timed):
    """Planned calls that ran alone do; under a budget over many calls they may have waited for each other."""
    llm, paces = timed

    def pace() -> float:
        return max(paces.of({name: HERE}).times for name in ("small", "large"))

    llm.invoke("7?", budget="0.9s")
    assert pace() == 1.0  # that was the first
    with run_budget("100000 tokens, 100 s"):
        llm.invoke("7?", budget="0.9s")
    assert pace() == 1.0
    assert all(paces.of({name: HERE}).times == 1.0 for name in ("small", "large"))
    llm.invoke("7?", budget="0.9s")
    assert [paces.of({name: HERE}).times for name in ("small", "large")] != [1.0, 1.0]
