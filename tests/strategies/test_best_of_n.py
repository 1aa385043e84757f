"""Best of n: every sample is scored, and the best one returned."""

import asyncio
import math

import pytest
from pydantic import ValidationError

from langchain_pareto import ChatPareto, run_budget
from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.errors import ScorerError, SettingError
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import BestOfN, Refine, Single, TreeOfThought, Vote, WeightedVote
from langchain_pareto.strategies.judge import JudgeScore, JudgeVote
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.verifier import Verifier


class Longest:
    """Likes long texts."""

    async def score(self, thoughts) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(t.text)) for t in thoughts]


def settings(scorer=None, **options) -> Settings:
    options |= {"scorer": scorer} if scorer else {}
    return Settings(Sampling(), **options)


async def best(lines, scorer=None, *, n=None, budget=None, of=None, **options):
    strategy = BestOfN(n=n or len(lines), of=of or Single())
    account = Account(Budget.parse(budget) if budget else None)
    backend = ScriptedBackend(lines)
    return await run(strategy, backend, "q", account=account, settings=settings(scorer, **options))


async def test_the_best_scored_is_the_answer():
    """By whatever scorer the call has."""
    outcome = await best(["a", "longest", "long"], Longest())
    assert outcome.answer.thought.text == "longest"
    assert [t.score for t in outcome.thoughts] == [1.0, 7.0, 4.0]


async def test_without_a_scorer_the_model_likes_best_what_is_likely():
    """The default scorer is the mean log-probability."""
    lines = [Line("a", -0.5), Line("b", -0.2), Line("c", -0.9)]
    assert (await best(lines)).answer.thought.text == "b"


async def test_ties_go_to_the_likelier_then_to_the_first_drawn():
    """Equal scores are told apart by mean log-probability, then by number."""
    lines = [Line("aa", -0.5), Line("bb", -0.2), Line("cc", -0.2)]
    assert (await best(lines, Longest())).answer.thought.text == "bb"


async def test_a_sample_that_was_cut_off_does_not_win():
    """However likely; unless there is nothing else."""
    lines = [Line("x", -0.01, ends=False), Line("done", -5.0)]
    assert (await best(lines, max_tokens=9)).answer.thought.text == "done"
    outcome = await best(lines[:1], n=2, max_tokens=9)
    assert (outcome.answer.thought.text, outcome.answer.thought.score) == ("x" * 9, None)


@pytest.mark.parametrize("n", [1, 2, 7])
async def test_exactly_n_are_drawn(n):
    """Neither more nor fewer, where there is room."""
    assert len((await best(["a", "b"], n=n, budget=500)).thoughts) == n


async def test_fewer_are_drawn_when_money_is_short():
    """The best of those that could be paid is the answer."""
    outcome = await best(["aaaa", "bbbbb"], Longest(), n=9, budget=11)
    assert (outcome.answer.thought.text, len(outcome.thoughts)) == ("bbbbb", 2)
    assert outcome.stopped_by == "tokens"


async def test_the_best_of_votes():
    """Nested, each vote gives its leader, and these are scored."""
    answers = [*["Answer: 1"] * 3, "Answer: 2", "Answer: 2", "Answer: 333333"]
    backend = ScriptedBackend(lambda _, i: answers[i])
    strategy = BestOfN(n=2, of=Vote(n=3, adaptive=False))
    outcome = await run(strategy, backend, "q", settings=settings(Longest()))
    assert len(outcome.thoughts) == 6
    assert outcome.answer.thought.answer in {"1", "2"}
    assert sum(t.score is not None for t in outcome.thoughts) == 2


def voted(text: str, i: int) -> str:
    """Answers by turns, and a judge that is always for the first."""
    return "Best: 1" if "Several solutions" in text else f"Answer: {'1198'[i % 4]}"


