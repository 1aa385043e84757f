"""REBASE by hand: how the budget is split over the steps of each level, and that all of it is used."""

import math
from collections import Counter

import pytest
from hypothesis import given, strategies as st
from trees import Told, nodes, tree

from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import BestOfN, Rebase
from langchain_pareto.strategies.rebase import widths

REWARDS = st.lists(
    st.none()
    | st.floats(-1e308, 1e308)
    | st.sampled_from([0.0, -0.0, 0.5, 1.0, math.inf, -math.inf, 1e308, -1e308, 1e-320]),
    max_size=12,
)
TOTALS = st.integers(0, 300)
TEMPERATURES = st.floats(1e-308, 1e308) | st.sampled_from([0.1, 0.2, 1.0, 5e-324])


# --- widths


@pytest.mark.parametrize(
    ("scores", "total", "temperature", "expected"),
    [
        ([], 4, 0.1, []),
        ([0.3], 4, 0.1, [4]),
        ([0.3, 0.9], 0, 0.1, [0, 0]),
        ([0.5] * 16, 4, 0.1, [1] * 4 + [0] * 12),  # rounding each by itself would give nothing
        ([0.5] * 5, 16, 0.1, [4, 3, 3, 3, 3]),  # and 15 here
        ([0.5] * 5, 4, 0.1, [1, 1, 1, 1, 0]),  # and 5 here
        ([0, math.log(3)], 4, 1.0, [1, 3]),
        ([0, 0, 0, math.log(3)], 4, 1.0, [1, 1, 0, 2]),  # exactly 2/3, 2/3, 2/3 and 2
        ([0, math.log(2), math.log(4)], 10, 1.0, [1, 3, 6]),  # 1.43, 2.86, 5.71
        ([0.9, 0.8, 0.1], 8, 0.1, [6, 2, 0]),  # 5.85, 2.15, 0.002
        ([0.9, 0.8, 0.1], 8, 0.2, [5, 3, 0]),  # the code's temperature: 4.93, 2.99, 0.09
        ([None, 0.0, None], 3, 0.1, [0, 3, 0]),
        ([None, None], 3, 0.1, [2, 1]),
        ([-math.inf, -math.inf], 3, 0.1, [2, 1]),
        ([-math.inf, -700.0], 3, 0.1, [0, 3]),
        ([math.inf, 1e308, math.inf], 3, 0.1, [2, 0, 1]),
        ([1e308, -1e308], 3, 1e-308, [3, 0]),
        ([-1000.0, -1000.1], 2, 1.0, [1, 1]),  # as logarithms: no overflow, no underflow
    ],
)
def test_widths_by_hand(scores, total, temperature, expected):
    """Largest remainder of the softmax; ties to the earlier path."""
    assert widths(scores, total, temperature) == expected


@given(REWARDS, TOTALS, TEMPERATURES)
def test_widths_sum_to_the_budget(scores, total, temperature):
    """Never all zero while something is left, none negative, and the same every time."""
    out = widths(scores, total, temperature)
    assert len(out) == len(scores)
    assert sum(out) == (total if scores else 0)
    assert min(out, default=0) >= 0
    assert widths(scores, total, temperature) == out


@given(REWARDS, TOTALS, TEMPERATURES)
def test_a_better_path_gets_no_less(scores, total, temperature):
    """Monotone in the reward; equal rewards differ by one at most, for the earlier."""
    out = widths(scores, total, temperature)
    value = [-math.inf if score is None else score for score in scores]
    for i, a in enumerate(value):
        for j, b in enumerate(value):
            if a > b:
                assert out[i] >= out[j]
            elif a == b and i < j:
                assert 0 <= out[i] - out[j] <= 1


@given(REWARDS, TOTALS, TEMPERATURES)
def test_what_has_no_score_gets_nothing_from_what_has(scores, total, temperature):
    """Nor does a score of -inf."""
    out = widths(scores, total, temperature)
    lost = [score is None or score == -math.inf for score in scores]
    if not all(lost):
        assert all(width == 0 for width, none in zip(out, lost, strict=True) if none)


