"""A process reward reads each step once, in the words of its format, on the run's account."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Literal

import pytest
import torch
from readings import drawn_by_one_and_read_by_another
from transformers import AutoModelForCausalLM

from langchain_pareto import ChatPareto
from langchain_pareto.backends import loading
from langchain_pareto.backends.nano import PRM, prm_path
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.call import Call, Draws, respond
from langchain_pareto.errors import (
    CapacityError,
    ContextLengthError,
    ScorerError,
    SettingError,
)
from langchain_pareto.messages import HumanMessage
from langchain_pareto.strategies import BestOfN, Rebase, Strategy, WeightedVote
from langchain_pareto.strategies.process_reward import (
    MATH_SHEPHERD,
    NANO,
    RLHFLOW,
    ProcessReward,
    RewardFormat,
)
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.steps import Steps
from langchain_pareto.strategies.thoughts import Answer
from langchain_pareto.strategies.until import STEP

QUESTION = "2+2?"  # as in conftest.py
PLAIN = RewardFormat(good="+", bad="-", after="\n")  # one character each
SOON = 10  # seconds; a guard against hangs


class Do(Strategy):
    """A strategy written on the spot."""

    kind: Literal["do"] = "do"
    what: Callable[[Search], Awaitable[Answer]]

    async def run(self, search: Search) -> Answer:
        return await self.what(search)


class Judge:
    """A scripted reward model: what it was asked after, and what it says there."""

    def __init__(self, says: Callable[[str], float] = lambda _before: 0.5, **options) -> None:
        self.asked: list[str] = []
        self._says = says
        self.backend = ScriptedBackend(["unheard"], name="judge", likely=self._likely, **options)

    def _likely(self, before: str, token: str) -> float:
        p = self._says(before)
        if token == "+":
            self.asked.append(before)
            return math.log(p) - 1
        assert token == "-"
        return math.log1p(-p) - 1


def lines(*texts: str) -> ScriptedBackend:
    return ScriptedBackend(list(texts))


# --- what is asked


SHEPHERD = ["2+2? a ки", "2+2? a ки\nb ки", "2+2? a ки\nb ки\nAnswer: 4 ки"]
HEAD = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2? a"
ASKED = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
NEXT = "+<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
TURNS = [
    HEAD + ASKED,
    HEAD + ASKED + NEXT + "b" + ASKED,
    HEAD + ASKED + NEXT + "b" + ASKED + NEXT + "Answer: 4" + ASKED,
]
OWN = ["2+2?a\n", "2+2?a\nb\n", "2+2?a\nb\nAnswer: 4\n"]
FORMATS = [(PLAIN, OWN), (MATH_SHEPHERD, SHEPHERD), (RLHFLOW, TURNS)]


@pytest.mark.parametrize(("how", "expected"), FORMATS, ids=["plain", "shepherd", "rlhflow"])
@pytest.mark.parametrize("piecewise", [False, True])
async def test_each_step_is_shown_as_the_format_says(ask, how, expected, piecewise):
    """Character for character, whether the steps were drawn one by one or as one text."""
    judge = Judge()
    policy = lines("a\n", "b\n", "Answer: 4") if piecewise else lines("a\nb\nAnswer: 4")

    async def what(search):
        thought = search.root
        while not thought.finished:
            [thought] = await search.sample(thought, until=STEP if piecewise else "answer")
            await search.score([thought])
        return Answer(thought)

    await ask(
        Do(what=what), policy, roles={"scorer": judge.backend}, scorer=ProcessReward(format=how)
    )
    assert judge.asked == expected


async def test_blank_lines_and_spaces_are_not_shown(ask):
    """A step is shown stripped; a text without a step is asked nothing about, and is the worst."""
    judge = Judge()

    async def what(search):
        first, blank = await search.sample(search.root, 2)
        await search.score([first, blank])
        assert (first.step_scores, first.score) == (pytest.approx((0.5, 0.5)), pytest.approx(0.5))
        assert (blank.step_scores, blank.score) == ((), -math.inf)
        return Answer(first)

    policy = lines("\n\n  a \n\n\n b\n\n", " \n")
    await ask(
        Do(what=what), policy, roles={"scorer": judge.backend}, scorer=ProcessReward(format=PLAIN)
    )
    assert judge.asked == ["2+2?a\n", "2+2?a\nb\n"]


async def test_steps_are_the_runs(ask):
    """What is judged is what the run's Steps say."""
    judge = Judge()
    await ask(
        BestOfN(n=1),
        lines("a; b; c"),
        roles={"scorer": judge.backend},
        scorer=ProcessReward(format=PLAIN),
        steps=Steps(delimiters=(";",)),
    )
    assert judge.asked == ["2+2?a;\n", "2+2?a;\nb;\n", "2+2?a;\nb;\nc\n"]