class Largest:
    """Likes large answers, and counts how often it was asked about each."""

    def __init__(self) -> None:
        self.asked = list[int]()

    async def score(self, thoughts) -> list[float]:
        self.asked += [t.number for t in thoughts]
        return [float(t.answer) / 10 for t in thoughts]


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("around", [BestOfN, WeightedVote])
async def test_scores_of_another_scorer_do_not_count(samples, around):
    """A search inside has a judge of its own; whoever compares its answers asks the run's scorer."""
    scorer = Largest()
    strategy = around(n=4, of=TreeOfThought(evaluate="vote", samples=samples))
    outcome = await run(
        strategy, ScriptedBackend(voted), "q", question="q", settings=settings(scorer)
    )
    assert outcome.answer.thought.answer == "9"
    assert outcome.answer.thought.score == 0.9
    assert len(scorer.asked) == 4


async def test_the_draft_of_another_scorer_is_compared_by_the_runs(ask):
    """A draft that a judge voted 1.0 is no better than a revision that the run's scorer likes more."""

    def says(text, i):
        if "Find what is wrong" in text:
            return "Wrong"
        return "Answer: 9" if "A critic says" in text else "Answer: 1"

    of = TreeOfThought(evaluate="vote", samples=1)
    strategy = Refine(rounds=1, keep="best", of=of)
    outcome = await ask(strategy, ScriptedBackend(says), scorer=Largest())
    assert outcome.answer.thought.answer == "9"
    assert [t.score for t in outcome.thoughts if not t.aside] == [0.1, 0.9]


async def test_the_runs_scorer_is_asked_once_however_deep(ask):
    """What a search inside scored by the same scorer is not scored again."""
    scorer = Largest()
    backend = ScriptedBackend(lambda _, i: f"Answer: {i}")
    of = BestOfN(n=2, of=TreeOfThought(samples=2))
    await ask(BestOfN(n=2, of=of), backend, scorer=scorer)
    assert sorted(scorer.asked) == sorted(set(scorer.asked))
    assert len(scorer.asked) == 8


async def test_without_room_for_the_runs_scorer_anothers_score_is_none(ask):
    """No number of one scorer stands beside those of another."""

    class Poor:
        async def score_in(self, search, thoughts):
            return [None] * len(thoughts)

    strategy = BestOfN(n=2, of=TreeOfThought(evaluate="vote", samples=2))
    outcome = await ask(strategy, ScriptedBackend(voted), scorer=Poor())
    assert outcome.answer.thought.score is None


# --- only until one is good enough


class Counting:
    """Likes long texts, and remembers how many it was asked about at a time."""

    def __init__(self) -> None:
        self.waves = list[int]()

    async def score(self, thoughts) -> list[float]:
        self.waves.append(len(thoughts))
        return [float(len(t.text)) for t in thoughts]


async def until(threshold, lengths, *, n=None, budget=None, **options):
    """What a run gave, and the waves in which it scored samples of these lengths."""
    scorer, lines = Counting(), ["x" * length for length in lengths]
    strategy = BestOfN(n=n or len(lines), threshold=threshold, **options)
    account = Account(Budget.parse(budget) if budget else None)
    backend = ScriptedBackend(lambda _, i: lines[i])
    outcome = await run(
        strategy, backend, "q", account=account, settings=settings(scorer, max_tokens=9)
    )
    return outcome, scorer.waves


@pytest.mark.parametrize(
    ("lengths", "waves", "length"),
    [
        ([5, 6, 7], [1], 5),  # the first will do, be there better ones
        ([6, 5], [1], 6),
        ([1, 5, 6], [1, 1], 5),
        ([1, 2, 5, 6, 7], [1, 1, 2], 6),  # the best of its wave
        ([4, 2, 3, 1, 3, 3, 5, 3, 3, 3], [1, 1, 2, 4], 5),
        ([1, 2, 4, 3, 3], [1, 1, 2, 1], 4),  # none will do: the best of all n
    ],
)
async def test_it_ends_once_one_is_good_enough(lengths, waves, length):
    """Waves double; a score of just the threshold is enough."""
    outcome, scored = await until(5, lengths)
    assert scored == waves
    assert len(outcome.answer.thought.text) == length
    assert (len(outcome.thoughts), outcome.stopped_by) == (sum(waves), "done")


