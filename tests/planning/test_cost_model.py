"""The cost model: sums of steps in closed form, their inverse, what is fitted, and what is promised of it."""

import json
import math
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from langchain_pareto.backends import attention_groups, scheduler
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import SettingError
from langchain_pareto.planning import step_cost
from langchain_pareto.planning.cost_model import CostModel, Key, Speed, prior
from langchain_pareto.planning.fitting import (
    LEAST_SIGMA,
    Run,
    fit,
    fit_decode,
    fit_prefill,
    spread,
)
from langchain_pareto.planning.recording import Timing
from langchain_pareto.planning.step_cost import PrefillCost, StepCost, padded_rows
from langchain_pareto.rates import Rates

READ = PrefillCost(2e-3, 1e-4, 1e-8)
STEPS = {
    "none": StepCost(3e-3, 1e-4, 1e-6),
    "union": StepCost(3e-3, 2e-4, 1e-6, 5e-5, 2e-6, ((2, 1e-4), (8, 3e-4)), "union"),
    "scan": StepCost(1e-3, 3e-4, 1e-6, 1e-7, 2e-6, (), "scan"),
}


def model(sharing="union", **fields) -> CostModel:
    return CostModel(Key(), STEPS[sharing], READ, call=1e-3, draw=2e-4, **fields)


def batches(n=60):
    """Lengths and prompts of any kind."""
    source = random.Random(7)
    for _ in range(n):
        width = source.choice([1, 2, 3, 5, 8, 16, 33])
        lengths = [source.choice([0, 1, 7, source.randint(1, 300)]) for _ in range(width)]
        yield lengths, source.choice([1, 5, 60, 200, 1500])


def step_by_step(step: StepCost, lengths, prompt) -> float:
    """The same sum, a step at a time, by the rules of the engines."""
    total, before = 0.0, 0
    for x in range(max(lengths)):
        live = sum(length > x for length in lengths)
        total += step.width(live)
        if step.sharing == "union":
            rows = attention_groups._COLUMN_ROWS
            least = attention_groups.column_bucket(1)
            union, apart = max(least, prompt + live * x), live * max(least, prompt + x)
            together = live == 1 or (rows + live) * union <= (rows + 1) * apart
            columns = union if together else apart
            total += step.c * columns * ((rows + live) / (rows + 1) if together else 1)
            total += 0 if together else step.d * live
            total += step.e * columns if live != before else 0
            before = live
        else:
            total += step.c * live * (prompt + x)
        if step.sharing == "scan":
            drawn = sum(min(length, x) for length in lengths)
            total += (step.d * live + step.e) * (prompt + drawn)
    return total


@pytest.mark.parametrize("sharing", STEPS)
def test_the_closed_form_is_the_sum_of_the_steps(sharing):
    """Whoever shares what, and whoever ends when."""
    for lengths, prompt in batches():
        expected = step_by_step(STEPS[sharing], lengths, prompt)
        assert STEPS[sharing].drawing(lengths, prompt) == pytest.approx(expected, rel=1e-9)


def test_the_engines_constants_are_known():
    """What the torch runner pads, splits and reads in one step is what the model reckons with."""
    assert [padded_rows(n) for n in range(1, 600)] == [
        attention_groups.row_bucket(n) for n in range(1, 600)
    ]
    assert attention_groups._COLUMN_ROWS == step_cost.COLUMN_ROWS
    assert attention_groups.column_bucket(1) == step_cost.FEWEST_COLUMNS
    assert scheduler.PREFILL_ALONE == step_cost.PREFILL_CHUNK


def test_rows_are_padded_where_the_engine_pads_them():
    """On a GPU 9 rows take as long as 12; on a CPU each row takes its own time."""
    step = STEPS["none"]
    assert step.width(9) == pytest.approx(step.a + 9 * step.b)
    on_gpu = replace(step, padded=True)
    assert on_gpu.width(9) == on_gpu.width(12) == pytest.approx(step.width(12))