async def test_braces_of_a_question_are_its_own(ask):
    """Only `{question}` is a place."""
    how = RewardFormat(good="+", bad="-", prompt="{x} {question} {question}|")
    judge = Judge()
    await ask(
        BestOfN(n=1),
        lines("a"),
        roles={"scorer": judge.backend},
        scorer=ProcessReward(format=how),
    )
    assert judge.asked == ["{x} 2+2? 2+2?|a"]


# --- what comes of it


async def test_scores_are_good_against_bad(ask):
    """P(good) / (P(good) + P(bad)) of each step, and the run's aggregation of the path."""
    said = {"a\n": 0.9, "b\n": 0.25}
    judge = Judge(lambda before: said[before[-2:]])
    seen = {}

    async def what(search):
        [first] = await search.sample(search.root, until=STEP)
        [second] = await search.sample(first, until=STEP)
        await search.score([first])
        await search.score([second])
        seen.update(
            first=(first.step_scores, first.score), second=(second.step_scores, second.score)
        )
        return Answer(second)

    await ask(
        Do(what=what),
        lines("a\n", "b"),
        roles={"scorer": judge.backend},
        scorer=ProcessReward(format=PLAIN),
        aggregation="mean",
    )
    assert seen["first"] == (pytest.approx((0.9,)), pytest.approx(0.9))
    assert seen["second"] == (pytest.approx((0.25,)), pytest.approx((0.9 + 0.25) / 2))


@pytest.mark.parametrize(("good", "bad", "p"), [(-2000, 0, 0), (0, -2000, 1), (-2000, -2000, 0.5)])
async def test_hopeless_log_probabilities_do_not_overflow(ask, good, bad, p):
    """However far apart the two are."""
    backend = ScriptedBackend([""], likely=lambda _, token: good if token == "+" else bad)
    outcome = await ask(
        BestOfN(n=1), lines("a"), roles={"scorer": backend}, scorer=ProcessReward(format=PLAIN)
    )
    assert outcome.answer.thought.score == pytest.approx(p, abs=1e-9)


async def test_the_best_by_reward_wins(ask):
    """Best of n goes by it, the weighted vote counts it."""
    texts = ["Answer: 4", "Answer: 4", "Answer: 3", "Answer: 4"]
    for strategy in (BestOfN(n=4), WeightedVote(n=4)):
        judge = Judge(lambda before: 0.9 if "3" in before.splitlines()[-1] else 0.2)
        outcome = await ask(
            strategy,
            lines(*texts),
            roles={"scorer": judge.backend},
            scorer=ProcessReward(format=PLAIN),
        )
        assert outcome.answer.thought.answer == "3"
    assert outcome.answer.share == pytest.approx(0.9 / 1.5)


# --- nothing is read twice


