"""What a scorer takes is measured where it works, kept, and part of what plans are told to take."""

import asyncio
import itertools
import json

import pytest

from langchain_pareto import ChatPareto, run_budget
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.calibration import calibrate_quality
from langchain_pareto.errors import ScorerError, SettingError
from langchain_pareto.planning.calibrate import Asked
from langchain_pareto.planning.profile_file import TERMS
from langchain_pareto.planning.scorer_cost import Scored, ScorerCost, Work
from langchain_pareto.planning.store import home
from langchain_pareto.scorer_timing import scorer_cost, takes_time
from langchain_pareto.strategies import BestOfN, Vote, WeightedVote
from langchain_pareto.strategies.judge import JudgeScore
from langchain_pareto.strategies.process_reward import ProcessReward
from langchain_pareto.strategies.scorers import MeanConfidence, MeanLogprob

QUESTIONS = [f"{i}?" for i in range(6)]


class Likes:
    """A scorer that remembers how many texts it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __repr__(self) -> str:
        return "Likes()"

    async def score(self, thoughts):
        self.asked.append(len(thoughts))
        return [float(len(thought.whole_text)) for thought in thoughts]


def test_a_fit_finds_what_was_taken():
    """Each amount by itself, where nothing is off; what none of them took is nothing."""
    askings = [
        Scored(
            texts=n, tokens=n * length, seconds=0.5 + 0.25 * n, flops=10 + 7 * n * length, drawn=0
        )
        for n in (1, 4, 16)
        for length in (10, 30)
    ]
    found = ScorerCost.fitted(askings)
    assert found.seconds.of(8, 100) == pytest.approx(0.5 + 0.25 * 8)
    assert found.flops.of(8, 100) == pytest.approx(10 + 7 * 100)
    assert found.drawn == Work()
    assert ScorerCost.from_json(found.to_json()) == found
    with pytest.raises(SettingError, match="needs askings"):
        ScorerCost.fitted([])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"seconds": {"call": "x"}}',
        '{"seconds": {"call": 1}, "flops": {"text": NaN}}',
        '{"seconds": {"call": 1}, "drawn": {"text": -50}}',
        '{"seconds": {"call": 1}, "more": 1}',
        '{"seconds": {"call": 1, "word": 2}}',
    ],
)
def test_what_is_no_cost_is_refused(text):
    with pytest.raises(SettingError, match="no cost of a scorer"):
        ScorerCost.from_json(text)


def test_a_scorer_is_timed_as_calls_ask_it():
    """One asking of 1, of 4 and of 16 texts for each of a few questions, after one that is not counted."""
    ticks = itertools.count()
    with ScriptedBackend(["7\nAnswer: 7"]) as backend:
        likes = Likes()
        llm = ChatPareto(backend=backend, scorer=likes, temperature=1.0)
        cost = asyncio.run(scorer_cost(llm, None, QUESTIONS, clock=lambda: next(ticks)))
    assert likes.asked == [1, *[1, 4, 16] * 4]
    assert cost is not None
    assert cost.seconds.of(8, 80) == pytest.approx(1.0)  # a tick, whatever is asked
    assert cost.flops == cost.drawn == Work()
    assert takes_time(Likes())
    assert not takes_time(MeanLogprob())
    assert not takes_time(MeanConfidence())


def test_what_a_judge_writes_is_counted():
    """A judge draws tokens of its own: about as many for each text."""
    with ScriptedBackend(["7\nAnswer: 7"]) as backend, ScriptedBackend(["Score: 5"]) as judge:
        llm = ChatPareto(
            backend=backend, scorer=JudgeScore(), roles={"judge": judge}, temperature=1.0
        )
        cost = asyncio.run(scorer_cost(llm, None, QUESTIONS))
        told = llm.invoke("1?", strategy=BestOfN(n=8)).response_metadata["pareto"]["spent"]
    assert cost is not None
    drawn = cost.drawn.of(8, 8 * 11)
    assert drawn > 8
    assert told["tokens"] == pytest.approx(8 * len("7\nAnswer: 7?") + drawn, rel=0.2)


class Unsure:
    """A scorer that fails where it is asked for one text."""

    def __repr__(self) -> str:
        return "Unsure()"

    def __init__(self, most: int) -> None:
        self.most = most

    async def score(self, thoughts):
        if len(thoughts) <= self.most:
            raise ValueError("not to be read")
        return [1.0] * len(thoughts)


def test_an_asking_that_fails_is_left_out():
    """Others tell enough; where all fail, so does the calibration."""
    with ScriptedBackend(["7\nAnswer: 7"]) as backend:
        llm = ChatPareto(backend=backend, scorer=Unsure(1), temperature=1.0)
        assert asyncio.run(scorer_cost(llm, None, QUESTIONS)) is not None
        llm = ChatPareto(backend=backend, scorer=Unsure(16), temperature=1.0)
        with pytest.raises(ScorerError, match="not to be read"):
            asyncio.run(scorer_cost(llm, None, QUESTIONS))


def test_a_budget_that_ends_tells_nothing():
    """Of askings for one text alone a call could not be told from its texts."""
    with ScriptedBackend(["7\nAnswer: 7"]) as backend:
        llm = ChatPareto(backend=backend, scorer=Likes(), temperature=1.0)
        with run_budget("30 tokens"):
            assert asyncio.run(scorer_cost(llm, None, QUESTIONS)) is None


def test_flops_of_reading_are_known():
    """The bundled reward model's, as many as a live call is charged beyond its draws, up to how many of its texts are equal."""
    llm = ChatPareto(scorer=ProcessReward(), seed=1, temperature=1.0, max_tokens=200)
    asked = [f"Use {a} 4 5 to make 35." for a in range(6, 19)]
    cost = asyncio.run(scorer_cost(llm, None, asked))
    question = "Use 3 4 5 to make 35."
    scored = llm.invoke(question, strategy=BestOfN(n=8)).response_metadata["pareto"]["spent"]
    drawn = llm.invoke(question, strategy=Vote(n=8, adaptive=False)).response_metadata["pareto"]
    read = scored["flops"] - drawn["spent"]["flops"]
    assert cost is not None
    assert cost.drawn == Work()
    assert cost.flops.of(8, scored["tokens"]) == pytest.approx(read, rel=0.6)
    llm.close()


