"""Diverse verifier tree search by hand: subtrees that go their own ways."""

from collections import Counter

import pytest
from trees import Told, nodes, tree

from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import DVTS, BestOfN

FIRST = ["a 0.8\n", "b 0.9\n", "c 0.2\n", "d 0.1\n"]
TREE = {
    "": FIRST,
    "b 0.9\n": ["e 0.3\n", "f 0.4\n"],
    "c 0.2\n": ["p 0.5 so Answer: 1", "g 0.7\n"],
    "b 0.9\nf 0.4\n": ["p 0.6 so Answer: 2", "q 0.2 so Answer: 3"],
    "c 0.2\ng 0.7\n": ["r 0.1 so Answer: 2", "h 0.2\n"],
    "c 0.2\ng 0.7\nh 0.2\n": ["s 0.9 so Answer: 3", "i 0.0\n"],
}


async def test_each_subtree_follows_its_own_best(ask):
    """However much better the steps of another are; an answer is a leaf, and ends its subtree only where it is the best."""
    outcome = await ask(DVTS(n=4, expansion=2), tree(TREE), scorer=Told())
    assert nodes(outcome) == [
        *[(0, step) for step in FIRST],
        *[(2, "e 0.3\n"), (2, "f 0.4\n"), (3, "p 0.5 so Answer: 1"), (3, "g 0.7\n")],
        *[(6, "p 0.6 so Answer: 2"), (6, "q 0.2 so Answer: 3"), (8, "r 0.1 so Answer: 2")],
        *[(8, "h 0.2\n"), (12, "s 0.9 so Answer: 3"), (12, "i 0.0\n")],
    ]
    assert outcome.answer.thought.number == 13
    assert outcome.answer.share == pytest.approx(1.1 / 2.3)
    assert outcome.spent.tokens == 6 * 9 + 19 * 5


@pytest.mark.parametrize(("choose", "number"), [("best", 13), ("majority", 13), ("weighted", 13)])
async def test_an_answer_is_chosen_among_all_leaves(ask, choose, number):
    """Also among those that their subtrees went past."""
    outcome = await ask(DVTS(n=4, expansion=2, choose=choose), tree(TREE), scorer=Told())
    assert outcome.answer.thought.number == number


@pytest.mark.parametrize(("n", "expansion", "trees"), [(4, 2, 2), (8, 2, 4), (4, 4, 1), (3, 1, 3)])
async def test_there_are_n_by_expansion_subtrees(ask, n, expansion, trees):
    """Each level draws `n` steps; at the depth limit the best path of each subtree is drawn to its end."""

    def answers(text: str, i: int) -> str:
        return "p 0.5 so Answer: 1" if text.count("\n") == 3 else f"x 0.{i % 9 + 1}\n"

    strategy = DVTS(n=n, expansion=expansion, depth=3)
    outcome = await ask(strategy, ScriptedBackend(answers), scorer=Told())
    levels = Counter(len(t.path) for t in outcome.thoughts)
    assert [levels[depth] for depth in (1, 2, 3)] == [n] * 3
    assert levels[4] == trees
    assert len({t.path[0] for t in outcome.thoughts if len(t.path) == 4}) == trees


async def test_at_the_depth_limit_no_answer_is_lost(ask):
    """A depth of one is best-of-`expansion` first steps, and their rest in one piece."""
    steps = {
        "": ["a 0.1\n", "b 0.2\n", "q 0.8 so Answer: 1", "d 0.9\n"],
        "b 0.2\n": ["p 0.3 and\nr 0.5 so Answer: 3"],
        "d 0.9\n": ["q 0.4 and\ns 0.6 so Answer: 3"],
    }
    outcome = await ask(DVTS(n=4, expansion=2, depth=1), tree(steps), scorer=Told())
    assert nodes(outcome)[4:] == [(2, steps["b 0.2\n"][0]), (4, steps["d 0.9\n"][0])]
    assert outcome.answer.thought.answer == "3"
    assert outcome.answer.share == pytest.approx(1.1 / 1.9)


async def test_a_subtree_whose_steps_are_cut_off_ends(ask):
    """The others go on."""

    def answers(text: str, i: int) -> str:
        if "a" in text:
            return "x" * 50
        return "r 0.5 so Answer: 7" if "b" in text else ["a 0.5\n", "b 0.5\n"][i % 2]

    outcome = await ask(
        DVTS(n=2, expansion=1), ScriptedBackend(answers), scorer=Told(), max_tokens=30
    )
    assert outcome.answer.thought.answer == "7"
    assert [t.finish for t in outcome.thoughts] == ["step", "step", "length", "eos"]


@pytest.mark.parametrize("tokens", [1, 5, 24, 30, 59, 70, 90, 148, 149])
async def test_a_budget_ends_it_with_the_best_so_far(ask, tokens):
    """Never more is spent; an answer that was found is the answer."""
    outcome = await ask(DVTS(n=4, expansion=2), tree(TREE), tokens, scorer=Told())
    assert outcome.spent.tokens <= tokens
    found = {t.answer for t in outcome.thoughts if t.answer is not None}
    assert (outcome.answer.thought.answer in found) if found else outcome.answer.thought.whole_text
    assert (outcome.stopped_by == "tokens") == (tokens < 149)


async def test_subtrees_nest(ask):
    """Each run of many has subtrees of its own."""
    outcome = await ask(BestOfN(n=2, of=DVTS(n=4, expansion=2)), tree(TREE), scorer=Told())
    assert len([t for t in outcome.thoughts if t.parent.number == 0]) == 8
