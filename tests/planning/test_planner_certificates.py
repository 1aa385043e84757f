"""Which certified plan a call takes: the cheapest that it has the models and the memory for, and what limits make of the certificate."""

import numpy as np
import pytest
from profiles import OPTIONS, cells, profile

from langchain_pareto.budget import Budget
from langchain_pareto.errors import CertificateRefused, SettingError
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Family, Profile
from langchain_pareto.strategies import Single, Vote

AGREE = Guarantee(kind="agree")
MEMORY = {"small": 100, "large": 10**6}
UNLIKE = "the answers of the two may differ"


def certified(*family: int, failing: int = 0) -> Profile:
    """A family against the vote of the large model, whose last `failing` plans fail too often."""
    losses = np.zeros((len(family), 200), bool)
    losses[len(family) - failing :, :50] = True
    losses[:, 0] = True
    return profile(family=Family(3, family, losses))


@pytest.mark.parametrize("family", [(0, 2), (2, 0)])
def test_the_cheapest_at_hand_is_taken(family):
    """What needs a model that the call has not is left out: those before it in the family have passed as well."""
    plan = Planner(certified(*family), models=["large"]).plan(guarantee=AGREE)
    assert (plan.strategy, plan.roles["policy"]) == (Single(), "large")
    assert "one sample by large differs" in plan.explain()
    assert "1 of 200" in plan.explain()
    both = Planner(certified(*family)).plan(guarantee=AGREE)
    assert both.roles["policy"] == OPTIONS[family[-1]].roles["policy"]


def test_where_no_certified_plan_can_run_the_reference_does():
    """It needs no certificate, and the plan says so."""
    plan = Planner(certified(1, 0), models=["large"]).plan(guarantee=AGREE)
    assert (plan.strategy, plan.roles["policy"]) == (Vote(n=8), "large")
    assert "is the reference, which needs no certificate" in plan.explain()
    assert "certified with" not in plan.explain()


def test_where_not_even_the_reference_can_run_it_is_refused():
    """With what to do: for the want of a model, and for the want of memory."""
    with pytest.raises(SettingError, match="models that this call has not") as caught:
        Planner(certified(2), models=["small"]).plan(guarantee=AGREE)
    assert "large" in str(caught.value.hint)
    with pytest.raises(SettingError, match="fits into the memory") as caught:
        Planner(certified(2), memory=MEMORY).plan(Budget(memory=1000), guarantee=AGREE)
    assert "memory" in str(caught.value.hint)


def test_what_failed_certifies_nothing():
    """A plan that did not pass is not taken for the want of another, nor is one behind it."""
    plan = Planner(certified(2, 1, 0, failing=2)).plan(guarantee=AGREE)
    assert plan.roles["policy"] == "large"
    with pytest.raises(CertificateRefused):
        Planner(certified(2, 0, failing=2)).plan(guarantee=AGREE)


def test_memory_rules_certified_plans_out():
    """One that is certified and does not fit is passed over; of one that fits, memory may still cut a sample short."""
    planner = Planner(certified(0, 2), memory=MEMORY)
    assert planner.plan(guarantee=AGREE).roles["policy"] == "large"
    plan = planner.plan(Budget(memory=1000), guarantee=AGREE)
    assert plan.roles["policy"] == "small"
    assert "if the limit on memory cuts a sample short" in plan.explain()
    assert "memory" not in planner.plan(guarantee=AGREE).explain()


def test_a_limit_on_time_makes_a_vote_another_one():
    """All its samples are drawn at once, where those that were tested stopped early: the certificate says so, and only there."""
    made = certified(2, 1)
    planner = Planner(made)
    assert UNLIKE in planner.plan(Budget(seconds=60), guarantee=AGREE).explain()
    assert UNLIKE not in planner.plan(Budget(tokens=10_000), guarantee=AGREE).explain()
    single = Planner(certified(2)).plan(Budget(seconds=60), guarantee=AGREE)
    assert UNLIKE not in single.explain()


def test_a_vote_that_time_cuts_is_not_whole():
    """Half of all samples at once are more than a vote that stops early takes, and no whole vote."""
    table = cells(tokens=[[50] * 5, [200, 300, 350, 400, 400], [150] * 5, [1200] * 5])
    tables = {"tokens": cells(tokens=[[50] * 5, [180] * 5, [150] * 5, [1200] * 5])}
    made = profile(tables=tables | {"seconds": table}, family=certified(2, 1).family)
    for seconds, whole in ((100, False), (1600, True)):
        told = Planner(made).plan(Budget(seconds=seconds), guarantee=AGREE).explain()
        assert ("does not hold here" not in told) is whole
    short = profile(tables=tables | {"seconds": cells(tokens=[[50] * 5] * 4)}, family=made.family)
    told = Planner(short).plan(Budget(seconds=1600), guarantee=AGREE).explain()
    assert "does not hold here" in told  # it was cut at the longest time that was measured