async def test_a_wave_may_be_of_any_width():
    """All at once, if it has to be quick; no more than n."""
    assert (await until(5, [1, 1, 5, 1, 1], wave=2))[1] == [2, 2]
    assert (await until(5, [5, 1, 1], wave=16))[1] == [3]


async def test_up_to_the_threshold_it_draws_what_it_draws_without():
    """The same samples of the same seed, only fewer."""
    with load(self_check=False) as backend:

        async def drawn(strategy) -> list[str]:
            own = settings(max_tokens=12)
            prompt = backend.tokenizer.encode("Use 3 4 5 to make 17.")
            return [t.text for t in (await run(strategy, backend, prompt, settings=own)).thoughts]

        every = await drawn(BestOfN(n=6))
        assert len(set(every)) > 3
        assert await drawn(BestOfN(n=6, threshold=99)) == every


async def test_what_was_cut_off_is_not_good_enough():
    """It has no score; the next sample is drawn."""
    backend = ScriptedBackend([Line("x", ends=False), "Answer: 1"])
    strategy = BestOfN(n=4, threshold=-99)
    outcome = await run(strategy, backend, "q", settings=settings(max_tokens=12))
    assert outcome.answer.thought.text == "Answer: 1"
    assert len(outcome.thoughts) == 2


async def test_a_budget_ends_it_with_the_best_so_far():
    """Nothing is overrun, and nothing lost."""
    outcome, waves = await until(9, [2, 4, 3, 3, 3, 3], budget=9)
    assert outcome.answer.thought.text == "xxxx"
    assert sum(waves) == len([t for t in outcome.thoughts if t.score is not None])
    assert (outcome.stopped_by, outcome.spent.tokens <= 9) == ("tokens", True)


async def test_a_search_inside_stops_by_itself():
    """Each run of a nested strategy decides for itself; and a threshold around another strategy looks at its answers."""
    answers = ["Answer: 1", "Answer: 9", "Answer: 9", *["Answer: 1"] * 9]
    backend = ScriptedBackend(lambda _, i: answers[i])
    inner = Vote(n=2, adaptive=False, of=BestOfN(n=4, threshold=0.9))
    outcome = await run(inner, backend, "q", settings=settings(Largest()))
    assert (outcome.answer.thought.answer, len(outcome.thoughts)) == ("9", 3)
    backend = ScriptedBackend(lambda _, i: answers[i])
    outer = BestOfN(n=4, threshold=0.9, of=BestOfN(n=2))
    outcome = await run(outer, backend, "q", settings=settings(Largest()))
    assert (outcome.answer.thought.answer, len(outcome.thoughts)) == ("9", 2)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"threshold": math.nan}, "finite"),
        ({"threshold": math.inf}, "finite"),
        ({"threshold": 0.5, "wave": 0}, "greater than or equal to 1"),
        ({"wave": 2}, "name one, or leave wave out"),
    ],
)
def test_a_threshold_is_a_number_and_a_wave_needs_one(wrong, told):
    """What would be never or at once can be said plainly; what would do nothing is no setting."""
    with pytest.raises(ValidationError, match=told):
        BestOfN(**wrong)


async def check(question: str, answer: str) -> bool:
    """A verifier that fails on what it cannot read."""
    return int(answer) == 9


@pytest.mark.parametrize("wave", [None, 1, 2])
async def test_a_sample_that_the_scorer_fails_on_is_not_the_end(wave):
    """Although it was all of its wave; where nothing at all can be scored, the scorer's error says so."""
    answers = ["Answer: bad", "Answer: bad", "Answer: 9", "Answer: 1"]
    strategy = BestOfN(n=4, threshold=1, wave=wave)
    backend = ScriptedBackend(lambda _, i: answers[i])
    outcome = await run(strategy, backend, "q", settings=settings(Verifier(check)))
    assert outcome.answer.thought.answer == "9"
    backend = ScriptedBackend(["Answer: bad"])
    with pytest.raises(ScorerError, match="failed on all"):
        await run(strategy, backend, "q", settings=settings(Verifier(check)))


