"""The cascade: when the cheap model is enough, and whose votes count when it is not."""

import pytest
from pydantic import ValidationError

from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import ScorerError
from langchain_pareto.strategies import BestOfN, Cascade, Vote
from langchain_pareto.strategies.answers import Exact

ONE, TWO, SIX = "Answer: 1", "Answer: 2", "Answer: 6"  # 9 tokens and the end


class Scores:
    """Gives each answer the score that it names, over ten."""

    async def score(self, thoughts):
        return [float(t.answer) / 10 for t in thoughts]


class Broken:
    async def score(self, thoughts):
        raise ZeroDivisionError


def cascade(ask, small, large, budget=None, scorer=None, answers=None, **options):
    """The outcome of a cascade from one scripted model to another."""
    settings = {"scorer": scorer} if scorer else {}
    if answers is not None:
        settings["answers"] = answers
    backends = ScriptedBackend(small), {"large": ScriptedBackend(large, name="large")}
    return ask(Cascade(**options), backends[0], budget, roles=backends[1], **settings)


async def test_agreement_is_enough(ask):
    """Four of four: the dear model is not asked."""
    outcome = await cascade(ask, [ONE], [TWO])
    assert [t.role for t in outcome.thoughts] == ["policy"] * 4
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("1", 1.0)
    assert outcome.spent.tokens == 40


async def test_without_agreement_the_votes_of_both_are_pooled(ask):
    """3 of 4 are less than 0.9: two of the dear model join, and lose against three."""
    outcome = await cascade(ask, [ONE, ONE, TWO, ONE], [TWO, SIX], n_large=2)
    assert [t.role for t in outcome.thoughts] == ["policy"] * 4 + ["large"] * 2
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("1", 0.5)
    assert outcome.spent.tokens == 60


async def test_ties_and_the_choice_in_a_class_go_to_the_dear_model(ask):
    """Two votes each: the dear model's class wins, with the dear model's text, though the cheap one was surer of its own."""
    sure = Line(ONE, logprob=-0.01)
    outcome = await cascade(ask, [sure, sure, SIX, "prose"], [TWO, TWO], n_large=2)
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("2", 0.4)
    outcome = await cascade(ask, [sure, sure, SIX, SIX], [Line(ONE, -2.0)], n_large=1)
    assert outcome.answer.thought.answer == "1"
    assert outcome.answer.thought.role == "large"


@pytest.mark.parametrize(("agreement", "asked"), [(0.5, 0), (0.75, 0), (0.76, 4), (None, 4)])
async def test_the_threshold_is_a_share_of_what_was_asked_for(ask, agreement, asked):
    """Three of four reach 0.75 and not more; None is never reached."""
    outcome = await cascade(ask, [ONE, ONE, TWO, ONE], [TWO], agreement=agreement)
    assert sum(t.role == "large" for t in outcome.thoughts) == asked


async def test_one_sample_agrees_with_nobody(ask):
    """With n = 1 agreement is never reached; what has no answer does not agree either."""
    outcome = await cascade(ask, [ONE], [TWO], n=1, n_large=1)
    assert outcome.answer.thought.role == "large"
    outcome = await cascade(ask, ["prose"], ["better prose"], n=2, n_large=1)
    assert (outcome.answer.thought.text, outcome.answer.share) == ("better prose", None)


async def test_a_good_score_is_enough(ask):
    """The best scored answer of the cheap model wins if its score reaches the threshold, not the vote's leader."""
    options = {"agreement": None, "score": 0.6, "scorer": Scores()}
    outcome = await cascade(ask, [ONE, ONE, SIX, TWO], [TWO], **options)
    assert (outcome.answer.thought.answer, len(outcome.thoughts)) == ("6", 4)
    outcome = await cascade(ask, [ONE, TWO, ONE, TWO], [SIX], n_large=1, **options)
    assert (outcome.answer.thought.answer, outcome.answer.thought.score) == ("2", 0.2)
    assert len(outcome.thoughts) == 5


