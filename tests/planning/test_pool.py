"""Pools are read as they were written or refused with the reason, and say what k samples are worth."""

import gzip
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from langchain_pareto.errors import SettingError
from langchain_pareto.planning.measures import best_of, pass_at, vote
from langchain_pareto.planning.pool import NO_ANSWER, apart, read_pool

ROWS = [
    {"question": "one", "answer": [0, 1, -1], "tokens": [5, 6, 7], "prompt": 9},
    {"question": 2, "answer": [3, 3, 3], "tokens": [1, 2, 3]},
]
SCORED = [
    row | {"right": [True, False, True], "score": [0.5, 1, 2], "logprob": [-1, -2.5, -3]}
    for row in ROWS
]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path):
    """`write(text)` is the path of a pool with that text."""

    def _write(content, name="task.model.jsonl"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


# --- reading


def test_a_pool_is_what_was_written(write):
    """Ids are texts, a prompt's length is 0 where nobody says it, and what not all rows have is not there."""
    pool = read_pool(write(lines(ROWS)))
    assert (pool.model, pool.questions, pool.samples) == ("task.model", ("one", "2"), 3)
    assert pool.answers.tolist() == [[0, 1, NO_ANSWER], [3, 3, 3]]
    assert pool.tokens.tolist() == [[5, 6, 7], [1, 2, 3]]
    assert pool.prompts.tolist() == [9, 0]
    assert (pool.right, pool.scores, pool.logprobs) == (None, None, None)
    mixed = read_pool(write(lines([SCORED[0], ROWS[1]])))
    assert (mixed.right, mixed.scores, mixed.logprobs) == (None, None, None)


def test_columns_are_read_where_all_rows_have_them(write):
    """Who was right, scores, likelihoods; in a zipped file, too, with blank lines, under another name."""
    zipped = gzip.compress(("\n" + lines(SCORED) + "\n").encode())
    pool = read_pool(write(zipped, "x.jsonl.gz"), model="M")
    assert pool.model == "M"
    assert pool.right.tolist() == [[True, False, True]] * 2
    assert pool.right.dtype == bool
    assert pool.scores.tolist() == [[0.5, 1, 2]] * 2
    assert pool.logprobs.tolist() == [[-1, -2.5, -3]] * 2


def test_a_class_says_who_is_right_where_rows_do_not(write):
    """`right_class` is used for rows that were not judged, and not for those that were."""
    assert read_pool(write(lines(ROWS)), right_class=3).right.tolist() == [[False] * 3, [True] * 3]
    judged = read_pool(write(lines(SCORED)), right_class=3)
    assert judged.right.tolist() == [[True, False, True]] * 2


def test_all_questions_have_as_many_samples_as_the_one_with_fewest(write):
    """Arrays have no gaps."""
    longer = ROWS[1] | {"answer": [3, 4, 5, 6], "tokens": [1, 2, 3, 4]}
    pool = read_pool(write(lines([ROWS[0], longer])))
    assert pool.answers.tolist() == [[0, 1, NO_ANSWER], [3, 4, 5]]
    assert pool.tokens.shape == (2, 3)


def test_the_largest_values_are_read(write):
    """The last class and the longest sample that are not refused, and the least of each."""
    row = {"question": "x", "answer": [10**6 - 1, NO_ANSWER], "tokens": [2**48 - 1, 0]}
    pool = read_pool(write(lines([row])))
    assert pool.answers.tolist() == [[10**6 - 1, NO_ANSWER]]
    assert pool.tokens.tolist() == [[2**48 - 1, 0]]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_a_question_is_read_whole(write, sign):
    """Signs that end a line elsewhere are part of its text, as JSON has them: only a line feed ends a row."""
    row = ROWS[0] | {"question": f"before{sign}after"}
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in (row, ROWS[1]))
    assert read_pool(write(text)).questions == (f"before{sign}after", "2")


