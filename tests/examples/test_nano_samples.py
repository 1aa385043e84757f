"""Samples of the family: drawn in order, resumable, judged; and what the reward model is asked and taught."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import draft_path, prm_path, tokenizer_path
from nano import reward, samples
from nano.problem import written_lines
from nano.samples import Asked, Sampled
from nano.tasks import draw, judge
from nano.tokenizer import BAD, GOOD, SPECIAL

HOT = Sampling(temperature=1.0)
ASKED = [
    Asked("word_problem" if i % 2 else "countdown", 3 + i % 2, "validation", i) for i in range(6)
]


@pytest.fixture(scope="module")
def draft() -> Iterator[LocalBackend]:
    with load(draft_path(), tokenizer=tokenizer_path(), memory="64 MB", device="cpu") as backend:
        yield backend


@pytest.fixture(scope="module")
def drawn(draft: LocalBackend) -> list[Sampled]:
    """Three samples of each problem."""
    return list(samples.sample(draft, ASKED, 3, HOT))


def test_samples_come_in_order_and_free_everything(
    draft: LocalBackend, drawn: list[Sampled]
) -> None:
    """One line a problem, as many texts as asked for, and nothing left on the backend."""
    assert [(s.task, s.difficulty, s.index) for s in drawn] == [
        (a.task, a.difficulty, a.index) for a in ASKED
    ]
    for one in drawn:
        assert len(one.texts) == len(one.tokens) == len(one.logprobs) == len(one.ended) == 3
        assert all(n <= samples.LONGEST for n in one.tokens)
        assert all(logprob <= 0 for logprob in one.logprobs)
    assert draft.engine.live == 0


def test_samples_do_not_depend_on_company(draft: LocalBackend, drawn: list[Sampled]) -> None:
    """A problem alone gives the texts that it gave among others."""
    for one, asked in zip(drawn, ASKED, strict=True):
        [alone] = samples.sample(draft, [asked], 3, HOT)
        assert alone.texts == one.texts


def test_a_file_goes_on_where_it_stopped(
    tmp_path: Path, draft: LocalBackend, drawn: list[Sampled]
) -> None:
    """A file with a line cut off in the middle is read without it, and ends as if nothing had happened."""
    path = tmp_path / "samples/S.jsonl"
    path.parent.mkdir()
    lines = [json.dumps(asdict(s)) for s in drawn]
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:30])
    samples.write(path, draft, ASKED, 3, HOT)
    assert samples.read(path) == drawn


def test_judgements_are_the_exact_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[Sampled]
) -> None:
    """Every sample gives one example an epoch, whose verdicts are the judge's; a sample that was cut off ends badly."""
    cut = Sampled(
        "countdown",
        4,
        "train",
        0,
        texts=["1 + 1"] * 3,
        tokens=[3] * 3,
        logprobs=[-1.0] * 3,
        ended=[False] * 3,
    )
    (tmp_path / "S.train.jsonl").write_text(
        "".join(json.dumps(asdict(s)) + "\n" for s in [*drawn, cut])
    )
    monkeypatch.setattr(samples, "SAMPLES", tmp_path)
    stream = samples.judgements("train", "S")
    good, bad = SPECIAL.index(GOOD), SPECIAL.index(BAD)
    taught = sorted(
        [t == good for t in stream(i).targets if t >= 0] for i in range(3 * len(drawn) + 3)
    )
    wanted = [
        [*judge(s.problem, text).steps[:-1], judge(s.problem, text).steps[-1] and ended]
        for s in drawn
        for text, ended in zip(s.texts, s.ended, strict=True)
    ]
    assert taught == sorted([*wanted, [False], [False], [False]])
    assert {t for t in stream(0).targets if t >= 0} <= {good, bad}
    again = sorted(
        [t == good for t in stream(i).targets if t >= 0]
        for i in range(3 * len(drawn) + 3, 6 * len(drawn) + 6)
    )
    assert again == taught
    with pytest.raises(FileNotFoundError, match=r"python -m nano\.samples M"):
        samples.judgements("train")


@pytest.fixture(scope="module")
def prm() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(prm_path(), dtype=torch.float32)


def test_a_score_for_every_line(prm: LlamaForCausalLM, drawn: list[Sampled]) -> None:
    """Scores are probabilities, one a line, the same alone and in a batch; a solution without a line has none."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path())
    asked = [(s.problem.question, text) for s in drawn for text in s.texts] + [("Why?", "")]
    scores = reward.step_scores(prm, tokenizer, asked)
    assert [len(s) for s in scores] == [len(written_lines(text)) for _, text in asked]
    assert scores[-1] == []
    for pair, together in zip(asked, scores, strict=True):
        [alone] = reward.step_scores(prm, tokenizer, [pair])
        assert together == pytest.approx(alone, abs=1e-5)
        assert all(0 <= p <= 1 for p in together)


def test_the_reward_model_tells_right_from_wrong(prm: LlamaForCausalLM) -> None:
    """It prefers the true solutions of held-out problems to the same with one number changed."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path())
    problems = [draw("word_problem", i, split="test", difficulty=2) for i in range(20)]
    right = [(p.question, p.solution) for p in problems]
    wrong = [(p.question, p.solution.rsplit(" ", 1)[0] + f" {int(p.answer) + 7}") for p in problems]
    good, bad = (reward.step_scores(prm, tokenizer, asked) for asked in (right, wrong))
    assert sum(g[-1] > b[-1] for g, b in zip(good, bad, strict=True)) >= 18