@pytest.mark.parametrize("sharing", STEPS)
def test_drawn_by_is_the_inverse_of_batch_seconds(sharing):
    """When a batch is over all is drawn; at any earlier time, just what takes that long and one step that has begun."""
    costs = model(sharing)
    for lengths, prompt in batches():
        whole = costs.batch_seconds(lengths, prompt)
        assert costs.drawn_by(lengths, prompt, whole + 1e-9) == lengths
        draws = sum(length > 0 for length in lengths)
        for share in (0.1, 0.5, 0.9):
            drawn = costs.drawn_by(lengths, prompt, share * whole)
            reached = max(drawn)
            assert drawn == [min(length, reached) for length in lengths]
            if 0 < reached < max(lengths):
                late = costs.batch_seconds(drawn, prompt)
                early = costs.batch_seconds([min(n, reached - 1) for n in lengths], prompt)
                # with nothing drawn no draw has been paid for
                early += costs.draw * draws if reached == 1 else 0.0
                assert early <= share * whole + 1e-9 <= late + 2e-9


def test_drawn_by_grows_with_time():
    """More time never draws less, and none draws nothing."""
    costs, lengths = model(), [5, 40, 41, 300]
    times = [costs.batch_seconds(lengths, 100) * i / 50 for i in range(52)]
    drawn = [sum(costs.drawn_by(lengths, 100, t)) for t in times]
    assert all(a <= b for a, b in pairwise(drawn))
    assert drawn[0] == 0
    assert drawn[-1] == sum(lengths)


def test_a_prompt_alone():
    """Draws of no length leave the call and its prompt, less what is cached of it."""
    costs = model()
    assert costs.batch_seconds((0,), 100) == pytest.approx(costs.call + READ.seconds(99))
    assert costs.batch_seconds((0,), 100, 60) == pytest.approx(costs.call + READ.seconds(39, 60))
    assert costs.batch_seconds((0,), 100, 99) == pytest.approx(costs.call)
    assert costs.batch_seconds((), 1) == pytest.approx(costs.call)


def test_a_cost_model_times_replays():
    """It is what a recording asks for."""
    timing: Timing = model()
    assert timing.batch_seconds([3, 4], 10) > timing.batch_seconds([3], 10)


def test_reading_in_chunks():
    """Each chunk is a step of its own; reading in two goes takes one step more, and nothing else."""
    chunk = step_cost.PREFILL_CHUNK
    whole = READ.seconds(3 * chunk)
    parts = READ.seconds(chunk) + READ.seconds(2 * chunk, chunk)
    assert whole == pytest.approx(parts)
    assert READ.seconds(100) + READ.seconds(50, 100) == pytest.approx(READ.seconds(150) + READ.a)
    assert READ.seconds(0) == 0


def test_unrelated_sequences_share_nothing():
    """A step of one sequence is the same either way; of several it is no cheaper than that of forks."""
    for step in STEPS.values():
        assert step.seconds(1, 300) == pytest.approx(
            step.between(1, 300, 0, 1) - 300 * (step.e if step.sharing == "union" else 0)
        )
        assert step.seconds(8, 8 * 300) >= step.between(8, 300, 0, 1) - 300 * step.e


# --- guesses


def test_guesses_give_what_the_formula_says():
    """A round of verified guesses over the tokens that it gives; no draft, no time for it."""
    step, draft = STEPS["none"], StepCost(1e-3, 1e-5, 0.0)
    tokens = (1 - 0.8**5) / (1 - 0.8)
    for rows in (1, 2, 4, 16):
        fast = step.guessing(draft, guesses=4, acceptance=0.8)
        expected = (step.width(5 * rows) + 4 * draft.width(rows)) / tokens
        assert fast.width(rows) == pytest.approx(expected)
        free = step.guessing(None, guesses=4, acceptance=0.8)
        assert free.width(rows) == pytest.approx(step.width(5 * rows) / tokens)


@pytest.mark.parametrize("sharing", STEPS)
def test_guesses_read_a_context_once_a_round(sharing):
    """However many tokens a round gives: of what is read a token pays its share."""
    step, tokens = STEPS[sharing], (1 - 0.5**3) / (1 - 0.5)
    fast = step.guessing(None, guesses=2, acceptance=0.5)
    read, shared = (x.seconds(4, 500) - x.width(4) for x in (step, fast))
    assert shared == pytest.approx(read / tokens)