GOOD = lines(ROWS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "has no question"),
        ("\n \n", "has no question"),
        (GOOD + "{", "line 3"),
        ("[1]\n", "line 1"),
        ("{}\n", "line 1.*required"),
        (lines([ROWS[0] | {"answer": []}]), "line 1.*at least 1 item"),
        (lines([ROWS[0] | {"answer": ["x", 1, 2]}]), "line 1.*valid integer"),
        (lines([ROWS[0] | {"prompt": -1}]), "line 1.*greater than or equal to 0"),
        (lines([ROWS[0] | {"tokens": [5, -6, 7]}]), "line 1.*greater than or equal to 0"),
        (lines([ROWS[0] | {"tokens": [5, 2**64, 7]}]), "line 1.*less than 281474976710656"),
        (lines([ROWS[0] | {"prompt": 2**64}]), "line 1.*less than 281474976710656"),
        (lines([ROWS[0] | {"answer": [0, 2**64, 1]}]), "line 1.*less than 1000000"),
        (lines([ROWS[0] | {"answer": [0, 10**6, 1]}]), "line 1.*less than 1000000"),
        (lines([ROWS[0] | {"answer": [0, NO_ANSWER - 1, 1]}]), "line 1.*greater than or equal"),
        (lines([SCORED[0], SCORED[1] | {"score": [1, math.nan, 2]}]), "line 2.*finite number"),
        (lines([SCORED[0] | {"score": [1, math.inf, 2]}]), "line 1.*finite number"),
        (lines([SCORED[0] | {"logprob": [-1, math.nan, -2]}]), "line 1.*finite number"),
        (lines([*ROWS, ROWS[0]]), "the question 'one' more than once"),
        (lines([*ROWS, ROWS[0] | {"question": "2"}]), "the question '2' more than once"),
        (GOOD + "[" * 100_000 + "]" * 100_000, "line 3.*recursion"),
        (GOOD + '{"question":' * 100_000 + "0" + "}" * 100_000, "line 3.*recursion"),
        (lines([ROWS[0], ROWS[1] | {"tokens": [1, 2]}]), "line 2.*different lengths"),
        (lines([ROWS[0] | {"score": [1]}]), "line 1.*different lengths"),
        (lines([ROWS[0] | {"right": [True]}]), "line 1.*different lengths"),
        (lines([ROWS[0] | {"logprob": [1.0] * 4}]), "line 1.*different lengths"),
        (GOOD.encode() + b"\xff\xfe\n", "utf-8"),
    ],
)
def test_what_is_no_pool_is_refused_with_the_reason(write, content, reason):
    """The line and what is wrong with it, or that there is nothing."""
    with pytest.raises(SettingError, match=reason) as caught:
        read_pool(write(content))
    assert "task.model.jsonl" in str(caught.value)


@pytest.mark.parametrize("cut", [1, 12, -1, -9])
def test_a_zipped_pool_that_was_cut_off_is_refused(write, cut):
    """Wherever it ends too early; and so is one that is no zip, or damaged in the middle."""
    whole = gzip.compress(GOOD.encode() * 50)
    with pytest.raises(SettingError, match="cannot read the pool"):
        read_pool(write(whole[:cut], "x.jsonl.gz"))
    with pytest.raises(SettingError, match="cannot read the pool"):
        read_pool(write(GOOD, "y.jsonl.gz"))
    damaged = bytearray(whole)
    damaged[20:40] = b"\xff" * 20
    with pytest.raises(SettingError, match="cannot read the pool"):
        read_pool(write(bytes(damaged), "z.jsonl.gz"))


def test_a_pool_that_is_not_there_is_refused(tmp_path):
    """A missing file, and a folder."""
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(SettingError, match="cannot read the pool"):
            read_pool(path)


# --- parts


def test_parts_keep_all_columns(write):
    """Some questions in any order, or the first samples of each."""
    pool = read_pool(write(lines(SCORED)))
    turned = pool.part([1, 0, 1])
    assert turned.questions == ("2", "one", "2")
    assert turned.prompts.tolist() == [0, 9, 0]
    first = pool.first(2)
    assert (first.samples, first.questions) == (2, pool.questions)
    for name in ("answers", "tokens", "right", "scores", "logprobs"):
        column = getattr(pool, name)
        assert getattr(turned, name).tolist() == column[[1, 0, 1]].tolist()
        assert getattr(first, name).tolist() == column[:, :2].tolist()
    bare = read_pool(write(lines(ROWS))).part([0]).first(1)
    assert (bare.right, bare.scores, bare.logprobs) == (None, None, None)


