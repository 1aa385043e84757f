"""Monte Carlo tree search on trees small enough to work out by hand: what is selected, expanded, backed up and answered."""

import asyncio
import re
from collections import Counter

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import CapacityError, ScorerError
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import MCTS, parse_strategy
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Settings

PROMPT = "Q:"


class Marks:
    """Scores a text by the last number in it, in hundredths."""

    async def score(self, thoughts) -> list[float]:
        return [int(re.findall(r"\d+", t.whole_text)[-1]) / 100 for t in thoughts]


def tree(nodes):
    """What a text goes on with, in turn."""
    told = Counter()

    def answers(text: str, _: int) -> str:
        path = text.removeprefix(PROMPT)
        told[path] += 1
        return nodes[path][(told[path] - 1) % len(nodes[path])]

    return answers


async def ask(strategy, backend, budget=None, **settings) -> Outcome:
    """The outcome of a run; whatever happens, everything is paid and nothing stays behind."""
    account = Account(Budget.parse(budget) if budget else None)
    settings = Settings(Sampling(), **{"scorer": Marks(), **settings})
    try:
        outcome = await run(strategy, backend, PROMPT, account=account, settings=settings)
        assert outcome.spent.tokens == backend.meter.new_tokens
        assert outcome.spent.flops == backend.meter.flops
        return outcome
    finally:
        assert account.reserved == Cost()
        assert account.spent.tokens == backend.meter.new_tokens
        assert account.spent.memory == 0
        assert (backend.branches, backend.live) == (0, [])


@pytest.fixture
def waves(monkeypatch) -> list[int]:
    """How many thoughts were drawn together, each time."""
    seen = []
    expand = Search.expand

    async def counted(search, thoughts, *until):
        seen.append(len(thoughts))
        return await expand(search, thoughts, *until)

    monkeypatch.setattr(Search, "expand", counted)
    return seen


def texts(outcome) -> list[str]:
    return [t.text for t in outcome.thoughts]


TREE = {
    "": ["a60\n", "b40\n"],
    "a60\n": ["c20\n", "d10\n"],
    "b40\n": ["e90\n", "Answer: 80"],
    "b40\ne90\n": ["Answer: 95"],
    "a60\nc20\n": ["Answer: 7"],
    "a60\nd10\n": ["Answer: 8"],
}
STEP, END = 4, 11  # tokens of "a60\n", and of "Answer: 80" with its end
ONE = {"root_width": 2, "width": 2, "parallel": 1}


async def test_each_expansion_is_where_uct_is_largest():
    """a (0.6) first; then its mean falls to 0.3, and 0.3 + sqrt(ln 4 / 3) = 0.98 < 0.4 + sqrt(ln 4) = 1.58: b."""
    outcome = await ask(MCTS(expansions=3, **ONE), ScriptedBackend(tree(TREE)))
    first, second, third = ["a60\n", "b40\n"], ["c20\n", "d10\n"], ["e90\n", "Answer: 80"]
    ends = ["Answer: 95", "Answer: 7", "Answer: 8"]  # the best unfinished path first
    assert texts(outcome) == first + second + third + ends
    assert outcome.answer.thought.whole_text == "b40\ne90\nAnswer: 95"
    assert outcome.spent.tokens == 5 * STEP + 2 * END + 2 * (END - 1)


async def test_exploration_weighs_what_was_seldom_visited():
    """With c = 0 the means alone decide: 0.7 and 0.65 against 0.6."""
    nodes = {"": ["a70\n", "b60\n"], "a70\n": ["c60\n", "d65\n"], "b60\n": ["e10\n"]}
    nodes |= {"a70\nd65\n": ["f10\n"], "a70\nc60\n": ["g10\n"], "b60\ne10\n": ["h10\n"]}
    for exploration, third in ((0.0, "f10\n"), (1.0, "e10\n")):
        strategy = MCTS(expansions=3, exploration=exploration, completions=0, **ONE)
        outcome = await ask(strategy, ScriptedBackend(tree(nodes)))
        assert texts(outcome)[:5] == ["a70\n", "b60\n", "c60\n", "d65\n", third]


