"""The judge: what it is asked, how it is read, what it costs, and that what cannot be read is never a number."""

import logging
from collections.abc import Awaitable, Callable
from typing import Literal

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import NumericalError, ScorerError, SettingError
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import BestOfN, Strategy
from langchain_pareto.strategies.judge import JudgeCompare, JudgeScore, JudgeVote
from langchain_pareto.strategies.replies import replies
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Role, Settings
from langchain_pareto.strategies.thoughts import Answer

PROMPT = "Q:"
ANSWERS = ["Answer: 1", "Answer: 2", "Answer: 3"]


class Do(Strategy):
    """A strategy written on the spot."""

    kind: Literal["do"] = "do"
    what: Callable[[Search], Awaitable[Answer]]

    async def run(self, search: Search) -> Answer:
        return await self.what(search)


async def ask(what, policy, judge=None, budget=None, **settings) -> Outcome:
    """The outcome of a run; whatever happens, everything is paid and nothing stays behind."""
    account = Account(Budget.parse(budget) if budget else None)
    roles = {}
    if judge is not None:
        encode = judge.tokenizer.encode
        roles = {"judge": Role(judge, Sampling(), lambda: encode(PROMPT), encode)}
    backends = [policy] if judge is None else [policy, judge]
    settings = Settings(Sampling(), **{"roles": roles, **settings})
    strategy = what if isinstance(what, Strategy) else Do(what=what)
    try:
        outcome = await run(
            strategy, policy, PROMPT, question="Why?", account=account, settings=settings
        )
        assert outcome.spent.tokens == sum(backend.meter.new_tokens for backend in backends)
        assert outcome.spent.flops == sum(backend.meter.flops for backend in backends)
        return outcome
    finally:
        assert account.reserved == Cost()
        assert account.spent.tokens == sum(backend.meter.new_tokens for backend in backends)
        assert account.spent.memory == 0
        assert [(backend.branches, backend.live) for backend in backends] == [(0, [])] * len(
            backends
        )


def about(says):
    """A judge that says what it is told of the answer that it is shown."""
    return ScriptedBackend(lambda text, _: next(s for a, s in says.items() if a in text))


# --- scores


async def test_each_answer_is_judged_by_itself_and_the_best_one_wins():
    """0 to 10 is 0 to 1; every judgement is on the ledger and in the tree, aside."""
    judge = about({"Answer: 1": "Score: 3", "Answer: 2": "So so.\nScore: 8/10", "Answer: 3": "5"})
    outcome = await ask(BestOfN(n=3), ScriptedBackend(ANSWERS), judge, scorer=JudgeScore())
    assert [t.score for t in outcome.thoughts if not t.aside] == [0.3, 0.8, 0.5]
    assert outcome.answer.thought.answer == "2"
    said = [(t.text, t.role) for t in outcome.thoughts if t.aside]
    assert said == [("Score: 3", "judge"), ("So so.\nScore: 8/10", "judge"), ("5", "judge")]
    assert outcome.spent.tokens == 3 * 10 + (8 + 18 + 1) + 3


async def test_the_policy_judges_where_nobody_plays_the_role():
    """And its judgements are no answers."""

    def answers(text: str, i: int) -> str:
        return "Score: 7" if "Judge" in text else ANSWERS[i]

    outcome = await ask(BestOfN(n=3), ScriptedBackend(answers), scorer=JudgeScore())
    assert [t.score for t in outcome.thoughts if not t.aside] == [0.7] * 3
    assert outcome.answer.thought.answer == "1"


async def test_the_judge_sees_the_question_and_the_answer():
    """In places of its prompt; braces in what it is shown are text."""
    judge = ScriptedBackend(["Score: 1"])
    seen = []
    judge._script._answers = lambda text, _: seen.append(text) or "Score: 1"
    policy = ScriptedBackend(["<think>{n}</think>Say {question}"])
    scorer = JudgeScore(prompt="{question}|{answer}|{more}")
    await ask(BestOfN(n=1), policy, judge, scorer=scorer)
    assert seen == ["Why?|Say {question}|{more}"]
    [task] = judge.draws
    assert (task.asked[0].temperature, task.asked[1].max_tokens) == (0, 512)


async def test_equal_texts_are_judged_once():
    """And have the same score."""
    judge = ScriptedBackend(["Score: 4", "Score: 6"])
    policy = ScriptedBackend(["Answer: 1", "Answer: 2", "Answer: 1"])
    outcome = await ask(BestOfN(n=3), policy, judge, scorer=JudgeScore(prompt="{question}{answer}"))
    assert len(judge.draws) == 2
    scores = [t.score for t in outcome.thoughts if not t.aside]
    assert scores[0] == scores[2]


