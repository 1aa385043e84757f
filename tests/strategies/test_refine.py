"""Refine: draft, critique, revise; when it stops, and which version is the answer."""

import re

import pytest

from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import BestOfN, Refine, Vote
from langchain_pareto.strategies.judge import JudgeVote
from langchain_pareto.strategies.prompts import fill

WRONG = "Wrong by one"  # 12 tokens and the end


def writer(text: str, i: int) -> str:
    """A policy that drafts 1, and whose revisions are by one more than what they revise; 9 tokens and the end."""
    latest = re.findall(r"Your answer:\nAnswer: (\d)", text)
    return f"Answer: {int(latest[0]) + 1 if latest else 1}"


def critic(right: int, praise: str = "CORRECT"):
    """A critic who knows the answer."""
    return lambda text, i: praise if f"Answer: {right}" in text else WRONG


def refine(ask, say, budget=None, scorer=None, **options):
    """The outcome of a refinement with the writer and a critic."""
    settings = {"scorer": scorer} if scorer else {}
    roles = {"judge": ScriptedBackend(say)}
    return ask(Refine(**options), ScriptedBackend(writer), budget, roles=roles, **settings)


class Likes:
    """A scorer that likes one answer."""

    def __init__(self, answer) -> None:
        self.answer = answer

    async def score(self, thoughts):
        return [float(t.answer == self.answer) for t in thoughts]


async def test_it_is_revised_until_nothing_is_wrong(ask):
    """Two revisions, three critiques; critiques are aside, and each revision is an answer of its own."""
    outcome = await refine(ask, critic(3), rounds=5)
    assert [t.text for t in outcome.thoughts] == [
        "Answer: 1", WRONG, "Answer: 2", WRONG, "Answer: 3", "CORRECT",
    ]  # fmt: skip
    assert [t.aside for t in outcome.thoughts] == [False, True] * 3
    assert [t.role for t in outcome.thoughts] == ["policy", "judge"] * 3
    assert outcome.answer.thought.answer == "3"
    assert outcome.spent.tokens == 3 * 10 + 2 * 13 + 8


async def test_the_rounds_are_counted(ask):
    """Two rounds are two critiques and two revisions at most, and the answer is the last."""
    outcome = await refine(ask, critic(9), rounds=2)
    assert [t.answer for t in outcome.thoughts if not t.aside] == ["1", "2", "3"]
    assert len(outcome.thoughts) == 5
    assert outcome.answer.thought.answer == "3"


async def test_the_best_may_be_kept(ask):
    """By the run's scorer, whenever it was written."""
    outcome = await refine(ask, critic(9), rounds=3, keep="best", scorer=Likes("2"))
    assert outcome.answer.thought.answer == "2"
    assert outcome.thoughts[-1].answer == "4"


@pytest.mark.parametrize(
    ("says", "stops"),
    [
        ("CORRECT", True),
        ("All steps hold.\n\n**CORRECT**.\n", True),
        ("<think>Is it CORRECT?</think>It is not", False),
        ("<think>Hm.</think>CORRECT", True),
        ("INCORRECT", False),
        ("CORRECT, but for the last step", False),
        ("CORRECT\nNo, wait", False),
        (Line("CORRECT\n", ends=False), False),
        ("", False),
    ],
)
async def test_approval_is_the_whole_last_line(ask, says, stops):
    """With marks around it or not; a critique that was cut off approves of nothing."""
    roles = {"judge": ScriptedBackend([says])}
    outcome = await ask(Refine(rounds=1), ScriptedBackend(writer), roles=roles, max_tokens=80)
    assert len([t for t in outcome.thoughts if not t.aside]) == (1 if stops else 2)


@pytest.mark.parametrize("approval", ["LGTM!", "**fine**", "# OK #"])
async def test_an_approval_may_have_marks_of_its_own(ask, approval):
    """It is recognised with and without them."""
    for says in (approval, approval.strip("!*# ")):
        roles = {"judge": ScriptedBackend([says])}
        outcome = await ask(Refine(approval=approval), ScriptedBackend(writer), roles=roles)
        assert [t.text for t in outcome.thoughts] == ["Answer: 1", says]


async def test_a_vote_for_the_best_version_is_among_all_of_them(ask):
    """The likelier draft is not kept, since a vote that knows each version alone would make them all the best."""

    def policy(text, i):
        return Line("Answer: 2", logprob=-2.0) if "critic says" in text else "Answer: 1"

    def judge(text, i):
        return f"Best: {1 + text.count('Answer 2:')}" if "Choose the best" in text else WRONG

    roles = {"judge": ScriptedBackend(judge)}
    strategy = Refine(rounds=1, keep="best")
    scorer = JudgeVote(n=1)
    outcome = await ask(strategy, ScriptedBackend(policy), roles=roles, scorer=scorer)
    assert outcome.answer.thought.answer == "2"
    assert len(roles["judge"].draws) == 2  # a critique and a vote: one version alone needs none