THOUSANDTHS = st.integers(0, 1000).map(
    lambda n: n / 1000
)  # what is added takes none of their digits


@given(st.lists(THOUSANDTHS, min_size=1, max_size=9), TOTALS, st.floats(0.01, 10))
def test_widths_are_near_the_softmax(scores, total, temperature):
    """Within one of each exact share, and a constant added to all rewards changes nothing."""
    weights = [math.exp((score - max(scores)) / temperature) for score in scores]
    for width, weight in zip(widths(scores, total, temperature), weights, strict=True):
        assert abs(width - total * weight / sum(weights)) < 1 + 1e-9
    moved = widths([score + 64 for score in scores], total, temperature)
    assert (
        sum(abs(a - b) for a, b in zip(moved, widths(scores, total, temperature), strict=True)) <= 2
    )


@given(st.integers(1, 40), st.integers(1, 12))
def test_a_hot_softmax_is_even_and_a_cold_one_greedy(total, n):
    """The two ends of the temperature."""
    scores = [i / n for i in range(n)]
    assert max(widths(scores, total, 1e9)) - min(widths(scores, total, 1e9)) <= 1
    assert widths(scores, total, 1e-9) == [0] * (n - 1) + [total]


# --- the tree


TREE = {
    "": ["a 0\n", "b 0\n", "c 0\n", "d 1.0986\n"],  # ln 3: widths 1, 1, 0, 2
    "a 0\n": ["s 1 so Answer: 1"],
    "b 0\n": ["e 0\n"],
    "d 1.0986\n": ["f 0.6931\n", "g 0\n"],  # ln 2; 3 are left for e, f, g: 0.75, 1.5, 0.75
    "b 0\ne 0\n": ["t 2 so Answer: 2"],
    "d 1.0986\nf 0.6931\n": ["u 0 so Answer: 3", "h 3\n"],
    "d 1.0986\ng 0\n": ["v 1 so Answer: 1"],
}


async def test_the_budget_follows_the_rewards(ask):
    """A level's steps are as many as are left, an answer keeps its unit, and a path of no width is given up."""
    outcome = await ask(Rebase(n=4, score_temperature=1.0), tree(TREE), scorer=Told())
    assert nodes(outcome) == [
        *[(0, step) for step in TREE[""]],
        *[(1, "s 1 so Answer: 1"), (2, "e 0\n"), (4, "f 0.6931\n"), (4, "g 0\n")],
        *[(6, "t 2 so Answer: 2"), (7, "u 0 so Answer: 3"), (8, "v 1 so Answer: 1")],
    ]
    assert outcome.answer.thought.number == 9  # 1 + 1 against 2: the better member breaks the tie
    assert outcome.spent.tokens == sum(len(t.tokens) for t in outcome.thoughts)
    assert outcome.stopped_by == "done"


async def test_what_a_search_gives_is_told_in_a_line_a_thought(ask):
    """Not the whole tree at each of its nodes: on Python 3.11 `asyncio.run` asks for the repr of whatever its task returned."""
    outcome = await ask(Rebase(n=4, score_temperature=1.0), tree(TREE), scorer=Told())
    assert repr(outcome.thoughts[0]) == "Thought(1, 'a 0\\n', finish='step', score=0.0)"
    assert all(len(repr(thought)) < 300 for thought in outcome.thoughts)
    assert len(repr(outcome)) < 300 * len(outcome.thoughts) + 1000


@pytest.mark.parametrize(
    ("choose", "number", "share"), [("best", 9, None), ("majority", 5, 0.5), ("weighted", 9, 0.5)]
)
async def test_an_answer_is_chosen_among_the_leaves(ask, choose, number, share):
    """A tie of weights goes to the class with the best member."""
    strategy = Rebase(n=4, score_temperature=1.0, choose=choose)
    outcome = await ask(strategy, tree(TREE), scorer=Told())
    assert (outcome.answer.thought.number, outcome.answer.share) == (number, share)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