async def test_several_judgements_are_averaged():
    """Those that can be read."""
    judge = ScriptedBackend(["Score: 4", "no idea", "Score: 7"])
    scorer = JudgeScore(n=3, temperature=1)
    outcome = await ask(BestOfN(n=1), ScriptedBackend(ANSWERS), judge, scorer=scorer)
    assert outcome.thoughts[0].score == pytest.approx(0.55)
    assert scorer.failures == ["reads: 'no idea'"]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 0.7),
        ("7", 0.7),
        ("**Score:** 7/10", 0.7),
        ("Final score: 7 out of 10.", 0.7),
        ("score = 7.5", 0.75),
        ("Score: 2\nwait\n**Score: 9**", 0.9),
        ("Score: 0", 0.0),
        ("Score: 10", 1.0),
        ("<think>Score: 1</think>Score: 3", 0.3),
        ("Score: 11", None),
        ("Score: -3", None),
        ("Score: 7-8", None),
        ("Score: 7/100", None),
        ("Score: high", None),
        ("Score: 3\nScore: high", None),
        ("I give it 7 of 10", None),
        ("1. It is right.\n2. It is short.", None),
        ("<think>Score: 1", None),
        ("", None),
    ],
)
async def test_what_is_read_as_a_score(text, score):
    """The last line that is one, or a bare number; anything else is none, and no number takes its place."""
    judge = about({"Answer: 1": text, "Answer: 2": "Score: 5"})
    scorer = JudgeScore()
    outcome = await ask(BestOfN(n=2), ScriptedBackend(ANSWERS), judge, scorer=scorer)
    assert outcome.thoughts[0].score == score
    assert len(scorer.failures) == (score is None)


async def test_a_judgement_that_was_cut_off_is_none():
    """ "Score: 1" may have been on its way to "Score: 10"; it is among the failures."""
    judge = about({"Answer: 1": "Score: 10", "Answer: 2": "Score: 5"})
    scorer = JudgeScore(max_tokens=8)
    with pytest.raises(ScorerError, match="cut off after 8 tokens"):
        await ask(BestOfN(n=2), ScriptedBackend(ANSWERS), judge, scorer=scorer)
    assert scorer.failures == [
        f"reads and was cut off after 8 tokens: 'Score: {n}'" for n in (1, 5)
    ]


async def test_an_unreadable_judgement_is_logged_and_kept(caplog):
    """The thought has no score and comes last; the raw reply is in `failures` and in the tree."""
    judge = about({"Answer: 1": "Great!", "Answer: 2": "Score: 0"})
    scorer = JudgeScore()
    with caplog.at_level(logging.WARNING):
        outcome = await ask(BestOfN(n=2), ScriptedBackend(ANSWERS), judge, scorer=scorer)
    assert outcome.answer.thought.answer == "2"
    assert "1 of 2 judgements could not be read" in caplog.text
    assert scorer.failures == ["reads: 'Great!'"]
    assert "Great!" in [t.text for t in outcome.thoughts]


async def test_a_judge_that_is_never_readable_is_an_error():
    """With what it said; everything is paid."""
    judge = ScriptedBackend(["Great!"])
    with pytest.raises(ScorerError, match=r"none of 3 judgements .*Great!"):
        await ask(BestOfN(n=3), ScriptedBackend(ANSWERS), judge, scorer=JudgeScore())
    assert judge.meter.new_tokens == 3 * 7


async def test_later_an_unreadable_judgement_is_told_and_nothing_is_lost(caplog):
    """Once this run could read its judge, what it cannot read has no score, and raises nothing."""
    says = {"Answer: 1": "Score: 3", "Answer: 2": "Great!", "Answer: 3": "Hm."}

    async def what(search):
        for thought in (drawn := await search.sample(search.root, 3)):
            await search.score([thought])
        return search.best(drawn)

    scorer = JudgeScore()
    with caplog.at_level(logging.WARNING):
        outcome = await ask(what, ScriptedBackend(ANSWERS), about(says), scorer=scorer)
    assert (outcome.answer.thought.answer, outcome.answer.thought.score) == ("1", 0.3)
    assert [t.score for t in outcome.thoughts if not t.aside] == [0.3, None, None]
    assert caplog.text.count("1 of 1 judgements could not be read") == 2
    assert scorer.failures == ["reads: 'Great!'", "reads: 'Hm.'"]
    with pytest.raises(ScorerError, match="none of 1"):  # another run knows nothing of it
        await ask(what, ScriptedBackend(["Answer: 2"]), about(says), scorer=scorer)