async def test_a_step_is_read_once_however_often_it_is_scored(ask):
    """By its own score, by those of its children, and by two scores at once."""
    judge = Judge()

    async def what(search):
        [first] = await search.sample(search.root, until=STEP)
        await search.score([first])
        first.score = None  # as if another search had to know
        children = await search.expand([first] * 3)
        async with asyncio.TaskGroup() as group:
            for one in (first, *children):
                group.create_task(search.score([one]))
        for one in (first, *children):
            one.score = None
        await search.score([first, *children])
        assert first.path_scores == pytest.approx([0.5])
        assert children[0].path_scores == pytest.approx([0.5, 0.5])
        return Answer(children[0])

    policy = lines("a\n", "b", "c", "d")
    await ask(
        Do(what=what), policy, roles={"scorer": judge.backend}, scorer=ProcessReward(format=PLAIN)
    )
    assert judge.asked[0] == "2+2?a\n"
    assert sorted(judge.asked[1:]) == [f"2+2?a\n{c}\n" for c in "bcd"]
    # the prompt, "a\n", and "b\n", "c\n" and "d\n": each token once, and "a\n"'s last for each child
    assert judge.backend.meter.forward_tokens <= len("2+2?a\n") + 3 * len("b\n") + 3


async def test_what_was_read_for_a_child_counts_in_its_path(ask):
    """A parent that nobody asked about is read on the way; its steps are in the aggregation."""
    said = {"a\n": 0.1, "b\n": 0.8}
    judge = Judge(lambda before: said[before[-2:]])

    async def what(search):
        [first] = await search.sample(search.root, until=STEP)
        [second] = await search.sample(first)
        await search.score([second])
        assert second.path_scores == pytest.approx([0.1, 0.8])
        assert second.score == pytest.approx(0.1)
        return Answer(second)

    await ask(
        Do(what=what),
        lines("a\n", "b"),
        roles={"scorer": judge.backend},
        scorer=ProcessReward(format=PLAIN),
        aggregation="min",
    )
    assert judge.asked == ["2+2?a\n", "2+2?a\nb\n"]


async def test_runs_within_a_run_share_the_question(ask):
    """Four samples of four children of the root: the reward model reads the question once."""
    judge = Judge()
    await ask(
        BestOfN(n=4, of=BestOfN(n=1)),
        lines("a"),
        roles={"scorer": judge.backend},
        scorer=ProcessReward(format=PLAIN),
    )
    assert judge.backend.meter.forward_tokens <= len("2+2?a\n") + 3 * len("?a\n")


# --- the account


async def test_reading_costs_flops_and_no_tokens(ask):
    """What the reward model computed is on the bill; tokens are what was drawn."""
    judge, policy = Judge(), lines("a\nb", "c")
    outcome = await ask(
        BestOfN(n=2),
        policy,
        roles={"scorer": judge.backend},
        scorer=ProcessReward(format=PLAIN),
        usd_per_token=1e-6,
    )
    assert outcome.spent.tokens == policy.meter.new_tokens == 6
    assert outcome.spent.nanodollars == 6000
    assert judge.backend.meter.new_tokens == 0
    assert judge.backend.meter.flops > 0
    assert outcome.spent.flops == policy.meter.flops + judge.backend.meter.flops


async def test_no_room_to_read_leaves_no_score_and_an_answer(ask):
    """A budget in flops that the draws use up: whatever it is, the answer is one of the samples, and never more is spent."""
    texts = ["Answer: 1", "Answer: 2", "Answer: 2"]
    free = await ask(BestOfN(n=3), lines(*texts))
    scored = await ask(
        BestOfN(n=3),
        lines(*texts),
        roles={"scorer": Judge().backend},
        scorer=ProcessReward(format=PLAIN),
    )
    unread = 0
    for share in (0, 0.01, 0.3, 0.6, 0.9, 1):
        flops = round(free.spent.flops + share * (scored.spent.flops - free.spent.flops))
        for strategy in (BestOfN(n=3), WeightedVote(n=3), Rebase(n=3)):
            outcome = await ask(
                strategy,
                lines(*texts),
                f"{flops} flops",
                roles={"scorer": Judge().backend},
                scorer=ProcessReward(format=PLAIN),
            )
            assert outcome.answer is not None
            assert outcome.answer.thought.answer in {"1", "2"}
            assert outcome.spent.flops <= flops
            scores = [t.score for t in outcome.thoughts if t.finished]
            assert all(s is None or s == pytest.approx(0.5) for s in scores)
            unread += None in scores
            assert outcome.stopped_by == ("flops" if None in scores else "done") or share < 1
    assert unread