@pytest.mark.parametrize("depth", [1, 2, 4])
async def test_at_the_depth_limit_no_answer_is_lost(ask, n, depth):
    """Each of the `n` paths ends as an answer, whatever the rewards."""

    def answers(text: str, i: int) -> str:
        lines = text.count("\n")
        said = "" if lines < depth else "r 0.5 so Answer: 1"
        return said or f"x 0.{(7 * i) % 10}\ny 0.1\nz 0.2 so Answer: 1"

    outcome = await ask(Rebase(n=n, depth=depth), ScriptedBackend(answers), scorer=Told())
    levels = Counter(len(t.path) for t in outcome.thoughts)
    assert [levels[i] for i in range(1, depth + 2)] == [n] * (depth + 1)
    assert sum(t.finished for t in outcome.thoughts) == n
    assert outcome.answer.share == 1.0


async def test_a_path_that_is_cut_off_gives_its_unit_to_the_others(ask):
    """It is no answer, and the budget of paths is spent on those that can be."""

    def answers(text: str, i: int) -> str:
        if "a" in text:
            return "x" * 50
        return "s 0.5 so Answer: 7" if "c" in text else ["a 0\n", "c 0\n"][i % 2]

    outcome = await ask(Rebase(n=2), ScriptedBackend(answers), scorer=Told(), max_tokens=30)
    assert outcome.answer.thought.answer == "7"
    assert [t.finish for t in outcome.thoughts] == ["step", "step", "length", "eos"]


async def test_max_tokens_are_the_paths(ask):
    """Not a step's: a path that runs on is cut once all of it is too long."""
    outcome = await ask(
        Rebase(n=3, depth=100), ScriptedBackend(["x 0.5\n"]), scorer=Told(), max_tokens=20
    )
    assert max(t.length for t in outcome.thoughts) == 20
    assert not outcome.answer.thought.finished


@pytest.mark.parametrize("tokens", [1, 4, 16, 22, 40, 60, 80, 105])
async def test_a_budget_ends_it_with_the_best_so_far(ask, tokens):
    """Never more is spent; an answer that was found is the answer."""
    outcome = await ask(Rebase(n=4, score_temperature=1.0), tree(TREE), tokens, scorer=Told())
    assert outcome.spent.tokens <= tokens
    found = {t.answer for t in outcome.thoughts if t.answer is not None}
    assert (outcome.answer.thought.answer in found) if found else outcome.answer.thought.text


async def test_without_any_score_the_budget_is_split_evenly(ask):
    """As where there was no room for the scorer."""

    class Silent:
        async def score_in(self, search, thoughts):
            return [None] * len(thoughts)

    backend = ScriptedBackend(lambda text, _: "Answer: 1" if text.count("\n") == 2 else "x\n")
    outcome = await ask(Rebase(n=4), backend, scorer=Silent())
    assert Counter(t.parent.number for t in outcome.thoughts) == {0: 4} | dict.fromkeys(
        range(1, 9), 1
    )
    assert outcome.answer.share == 1.0


async def test_the_sampling_temperature_is_another(ask):
    """`temperature` is of the draws, `score_temperature` of the softmax."""
    backend = tree(TREE)
    await ask(Rebase(n=4, temperature=0.25, score_temperature=1.0), backend, scorer=Told())
    assert {task.asked[0].temperature for task in backend.draws} == {0.25}


async def test_the_best_of_several(ask):
    """Nested, each run has its own budget of paths."""
    strategy = BestOfN(n=2, of=Rebase(n=4, score_temperature=1.0))
    outcome = await ask(strategy, tree(TREE), scorer=Told())
    assert len([t for t in outcome.thoughts if t.parent.number == 0]) == 8
    assert outcome.answer.thought.score == 2.0
