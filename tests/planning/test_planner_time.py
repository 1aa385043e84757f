"""What is planned where time is limited, or has a price: calls then draw otherwise, and not every model's seconds are known."""

from dataclasses import replace

import numpy as np
import pytest
from profiles import OPTIONS, cells, profile

from langchain_pareto.budget import Budget
from langchain_pareto.planning import measure
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.profile import TERMS, Cells, Profile
from langchain_pareto.planning.recording import LinearTiming, Recording
from langchain_pareto.planning.replay import Replayer
from langchain_pareto.rates import Rates
from langchain_pareto.strategies import Single, Vote

HERE = "this one"
QUESTIONS, SAMPLES = 12, 8
ADAPTIVE = Option(Vote(n=SAMPLES), {"policy": "small"})


def recording() -> Recording:
    """Questions of which most are easy, so that a vote that may wait stops early."""
    rng = np.random.default_rng(0)
    right = rng.random((QUESTIONS, SAMPLES)) < np.linspace(0.55, 1.0, QUESTIONS)[:, None]
    pool = Pool(
        model="small",
        questions=tuple(f"q{i}" for i in range(QUESTIONS)),
        answers=np.where(right, 0, rng.integers(1, 9, right.shape)),
        tokens=rng.integers(30, 90, right.shape),
        prompts=np.full(QUESTIONS, 20),
        right=right,
    )
    return Recording(pool, timing=LinearTiming(0.01))


def measured() -> tuple[Profile, Replayer]:
    """A vote as it is measured in tokens and in seconds, and what it does."""
    recorded = {"small": recording()}
    grids = {
        "tokens": measure.budgets({"small": recorded["small"].pool}),
        "seconds": measure.seconds_grid(recorded),
    }
    tables = {
        name: measure.measure([ADAPTIVE], recorded, grid, resource=name, orders=4).cells()
        for name, grid in grids.items()
    }
    made = Profile("votes", (ADAPTIVE,), tables, devices={"small": HERE}, prompt=20.0)
    return made, Replayer({"policy": recorded["small"]})


def taken(replayer: Replayer, budget: Budget | None) -> float:
    """Tokens of the vote, on average."""
    plays = [
        replayer.play(ADAPTIVE.strategy, question, budget, seed=order).tokens
        for question in range(QUESTIONS)
        for order in range(4)
    ]
    return float(np.mean(plays))


@pytest.mark.parametrize("tokens", [100_000, 1000])
def test_under_a_limit_on_time_all_samples_are_told(tokens):
    """A vote that may not wait draws all at once: told are the tokens that it then takes, whatever else is limited."""
    made, replayer = measured()
    planner, budget = Planner(made, here=[HERE]), Budget(tokens=tokens, seconds=60)
    free, timed = taken(replayer, None), taken(replayer, budget)
    assert timed > 1.3 * free  # or this test says nothing
    waves = planner.plan(Budget(tokens=tokens))
    at_once = planner.plan(budget)
    assert waves.expected["tokens"].mean == pytest.approx(free, rel=0.02)
    assert at_once.expected["tokens"].mean == pytest.approx(timed, rel=0.02)
    assert at_once.device == waves.device == HERE


def test_flops_are_told_so_too():
    """What was measured in FLOPs of calls without a limit on time is not what those take that have one."""
    timed = cells(tokens=[[50] * 5, [400] * 5, [150] * 5, [1200] * 5])
    timed = replace(timed, budgets=timed.budgets / 1000)
    planner = Planner(profile(tables={"tokens": cells(), "seconds": timed}))
    free = planner.plan(Budget(flops=40_500))
    assert free.roles["policy"] == "large"
    plan = planner.plan(Budget(flops=100_000, seconds=60))
    assert plan.strategy == Single()
    assert plan.expected["flops"].mean == 15_000
    assert planner.plan(Budget(flops=130_000, seconds=60)).expected["flops"].mean == 120_000