async def test_what_is_dropped_gives_the_readers_memory_back_too(ask):
    """The cache of both models that was a thought's alone is off the account."""
    judge = Judge()

    async def what(search):
        before = search.room.unspent.memory
        [first] = await search.sample(search.root, until=STEP)
        await search.score([first])
        middle = search.room.unspent.memory
        children = await search.expand([first] * 4)
        await search.score(children)
        assert search.room.unspent.memory < middle < before
        search.drop(children)
        assert search.room.unspent.memory == middle
        search.drop(children)
        assert search.room.unspent.memory == middle
        return Answer(first)

    await ask(
        Do(what=what),
        lines("a\n", "bbbbb", "cc", "d", "e"),
        "9000 B",
        roles={"scorer": judge.backend},
        scorer=ProcessReward(format=PLAIN),
    )


async def test_a_reading_is_given_back_to_whoever_paid_for_it(ask):
    """What one run draws and another reads is on two accounts, whoever drops it."""
    judge = Judge()

    await ask(
        Do(what=drawn_by_one_and_read_by_another),
        lines("a line\n"),
        "90000 B",
        roles={"scorer": judge.backend},
        scorer=ProcessReward(format=PLAIN),
    )


# --- mistakes


async def test_without_a_model_of_the_role_it_says_what_to_do(ask):
    """SettingError, with the keyword that names one."""
    for role in ("scorer", "prm"):
        with pytest.raises(SettingError, match=f"no model plays the role '{role}'") as caught:
            await ask(BestOfN(n=2), lines("a"), scorer=ProcessReward(role=role, format=PLAIN))
        assert f"roles={{'{role}': ...}}" in caught.value.hint


async def test_two_words_that_are_one_token_are_refused(ask):
    """A model that does not know the format's words writes both with the same last token."""
    for how in (NANO, RewardFormat(good="+", bad="+"), RewardFormat(good="a+", bad="+")):
        with pytest.raises(SettingError, match="with the same token") as caught:
            await ask(
                BestOfN(n=2),
                lines("a"),
                roles={"scorer": Judge().backend},
                scorer=ProcessReward(format=how),
            )
        assert "RewardFormat" in caught.value.hint