def test_guesses_that_are_never_right_only_cost():
    """A whole model with a draft keeps its prompt, and gets slower where nothing is accepted."""
    costs = model("none")
    slow = costs.guessing(costs, guesses=3, acceptance=0.0)
    assert slow.batch_seconds([50] * 4, 20) > costs.batch_seconds([50] * 4, 20)
    assert slow.batch_seconds((0,), 20) == costs.batch_seconds((0,), 20)


@pytest.mark.parametrize(("guesses", "acceptance"), [(0, 0.5), (2, 1.0), (2, -0.1)])
def test_impossible_guesses_are_refused(guesses, acceptance):
    """No guess at all, and a chance that is none."""
    with pytest.raises(SettingError, match="guesses at least 1"):
        STEPS["none"].guessing(None, guesses=guesses, acceptance=acceptance)


# --- fitting


def test_a_fit_finds_the_coefficients():
    """Exact data gives them back, zeros too, and large features hide no small ones."""
    source = np.random.default_rng(0)
    features = source.uniform(0.1, 1, (12, 4)) * [1, 10, 1e4, 1e6]
    found = fit(features.tolist(), (features @ [2e-3, 0, 3e-7, 1e-9]).tolist())
    assert found == pytest.approx([2e-3, 0, 3e-7, 1e-9], rel=1e-6, abs=1e-12)


def test_a_fit_has_no_negative_coefficient():
    """What would be best below zero is zero."""
    features = [[1.0, float(n)] for n in range(1, 9)]
    one, slope = fit(features, [3.0 - 0.1 * n for n in range(1, 9)])
    assert slope == 0
    assert one > 0


def test_a_fit_weighs_relative_errors():
    """A point that takes a thousandth counts as much as any: a tenth off here is a tenth off there."""
    [found] = fit([[1.0], [1000.0]], [1.0, 1200.0])
    assert found == pytest.approx((1 + 1 / 1.2) / (1 + 1 / 1.44))


def test_a_fit_wants_measurements():
    """Nothing measured, and runs that took no time, are named."""
    for features, seconds in (([], []), ([[1.0]], [0.0])):
        with pytest.raises(SettingError, match="measured runs"):
            fit(features, seconds)


def runs_of(step: StepCost, widths=(1, 2, 4, 8, 16, 32)) -> list[Run]:
    """What a device of that cost would show."""
    cases = [((16,) * n, prompt) for n in widths for prompt in (4, 1000)]
    cases += [(tuple(range(2, 34, 2)), 4), (tuple(range(10, 90, 10)), 1000)]
    return [Run(lengths, prompt, step.drawing(lengths, prompt)) for lengths, prompt in cases]


@pytest.mark.parametrize("sharing", STEPS)
def test_the_steps_of_a_device_are_found(sharing):
    """Batches that were not measured are predicted from those that were."""
    true = STEPS[sharing]
    found = fit_decode(runs_of(true), [], sharing)
    for lengths, prompt in batches():
        if any(lengths):
            expected = true.drawing(lengths, prompt)
            assert found.drawing(lengths, prompt) == pytest.approx(expected, rel=0.12)


def test_a_straight_line_is_enough_where_it_is():
    """Bends come only with steps that ask for them."""
    assert fit_decode(runs_of(STEPS["none"]), [], "none").bends == ()
    jump = StepCost(
        3e-3, 2.5e-2, 1e-6, bends=((2, 2e-3),)
    )  # as where kernels for one row are others
    found = fit_decode(runs_of(jump), [], "none")
    assert found.bends[0][0] == 2
    assert found.width(1) == pytest.approx(jump.width(1), rel=0.05)
    assert found.width(2) == pytest.approx(jump.width(2), rel=0.05)


def test_a_width_off_the_line_asks_for_bends():
    """What no straight line reaches bends the curve."""
    line = StepCost(1e-3, 1e-3, 0.0)
    runs = [run for run in runs_of(line) if len(run.lengths) in (1, 32)]
    odd = Run((16,) * 4, 4, 1.5 * line.drawing((16,) * 4, 4))
    assert fit_decode(runs, [], "none").bends == ()
    assert fit_decode([*runs, odd], [odd], "none").bends != ()