async def test_a_virtual_loss_parts_paths_that_are_chosen_together(waves):
    """a's mean is 0.8 and b's 0.783; with one visit more that is worth the least so far, 0.7, a's is 0.775: the second path goes by b."""
    nodes = {
        "": ["a90\n", "b79\n"],
        "a90\n": ["c80\n", "d70\n"],
        "b79\n": ["e79\n", "f77\n"],
        "a90\nc80\n": ["g1\n"],
        "b79\ne79\n": ["h1\n"],
    }
    strategy = MCTS(expansions=5, parallel=2, exploration=0, root_width=2, completions=0)
    outcome = await ask(strategy, ScriptedBackend(tree(nodes)))
    assert waves[:3] == [2, 4, 4]
    assert texts(outcome)[6:] == ["g1\n", "g1\n", "h1\n", "h1\n"]


async def test_paths_are_expanded_together(waves):
    """One wave a round: the root's children, then up to `parallel` paths of `width` each, then what is unfinished."""
    strategy = MCTS(expansions=6, root_width=3, width=2, parallel=4)
    outcome = await ask(
        strategy, ScriptedBackend(lambda text, _: "x1\n" if text.count("\n") < 3 else "Answer: 1")
    )
    assert waves == [3, 3 * 2, 2 * 2, 6 - 2 + 4]
    assert sum(t.finished for t in outcome.thoughts) == 8


async def test_an_end_is_not_expanded_again():
    """Where all paths have come to their ends, nothing more is drawn, whatever was allowed."""
    nodes = {"": ["Answer: 1", "a2\n"], "a2\n": ["Answer: 3"]}
    outcome = await ask(MCTS(root_width=2, width=2), ScriptedBackend(tree(nodes)))
    assert texts(outcome) == ["Answer: 1", "a2\n", "Answer: 3", "Answer: 3"]
    assert outcome.answer.thought.number == 3


async def test_the_depth_limit_ends_steps_and_not_answers():
    """A path at the limit is completed in the end."""
    nodes = {"": ["a1\n", "b2\n"], "a1\n": ["Answer: 5"], "b2\n": ["x\ny\nAnswer: 4"]}
    outcome = await ask(MCTS(depth=1, root_width=2), ScriptedBackend(tree(nodes)))
    assert texts(outcome) == ["a1\n", "b2\n", "x\ny\nAnswer: 4", "Answer: 5"]


@pytest.mark.parametrize("n", [0, 1, 2])
async def test_so_many_paths_are_completed(n):
    """The best first; without any answer the longest text is returned, unfinished."""
    nodes = {"": ["a1\n", "b2\n"], "a1\n": ["Answer: 5"], "b2\n": ["Answer: 4"]}
    strategy = MCTS(expansions=1, root_width=2, completions=n)
    outcome = await ask(strategy, ScriptedBackend(tree(nodes)))
    assert texts(outcome)[2:] == ["Answer: 4", "Answer: 5"][:n]
    assert outcome.answer.thought.answer == [None, "4", "5"][n]


async def test_what_has_no_score_is_not_followed():
    """-inf says that it could not be scored: no mean is spoilt by it, and it is completed last."""

    class Partly(Marks):
        async def score(self, thoughts):
            scores = await super().score(thoughts)
            return [
                float("-inf") if t.whole_text == "a99\n" else s
                for t, s in zip(thoughts, scores, strict=True)
            ]

    nodes = {"": ["a99\n", "b10\n"], "b10\n": ["Answer: 2", "Answer: 3"], "a99\n": ["Answer: 1"]}
    outcome = await ask(MCTS(root_width=2), ScriptedBackend(tree(nodes)), scorer=Partly())
    assert texts(outcome) == ["a99\n", "b10\n", "Answer: 2", "Answer: 3", "Answer: 1"]
    assert outcome.answer.thought.answer == "3"


