"""Tree of thoughts on trees small enough to work out by hand: what is drawn, kept, judged, answered and paid."""

import asyncio
import re
from collections import Counter

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import CapacityError, ScorerError, SettingError
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import TreeOfThought, parse_strategy
from langchain_pareto.strategies.judge import JudgeScore, JudgeVote
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.scorers import MeanLogprob
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import Thought
from langchain_pareto.strategies.tree_of_thought import proposals

PROMPT = "Q:"


class Marks:
    """Scores a text by the last number in it."""

    async def score(self, thoughts) -> list[float]:
        return [float(re.findall(r"\d+", t.whole_text)[-1]) for t in thoughts]


def tree(nodes, asides=None):
    """What a text goes on with, in turn; `asides` are replies to what is asked aside, by a word in the prompt."""
    told = Counter()

    def answers(text: str, _: int) -> str | Line:
        for word, says in (asides or {}).items():
            if word in text:
                told[word] += 1
                return says[(told[word] - 1) % len(says)]
        path = text.removeprefix(PROMPT)
        told[path] += 1
        return nodes[path][(told[path] - 1) % len(nodes[path])]

    return answers


async def ask(strategy, backend, budget=None, **settings) -> Outcome:
    """The outcome of a run; whatever happens, everything is paid and nothing stays behind."""
    account = Account(Budget.parse(budget) if budget else None)
    settings = Settings(Sampling(), **{"scorer": Marks(), **settings})
    try:
        outcome = await run(
            strategy, backend, PROMPT, question="Why?", account=account, settings=settings
        )
        assert outcome.spent.tokens == backend.meter.new_tokens
        assert outcome.spent.flops == backend.meter.flops
        return outcome
    finally:
        assert account.reserved == Cost()
        assert account.spent.tokens == backend.meter.new_tokens
        assert account.spent.memory == 0
        assert (backend.branches, backend.live) == (0, [])


def texts(outcome) -> list[str]:
    """Of everything that was drawn or proposed, asides left out, in order."""
    return [t.text for t in outcome.thoughts if not t.aside]


def asides(outcome) -> list[Thought]:
    return [t for t in outcome.thoughts if t.aside]


# --- breadth-first

TREE = {
    "": ["a3\n", "b5\n"],
    "a3\n": ["c1\n", "Answer: 4"],
    "b5\n": ["d2\n", "e9\n"],
    "b5\ne9\n": ["f1\n", "Answer: 8"],
    "b5\nd2\n": ["g0\n", "Answer: 1"],
}


async def test_breadth_first_keeps_the_best_of_each_level():
    """Two of a level, an answer among them; the search ends when both are answers, and the better one wins."""
    backend = ScriptedBackend(tree(TREE))
    outcome = await ask(TreeOfThought(samples=2, breadth=2), backend)
    first, second = ["a3\n", "b5\n"], ["d2\n", "e9\n", "c1\n", "Answer: 4"]
    assert texts(outcome) == [*first, *second, "f1\n", "Answer: 8"]
    assert outcome.answer.thought.whole_text == "b5\ne9\nAnswer: 8"
    assert outcome.answer.thought.score == 8
    assert outcome.spent.tokens == 6 * 3 + 2 * 10


async def test_what_is_unfinished_at_the_depth_limit_is_drawn_to_its_end():
    """No answer is lost: the kept states are completed in one piece each, the best first."""
    ends = {"b5\n": ["d2\ne9\nAnswer: 8"], "a3\n": ["Answer: 9"]}
    outcome = await ask(
        TreeOfThought(samples=2, breadth=2, depth=1), ScriptedBackend(tree(TREE | ends))
    )
    assert texts(outcome) == ["a3\n", "b5\n", "d2\ne9\nAnswer: 8", "Answer: 9"]
    assert outcome.answer.thought.answer == "9"
    assert outcome.spent.tokens == 2 * 3 + 16 + 10


async def test_a_single_path_is_a_greedy_search():
    """One of each level."""
    outcome = await ask(TreeOfThought(samples=2, breadth=1), ScriptedBackend(tree(TREE)))
    assert texts(outcome) == ["a3\n", "b5\n", "d2\n", "e9\n", "f1\n", "Answer: 8"]