@pytest.mark.parametrize("settings", [{"good": ""}, {"bad": ""}, {"goods": "+"}])
def test_a_format_without_words_is_refused(settings):
    """Before any model is asked."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        RewardFormat(**({"good": "+", "bad": "-"} | settings))


def test_a_process_reward_goes_through_json():
    """With its format."""
    for how in (NANO, MATH_SHEPHERD, RLHFLOW):
        reward = ProcessReward(format=how, role="prm")
        assert ProcessReward.model_validate_json(reward.model_dump_json()) == reward
    with pytest.raises(ValueError, match="role"):
        ProcessReward(role="")


async def test_the_reward_models_own_error_comes_out(ask):
    """Not a group of them, and no "unhandled errors": a context too short, or whatever its backend raises."""
    short = Judge(context_length=8)
    with pytest.raises(ContextLengthError, match="context of judge"):
        await ask(
            BestOfN(n=3),
            lines("a", "bbbbbbbbbb"),
            roles={"scorer": short.backend},
            scorer=ProcessReward(format=PLAIN),
        )

    def full(before):
        raise CapacityError("full", needed=2, free=1, kind="slots")

    with pytest.raises(CapacityError, match="full"):
        await ask(
            BestOfN(n=3),
            lines("a", "b"),
            roles={"scorer": Judge(full).backend},
            scorer=ProcessReward(format=PLAIN),
        )

    def bug(before):
        raise ZeroDivisionError("by nothing")

    with pytest.raises(ScorerError, match="ZeroDivisionError: by nothing"):
        await ask(
            BestOfN(n=3),
            lines("a", "b"),
            roles={"scorer": Judge(bug).backend},
            scorer=ProcessReward(format=PLAIN),
        )


# --- the bundled models


@pytest.fixture(scope="module")
def nano():
    """(policy, reward model) on the CPU, in float32."""
    backends = [
        loading.load(name, device="cpu", dtype="float32", self_check=False) for name in (None, PRM)
    ]
    yield backends
    for backend in backends:
        backend.close()


QUESTIONS = [
    "Tom has 3 apples. He buys 4 more. How many apples does Tom have?",
    "Use 2, 3, 7 and 8 to make 24.",
]


@pytest.mark.parametrize("strategy", [BestOfN(n=4), Rebase(n=4)], ids=lambda s: s.kind)
async def test_nano_scores_equal_a_direct_forward(nano, strategy):
    """P(good) after each line of each sample, as transformers computes it from the whole text at once."""
    policy, reward = nano
    call = Call(
        strategy=strategy,
        draws=Draws(seed=5, max_tokens=120),
        scorer=ProcessReward(),
        roles={"scorer": reward},
    )
    model = AutoModelForCausalLM.from_pretrained(prm_path(), dtype=torch.float32).eval()
    tokenizer = reward.tokenizer
    [good], [bad] = tokenizer.encode("<|good|>"), tokenizer.encode("<|bad|>")
    compared = 0
    for question in QUESTIONS:
        reply = await respond(call, policy, [HumanMessage(question)])
        prompt = tokenizer.render([{"role": "user", "content": question}])
        for thought in reply.outcome.thoughts:
            if not thought.step_scores:
                continue
            whole = "\n".join(
                line.strip() for line in thought.whole_text.split("\n") if line.strip()
            )
            tokens = tokenizer.encode(prompt + whole + "\n")
            with torch.inference_mode():
                logits = model(torch.tensor([tokens])).logits[0]
            [newline] = tokenizer.encode("\n")
            start = len(tokenizer.encode(prompt))
            ends = [i for i, token in enumerate(tokens) if token == newline and i >= start]
            expected = logits[ends][:, [good, bad]].softmax(-1)[:, 0].tolist()
            assert thought.path_scores == pytest.approx(expected, abs=1e-4)
            assert thought.score == pytest.approx(expected[-1], abs=1e-4)
            compared += len(thought.step_scores)
    assert compared > 10


async def test_nano_asks_with_these_tokens(nano):
    """The policy's own template, each line and its end; joined as if the text had been encoded at once."""
    policy, reward = nano
    seen = []

    async def what(search):
        [thought] = await search.sample(search.root)
        await search.score([thought])
        [reading] = [one.result() for one in thought.readings.values()]
        seen.append((list(reading.branch.tokens), thought.text))
        return Answer(thought)

    call = Call(
        strategy=Do(what=what),
        draws=Draws(seed=1, max_tokens=120),
        scorer=ProcessReward(),
        roles={"scorer": reward},
    )
    await respond(call, policy, [HumanMessage(QUESTIONS[0])])
    [(tokens, text)] = seen
    prompt = (
        "<|user|>Tom has 3 apples.\nHe buys 4 more.\nHow many apples does Tom have?<|assistant|>"
    )
    assert tokens == reward.tokenizer.encode(prompt + text.strip() + "\n")


async def test_a_chat_model_brings_the_bundled_reward_model():
    """`scorer=ProcessReward()` is all that the bundled policy needs; a budget in tokens is the policy's alone."""
    chat = ChatPareto(
        strategy="rebase", scorer=ProcessReward(), seed=3, device="cpu", budget=Budget(tokens=400)
    )
    message = await chat.ainvoke(QUESTIONS[0])
    report = message.response_metadata["pareto"]
    assert any(t["score"] is not None and 0 < t["score"] < 1 for t in report["tree"])
    assert report["spent"]["tokens"] == sum(t["tokens"] for t in report["tree"]) <= 400
    chat.close()
