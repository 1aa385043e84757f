"""What k samples are worth, against counting every subset."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from nano import measures

QUESTION = st.lists(
    st.tuples(st.integers(-1, 2), st.integers(0, 3)), min_size=5, max_size=5
)  # an answer (0 is right) and a score, a sample


def arrays(samples: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    answers = np.array([[a for a, _ in samples]])
    return answers == 0, answers, np.array([[s for _, s in samples]], float)


@given(samples=QUESTION, k=st.integers(1, 5))
def test_pass_at_k_counts_the_subsets_with_a_right_one(samples, k) -> None:
    """The unbiased estimator is the share of k-subsets that hold a right sample."""
    right, _, _ = arrays(samples)
    shares = [any(right[0, list(s)]) for s in combinations(range(5), k)]
    assert measures.pass_at(right, k)[0] == pytest.approx(np.mean(shares))


@given(samples=QUESTION, k=st.integers(1, 5))
def test_best_of_k_counts_the_subsets_whose_best_is_right(samples, k) -> None:
    """The closed form is the share of k-subsets whose highest score, earliest first, is a right sample."""
    right, _, scores = arrays(samples)
    best = [min(s, key=lambda i: (-scores[0, i], i)) for s in combinations(range(5), k)]
    assert measures.best_of(right, scores, k)[0] == pytest.approx(np.mean(right[0, best]))


@settings(max_examples=30)
@given(samples=QUESTION)
def test_a_vote_of_all_goes_to_the_heaviest_class(samples) -> None:
    """Over all samples the winner is the class of most weight; ties go to any order, none to samples without an answer."""
    right, answers, scores = arrays(samples)
    for weights in (None, scores):
        given_weights = np.ones(5) if weights is None else scores[0]
        support = {
            a: given_weights[answers[0] == a].sum() for a in set(answers[0].tolist()) if a >= 0
        }
        most = max(support.values(), default=0)
        winners = {a for a, s in support.items() if s == most and s > 0}
        share = measures.vote(right, answers, 5, weights=weights)[0]
        if len(winners) <= 1:
            assert share == pytest.approx(float(winners == {0}))
        else:
            assert (share > 0) == (0 in winners)
            assert share < 1  # in some order another class comes first


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_vote_of_few_is_that_of_every_subset(k: int, weighted: bool) -> None:
    """maj@k is the mean over all subsets in all orders, within what 100 random ones tell, and the same every time."""
    rng = np.random.default_rng(0)
    answers = rng.integers(-1, 3, (300, 5))
    right, weights = answers == 0, rng.random((300, 5)) if weighted else None
    orders = [list(order) for order in permutations(range(5), k)]
    every = np.mean(
        [
            first_of_most(answers[q, order], None if weights is None else weights[q, order]) == 0
            for order in orders
            for q in range(300)
        ]
    )
    share = measures.vote(right, answers, k, weights=weights)
    assert share.mean() == pytest.approx(every, abs=0.02)
    assert (share == measures.vote(right, answers, k, weights=weights)).all()


def first_of_most(answers: np.ndarray, weights: np.ndarray | None) -> int:
    """The class of most votes, the first of equals; -1 where nobody votes."""
    support: dict[int, float] = {}
    for i, answer in enumerate(answers.tolist()):
        if answer >= 0:
            support[answer] = support.get(answer, 0) + (1 if weights is None else weights[i])
    return max(support, key=lambda a: support[a], default=-1)


def test_the_interval_holds_the_mean() -> None:
    """Of 200 samples of a coin, about 95 % of intervals hold one half."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = measures.interval(rng.integers(0, 2, 100).astype(float))
        inside += low <= 0.5 <= high
    assert 180 <= inside <= 199


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=12))
def test_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    """The area is the share of (good, bad) pairs in the right order, ties half."""
    good = [s for s, label in pairs if label]
    bad = [s for s, label in pairs if not label]
    assume(good and bad)
    expected = np.mean([(g > b) + (g == b) / 2 for g in good for b in bad])
    scores, labels = zip(*pairs, strict=True)
    assert measures.auc(np.array(scores, float), np.array(labels)) == pytest.approx(expected)