def test_of_equal_limits_time_tells_what_is_taken():
    """A vote that is as right in less time takes what was measured at that time, and not what stays within the tokens for sure."""
    timed = cells([[0.66] * 5], [[100, 200, 300, 400, 400]])
    timed = replace(timed, budgets=timed.budgets / 1000)
    made = profile(
        (ADAPTIVE,), tables={"tokens": cells([[0.66] * 5], [[100] * 5]), "seconds": timed}
    )
    plan = Planner(made).plan(Budget(tokens=390, seconds=0.6))
    assert plan.expected["tokens"].mean == pytest.approx(300 + 100 * np.log2(0.6 / 0.4))
    least = Planner(made).plan(Budget(tokens=99, seconds=0.6))
    assert "no budget as small as 99.0 tokens" in least.explain()
    known = made.cells["tokens"].budgets * 10  # what was measured without a limit on time
    wide = replace(
        made, cells=made.cells | {"tokens": replace(made.cells["tokens"], budgets=known)}
    )
    assert "no budget as small" not in Planner(wide).plan(Budget(tokens=390, seconds=9)).explain()


def test_seconds_of_elsewhere_still_tell_the_tokens():
    """How many samples a call draws at once does not depend on the device; what it takes in seconds is not told."""
    made, replayer = measured()
    plan = Planner(made, here=["another"]).plan(Budget(tokens=1000, seconds=60))
    timed = taken(replayer, Budget(tokens=1000, seconds=60))
    assert plan.expected["tokens"].mean == pytest.approx(timed, rel=0.02)
    assert "seconds" not in plan.expected
    assert plan.device == ""


def test_without_seconds_of_such_calls_nothing_is_learned_of_them():
    """What was measured in tokens alone drew in waves: a plan under a limit on time has no device to learn of, and says what is not known."""
    made, _ = measured()
    bare = Profile("bare", (ADAPTIVE,), {"tokens": made.cells["tokens"]}, devices={"small": HERE})
    planner = Planner(bare, here=[HERE])
    timed, free = (planner.plan(Budget(tokens=1000, seconds=x)) for x in (60, None))
    assert (timed.device, free.device) == ("", HERE)
    assert any("draws all its samples at once" in note for note in timed.notes)
    assert not free.notes


# --- what time costs


def priced(**columns: tuple[float, float]) -> Cells:
    """Two plans as good as each other, and what a run of each takes; 0 is unknown."""
    terms = {"tokens": (50.0, 150.0), "samples": (1.0, 1.0), "steps": (50.0, 150.0)} | columns
    zero = (0.0, 0.0)
    mean = np.stack([np.array(terms.get(name, zero))[:, None] for name in TERMS], axis=-1)
    return Cells(np.array([100.0]), np.ones((2, 1, 10)), mean, mean)


def chosen(memory: int | None = None, **columns: tuple[float, float]) -> str:
    """Who answers where a watt has a price and nothing else is limited."""
    made = profile((OPTIONS[0], OPTIONS[2]), tables={"tokens": priced(**columns)})
    planner = Planner(made, rates=Rates(watts=10.0), memory={"small": 10, "large": 1000})
    return planner.plan(Budget(memory=memory)).roles["policy"]


def test_a_model_of_unknown_seconds_is_not_free():
    """Where not every plan's seconds are known, its FLOPs say what it costs, and where those are not, its tokens."""
    assert chosen(seconds=(0.5, 0.2), flops=(10.0, 20.0)) == "large"
    assert chosen(seconds=(0.0, 0.2), flops=(20.0, 10.0)) == "large"
    assert chosen(seconds=(0.2, 0.0), flops=(10.0, 20.0)) == "small"
    assert chosen(flops=(20.0, 10.0)) == "large"
    assert chosen(flops=(0.0, 10.0)) == "small"
    assert chosen(flops=(10.0, 0.0)) == "small"


def test_what_is_not_known_of_impossible_plans_does_not_matter():
    """The seconds of the one that fits into the memory are known."""
    options = (OPTIONS[0], Option(Vote(n=3), {"policy": "small"}), OPTIONS[2])
    mean = np.zeros((3, 1, len(TERMS)))
    mean[:, 0, TERMS.index("tokens")] = 50, 60, 70
    mean[:, 0, TERMS.index("flops")] = 10, 20, 30
    mean[:, 0, TERMS.index("seconds")] = 0.3, 0.2, 0
    table = Cells(np.array([100.0]), np.ones((3, 1, 10)), mean, mean)
    made = profile(options, tables={"tokens": table})
    planner = Planner(made, rates=Rates(watts=10.0), memory={"small": 10, "large": 1000})
    assert planner.plan(Budget(memory=100)).strategy == Vote(n=3)
    assert planner.plan().strategy == Single()