def test_a_score_of_minus_infinity_is_kept(tmp_path, monkeypatch):
    """A text that could not be scored is no reason to draw all again."""
    monkeypatch.setenv("LANGCHAIN_PARETO_HOME", str(tmp_path))

    class Refuses(Likes):
        async def score(self, thoughts):
            return [float("-inf"), *(await super().score(thoughts))[1:]]

    asked = [Asked(q, q, "7") for q in QUESTIONS]
    with ScriptedBackend(["7\nAnswer: 7"]) as backend:
        llm = ChatPareto(backend=backend, scorer=Refuses(), temperature=1.0)
        for _ in range(2):
            found = asyncio.run(calibrate_quality(llm, asked, task="t", samples=4))
        assert any(isinstance(option.strategy, WeightedVote) for option in found.options)


def test_an_unmeasured_scorer_has_no_plans(tmp_path, monkeypatch):
    """Where the budget ended before it could be told what scores take, plans with them are left out, and are back once it can."""
    monkeypatch.setenv("LANGCHAIN_PARETO_HOME", str(tmp_path))
    asked = [Asked(q, q, "7") for q in QUESTIONS]

    def scored(profile) -> bool:
        return any(isinstance(option.strategy, WeightedVote) for option in profile.options)

    with ScriptedBackend(["7\nAnswer: 7"]) as backend:
        llm = ChatPareto(backend=backend, scorer=Likes(), temperature=1.0)
        enough = f"{len(asked) * 4 * 12 + 60} tokens"  # for the samples, and few askings
        with pytest.warns(UserWarning, match="plans with scores are left out"):
            profile = asyncio.run(calibrate_quality(llm, asked, task="t", samples=4, budget=enough))
        assert not scored(profile)
        assert scored(asyncio.run(calibrate_quality(llm, asked, task="t", samples=4)))


def test_nothing_scored_is_no_cost():
    """Answers that are cut off are not scored."""
    with ScriptedBackend(["a long way to nowhere"]) as backend:
        llm = ChatPareto(backend=backend, scorer=Likes(), temperature=1.0, max_tokens=3)
        assert asyncio.run(scorer_cost(llm, None, QUESTIONS)) is None


def test_a_calibration_measures_its_scorer_once(tmp_path, monkeypatch):
    """What was kept is read again; a damaged file is told with its place."""
    monkeypatch.setenv("LANGCHAIN_PARETO_HOME", str(tmp_path))
    asked = [Asked(q, q, "7") for q in QUESTIONS]
    with ScriptedBackend(["7\nAnswer: 7"]) as backend:
        likes = Likes()
        llm = ChatPareto(backend=backend, scorer=likes, temperature=1.0)
        asyncio.run(calibrate_quality(llm, asked, task="t", samples=2))
        first = len(likes.asked)
        asyncio.run(calibrate_quality(llm, asked, task="t", samples=2))
        assert len(likes.asked) == first  # neither samples nor scores are made again
        [kept] = (home() / "devices").glob("*.json")
        assert set(json.loads(kept.read_text())) == {"seconds", "flops", "drawn"}
        kept.write_text("{")
        with pytest.raises(SettingError, match=kept.name):
            asyncio.run(calibrate_quality(llm, asked, task="t", samples=2))


def test_plans_are_told_what_scores_take(tmp_path, monkeypatch):
    """A vote by scores takes what the judge writes, beyond a plain vote of as many samples."""
    monkeypatch.setenv("LANGCHAIN_PARETO_HOME", str(tmp_path))
    asked = [Asked(q, q, "7") for q in QUESTIONS]
    with ScriptedBackend(["7\nAnswer: 7"]) as backend, ScriptedBackend(["Score: 5"]) as judge:
        llm = ChatPareto(
            backend=backend, scorer=JudgeScore(), roles={"judge": judge}, temperature=1.0
        )
        profile = asyncio.run(calibrate_quality(llm, asked, task="t", samples=4))
    taken = profile.cells["tokens"].mean[:, -1, TERMS.index("tokens")]
    scored = [i for i, o in enumerate(profile.options) if isinstance(o.strategy, WeightedVote)]
    assert scored
    for i in scored:
        drawn = profile.options[i].strategy.n * len("7\nAnswer: 7?")
        assert taken[i] >= drawn + len("Score: 5?")  # the texts are equal, and read once
    other = ScriptedBackend(["Score: 9"], name="another")
    with other:
        changed = ChatPareto(
            backend=backend, scorer=JudgeScore(), roles={"judge": other}, temperature=1.0
        )
        [why] = profile.misfits(changed.plans().keys)
    assert "another model in the role 'judge'" in why