async def test_a_judgement_that_cannot_be_read_is_not_the_end(ask):
    """Nor is one of a judge."""
    judge = ScriptedBackend(lambda text, _: "Hm." if "Answer: 0" in text else "Score: 9")
    backend = ScriptedBackend(lambda _, i: f"Answer: {i}")
    strategy = BestOfN(n=4, threshold=0.8)
    outcome = await ask(strategy, backend, roles={"judge": judge}, scorer=JudgeScore())
    assert outcome.answer.thought.answer == "1"


async def test_a_broken_scorer_is_told_at_once():
    """It is not that it could say nothing of this sample."""

    class Broken:
        async def score(self, thoughts) -> list[float]:
            raise KeyError("weights")

    backend = ScriptedBackend(["Answer: 1"])
    with pytest.raises(ScorerError, match="weights"):
        await run(BestOfN(n=4, threshold=1), backend, "q", settings=settings(Broken()))
    assert backend.meter.new_tokens == len("Answer: 1") + 1


async def test_a_sample_without_a_score_does_not_end_it():
    """A judgement of it may have been unreadable: the next may do."""

    class Mute:
        async def score_in(self, search, thoughts):
            await asyncio.sleep(0)
            return [{1: 0.1, 2: None}.get(thought.number, 1.0) for thought in thoughts]

    backend = ScriptedBackend(lambda _, i: f"Answer: {i}")
    outcome = await run(BestOfN(threshold=1), backend, "q", settings=settings(Mute()))
    assert [t.score for t in outcome.thoughts] == [0.1, None, 1.0, 1.0]


async def test_a_judge_that_compares_has_no_threshold():
    """A share of votes among two says nothing beside one among four."""
    backend = ScriptedBackend(["Answer: 1"])
    with pytest.raises(SettingError, match="by itself") as caught:
        await run(BestOfN(threshold=0.5), backend, "q", settings=settings(JudgeVote()))
    assert "JudgeScore" in caught.value.hint


class Slow:
    """Never ends scoring what follows the first sample."""

    async def score(self, thoughts) -> list[float]:
        if thoughts[0].number > 1:
            await asyncio.sleep(60)
        return [0.0] * len(thoughts)


async def test_a_text_that_was_cut_off_hides_no_answer_at_a_deadline():
    """The scorer is slow, the first sample endless, the second an answer."""
    backend = ScriptedBackend([Line("x", ends=False), "Answer: 1"])
    account = Account(Budget.parse("0.2s"))
    outcome = await run(
        BestOfN(n=8, threshold=0.5),
        backend,
        "q",
        account=account,
        settings=settings(Slow(), max_tokens=12),
    )
    assert (outcome.answer.thought.text, outcome.stopped_by) == ("Answer: 1", "seconds")


async def test_a_scorer_may_ask_for_calls_of_its_own():
    """Side by side under one budget: whoever scores keeps nobody from drawing."""
    judge = ChatPareto(backend=ScriptedBackend(["Answer: 1"]), strategy=Vote(n=4))

    class Asks:
        async def score(self, thoughts) -> list[float]:
            await judge.ainvoke("Is that good?")
            return [0.0] * len(thoughts)

    llm = ChatPareto(
        backend=ScriptedBackend(lambda _, i: f"Answer: {i}"),
        strategy=BestOfN(n=3, threshold=0.5),
        scorer=Asks(),
    )
    async with asyncio.timeout(20):
        with run_budget(100_000):
            answers = await asyncio.gather(*(llm.ainvoke(str(i)) for i in range(6)))
    assert len(answers) == 6