async def test_states_below_the_threshold_are_pruned():
    """Also where there is a place for them."""
    strategy = TreeOfThought(samples=2, breadth=2, threshold=4)
    outcome = await ask(strategy, ScriptedBackend(tree(TREE)))
    assert texts(outcome) == ["a3\n", "b5\n", "d2\n", "e9\n", "f1\n", "Answer: 8"]


async def test_the_last_state_is_never_pruned():
    """A threshold that nothing reaches leaves the best state of each level, and so an answer."""
    strategy = TreeOfThought(samples=2, breadth=2, threshold=100)
    outcome = await ask(strategy, ScriptedBackend(tree(TREE)))
    assert outcome.answer.thought.answer == "8"


async def test_pruned_states_give_their_cache_back():
    """What nothing will continue is freed while the search goes on."""
    backend = ScriptedBackend(tree(TREE))
    seen = []

    class Counts(Marks):
        async def score(self, thoughts):
            seen.append(backend.branches)
            return await super().score(thoughts)

    await ask(TreeOfThought(samples=2, breadth=1), backend, scorer=Counts())
    assert seen == [3, 4, 5]  # the root, its chosen child, ..., and two new ones


async def test_an_answer_is_offered_as_soon_as_it_is_found():
    """At the deadline the best answer so far is returned."""

    class Slow(Marks):
        async def score(self, thoughts):
            if any("f1" in t.whole_text for t in thoughts):
                await asyncio.sleep(60)
            return await super().score(thoughts)

    strategy = TreeOfThought(samples=2, breadth=2)
    outcome = await ask(strategy, ScriptedBackend(tree(TREE)), "0.3 s", scorer=Slow())
    assert (outcome.answer.thought.answer, outcome.stopped_by) == ("4", "seconds")


# --- depth-first

DEEP = {
    "": ["a3\n", "b5\n"],
    "b5\n": ["c2\n", "d1\n"],
    "a3\n": ["e4\n", "f0\n"],
    "a3\ne4\n": ["Answer: 7", "Answer: 6"],
}
DEPTH = {"order": "depth_first", "samples": 2}


async def test_depth_first_backtracks_where_all_is_pruned():
    """Below the best first thought nothing reaches the threshold, so it goes on from the second best."""
    strategy = TreeOfThought(threshold=3, **DEPTH)
    outcome = await ask(strategy, ScriptedBackend(tree(DEEP)))
    order = ["a3\n", "b5\n", "c2\n", "d1\n", "e4\n", "f0\n", "Answer: 7", "Answer: 6"]
    assert texts(outcome) == order
    assert outcome.answer.thought.whole_text == "a3\ne4\nAnswer: 7"
    assert outcome.spent.tokens == 6 * 3 + 2 * 10


async def test_depth_first_follows_the_best_thought_and_stops_at_an_answer():
    """Without a threshold the first answer ends it."""
    nodes = DEEP | {"b5\nc2\n": ["Answer: 1", "g9\n"]}
    outcome = await ask(TreeOfThought(**DEPTH), ScriptedBackend(tree(nodes)))
    assert texts(outcome) == ["a3\n", "b5\n", "c2\n", "d1\n", "Answer: 1", "g9\n"]


async def test_depth_first_looks_for_as_many_answers_as_it_was_told():
    """Those below the threshold are answers, but not what it looks for."""
    nodes = DEEP | {"b5\n": ["Answer: 1", "Answer: 2"]}
    outcome = await ask(TreeOfThought(threshold=3, **DEPTH), ScriptedBackend(tree(nodes)))
    assert outcome.answer.thought.answer == "7"
    outcome = await ask(TreeOfThought(answers=2, **DEPTH), ScriptedBackend(tree(nodes)))
    assert outcome.answer.thought.answer == "2"


async def test_depth_first_completes_a_path_at_the_depth_limit():
    """And counts it as an answer."""
    nodes = DEEP | {"b5\n": ["x\nAnswer: 2"]}
    outcome = await ask(TreeOfThought(depth=1, **DEPTH), ScriptedBackend(tree(nodes)))
    assert texts(outcome) == ["a3\n", "b5\n", "x\nAnswer: 2"]