# --- what the call says of its answers is not said to judges


SAYS = {"Answer: 1": "It is\n\nScore: 3", "Answer: 2": "It is\n\nScore: 7"}


@pytest.mark.parametrize("settings", [{"stop": ("\n\n",)}, {"stop": ("Sc",)}, {"max_tokens": 10}])
async def test_stops_and_lengths_of_the_call_are_its_answers(settings):
    """A judge says all that it has to say."""
    policy = ScriptedBackend(ANSWERS[:2])
    scorer = JudgeScore()
    outcome = await ask(BestOfN(n=2), policy, about(SAYS), scorer=scorer, **settings)
    assert [t.score for t in outcome.thoughts if not t.aside] == [0.3, 0.7]
    assert scorer.failures == []


@pytest.mark.parametrize(
    ("judges", "calls", "cap"), [(512, 10, 512), (40, 10, 40), (2000, 10, 2000), (40, 700, 40)]
)
async def test_a_judges_cap_is_its_own(judges, calls, cap):
    """Whatever the call's is."""
    judge = about({"Answer: 1": "Score: 3"})
    scorer = JudgeScore(max_tokens=judges)
    policy = ScriptedBackend(ANSWERS[:1])
    await ask(BestOfN(n=1), policy, judge, scorer=scorer, max_tokens=calls)
    assert [task.asked[1].max_tokens for task in judge.draws] == [cap]


@pytest.mark.parametrize(("calls", "cap"), [(10, 512), (700, 700)])
async def test_an_aside_without_a_cap_of_its_own_cannot_run_for_ever(calls, cap):
    """It may be as long as an answer, and 512 tokens in any case."""

    async def what(search):
        await search.ask("who?")
        return search.best(await search.sample(search.root))

    judge = ScriptedBackend(["me"])
    await ask(what, ScriptedBackend(ANSWERS), judge, max_tokens=calls)
    assert [task.asked[1].max_tokens for task in judge.draws] == [cap]


# --- votes


async def test_votes_are_shares():
    """Each reply is one vote, and one that names nobody is none."""
    votes = ["Best: 2", "**Best: 2**", "Best: Answer 3", "Best: 4", "Best: 2"]
    judge = ScriptedBackend(votes)
    scorer = JudgeVote()
    outcome = await ask(BestOfN(n=3), ScriptedBackend(ANSWERS), judge, scorer=scorer)
    assert [t.score for t in outcome.thoughts if not t.aside] == [0, 0.75, 0.25]
    assert outcome.answer.thought.answer == "2"
    assert scorer.failures == ["reads: 'Best: 4'"]
    assert outcome.spent.tokens == 3 * 10 + sum(map(len, votes)) + 5


async def test_votes_are_between_numbered_answers():
    """All in one prompt; the judge of a vote draws as warm as it does by itself."""
    judge = ScriptedBackend(["Best: 1"])
    seen = []
    judge._script._answers = lambda text, _: seen.append(text) or "Best: 1"
    scorer = JudgeVote(prompt="{question}\n{answers}", n=1)
    await ask(BestOfN(n=2), ScriptedBackend(ANSWERS), judge, scorer=scorer)
    assert seen == ["Why?\nAnswer 1:\nAnswer: 1\n\nAnswer 2:\nAnswer: 2"]
    assert judge.draws[0].asked[0].temperature == 1.0


async def test_one_alone_needs_no_vote():
    """It has all of them."""
    judge = ScriptedBackend(["Best: 1"])
    outcome = await ask(BestOfN(n=1), ScriptedBackend(ANSWERS), judge, scorer=JudgeVote())
    assert (outcome.thoughts[0].score, judge.draws) == (1.0, [])


async def test_a_vote_that_cannot_be_read_is_an_error():
    """Not a tie."""
    with pytest.raises(ScorerError, match="none of 5"):
        await ask(
            BestOfN(n=2), ScriptedBackend(ANSWERS), ScriptedBackend(["both"]), scorer=JudgeVote()
        )


# --- comparisons


async def compared(judge, **settings):
    """The share for the first of two answers, of two pairs that differ in their order."""
    found = []

    async def what(search):
        one, two = await search.sample(search.root, 2)
        found.extend(await JudgeCompare(**settings).compare(search, [(one, two), (two, one)]))
        return Answer(one)

    await ask(what, ScriptedBackend(ANSWERS), judge)
    return found


