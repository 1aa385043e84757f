"""The report of the family: which problems, what the samples say, and what is published of them."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from langchain_pareto.backends.nano import policy_path
from nano import bands, cards, comparisons, figure, growing, report, sample_pools, samples
from nano.paths import POOLS, TOKENIZER
from nano.sample_pools import Pool
from nano.samples import ProblemRef, Samples
from nano.tasks import draw
from nano.tokenizer import prompt_of

BAND = "Countdown, 4 numbers"
PUZZLE = draw("countdown", 0, split="test", difficulty=3)


def sampled(*texts: str, ended: list[bool] | None = None) -> Samples:
    n = len(texts)
    return Samples("countdown", 3, "test", 0, list(texts), [7] * n, [-0.5] * n, ended or [True] * n)


def pool(right: list[list[int]]) -> Pool:
    """What was right (problems, samples); every right answer is of class 0, every wrong one of a class of its own."""
    is_right = np.array(right, bool)
    classes = np.where(is_right, 0, np.arange(1, is_right.shape[1] + 1))
    ones = np.ones(is_right.shape)
    return Pool(is_right, classes, ones.astype(int), -ones, np.where(is_right, 0.9, 0.2))


def test_a_band_has_different_problems_of_all_its_levels() -> None:
    """Equally many of each difficulty, none twice, none of another band."""
    found = [bands.problems_of(band, each=30) for band in bands.BANDS]
    levels = [p.difficulty for p in found[0]]
    assert [levels.count(level) for level in (1, 2, 3)] == [10, 10, 10]
    every = [p for problems in found for p in problems]
    assert len({p.problem.question for p in every}) == len(every) == 150
    assert [len(rows) for _, rows in bands.by_band(every)] == [30] * 5


@pytest.mark.parametrize("name", ["S", "M", "L"])
def test_the_pools_have_what_the_report_is_about_and_maybe_more(name: str) -> None:
    """In the files that are kept, of the same problems for all models."""
    pooled, reported = bands.pooled_problems(name), bands.all_problems(name)
    assert set(pooled) >= set(reported)
    assert set(pooled) <= set(bands.all_problems("M"))
    for task in ("word_problem", "countdown"):
        rows = gzip.decompress((POOLS / f"{task}.{name}.jsonl.gz").read_bytes()).splitlines()
        questions = [json.loads(row)["question"] for row in rows]
        asked = [f"{p.task}/{p.difficulty}/{p.split}/{p.index}" for p in pooled if p.task == task]
        assert questions == asked


def test_a_pool_says_what_was_answered() -> None:
    """Equal answers are of one class; a sample that was cut off has none, and is wrong whatever it says."""
    answer = f"Answer: {PUZZLE.answer}"
    found = sample_pools.pool_of(
        [
            sampled(
                answer, "Answer: 1", answer, "none", answer, ended=[True, True, True, True, False]
            )
        ]
    )
    assert found.right.tolist() == [[True, False, True, False, False]]
    assert found.answers.tolist() == [[0, 1, 0, -1, -1]]


def test_pools_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file a task, one line a problem, and the same bytes every time."""
    monkeypatch.setattr(sample_pools, "POOLS", tmp_path / "pools")
    samples = [sampled("Answer: 1", f"Answer: {PUZZLE.answer}")]
    path = tmp_path / "pools/countdown.M.jsonl.gz"
    tokens, kept = TOKENIZER / "tokenizer.json", []
    for _ in range(2):
        sample_pools.keep("M", samples, sample_pools.pool_of(samples, [[0.25, 0.75]]))
        kept.append(path.read_bytes())
    assert kept[0] == kept[1]
    assert json.loads(gzip.decompress(kept[0])) == {
        "question": "countdown/3/test/0",
        "right": [0, 1],
        "answer": [0, 1],
        "tokens": [7, 7],
        "prompt": len(Tokenizer.from_file(str(tokens)).encode(prompt_of(PUZZLE.question)).ids),
        "logprob": [-0.5, -0.5],
        "score": [0.25, 0.75],
    }