async def test_depth_first_that_looked_at_enough_states_completes_the_best_open_one():
    """No answer is lost at the limit of expansions."""
    nodes = DEEP | {"b5\n": ["Answer: 2"]}
    outcome = await ask(TreeOfThought(expansions=1, **DEPTH), ScriptedBackend(tree(nodes)))
    assert texts(outcome) == ["a3\n", "b5\n", "Answer: 2"]


async def test_depth_first_never_prunes_the_last_state():
    """Where nothing is left to go back to, the best of what is pruned is followed."""
    strategy = TreeOfThought(threshold=100, **DEPTH)
    nodes = DEEP | {"b5\n": ["Answer: 2"]}
    outcome = await ask(strategy, ScriptedBackend(tree(nodes)))
    assert outcome.answer.thought.answer == "2"


# --- proposals


async def test_thoughts_may_be_proposed():
    """One reply, asked aside, lists next steps of a state; they are steps of the path, and are paid for once."""
    replies = ["1. a3\n2. b5\n3. c1", "* d7\n* e2"]
    backend = ScriptedBackend(tree({"b5\nd7\n": ["Answer: 1"]}, {"Propose": replies}))
    strategy = TreeOfThought(generate="propose", samples=2, breadth=1, depth=2)
    outcome = await ask(strategy, backend)
    assert texts(outcome) == ["a3\n", "b5\n", "d7\n", "e2\n", "Answer: 1"]
    assert [t.text for t in asides(outcome)] == replies
    assert outcome.answer.thought.whole_text == "b5\nd7\nAnswer: 1"
    assert outcome.spent.tokens == len(replies[0]) + 1 + len(replies[1]) + 1 + 10
    asked = outcome.usage.prompt_tokens - len(PROMPT) - len("b5\nd7\n")
    assert asked > 2 * 200  # the two prompts, and nothing else: the path is computed once


async def test_a_proposal_sees_the_path():
    """Its question, the steps so far, and how many are wanted."""
    seen = []

    def answers(text, _):
        seen.append(text)
        return "1. a3" if "Propose" in text else "Answer: 1"

    strategy = TreeOfThought(
        generate="propose", samples=3, depth=2, propose="Propose {n}: {question} {path} {else}"
    )
    await ask(strategy, ScriptedBackend(answers))
    assert seen[:2] == ["Propose 3: Why? (none) {else}", "Propose 3: Why? a3 {else}"]
    assert seen[2:] == [f"{PROMPT}a3\na3\n"]


async def test_proposals_are_as_likely_as_their_list():
    """So that the likelihood can score them; the first of a list is preferred."""
    backend = ScriptedBackend(
        tree({"a3\n": ["Answer: 1"]}, {"Propose": [Line("1. a3\n2. b5", -0.5)]})
    )
    strategy = TreeOfThought(generate="propose", breadth=1, depth=1)
    outcome = await ask(strategy, backend, scorer=MeanLogprob())
    assert [t.score for t in outcome.thoughts if not t.aside] == [-0.5, -0.5, -1.0]


async def test_a_state_without_a_proposal_is_completed():
    """DONE says that the steps so far are all: what is missing is drawn to its end."""
    backend = ScriptedBackend(tree({"a3\n": ["Answer: 1"]}, {"Propose": ["1. a3", "**DONE**"]}))
    outcome = await ask(TreeOfThought(generate="propose"), backend)
    assert texts(outcome) == ["a3\n", "Answer: 1"]


@pytest.mark.parametrize(
    ("text", "whole", "steps"),
    [
        ("Here are some:\n1. a\n 2) b\n- c", True, ["a", "b", "c"]),
        ("a\n\nb", True, ["a", "b"]),
        ("1. a\n2. a\n3. b", True, ["a", "b"]),
        ("1. a\n2. b", False, ["a"]),
        ("Done.", True, []),
        ("", True, []),
    ],
)
def test_proposals_are_read_line_by_line(text, whole, steps):
    """Numbered lines, or all of them; one that was cut off is none."""
    assert proposals(Thought("", text=text, whole=whole)) == steps


# --- judgements


