"""Beam search by hand: which paths are kept, which are given up, and what they cost."""

from collections import Counter

import pytest
from trees import Told, nodes, tree

from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import Beam, BestOfN, Vote

FIRST = ["a 0.1\n", "b 0.8\n", "c 0.5\n", "d 0.6\n"]
TREE = {
    "": FIRST,
    "b 0.8\n": ["e 0.2\n", "p 0.9 so Answer: 1"],
    "d 0.6\n": ["f 0.7\n", "g 0.3\n"],
    "d 0.6\nf 0.7\n": ["q 0.4 so Answer: 2", "r 0.6 so Answer: 2"],
}


async def test_the_best_paths_of_each_level_are_followed(ask):
    """Of four first steps the best two, each with two next ones; an answer keeps its place, so one path is followed then."""
    backend = tree(TREE)
    outcome = await ask(Beam(n=4, expansion=2), backend, scorer=Told())
    assert nodes(outcome) == [
        *[(0, step) for step in FIRST],
        *[(2, "e 0.2\n"), (2, "p 0.9 so Answer: 1"), (4, "f 0.7\n"), (4, "g 0.3\n")],
        *[(7, "q 0.4 so Answer: 2"), (7, "r 0.6 so Answer: 2")],
    ]
    assert outcome.answer.thought.answer == "2"
    assert outcome.answer.thought.number == 10
    assert outcome.answer.share == pytest.approx(1.0 / 1.9)
    assert outcome.spent.tokens == 4 * 6 + 3 * 6 + 19 + 2 * 19
    assert outcome.stopped_by == "done"


TWICE = ["b 0.8\n", "b 0.8\n", "c 0.5\n", "d 0.6\n"]
AGAIN = {
    "": TWICE,
    "b 0.8\n": ["p 0.9 so Answer: 1", "p 0.9 so Answer: 1"],
    "d 0.6\n": ["f 0.7\n", "g 0.3\n"],
    "d 0.6\nf 0.7\n": ["q 0.4 so Answer: 2", "r 0.6 so Answer: 2"],
}


@pytest.mark.parametrize(("distinct", "followed"), [(False, [1, 2]), (True, [1, 4])])
async def test_places_are_for_paths_that_differ(ask, distinct, followed):
    """Two of four first steps are one; if paths are to differ, the place of the second is another's, and equal answers have one."""
    beam = Beam(n=4, expansion=2, distinct=distinct)
    outcome = await ask(beam, tree(AGAIN), scorer=Told())
    level = [parent for parent, _ in nodes(outcome)[4:8]]
    assert level == [path for path in followed for _ in range(2)]
    found = {t.answer for t in outcome.thoughts if t.finished}
    assert found == ({"1", "2"} if distinct else {"1"})


async def test_what_repeats_fills_what_is_left(ask):
    """Where there are fewer paths than places, those that repeat one are followed too."""
    steps = {"": ["b 0.8\n"] * 4, "b 0.8\n": ["p 0.9 so Answer: 1"] * 4}
    outcome = await ask(Beam(n=4, expansion=2, distinct=True), tree(steps), scorer=Told())
    assert [parent for parent, _ in nodes(outcome)[4:]] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("choose", "answer", "share"),
    [("best", "1", None), ("majority", "2", 2 / 3), ("weighted", "2", 1.0 / 1.9)],
)
async def test_an_answer_is_chosen_among_all_that_were_found(ask, choose, answer, share):
    """By score, by votes, or by votes that weigh their score."""
    outcome = await ask(Beam(n=4, expansion=2, choose=choose), tree(TREE), scorer=Told())
    assert outcome.answer.thought.answer == answer
    assert outcome.answer.share == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("n", "expansion", "widths"),
    [(4, 2, [4, 4, 4]), (4, 4, [4, 4, 4]), (6, 2, [6, 6, 6]), (5, 1, [5, 5, 5]), (1, 1, [1, 1, 1])],
)
async def test_each_level_draws_n_steps(ask, n, expansion, widths):
    """Where no answer is found; what is open at the depth limit is finished, one text a path."""

    def answers(text: str, i: int) -> str:
        return "p 0.5 so Answer: 1" if text.count("\n") == 3 else f"x 0.{i % 9 + 1}\n"

    outcome = await ask(
        Beam(n=n, expansion=expansion, depth=3), ScriptedBackend(answers), scorer=Told()
    )
    levels = Counter(len(t.path) for t in outcome.thoughts)
    assert [levels[depth] for depth in (1, 2, 3)] == widths
    assert levels[4] == n // expansion
    assert all(t.finished for t in outcome.thoughts if len(t.path) == 4)