async def test_votes_that_cannot_be_paid_leave_the_last_one_standing(ask):
    """A version that no vote has seen is not better than the one that won."""

    def policy(text, i):
        version = text.count("critic says") and int(re.findall(r"Answer: (\d)", text)[-1])
        return Line(f"Answer: {version + 1}", logprob=-1.0 - version)

    def judge(text, i):
        return "Best: 2" if "Choose the best" in text else WRONG

    async def after(tokens):
        roles = {"judge": ScriptedBackend(judge)}
        strategy = Refine(rounds=2, keep="best")
        return await ask(
            strategy, ScriptedBackend(policy), tokens, roles=roles, scorer=JudgeVote(n=1)
        )

    whole = await after(None)
    assert [t.text for t in whole.thoughts][3:] == ["Best: 2", WRONG, "Answer: 3", "Best: 2"]
    for tokens in (whole.spent.tokens, whole.spent.tokens - 8):
        outcome = await after(tokens)
        assert outcome.answer.thought.answer == "2"


async def test_critiques_hold_no_memory(ask):
    """Nothing goes on where they end: of three rounds only the prompts' last one is held beside the versions."""
    backend = ScriptedBackend(writer)
    roles = {"judge": ScriptedBackend(["x" * 500])}
    memory = 16 * (4 + 10 + 3 * 1100)
    outcome = await ask(Refine(rounds=3), backend, {"memory": memory}, roles=roles)
    assert outcome.answer.thought.answer == "4"


async def test_a_revision_that_was_cut_off_is_not_the_answer(ask):
    """The version before it is."""

    def endless(text, i):
        return Line("and so on ", ends=False) if "critic" in text else "Answer: 1"

    roles = {"judge": ScriptedBackend([WRONG])}
    outcome = await ask(Refine(), ScriptedBackend(endless), roles=roles, max_tokens=40)
    assert [t.finish for t in outcome.thoughts] == ["eos", "eos", "length"]
    assert outcome.answer.thought.answer == "1"


async def test_a_revision_that_lost_the_answer_is_not_the_answer(ask):
    """Prose after an answer is no version; prose after prose is."""
    for draft, kept in (("Answer: 1", "Answer: 1"), ("a draft", "prose")):
        policy = ScriptedBackend(lambda text, i, d=draft: d if text == "2+2?" else "prose")
        outcome = await ask(Refine(rounds=1), policy, roles={"judge": ScriptedBackend([WRONG])})
        assert outcome.answer.thought.text == kept


async def test_the_prompts_show_question_answer_and_critique(ask):
    """The model's reasoning is not shown, and what is filled in is not read again."""
    seen = []

    def say(text, i):
        seen.append(text)
        return "<think>so</think>{answer} 1" if i == 0 else "Answer: 2"

    strategy = Refine(
        rounds=1,
        critique="C: {question} | {answer} | {other} {}",
        revision="R: {question} | {answer} | {critique}",
    )
    await ask(strategy, ScriptedBackend(say))
    assert seen[1] == "C: 2+2? | {answer} 1 | {other} {}"
    assert seen[2] == "R: 2+2? | {answer} 1 | {answer} 1"  # each prompt's draws count from 0


async def test_out_of_money_the_last_version_is_the_answer(ask):
    """Of 40 tokens a draft, a critique and a revision take 33, and 7 are too few for another critique."""
    outcome = await refine(ask, critic(9), 40, rounds=4)
    assert outcome.answer.thought.answer == "2"
    assert (outcome.stopped_by, outcome.spent.tokens) == ("tokens", 33)


async def test_it_nests(ask):
    """The draft may be a vote's, and refined answers may vote; each run has critiques of its own."""
    outcome = await refine(ask, critic(2), of=Vote(n=3, adaptive=False), rounds=1)
    assert [t.answer for t in outcome.thoughts if not t.aside] == ["1"] * 3 + ["2"]
    outcome = await ask(BestOfN(n=2, of=Refine(rounds=1)), ScriptedBackend(writer))
    assert len(outcome.thoughts) == 6
    assert outcome.answer.thought.answer == "2"


@pytest.mark.parametrize(("own", "drawn"), [(None, [1.3, 1.0, 1.3]), (0.5, [0.5, 1.0, 0.5])])
async def test_drafts_and_revisions_have_one_temperature(ask, own, drawn):
    """Its own, or that of the strategy around it; the critic has the judge's."""
    policy, judge = ScriptedBackend(writer), ScriptedBackend([WRONG])
    strategy = Vote(n=1, temperature=1.3, of=Refine(rounds=1, temperature=own))
    await ask(strategy, policy, roles={"judge": judge})
    draws = [policy.draws[0], judge.draws[0], policy.draws[1]]
    assert [task.asked[0].temperature for task in draws] == drawn


def test_a_prompt_has_to_show_what_it_is_for():
    """A place that is missing is named."""
    with pytest.raises(ValueError, match=r"\{critique\}"):
        Refine(revision="{question} {answer}")
    with pytest.raises(ValueError, match=r"\{answer\}"):
        Refine(critique="{question}")


def test_fill():
    """Names are filled once; other braces stay."""
    assert fill('{a} {b} {c} {"a": 1}', a="{b}", b="2") == '{b} 2 {c} {"a": 1}'
