"""The planner: what it chooses from a profile, what it says, and what it does without one."""

import itertools
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from profiles import BUDGETS, OPTIONS, cells, profile

from langchain_pareto.budget import Budget
from langchain_pareto.errors import CertificateRefused, SettingError
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.estimates import Estimates
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Family, load_profile
from langchain_pareto.rates import Rates
from langchain_pareto.strategies import Auto, Single, Vote


def test_without_a_profile_the_adaptive_vote_runs() -> None:
    """Level 0 says that it knows nothing, and expects nothing."""
    plan = Planner().plan(Budget(tokens=100))
    assert (plan.strategy, plan.level, plan.quality, plan.expected) == (Auto(), 0, None, {})
    assert "calibrated" in plan.explain()


@pytest.mark.parametrize(
    ("tokens", "option"), [(50, 0), (100, 0), (220, 2), (400, 2), (1600, 3), (10**9, 3)]
)
def test_the_best_that_fits_is_taken(tokens: int, option: int) -> None:
    """The small model on a tight budget, one sample of the large one on a wider one, its vote where that pays."""
    plan = Planner(profile()).plan(Budget(tokens=tokens))
    assert (plan.strategy, dict(plan.roles)) == (OPTIONS[option].strategy, OPTIONS[option].roles)


def test_equally_good_plans_go_by_cost() -> None:
    """At 400 tokens a vote of the large model is as right as one sample of it, and not taken for more."""
    plan = Planner(profile()).plan(Budget(tokens=400))
    assert plan.strategy == Single()
    assert plan.expected["tokens"].mean == pytest.approx(150)


def test_the_lean_rule_takes_the_cheaper_within_half_a_point() -> None:
    """A plan that is 0.4 points better is not worth several times the tokens; without the rule it is taken."""
    right = [[0.500] * 5, [0.504] * 5, [0.1] * 5, [0.1] * 5]
    found = profile(tables={"tokens": cells(right, questions=1000)})
    lean, eager = (Planner(found, lean=x).plan(Budget(tokens=1600)) for x in (True, False))
    assert (lean.strategy, eager.strategy) == (Single(), Vote(n=8))
    assert lean.expected["tokens"].mean < eager.expected["tokens"].mean


def test_a_wanted_accuracy_takes_the_cheapest_that_reaches_it() -> None:
    """As sure as the profile is; where none does, the best that fits, and it says so."""
    planner = Planner(profile())
    assert planner.plan(Budget(tokens=1600), need=0.4).roles["policy"] == "small"
    assert planner.plan(Budget(tokens=1600), need=0.6).roles["policy"] == "large"
    unmet = planner.plan(Budget(tokens=1600), need=0.99)
    assert unmet.strategy == Vote(n=8)
    assert "no plan reaches 99%" in unmet.explain()


@pytest.mark.parametrize("need", [0, 1, -0.5, 1.5, float("nan")])
def test_a_need_is_a_share(need: float) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(SettingError, match="share"):
        Planner(profile()).plan(need=need)


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=12))
def test_planned_quality_never_falls_with_the_budget(budgets: list[float]) -> None:
    """Whoever has more may spend less of it, for every option, however noisy the cells are."""
    rng = np.random.default_rng(len(budgets))
    noisy = cells()
    noisy.right[:] = rng.random(noisy.right.shape)
    estimates = Estimates(OPTIONS, noisy)
    quality = [estimates.at(b).quality for b in sorted(budgets)]
    assert all((b >= a - 1e-12).all() for a, b in itertools.pairwise(quality))


def test_the_tightest_of_several_limits_binds() -> None:
    """The plan is as good as the worst of its limits lets it be, and that one is named."""
    planner = Planner(profile(tables={"tokens": cells(), "seconds": cells()}))
    free = planner.plan(Budget(tokens=1600))
    tight = planner.plan(Budget(tokens=1600, seconds=220))
    assert free.binding == "tokens"
    assert tight.strategy == Single()
    assert tight.roles["policy"] == "large"