def test_pools_apart_share_one_class(write):
    """What else two models say is different; who says nothing still says nothing."""
    pool = read_pool(write(lines(ROWS)))
    one, other = apart({"a": pool, "b": pool}, shared=0).values()
    shared = np.isin(one.answers, other.answers)
    assert shared.tolist() == [[True, False, True], [False] * 3]
    for changed in (one, other):
        assert (changed.answers < 0).tolist() == (pool.answers < 0).tolist()
        same = pool.answers[:, :, None] == pool.answers[:, None, :]
        assert (
            changed.answers[:, :, None] == changed.answers[:, None, :]
        ).tolist() == same.tolist()


# --- what k samples are worth


def all_subsets(n, k, value) -> float:
    """The mean of `value` over all subsets of k of n."""
    found = [value(subset) for subset in itertools.combinations(range(n), k)]
    return math.fsum(found) / len(found)


RIGHT = st.lists(st.booleans(), min_size=1, max_size=7)


@given(RIGHT, st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(right, data):
    """Exactly: the chance that one of k is right."""
    k = data.draw(st.integers(1, len(right)))
    wanted = all_subsets(len(right), k, lambda subset: any(right[i] for i in subset))
    assert pass_at(np.array([right]), k).tolist() == pytest.approx([wanted])


@given(RIGHT, st.data())
def test_best_of_k_is_the_mean_over_all_subsets(right, data):
    """Exactly: the chance that the best scored of k is right, ties to the first."""
    n = len(right)
    k = data.draw(st.integers(1, n))
    scores = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n))
    wanted = all_subsets(n, k, lambda subset: right[max(subset, key=lambda i: (scores[i], -i))])
    assert best_of(np.array([right]), np.array([scores]), k).tolist() == pytest.approx([wanted])


def test_known_figures():
    """Two of four right: pass@2 is 5/6, best of 2 with the right ones on top too, one sample 1/2."""
    right = np.array([[True, True, False, False]])
    scores = np.array([[0.9, 0.8, 0.2, 0.1]])
    assert pass_at(right, 1)[0] == pytest.approx(1 / 2)
    assert pass_at(right, 2)[0] == pytest.approx(5 / 6)
    assert pass_at(right, 3)[0] == 1
    assert best_of(right, scores, 2)[0] == pytest.approx(5 / 6)
    assert best_of(right, -scores, 2)[0] == pytest.approx(1 / 6)
    assert best_of(right, scores, 4)[0] == 1


def test_a_vote_of_all_is_the_majority():
    """Of all samples there is one subset: the majority is right or wrong, who says nothing has no vote, weights count."""
    answers = np.array([[0, 0, 1, -1], [1, 1, 0, 1], [-1, -1, -1, 0], [-1] * 4])
    right = answers == 0
    assert vote(right, answers, 4).tolist() == [1, 0, 1, 0]
    weights = np.array([[1, 1, 3, 9.0], [1, 1, 9, 1], [1] * 4, [1] * 4])
    assert vote(right, answers, 4, weights=weights).tolist() == [0, 1, 1, 0]


def test_a_vote_of_some_is_the_mean_over_random_subsets():
    """maj@1 and maj@3 of one question among many, against all subsets in all orders, within five standard errors."""
    answers = np.array([0, 0, 0, 1, 1, 2])

    def wins(order):
        counts = [list(order).count(c) for c in order]
        return answers[0] == order[counts.index(max(counts))]

    for k in (1, 3):
        orders = list(itertools.permutations(answers.tolist(), k))
        wanted = sum(map(wins, orders)) / len(orders)
        found = [
            vote(np.array([answers == 0]), np.array([answers]), k, seed=seed)[0]
            for seed in range(20)
        ]
        assert abs(np.mean(found) - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / (20 * 100))
    assert vote(np.array([answers == 0]), np.array([answers]), 3, seed=1) == vote(
        np.array([answers == 0]), np.array([answers]), 3, seed=1
    )
