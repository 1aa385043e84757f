"""The evaluation of the planner: on pools whose truth is known, what it says of regret, savings and overruns."""

import gzip
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from langchain_pareto.bench import rows, sets_of
from langchain_pareto.budget import Budget
from langchain_pareto.cli import app
from langchain_pareto.errors import SettingError
from langchain_pareto.planning.catalogue import catalogue, described, options_for
from langchain_pareto.planning.evaluation import arena, splits, summary
from langchain_pareto.planning.identity import fingerprint
from langchain_pareto.planning.measure import budgets, family, measure
from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.planning.recording import Recording
from langchain_pareto.planning.replay import Replayer
from langchain_pareto.planning.savings import (
    fullest_of,
    spending,
    stopping,
    stopping_by_score,
)
from langchain_pareto.planning.store import profile_path
from langchain_pareto.strategies import BestOfN, Cascade, Vote

QUESTIONS, SAMPLES = 24, 32


def made(model: str, right: float, tokens: int, *, seed: int = 0) -> Pool:
    """A pool whose samples are right with a chance of `right`, whatever the question; wrong ones differ."""
    rng = np.random.default_rng(seed)
    correct = rng.random((QUESTIONS, SAMPLES)) < right
    wrong = rng.integers(1, 9, (QUESTIONS, SAMPLES))
    lengths = rng.integers(max(1, tokens // 2), tokens * 3 // 2, (QUESTIONS, SAMPLES))
    return Pool(
        model=model,
        questions=tuple(map(str, range(QUESTIONS))),
        answers=np.where(correct, 0, wrong).astype(np.int64),
        tokens=lengths.astype(np.int64),
        prompts=np.full(QUESTIONS, 10),
        right=correct,
    )


POOLS = {"small": made("small", 0.55, 40), "large": made("large", 0.9, 200, seed=1)}


@pytest.fixture(scope="module")
def found():
    return arena(POOLS, samples=8, orders=1, seen_orders=2)


def test_no_replayed_call_overruns(found) -> None:
    """Every run of every plan at every budget, seen and judged, took at most what it had."""
    assert found.overruns == 0
    assert found.plays > 10_000


def test_a_split_compares_plans_on_the_judged_questions(found) -> None:
    """The envelope is never below any fixed plan, and nothing is told of questions that were seen."""
    for split in splits(found, calibrated=12, count=3):
        assert (split.envelope >= split.preferred - 1e-9).all()
        assert (split.envelope >= split.random - 1e-9).all()
        assert np.isnan(split.leads[0]).sum() == 12
        assert (split.spent <= found.judged.budgets + 1e-6).all()


def test_a_summary_is_json_and_finds_the_better_model(found) -> None:
    """With a much better model at hand the planner is far ahead of a random plan, and close to the best one."""
    told = json.loads(json.dumps(summary(found, calibrated=12, count=5)))
    assert told["over a random fixed plan"][1] > 0
    assert told["regret"][0] < 8
    assert told["regret"][1] <= told["regret"][0] <= told["regret"][2]
    assert told["planned"][-1] > told["planned"][0]


def test_the_adaptive_stop_saves_tokens() -> None:
    """Where a model agrees with itself most votes are not needed, and hardly an answer is lost."""
    told = stopping(POOLS["large"], orders=1)
    assert told["times fewer tokens"] > 2
    assert told["points lost"][0] < 5


def scored(pool: Pool, noise: float) -> Pool:
    """The same with a scorer that knows who is right, up to some noise."""
    rng = np.random.default_rng(2)
    return replace(pool, scores=pool.right + noise * rng.random(pool.right.shape))


def test_a_scorer_that_knows_ends_a_search_early() -> None:
    """One or two samples are as good as 32, and better than their vote."""
    told = stopping_by_score(scored(POOLS["small"], 0.2), orders=1)
    assert 0.2 < told["threshold"] <= 1.2
    assert told["times fewer tokens than the vote of all"] > 8
    assert told["points lost to the best of all"] == [0, 0, 0]
    for name in ("the vote", "the best"):
        mean, low, high = told[f"points lost to {name} of all"]
        assert low <= mean <= high <= 0


@pytest.mark.parametrize("scores", [None, 0.5])
def test_without_scores_that_differ_nothing_stops_by_them(scores) -> None:
    """There is no such row, and no such plan."""
    pool = POOLS["small"]
    pool = replace(pool, scores=None if scores is None else np.full(pool.right.shape, scores))
    assert stopping_by_score(pool) is None
    plans = [option.strategy for option in options_for({"small": pool})]
    assert not [p for p in plans if isinstance(p, BestOfN) and p.threshold is not None]


def test_each_model_has_thresholds_of_its_own() -> None:
    """What is enough for one is out of reach for another; and each plan has a name of its own."""
    small, large = (scored(pool.first(16), 0.2) for pool in POOLS.values())
    options = options_for({"small": small, "large": replace(large, scores=large.scores + 5)})
    enough = {
        model: [
            o.strategy.threshold
            for o in options
            if o.model == model and isinstance(o.strategy, BestOfN) and o.strategy.threshold
        ]
        for model in ("small", "large")
    }
    assert max(enough["small"]) < 2
    assert min(enough["large"]) > 5
    assert len(set(map(str, options))) == len(options)
    assert "until one scores 0.5" in described(BestOfN(threshold=0.5))
    one = [o.strategy for o in options_for({"small": small.first(1)})]
    assert not [p for p in one if isinstance(p, BestOfN)]


def test_a_vote_that_wants_all_spends_more_than_a_static_split() -> None:
    """At every multiple of a sample's length."""
    for row in spending(POOLS["small"], orders=1):
        assert row["split, spent, %"] <= row["spent, %"] <= 100
        assert row["split, spent, %"] <= row["whole samples can spend, %"] <= 100


@pytest.mark.parametrize(("budget", "most"), [(0, 0), (3, 0), (9, 9), (13, 11), (15, 15), (99, 20)])
def test_samples_fill_a_budget_by_the_sums_they_make(budget: int, most: int) -> None:
    """Of 4, 5, 5 and 6 tokens: any of them together, each once."""
    assert fullest_of([4, 5, 5, 6], budget) == most


def test_the_catalogue_is_small_and_draws_no_more_than_was_recorded() -> None:
    """About 60 plans for three models with a scorer; of five models only neighbours make cascades."""
    three = catalogue(
        ["s", "m", "l"], scored=True, enough=dict.fromkeys("sml", (0.1, 0.5, 0.8, 0.9))
    )
    assert 40 <= len(three) <= 60
    assert len(set(map(str, three))) == len(three)
    votes = [o.strategy.n for o in catalogue(["s"], samples=8) if isinstance(o.strategy, Vote)]
    assert votes == [3, 4, 8]
    five = catalogue(list("abcde"))
    pairs = {o.players for o in five if isinstance(o.strategy, Cascade)}
    assert pairs == {"a, then b", "b, then c", "c, then d", "d, then e"}
    assert all(described(o.strategy) for o in five)


def test_what_a_catalogue_does_not_replay_is_not_measured() -> None:
    """A tree search has no recorded answers: NaN, and no number."""
    options = catalogue(["small"], samples=8, trees=True)
    runs = measure(options, {"small": Recording(POOLS["small"])}, np.array([100.0]), orders=1)
    drawn = np.array([option.drawn for option in options])
    assert np.isnan(runs.right[~drawn]).all()
    assert not np.isnan(runs.right[drawn]).any()


def test_a_measurement_is_every_single_play() -> None:
    """What it leaves out, since larger limits change nothing, is what would have been played."""
    options = catalogue(["small"], samples=8)
    recordings = {"small": Recording(POOLS["small"].first(8))}
    grid = np.array([30.0, 120.0, 500.0, 900.0])
    runs = measure(options, recordings, grid, orders=2)
    replayer, free = Replayer({"policy": recordings["small"]}), 0
    for i, option in enumerate(options):
        for j, question, order in product(range(4), range(QUESTIONS), range(2)):
            limit = Budget(tokens=int(grid[j]))
            played = replayer.play(option.strategy, question, limit, seed=order)
            free += played.free and j < 3
            assert runs.right[i, j, question, order] == played.right
            assert runs.answers[i, j, question, order] == played.answer
            assert runs.costs[i, j, question, order, TERMS.index("tokens")] == played.tokens
    assert free > 100


def test_a_family_goes_from_the_safest_to_the_cheapest() -> None:
    """The reference is the dearest model's largest vote; a plan that always agrees never fails."""
    recordings = {name: Recording(pool) for name, pool in POOLS.items()}
    options = catalogue(list(POOLS), samples=8)
    runs = measure(options, recordings, budgets(POOLS)[-1:], orders=1)
    made_ = family(options, runs, list(POOLS), labelled=True)
    assert made_ is not None
    assert str(options[made_.reference]) == "adaptive vote of 8 by large"
    told = [str(options[i]) for i in made_.options]
    assert told[0] == "adaptive vote of 4 by large"
    assert told[-1] == "one sample by small"
    losses = made_.differs.mean(1)
    assert losses[0] <= losses[-1]
    assert made_.lost is not None
    assert (made_.lost <= made_.differs).all()


def test_a_folder_of_pools_is_read(tmp_path: Path) -> None:
    """By dataset and model, the cheapest first, over the questions that all have; class 0 is right where nobody says."""
    for name, pool in POOLS.items():
        lines = [
            {"question": q, "answer": pool.answers[i].tolist(), "tokens": pool.tokens[i].tolist()}
            for i, q in enumerate(pool.questions[: 20 if name == "small" else 24])
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        (tmp_path / f"set.{name}.jsonl.gz").write_bytes(gzip.compress(text))
    found = sets_of(tmp_path)["set"]
    assert list(found) == ["small", "large"]
    assert {len(pool.questions) for pool in found.values()} == {20}
    wrong = [set(pool.answers[pool.answers > 0].tolist()) for pool in found.values()]
    assert wrong[0].isdisjoint(wrong[1])
    with pytest.raises(SettingError, match="leave too few"):
        list(rows("set", found, calibrated=19))
    run = CliRunner().invoke
    told = run(app, f"bench planner {tmp_path} --calibrate 10 --splits 2 --orders 1".split())
    assert told.exit_code == 0, told.output
    lines = [json.loads(line) for line in told.output.splitlines()]
    assert {line["bench"] for line in lines} == {
        "regret",
        "plan()",
        "adaptive stop",
        "whole budget",
    }
    empty = run(app, ["bench", "planner", str(tmp_path / "nothing")])
    assert empty.exit_code == 2


def written(folder: Path, name: str, *, questions: int, tokens: int, answer: int = 0) -> None:
    """A pool of two samples a question."""
    row = {"answer": [answer] * 2, "tokens": [tokens] * 2}
    lines = [json.dumps({"question": i} | row) for i in range(questions)]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def test_a_folder_without_pools_is_named(tmp_path: Path) -> None:
    """Whether it is missing, a file, or empty; and every error says what to give."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, told in (("none", "no folder"), ("file", "is no folder"), ("empty", "has no pools")):
        with pytest.raises(SettingError, match=told) as caught:
            sets_of(tmp_path / name)
        assert name in str(caught.value)
        assert "DATASET.MODEL.jsonl.gz" in str(caught.value.hint)


@pytest.mark.parametrize("questions", [1, 2, 3])
def test_too_few_questions_say_how_many_it_takes(tmp_path: Path, questions: int) -> None:
    """No range that nobody can choose from is offered."""
    written(tmp_path, "s.a", questions=questions, tokens=5)
    with pytest.raises(SettingError, match="too few to calibrate on some") as caught:
        list(rows("s", sets_of(tmp_path)["s"], calibrated=2))
    assert "at least 4" in str(caught.value.hint)
    assert ("1 question," in str(caught.value)) == (questions == 1)


@pytest.mark.parametrize(("calibrated", "told"), [(1, "are too few"), (3, "leave too few")])
def test_a_split_leaves_two_on_each_side(tmp_path: Path, calibrated: int, told: str) -> None:
    """The hint names what can be taken."""
    written(tmp_path, "s.a", questions=4, tokens=5)
    with pytest.raises(SettingError, match=told) as caught:
        list(rows("s", sets_of(tmp_path)["s"], calibrated=calibrated))
    assert caught.value.hint == "Take 2 to 2."


def test_samples_without_tokens_are_no_answers(tmp_path: Path) -> None:
    """An answer has tokens; a pool that has none anywhere is nothing to plan; both are named."""
    written(tmp_path / "a", "s.a", questions=4, tokens=0)
    with pytest.raises(SettingError, match="an answer has 0 tokens"):
        sets_of(tmp_path / "a")
    written(tmp_path / "b", "s.a", questions=4, tokens=0, answer=-1)
    with pytest.raises(SettingError, match="all samples of a in s have 0 tokens"):
        sets_of(tmp_path / "b")


@pytest.mark.parametrize("empty", [0, 3, 7])
def test_short_and_empty_samples_are_measured(empty: int) -> None:
    """Samples of one token, of which some are empty, give finite figures, and none overruns."""
    pool = made("short", 0.5, 40).part(range(8))
    tokens = np.ones_like(pool.tokens)
    tokens[:empty] = 0
    answers = np.where(tokens > 0, pool.answers, -1)
    short = replace(pool, tokens=tokens, answers=answers, right=(answers == 0)).first(4)
    for row in rows("s", {"short": short}, calibrated=4, splits=2, orders=1):
        told = json.loads(json.dumps(row, allow_nan=False))
        assert told.get("overruns", 0) == 0


def test_other_weights_are_another_model(tmp_path: Path) -> None:
    """One byte in the middle of a file, another length or another configuration changes a model's fingerprint; its name does not."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = bytearray(300_000)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    first = fingerprint(folder)
    assert fingerprint(str(folder)) == first
    weights[150_001] = 1
    (folder / "model.safetensors").write_bytes(weights)
    second = fingerprint(folder)
    (folder / "config.json").write_text('{"a": 1}')
    assert len({first, second, fingerprint(folder)}) == 3
    assert fingerprint(None) == fingerprint("nano") != fingerprint("nano-draft")
    assert fingerprint("who/knows") != fingerprint("who/else")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a" * 200, "-x", "white space"])
def test_a_task_has_a_plain_name(name: str) -> None:
    """What would leave the directory, or be no file's name, is refused."""
    with pytest.raises(SettingError, match="no name of a profile"):
        profile_path(name)