async def test_at_the_depth_limit_the_best_paths_are_finished(ask):
    """Not the first drawn: what is kept there is kept by score, as at every level."""
    steps = {
        "": ["a 0.1\n", "b 0.2\n", "c 0.8\n", "d 0.9\n"],
        "c 0.8\n": ["p 0.8 and then\nso Answer: 3"],
        "d 0.9\n": ["q 0.9 and then\nso Answer: 4"],
    }
    outcome = await ask(Beam(n=4, expansion=2, depth=1), tree(steps), scorer=Marks())
    assert nodes(outcome)[4:] == [
        (4, "q 0.9 and then\nso Answer: 4"),
        (3, "p 0.8 and then\nso Answer: 3"),
    ]
    assert outcome.answer.thought.answer == "4"


class Marks(Told):
    """The score is the second word of the first line."""

    async def score(self, thoughts):
        return [float(t.whole_text.split()[1]) for t in thoughts]


async def test_ties_go_to_the_likelier_then_to_the_first_drawn(ask):
    """Equal scores do not make a beam depend on anything else."""

    def answers(text: str, i: int) -> Line | str:
        if "\n" in text:
            return "p 0.5 so Answer: " + text[-2]
        return [Line("a 0.5\n", -2.0), Line("b 0.5\n", -1.0), Line("c 0.5\n", -1.0)][i % 3]

    outcome = await ask(Beam(n=3, expansion=3), ScriptedBackend(answers), scorer=Told())
    assert {t.parent.number for t in outcome.thoughts[3:]} == {2}


async def test_a_path_without_an_end_ends_at_max_tokens(ask):
    """Of the whole path, not of a step; the longest text is the answer then, and is marked as cut off."""
    backend = ScriptedBackend(["x 0.5\n"])
    outcome = await ask(Beam(n=2, expansion=2, depth=100), backend, scorer=Told(), max_tokens=20)
    assert max(t.length for t in outcome.thoughts) == 20
    assert (outcome.answer.thought.length, outcome.answer.thought.finished) == (20, False)
    assert outcome.stopped_by == "length"


async def test_a_full_context_ends_a_path(ask):
    """As a limit of the caller's does; it is no error, also where a step ends with the context."""
    for context in (22, 23, 24):
        backend = ScriptedBackend(["x 0.5\n"], context_length=context)
        outcome = await ask(Beam(n=2, expansion=2, depth=100), backend, scorer=Told())
        assert max(t.length for t in outcome.thoughts) == context - 4
        assert not outcome.answer.thought.finished


@pytest.mark.parametrize("tokens", [1, 5, 6, 24, 30, 42, 59, 70, 90, 200])
async def test_a_budget_ends_it_with_the_best_so_far(ask, tokens):
    """Never more is spent; an answer that was found is the answer."""
    outcome = await ask(Beam(n=4, expansion=2), tree(TREE), tokens, scorer=Told())
    assert outcome.spent.tokens <= tokens
    found = {t.answer for t in outcome.thoughts if t.answer is not None}
    assert (outcome.answer.thought.answer in found) if found else outcome.answer.thought.whole_text
    assert (outcome.stopped_by == "tokens") == (tokens < 4 * 6 + 3 * 6 + 19 + 2 * 19)


async def test_what_is_given_up_is_free_for_others(ask):
    """The cache of paths that are not followed is off the account: it fits into less memory than all of the tree."""
    free = await ask(Beam(n=4, expansion=2), tree(TREE), scorer=Told())
    whole = 16 * (4 + sum(len(t.tokens) for t in free.thoughts))
    tight = await ask(Beam(n=4, expansion=2), tree(TREE), f"{whole - 200} B", scorer=Told())
    assert nodes(tight) == nodes(free)


async def test_beams_nest(ask):
    """Each run of many has a beam of its own."""
    for strategy in (
        BestOfN(n=2, of=Beam(n=4, expansion=2)),
        Vote(n=2, of=Beam(n=4, expansion=2), adaptive=False),
    ):
        outcome = await ask(strategy, tree(TREE), scorer=Told())
        assert len([t for t in outcome.thoughts if t.parent.number == 0]) == 8
        assert outcome.answer.thought.answer == "2"