async def test_a_scorer_is_asked_only_for_a_score(ask):
    """By agreement alone, a broken scorer is never called; by score, its error comes out."""
    outcome = await cascade(ask, [ONE], [TWO], scorer=Broken())
    assert outcome.answer.thought.answer == "1"
    with pytest.raises(ScorerError, match="ZeroDivisionError"):
        await cascade(ask, [ONE], [TWO], scorer=Broken(), score=0.5)


async def test_without_a_dear_model_the_policy_goes_on(ask):
    """A role that nobody plays is the policy's: its further samples join."""
    backend = ScriptedBackend([ONE, TWO, ONE, TWO, ONE])
    outcome = await ask(Cascade(n_large=1), backend)
    assert [t.answer for t in outcome.thoughts] == ["1", "2", "1", "2", "1"]
    assert outcome.answer.share == 0.6


async def test_what_was_not_drawn_does_not_agree(ask):
    """Two of four, for want of money, are no agreement though they are one; the answer is what there is."""
    outcome = await cascade(ask, [ONE], [TWO], 25)
    assert (outcome.answer.thought.answer, outcome.stopped_by) == ("1", "tokens")
    assert outcome.spent.tokens == 20


async def test_it_nests(ask):
    """Each of its answers may be a vote's, and it may be a voter itself."""
    of = Vote(n=2, adaptive=False)
    outcome = await cascade(ask, [ONE, ONE, TWO, TWO], [SIX], n=2, n_large=3, of=of)
    assert [t.role for t in outcome.thoughts].count("large") == 6
    assert outcome.answer.share == pytest.approx(3 / 5)
    backend, large = ScriptedBackend([ONE]), ScriptedBackend([TWO])
    strategy = BestOfN(n=3, of=Cascade(n=2))
    outcome = await ask(strategy, backend, roles={"large": large})
    assert (outcome.answer.thought.answer, len(outcome.thoughts)) == ("1", 6)


async def test_of_calls_the_shape_is_voted_on_first(ask):
    """Three searches with different arguments outvote two equal calls of another tool, also where two of five are agreement."""

    class Calls:
        def extract(self, text):
            return Exact(text, text[0])

    outcome = await cascade(ask, ["w", "w", "s1", "s2"], ["s3"], n_large=1, answers=Calls())
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("s3", 0.2)
    texts = ["w", "w", "s1", "s2", "s3"]
    outcome = await cascade(ask, texts, ["s1"], n=5, agreement=0.4, answers=Calls())
    assert (outcome.answer.thought.answer, len(outcome.thoughts)) == ("s1", 9)


def test_thresholds_are_checked():
    """Agreement is a share above 0, a score a number."""
    for options in ({"agreement": 0}, {"agreement": 90}, {"score": float("nan")}):
        with pytest.raises(ValidationError):
            Cascade(**options)


@pytest.mark.parametrize(
    ("own", "around", "drawn"),
    [(None, None, 1.0), (None, 1.3, 1.3), (0.5, 1.3, 0.5), (1.0, 1.3, 1.0), (0.5, None, 0.5)],
)
@pytest.mark.parametrize("small", ["policy", "tiny"])
async def test_all_its_models_have_one_temperature(ask, small, own, around, drawn):
    """Its own, or that of the strategy around it, or else each its own; whoever plays the small one."""
    policy, large, tiny = (ScriptedBackend([say]) for say in (ONE, TWO, SIX))
    cascade = Cascade(n=1, n_large=1, small=small, temperature=own)
    strategy = Vote(n=1, temperature=around, of=cascade)
    await ask(strategy, policy, roles={"large": large, "tiny": tiny})
    draws = [*policy.draws, *tiny.draws, *large.draws]
    assert [task.asked[0].temperature for task in draws] == [drawn, drawn]