def test_limits_that_were_not_measured_follow_from_the_tokens() -> None:
    """What a plan takes in FLOPs and seconds is known with the tokens: 100 FLOPs and a millisecond each."""
    planner = Planner(profile())
    for budget in (Budget(flops=10_000), Budget(seconds=0.1)):
        assert planner.plan(budget).roles["policy"] == "small"
    for budget in (Budget(flops=160_000), Budget(seconds=1.6)):
        assert planner.plan(budget).strategy == Vote(n=8)


def test_prices_turn_money_and_energy_into_what_was_measured() -> None:
    """One joule at 1 watt is a second; a dollar at a dollar an hour is an hour; tokens may have a price."""
    found = profile()
    energy = Planner(found, rates=Rates(watts=1.0))
    assert energy.plan(Budget(joules=0.1)).roles["policy"] == "small"
    hourly = Planner(found, rates=Rates(usd_per_hour=3600.0))
    assert hourly.plan(Budget(usd=1.6)).strategy == Vote(n=8)
    by_token = Planner(found, rates=Rates(usd_per_million_tokens=1.0))
    assert by_token.plan(Budget(usd=100e-6)).roles["policy"] == "small"


def test_memory_rules_models_out() -> None:
    """A model of which one sample does not fit is not planned with, and the explanation says why."""
    planner = Planner(profile(), memory={"small": 100, "large": 10_000})
    plan = planner.plan(Budget(tokens=1600, memory=1000))
    assert plan.roles["policy"] == "small"
    assert "memory" in plan.explain()
    nothing = planner.plan(Budget(memory=10))
    assert nothing.level == 0
    assert "no plan of the profile fits" in nothing.explain()


def test_only_models_at_hand_are_planned_with() -> None:
    """A profile of two models serves a call that has one of them; one that has none is refused."""
    plan = Planner(profile(), models=["small"]).plan(Budget(tokens=1600))
    assert plan.roles["policy"] == "small"
    with pytest.raises(SettingError, match="no plan for other"):
        Planner(profile(), models=["other"])


def test_without_labels_no_accuracy_is_told() -> None:
    """Pseudo-labels rank plans; a share of right answers is neither reported nor promised."""
    plan = Planner(profile(labelled=False)).plan(Budget(tokens=1600), need=0.5)
    assert plan.quality is None
    assert "Quality" not in plan.explain()
    assert "no labels" in plan.explain()


def test_an_explanation_names_what_was_not_taken_and_why() -> None:
    """Every other option with its distance in points and its cost; the same as JSON."""
    plan = Planner(profile()).plan(Budget(tokens=1600))
    assert len(plan.rejected) == len(OPTIONS) - 1
    assert all("points" in r.why for r in plan.rejected)
    told = json.loads(json.dumps(plan.as_dict()))
    assert {"strategy", "model", "decoder", "binding", "expected", "quality", "rejected"} <= set(
        told
    )
    assert told["rejected"][0].keys() == {"plan", "why"}
    for word in ("Plan:", "Budget: 1600 tokens", "Expected:", "Quality:", "Not taken:"):
        assert word in plan.explain()


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    """Saved and loaded it plans the same, and one that was not measured everywhere has gaps as before."""
    table = cells()
    table.right[3, :2] = table.mean[3, :2] = np.nan
    family = Family(3, (1, 0), np.zeros((2, 2000), bool), np.ones((2, 2000), bool))
    made = profile(tables={"tokens": table}, family=family)
    made.save(tmp_path / "deep/p.json")
    found = load_profile(tmp_path / "deep/p.json")
    assert found.options == made.options
    np.testing.assert_allclose(found.cells["tokens"].right, table.right)
    for tokens in (50, 300, 5000):
        assert Planner(found).plan(Budget(tokens=tokens)) == Planner(made).plan(
            Budget(tokens=tokens)
        )
    assert found.family is not None
    assert found.family.differs.shape == (2, 2000)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"format":', '"format":99'),
        lambda text: text.replace('"budgets":[100.0,', '"budgets":['),
        lambda text: text.replace('"budgets":[100.0,200.0', '"budgets":[200.0,100.0'),
        lambda text: text.replace('"kind":"single"', '"kind":"nonsense"'),
    ],
)
def test_a_damaged_profile_is_refused(tmp_path: Path, damage) -> None:
    """With what is wrong, and what to do."""
    path = tmp_path / "p.json"
    profile().save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(SettingError) as caught:
        load_profile(path)
    assert "calibrate" in (caught.value.hint or "")


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(SettingError, match=r"nowhere\.json"):
        load_profile(tmp_path / "nowhere.json")