async def test_scores_below_zero_are_searched_as_well():
    """With log-probabilities as scores a virtual loss is still a loss."""
    nodes = {"": ["a9\n", "b1\n"], "a9\n": ["Answer: 2"], "b1\n": ["Answer: 1"]}

    class Below(Marks):
        async def score(self, thoughts):
            return [score - 1 for score in await super().score(thoughts)]

    outcome = await ask(MCTS(root_width=2), ScriptedBackend(tree(nodes)), scorer=Below())
    assert outcome.answer.thought.answer == "2"


async def test_a_better_answer_is_offered_at_once():
    """At the deadline the best answer so far is returned."""

    class Slow(Marks):
        async def score(self, thoughts):
            if any("95" in t.whole_text for t in thoughts):
                await asyncio.sleep(60)
            return await super().score(thoughts)

    strategy = MCTS(expansions=3, **ONE)
    outcome = await ask(strategy, ScriptedBackend(tree(TREE)), "0.3 s", scorer=Slow())
    assert (outcome.answer.thought.answer, outcome.stopped_by) == ("80", "seconds")


async def test_answers_may_be_voted_on():
    """`choose` says how one of the answers is chosen."""
    nodes = {"": ["Answer: 1", "Answer: 1", "Answer: 9"]}
    settings = {"root_width": 3, "expansions": 1}
    best = await ask(MCTS(**settings), ScriptedBackend(tree(nodes)))
    majority = await ask(MCTS(choose="majority", **settings), ScriptedBackend(tree(nodes)))
    assert (best.answer.thought.answer, majority.answer.thought.answer) == ("9", "1")


# --- limits and accidents


def steps(text: str, i: int) -> str:
    """Two steps and an answer; each number once."""
    return f"Answer: {i % 7}" if text.count("\n") >= 2 else f"x{i % 10}\n"


@pytest.mark.parametrize("tokens", [1, 5, 20, 40, 80, 200])
async def test_out_of_tokens_the_best_so_far_is_the_answer(tokens):
    """Never more than the budget; a text in any case, and an answer if one was drawn."""
    outcome = await ask(MCTS(), ScriptedBackend(steps), tokens)
    assert outcome.spent.tokens <= tokens
    assert outcome.stopped_by == "tokens"
    answered = any(t.answer is not None for t in outcome.thoughts)
    assert answered == (outcome.answer.thought.answer is not None)


async def test_same_seed_same_tree():
    """Texts, scores and parents, twice."""

    async def shape():
        outcome = await ask(MCTS(), ScriptedBackend(steps), 400)
        return [(t.number, t.parent.number, t.text, t.score) for t in outcome.thoughts]

    assert await shape() == await shape()


async def test_a_model_that_never_answers_leaves_its_longest_text():
    """Cut off, and said to be so."""
    backend = ScriptedBackend([Line("no end ", ends=False)])
    outcome = await ask(MCTS(), backend, max_tokens=30)
    assert len(outcome.answer.thought.text) == 30
    assert not outcome.answer.thought.finished


async def test_cancelled_in_the_middle_nothing_stays_behind():
    """Branches, leases and draws."""
    backend = ScriptedBackend(steps, manual=True)
    running = asyncio.create_task(ask(MCTS(), backend))
    while len(backend.draws) < 6:
        for i in range(min(4, len(backend.draws))):
            backend.finish(i)
        await asyncio.sleep(0)
    backend.step()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_out_of_seconds_the_best_so_far_is_the_answer():
    """The deadline ends draws within a step."""
    backend = ScriptedBackend(lambda *_: Line("x1\n", ends=False), delay=0.002)
    outcome = await ask(MCTS(expansions=10**6), backend, "0.2 s")
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
        await ask(MCTS(), backend, scorer=Broken())
    assert backend.meter.new_tokens == 4 * 3


async def test_a_capacity_error_comes_out():
    """As it is, and nothing stays behind."""
    error = CapacityError("full", needed=2, free=1, kind="slots")
    with pytest.raises(CapacityError):
        await ask(MCTS(), ScriptedBackend(["x1\n", error]))


def test_it_goes_through_json_and_back():
    """As every strategy."""
    strategy = MCTS(expansions=3, completions=0, exploration=0.5)
    assert parse_strategy(strategy.model_dump_json()) == strategy
    assert parse_strategy("mcts") == MCTS()