def prefers(answer: str):
    """A judge with an opinion, wherever the answer stands."""
    return lambda text, _: "Better: A" if answer in text.split("Answer B:")[0] else "Better: B"


async def test_the_better_of_two():
    """Whichever place it has."""
    assert await compared(ScriptedBackend(prefers("Answer: 2"))) == [0.0, 1.0]


async def test_every_other_judgement_sees_the_other_order():
    """A judge that always likes the first place says nothing."""
    assert await compared(ScriptedBackend(["Better: A"]), n=4) == [0.5, 0.5]
    assert await compared(ScriptedBackend(prefers("Answer: 2")), n=3) == [0.0, 1.0]


@pytest.mark.parametrize("text", ["Better: A", "[[A]]", "better: Answer a.", "A"])
async def test_what_is_read_as_a_preference(text):
    """A name, on the last line that says so or alone."""
    assert await compared(ScriptedBackend([text])) == [1.0, 1.0]


async def test_a_comparison_without_a_winner_is_none():
    """A tie is no preference; of all there has to be one."""
    assert await compared(about({"A:\nAnswer: 1": "Better: A", "A:\nAnswer: 2": "tie"})) == [
        1.0,
        None,
    ]
    with pytest.raises(ScorerError, match="tie"):
        await compared(ScriptedBackend(["tie"]))


# --- money and accidents


@pytest.mark.parametrize("tokens", [20, 25, 28, 35, 46, 47, 55, 56])
async def test_what_the_budget_has_no_room_for_has_no_score(tokens):
    """That is no failure of the judge, and no error: the best so far is the answer."""
    scorer = JudgeScore()
    policy, judge = ScriptedBackend(ANSWERS), ScriptedBackend(["Score: 5"])
    outcome = await ask(BestOfN(n=2), policy, judge, tokens, scorer=scorer)
    scores = [t.score for t in outcome.thoughts if not t.aside]
    room = (tokens - 20) // 9
    assert scores == [0.5] * min(2, room) + [None] * (2 - room)
    assert scorer.failures == []
    assert outcome.spent.tokens <= tokens


async def test_votes_and_comparisons_have_their_price_too():
    """Without room for any, nobody has a share, and no pair a winner."""

    async def what(search):
        thoughts = await search.sample(search.root, 2)
        assert await JudgeVote().score_in(search, thoughts) == [None, None]
        assert await JudgeCompare().compare(search, [tuple(thoughts)]) == [None]
        return Answer(thoughts[0])

    await ask(what, ScriptedBackend(ANSWERS), ScriptedBackend(["Best: 1"]), 20)


async def test_replies_are_in_the_order_of_their_texts():
    """A text may be named several times, and each time has a reply of its own."""

    def answers(text: str, i: int) -> str:
        return f"{text}{i}"

    async def what(search):
        [thought] = await search.sample(search.root)
        said = await replies(search, ["b", "a", "b"], role="judge")
        assert [reply.text for reply in said] == ["b0", "a0", "b1"]
        assert await replies(search, [], role="judge") == []
        return Answer(thought)

    await ask(what, ScriptedBackend(ANSWERS), ScriptedBackend(answers))


async def test_an_error_of_the_judges_model_comes_out():
    """As it is."""
    with pytest.raises(NumericalError):
        await ask(
            BestOfN(n=2),
            ScriptedBackend(ANSWERS),
            ScriptedBackend([NumericalError("no")]),
            scorer=JudgeScore(),
        )


async def test_a_judge_that_never_ends_is_cut_off():
    """At its own limit of tokens."""
    judge = ScriptedBackend([Line("Score: 5 ", ends=False)])
    with pytest.raises(ScorerError, match="cut off after 100 tokens"):
        await ask(BestOfN(n=2), ScriptedBackend(ANSWERS), judge, scorer=JudgeScore(max_tokens=100))
    assert judge.meter.new_tokens == 200


# --- settings


@pytest.mark.parametrize("kind", [JudgeScore, JudgeVote, JudgeCompare])
def test_settings_are_frozen_equal_and_json(kind):
    """Failures are no setting."""
    judge = kind(role="large", n=3)
    judge.failures.append("reads: 'no'")
    again = kind.model_validate_json(judge.model_dump_json())
    assert again == judge
    assert hash(again) == hash(judge)
    assert again.failures == []


@pytest.mark.parametrize("kind", [JudgeScore, JudgeVote, JudgeCompare])
def test_a_prompt_must_show_what_is_judged(kind):
    """A template without its places is refused at the border."""
    with pytest.raises((SettingError, ValueError), match="question"):
        kind(prompt="Is it good?")