def test_prompts_are_fitted():
    """From what reading took, cached tokens before it or not."""
    points = [(n, cached, READ.seconds(n, cached)) for n, cached in ((16, 0), (900, 0), (64, 900))]
    found = fit_prefill(points)
    assert (found.a, found.b, found.c) == pytest.approx((READ.a, READ.b, READ.c), rel=1e-6)


def test_the_spread_of_held_out_runs():
    """Sigma covers 95 of 100 runs, and is never nothing."""
    source = np.random.default_rng(1)
    sigma, error = spread(source.normal(0, 0.2, 4000).tolist())
    assert sigma == pytest.approx(0.2 * 1.96 / 1.64, rel=0.05)
    assert error == pytest.approx(0.6745 * 0.2, rel=0.05)
    assert spread([0.0, 0.0]) == (LEAST_SIGMA, 0.0)


# --- margins


def test_a_margin_counts_other_moments():
    """A calibration sees one of them, and they differ by a tenth; it is double where a device is known badly."""
    assert model(sigma=0.0, error=0.01).margin == pytest.approx(math.exp(1.64 * 0.1))
    usual = math.exp(1.64 * math.hypot(0.2, 0.1))
    assert model(sigma=0.2, error=0.1).margin == pytest.approx(usual)
    rough = model(sigma=0.2, error=0.3)
    assert rough.rough
    assert rough.margin - 1 == pytest.approx(2 * (usual - 1))


# --- prices, files, priors


def test_joules_and_money_of_a_call():
    """Device seconds at the caller's rates; the watts that were measured count where none are given."""
    costs = model(busy=0.5, watts=40.0)
    priced = costs.cost(10.0, Rates(usd_per_hour=3.6, watts=100.0), tokens=7)
    assert (priced.joules, priced.usd, priced.tokens) == pytest.approx((500.0, 0.005, 7))
    assert costs.cost(10.0, Rates()).joules == pytest.approx(200.0)
    assert costs.cost(1.0, Rates(usd_per_million_tokens=2.0), tokens=500_000).usd == pytest.approx(
        1
    )


def test_a_cost_model_survives_a_file():
    """JSON gives back the same model, and what has none of its fields is named."""
    costs = model(sigma=0.1, error=0.02, watts=3.0, measured="2026-01-01T00:00:00+00:00")
    assert CostModel.from_json(costs.to_json()) == costs
    broken = json.loads(costs.to_json())
    broken["decode"]["a"] = "slow"
    for text, name in ((json.dumps(broken), "decode.a"), ("{}", "key"), ("no", "its text")):
        with pytest.raises(SettingError, match=name):
            CostModel.from_json(text)


def test_what_nothing_was_measured_of_is_reckoned():
    """Weights and contexts by bandwidth, rows by the peak, and a sigma that says so."""
    spec = ScriptedBackend(["x"]).spec
    costs = prior(spec, Speed(bytes=1e6, flops=1e9))
    assert costs.decode.a == pytest.approx(spec.weight_bytes / 0.7e6 + 1e-3)
    assert costs.decode.c == pytest.approx(spec.kv_bytes_per_token / 0.75e6)
    assert costs.sigma == 0.35
    assert costs.error is None
    assert costs.margin == pytest.approx(math.exp(1.64 * math.hypot(0.35, 0.1)))


@pytest.mark.parametrize("rows", [2, 4, 16, 64])
@pytest.mark.parametrize("prompt", [1, 20, 60, 127, 128, 140, 900])
def test_forks_part_where_the_engine_parts_them(rows, prompt):
    """The rule of `attention_groups`, step by step, with all that is narrower than 128 columns padded to these."""
    steps = 0
    a_row, fewest = step_cost.COLUMN_ROWS, step_cost.FEWEST_COLUMNS
    while (a_row + rows) * max(fewest, prompt + rows * steps) <= rows * (a_row + 1) * max(
        fewest, prompt + steps
    ):
        steps += 1
    assert step_cost._parting(rows, prompt) == steps