async def test_states_may_be_judged_one_by_one():
    """Each by a prompt to the judge, all of a level side by side, and on the ledger."""
    judge = {"Answer": ["Score: 10"], "so far:\na": ["Score: 4"], "so far:\nb": ["Score: 6"]}
    nodes = {"": ["a\n", "b\n"], "b\n": ["Answer: 1", "Answer: 2"]}
    backend = ScriptedBackend(tree(nodes, judge))
    strategy = TreeOfThought(
        evaluate="value",
        samples=2,
        breadth=1,
        value=JudgeScore(prompt="{question} so far:\n{answer}\n"),
    )
    outcome = await ask(strategy, backend)
    scores = {t.whole_text: t.score for t in outcome.thoughts if not t.aside}
    assert scores == {"a\n": 0.4, "b\n": 0.6, "b\nAnswer: 1": 1.0, "b\nAnswer: 2": 1.0}
    assert outcome.answer.thought.answer == "1"
    assert outcome.spent.tokens == 2 * 2 + 2 * 10 + 2 * (8 + 1) + 2 * (9 + 1)


async def test_states_may_be_voted_on():
    """A level's votes decide who stays, and one more vote chooses among the answers."""
    nodes = {"": ["a\n", "b\n"], "a\n": ["Answer: 1", "c\n"], "b\n": ["Answer: 2", "d\n"]}
    levels = ["Best: 1", "Best: 2", "Best: 2"], ["Best: 1", "Best: 4", "Best: 3"]
    final = ["Best: 2", "Best: 1", "Best: 2"]
    judge = {"Answer 4:": levels[1], "Answer 1:\nb\nAnswer": final, "Answer 1:": levels[0]}
    strategy = TreeOfThought(
        evaluate="vote", samples=2, breadth=2, vote=JudgeVote(prompt="{question}\n{answers}", n=3)
    )
    outcome = await ask(strategy, ScriptedBackend(tree(nodes, judge)))
    scores = {t.whole_text: t.score for t in outcome.thoughts if not t.aside}
    third = pytest.approx(1 / 3)
    assert (scores["a\n"], scores["b\n"]) == (third, pytest.approx(2 / 3))
    # the second level in order of drawing: b's answer, d, a's answer, c; the two answers keep the two places
    assert (scores["b\nd\n"], scores["a\nc\n"]) == (0, third)
    assert (scores["b\nAnswer: 2"], scores["a\nAnswer: 1"]) == (third, pytest.approx(2 / 3))
    assert outcome.answer.thought.answer == "1"
    assert len(asides(outcome)) == 3 * 3


async def test_a_judge_that_says_nothing_readable_is_an_error():
    """Its reply is in the error, and in the strategy's failures; what it took is paid."""
    backend = ScriptedBackend(tree(TREE, {"Judge": ["I like it."]}))
    strategy = TreeOfThought(evaluate="value", samples=2)
    with pytest.raises(ScorerError, match="I like it"):
        await ask(strategy, backend)
    assert len(strategy.value.failures) == 2


async def test_a_state_that_the_judge_could_not_judge_has_no_score():
    """One unreadable judgement of two: that state comes last."""
    judge = {"\na3\n": ["Well."], "\nb5\n": ["Score: 1"], "Answer": ["Score: 2"]}
    nodes = {"": ["a3\n", "b5\n"], "b5\n": ["Answer: 1"]}
    strategy = TreeOfThought(
        evaluate="value", samples=2, breadth=1, value=JudgeScore(prompt="{question}\n{answer}")
    )
    outcome = await ask(strategy, ScriptedBackend(tree(nodes, judge)))
    assert outcome.thoughts[0].score is None
    assert outcome.answer.thought.whole_text == "b5\nAnswer: 1"
    assert strategy.value.failures == ["reads: 'Well.'"]


# --- limits and accidents

EVERY = [
    {},
    {"order": "depth_first"},
    {"generate": "propose"},
    {"evaluate": "value"},
    {"evaluate": "vote"},
    {"order": "depth_first", "generate": "propose", "evaluate": "vote"},
]
ASIDES = {"Propose": ["1. x1\n2. y2"], "Judge": ["Score: 5"], "Choose": ["Best: 1"]}


def steps(text: str, _: int) -> str:
    """Two steps and an answer."""
    for word, says in ASIDES.items():
        if word in text:
            return says[0]
    return "Answer: 3" if text.count("\n") >= 2 else "x1\n"