def test_pools_of_several_models_share_their_classes() -> None:
    """What two models answer alike is of one class in the pools of both."""
    one, other = [sampled("Answer: 1", "Answer: 2")], [sampled("Answer: 3", "Answer: 2")]
    classes = sample_pools.equal_answers([one, other])
    first = sample_pools.pool_of(one, classes=classes).answers[0].tolist()
    second = sample_pools.pool_of(other, classes=classes).answers[0].tolist()
    assert first[1] == second[1]
    assert len({*first, *second}) == 3


def test_answers_are_equal_in_a_pool_where_they_are_in_a_vote() -> None:
    """Two expressions of one value are one answer, though a checker may find one of them right and the other wrong."""
    given = ["( 3 + 4 ) * 2", "2 * ( 4 + 3 )", "14", "( 3 + 4 ) * 3"]
    found = sample_pools.pool_of([sampled(*(f"Answer: {answer}" for answer in given))])
    assert found.answers.tolist() == [[0, 0, 0, 1]]


def test_gains_are_shares_of_the_gap() -> None:
    """Scores that always know the right sample close the whole gap from greedy to pass@16."""
    right = [[0] * 15 + [1] * 17] * 10 + [
        [0] * 32
    ] * 10  # any 16 of the first ones hold a right one
    found = comparisons.gains(pool([[0]] * 20), pool(right))
    assert found["best of 16: gap closed"] == [100, 100, 100]
    assert found["best of 16 over greedy"][0] == 50
    half = comparisons.gains(pool([[1]] * 5 + [[0]] * 15), pool(right))
    assert half["best of 16 over greedy"][0] == 25


def test_models_are_compared_on_the_same_problems() -> None:
    """The larger one's mean sample less the smaller one's, with an interval around it."""
    found = comparisons.larger_over_smaller(
        {"S": pool([[0, 1]] * 8), "M": pool([[1, 1]] * 8), "L": pool([[1, 1]] * 8)}
    )
    assert found == {"M over S": [50, 50, 50], "L over M": [0, 0, 0]}


@pytest.fixture
def results() -> dict[str, Any]:
    """A report of two models on one band."""
    found = pool([[0] * 16 + [1] * 16] * 20)
    greedy = pool([[1]] * 15 + [[0]] * 5)
    figures = report.figures(greedy, found) | comparisons.gains(greedy, found)
    model = {"sampling": {"temperature": 0.8, "top_p": 1.0}, "bands": {BAND: figures}}
    return {
        "problems": {"S": {BAND: 20}, "M": {BAND: 20}},
        "models": {"S": model, "M": model},
        "step AUC": {
            BAND: {"all lines": [0.9, 0.8, 1.0]},
            "word problems": {"all lines": [0.7, 0.6, 0.8], "sums": [0.5, 0.4, 0.6]},
        },
    }


def test_curves_are_drawn(tmp_path: Path, results: dict[str, Any]) -> None:
    """One picture, in the format that its name says."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    figure.draw_curves(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]
) -> None:
    """Table and cards say what was measured, and how a model is made."""
    figures = results["models"]["S"]["bands"][BAND]
    assert figures["greedy"][0] == 75
    assert figures["pass@32"] == [100, 83.9, 100]  # Wilson's interval of 20 of 20
    figure.write_table(results, tmp_path / "report.md")
    assert f"| S | {BAND} | 75 (" in (tmp_path / "report.md").read_text()
    monkeypatch.setattr(cards, "WORK", tmp_path)
    monkeypatch.setattr(cards, "SHIPPED", {"M": policy_path(), "PRM": policy_path()})
    for name in ("M", "PRM"):
        (tmp_path / f"{name}.jsonl").write_text('{"tokens": 2000000, "held_out": 0.5}\n')
        text = cards.card(name, results)
        assert "2 million" in text
        assert f"python -m nano.train {name}" in text
        assert "75.0" in text
    assert "| 0.900 (0.800-1.000) | - |" in text
    assert "| 0.700 (0.600-0.800) | 0.500 (0.400-0.600) |" in text
    assert "after those of PRM-puzzles and M" in text


def test_unfinished_samples_are_refused(tmp_path: Path) -> None:
    """A file that lacks problems is not measured."""
    path = tmp_path / "M.test.jsonl"
    growing.resume(path, {})
    with pytest.raises(ValueError, match="samples of 0 problems, not of the 1"):
        samples.read_all(path, [ProblemRef("countdown", 3, "test", 0)])