def test_a_profile_of_other_models_says_so() -> None:
    """Another key is another model; one that it never saw is named."""
    found = profile()
    assert found.misfits({"small": "s"}) == []
    assert "small: was s, and is t" in found.misfits({"small": "t"})[0]
    assert "has no huge" in found.misfits({"huge": "h"})[0]


def test_a_guarantee_takes_the_cheapest_certified_plan() -> None:
    """From the safest to the cheapest, as far as the losses allow."""
    losses = np.zeros((3, 200), bool)
    losses[2, :50] = True
    made = profile(family=Family(3, (2, 1, 0), losses))
    plan = Planner(made).plan(guarantee=Guarantee(kind="agree"))
    assert plan.strategy == OPTIONS[1].strategy
    assert "certified" in plan.explain()
    cut = Planner(made).plan(Budget(tokens=100), guarantee=Guarantee(kind="agree"))
    assert "does not hold here" in cut.explain()
    with pytest.raises(CertificateRefused, match="labels"):
        Planner(made).plan(guarantee=Guarantee(kind="error"))
    with pytest.raises(CertificateRefused):
        Planner(profile()).plan(guarantee=Guarantee(kind="agree"))


def test_equal_answers_everywhere_take_the_cheapest() -> None:
    """All right, or all wrong: no plan is better, so the cheapest is taken at every budget."""
    for share in (0.0, 1.0):
        planner = Planner(profile(tables={"tokens": cells([[share] * 5] * 4)}))
        for tokens in BUDGETS:
            plan = planner.plan(Budget(tokens=tokens))
            assert (plan.strategy, plan.roles["policy"]) == (Single(), "small")


def test_one_question_is_a_profile_of_little_use() -> None:
    """It is read without a crash, and the interval says that nothing is known."""
    plan = Planner(profile(tables={"tokens": cells(questions=1)})).plan(Budget(tokens=800))
    assert plan.quality is not None
    assert plan.quality.high - plan.quality.low > 0.5


def test_equal_answers_to_few_questions_prove_little() -> None:
    """Two questions that were both right are no certainty, and reach no wanted accuracy for sure."""
    planner = Planner(profile(tables={"tokens": cells([[1.0] * 5] * 4, questions=2)}))
    quality = planner.plan(Budget(tokens=800)).quality
    assert quality is not None
    assert quality.low < 0.7
    assert "no plan reaches" in planner.plan(Budget(tokens=800), need=0.9).explain()


def test_a_plan_takes_little_time(record_property: pytest.FixtureRequest) -> None:
    """How long it takes is recorded, and judged by the benchmark; here it only has to be a table look-up."""
    planner = Planner(profile())
    took = []
    for tokens in range(100, 600):
        began = time.perf_counter()
        planner.plan(Budget(tokens=tokens))
        took.append(time.perf_counter() - began)
    record_property("median_seconds", statistics.median(took))


@pytest.mark.parametrize("tokens", [1, 14, 99])
def test_a_budget_below_all_that_was_measured(tokens):
    """Nothing is expected beyond the limit, and a note says that the quality is that of a larger budget."""
    plan = Planner(profile()).plan(Budget(tokens=tokens))
    spend = plan.expected["tokens"]
    assert max(spend.mean, spend.p90) <= tokens
    assert any("no budget as small as" in note for note in plan.notes)
    enough = Planner(profile()).plan(Budget(tokens=BUDGETS[0]))
    assert not any("no budget as small as" in note for note in enough.notes)


def test_seconds_are_expected_up_to_the_step_that_has_begun():
    """A limit below all that was measured is overrun by one step and no more."""
    timed = replace(cells(), budgets=cells().budgets / 1000)
    known = profile(tables={"tokens": cells(), "seconds": timed})
    spend = Planner(known).plan(Budget(seconds=1e-4)).expected["seconds"]
    assert 1e-4 < spend.mean <= 1e-4 + 1e-3  # a token is a step, and takes a millisecond