@pytest.mark.parametrize("settings", EVERY, ids=str)
async def test_every_variant_finds_an_answer(settings):
    """Whatever is combined."""
    outcome = await ask(TreeOfThought(**settings, samples=2, depth=3), ScriptedBackend(steps))
    assert outcome.answer.thought.answer == "3"
    assert outcome.stopped_by == "done"


@pytest.mark.parametrize("settings", EVERY, ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 20, 40, 80, 200])
async def test_out_of_tokens_the_best_so_far_is_the_answer(settings, tokens):
    """Never more than the budget; a text in any case, and the best answer there is."""
    outcome = await ask(TreeOfThought(**settings, samples=2), ScriptedBackend(steps), tokens)
    assert outcome.spent.tokens <= tokens
    drawn = [t for t in outcome.thoughts if t.answer is not None]
    assert outcome.answer is None or bool(drawn) == (outcome.answer.thought.answer is not None)


@pytest.mark.parametrize("settings", EVERY, ids=str)
async def test_same_seed_same_tree(settings):
    """Texts, scores and parents, twice."""

    async def shape():
        outcome = await ask(TreeOfThought(**settings, samples=2), ScriptedBackend(steps), 400)
        return [(t.number, t.parent.number, t.text, t.score, t.aside) for t in outcome.thoughts]

    assert await shape() == await shape()


@pytest.mark.parametrize("settings", EVERY, ids=str)
async def test_a_model_that_never_answers_leaves_its_longest_text(settings):
    """Cut off, and said to be so."""
    backend = ScriptedBackend(
        lambda text, i: Line("no end ", ends=False) if text.startswith(PROMPT) else steps(text, i)
    )
    outcome = await ask(TreeOfThought(**settings, samples=2, depth=2), backend, max_tokens=30)
    assert not outcome.answer.thought.finished
    assert outcome.answer.thought.answer is None


@pytest.mark.parametrize("settings", EVERY, ids=str)
async def test_cancelled_in_the_middle_nothing_stays_behind(settings):
    """Branches, leases and draws."""
    backend = ScriptedBackend(steps, manual=True)
    running = asyncio.create_task(ask(TreeOfThought(**settings, samples=2), backend))
    while len(backend.draws) < 2 and not running.done():
        for i in range(len(backend.draws) - 1):
            backend.finish(i)
        await asyncio.sleep(0)
        if settings.get("generate") == "propose" and backend.draws:
            break
    backend.step(2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert backend.meter.new_tokens > 0


async def test_out_of_seconds_the_best_so_far_is_the_answer():
    """The deadline ends draws within a step."""
    backend = ScriptedBackend(lambda *_: Line("x1\n", ends=False), delay=0.002)
    outcome = await ask(TreeOfThought(depth=10**6), backend, "0.2 s")
    assert outcome.stopped_by == "seconds"
    assert outcome.answer.thought.whole_text
    backend.close()


@pytest.mark.parametrize("error", [ScorerError("no"), ZeroDivisionError("a bug")])
async def test_a_scorer_that_raises_is_a_scorer_error(error):
    """What was drawn is paid."""

    class Broken:
        async def score(self, thoughts):
            raise error

    backend = ScriptedBackend(steps)
    with pytest.raises(ScorerError):
        await ask(TreeOfThought(), backend, scorer=Broken())
    assert backend.meter.new_tokens == 5 * 3


async def test_a_capacity_error_comes_out():
    """As it is, and nothing stays behind."""
    error = CapacityError("full", needed=2, free=1, kind="slots")
    with pytest.raises(CapacityError):
        await ask(TreeOfThought(), ScriptedBackend(["x1\n", error]))


# --- settings


def test_it_goes_through_json_and_back():
    """With its judges and prompts."""
    strategy = TreeOfThought(order="depth_first", threshold=0.3, vote=JudgeVote(n=2, role="large"))
    assert parse_strategy(strategy.model_dump_json()) == strategy
    assert parse_strategy("tree_of_thought") == TreeOfThought()
    assert hash(strategy) == hash(parse_strategy(strategy.model_dump_json()))


def test_a_prompt_must_show_what_it_is_about():
    """A template without the path is named at the border."""
    with pytest.raises(SettingError, match="path"):
        parse_strategy({"kind": "tree_of_thought", "propose": "{question}?"})
