"""Samples of the family: drawn in order, resumable, judged; what the reward model is asked and taught; and what is reported."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import draft_path, prm_path, tokenizer_path
from nano import growing, judgements, measures, reward, samples
from nano.problem import written_lines
from nano.samples import ProblemRef, Samples
from nano.tasks import TASKS, Task, draw
from nano.tokenizer import BAD, GOOD, SPECIAL

HOT = Sampling(temperature=1.0)
PROBLEMS = [
    ProblemRef("word_problem" if i % 2 else "countdown", 3 + i % 2, "validation", i)
    for i in range(6)
]


@pytest.fixture(scope="module")
def draft() -> Iterator[LocalBackend]:
    with load(draft_path(), tokenizer=tokenizer_path(), memory="64 MB", device="cpu") as backend:
        yield backend


@pytest.fixture(scope="module")
def drawn(draft: LocalBackend) -> list[Samples]:
    """Three samples of each problem."""
    return list(samples.sample(draft, PROBLEMS, 3, HOT))


def test_samples_come_in_order_and_free_everything(
    draft: LocalBackend, drawn: list[Samples]
) -> None:
    """One row per problem, as many texts as asked for, and nothing left on the backend."""
    assert [(s.task, s.difficulty, s.index) for s in drawn] == [
        (p.task, p.difficulty, p.index) for p in PROBLEMS
    ]
    for one in drawn:
        assert len(one.texts) == len(one.tokens) == len(one.logprobs) == len(one.ended) == 3
        assert all(n <= samples.LONGEST for n in one.tokens)
        assert all(logprob <= 0 for logprob in one.logprobs)
    assert draft.engine.live == 0


def test_samples_do_not_depend_on_company(
    draft: LocalBackend, drawn: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A problem alone, or with one other at a time, gives the texts that it gave among all."""
    monkeypatch.setattr(samples, "AT_ONCE", 6)
    assert list(samples.sample(draft, PROBLEMS, 3, HOT)) == drawn
    for one, problem in zip(drawn, PROBLEMS, strict=True):
        [alone] = samples.sample(draft, [problem], 3, HOT)
        assert alone.texts == one.texts


def test_a_file_resumes_where_it_stopped(
    tmp_path: Path, draft: LocalBackend, drawn: list[Samples]
) -> None:
    """A file with a line cut off in the middle is read without it, and ends as if nothing had happened."""
    path = tmp_path / "samples/S.jsonl"
    samples.write(path, draft_path(), draft, PROBLEMS, 3, HOT)
    whole = path.read_bytes()
    assert samples.read_all(path, PROBLEMS) == drawn
    cut = whole[: whole.rindex(b"\n", 0, -1) + 30]
    path.write_bytes(cut)
    with pytest.raises(ValueError, match="samples of 5 problems, not of the 6"):
        samples.read_all(path, PROBLEMS)
    samples.write(path, draft_path(), draft, PROBLEMS, 3, HOT)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("problems", "n", "sampling"),
    [(PROBLEMS[1:], 3, HOT), (PROBLEMS, 2, HOT), (PROBLEMS, 3, Sampling(temperature=0.5))],
)
def test_a_file_of_something_else_is_not_continued(
    problems: list[ProblemRef], n: int, sampling: Sampling, tmp_path: Path, draft: LocalBackend
) -> None:
    """Samples of other problems, of another number or by other settings never stand in one file."""
    path = tmp_path / "S.jsonl"
    samples.write(path, draft_path(), draft, PROBLEMS, 3, HOT)
    with pytest.raises(ValueError, match="delete it to begin again"):
        samples.write(path, draft_path(), draft, problems, n, sampling)


def written(text: str, *, ended: bool) -> Samples:
    return Samples(
        "countdown",
        4,
        "train",
        0,
        texts=[text] * 3,
        tokens=[3] * 3,
        logprobs=[-1.0] * 3,
        ended=[ended] * 3,
    )


def test_judgements_are_the_exact_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample gives one example an epoch, whose verdicts are the judge's; the last line of one that was cut off is bad."""
    problem = draw("countdown", 0, difficulty=4)
    rows = [
        written(problem.solution, ended=True),
        written("\n".join([*problem.steps[:2], "Answer: 1"]), ended=True),
        written("\n".join(problem.steps[:2]), ended=False),
    ]
    path = tmp_path / "S.train.jsonl"
    growing.resume(path, {})
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    monkeypatch.setattr(samples, "SAMPLES", tmp_path)
    stream = judgements.judgements("train", "S")
    good, bad = SPECIAL.index(GOOD), SPECIAL.index(BAD)

    def taught(epoch: int) -> list[list[bool]]:
        examples = [stream(9 * epoch + i) for i in range(9)]
        assert {t for e in examples for t in e.targets if t >= 0} == {good, bad}
        return sorted([t == good for t in e.targets if t >= 0] for e in examples)

    wanted = [[True, False], [True, True, False], [True] * 4]
    assert taught(0) == taught(1) == sorted(3 * wanted)
    with pytest.raises(FileNotFoundError, match=r"python -m nano\.samples M .* --of words"):
        judgements.judgements("train", of="words")


@pytest.mark.parametrize("of", samples.PLANS)
def test_each_kind_has_problems_of_its_own(of: samples.Kind) -> None:
    """Their numbers are their own, so that no plan's problems change with another's; a longer plan begins as a shorter one does."""
    drawn = samples.PLANS[of].drawn
    assert drawn("train", 40)[:20] == drawn("train", 20)
    first = samples.FIRST if of == "both" else samples.APART
    assert [ref.index for ref in drawn("train", 20)] == list(range(first, first + 20))
    tasks = {ref.task for ref in drawn("validation", 20)}
    assert (
        tasks
        == {
            "both": {"word_problem", "countdown"},
            "words": {"word_problem"},
            "puzzles": {"countdown"},
        }[of]
    )
    others = {samples.path_of("M", "train", kind) for kind in samples.PLANS}
    assert len(others) == len(samples.PLANS)


@pytest.fixture(scope="module")
def prm() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(prm_path(), dtype=torch.float32)


def test_a_score_for_every_line(prm: LlamaForCausalLM, drawn: list[Samples]) -> None:
    """Scores are probabilities, one a line, the same alone and in a batch; a solution without a line has none."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path())
    solutions = [
        (s.problem.question, text, ended)
        for s in drawn
        for text, ended in zip(s.texts, s.ended, strict=True)
    ]
    solutions.append(("Why?", "", True))
    scores = reward.step_scores(prm, tokenizer, solutions)
    assert [len(s) for s in scores] == [len(written_lines(text)) for _, text, _ in solutions]
    assert scores[-1] == []
    assert reward.step_scores(prm, tokenizer, []) == []
    for solution, together in zip(solutions, scores, strict=True):
        [alone] = reward.step_scores(prm, tokenizer, [solution])
        assert together == pytest.approx(alone, abs=1e-5)
        assert all(0 <= p <= 1 for p in together)


@pytest.mark.parametrize("task", TASKS)
def test_the_reward_model_ranks_right_samples_above_wrong_ones(
    prm: LlamaForCausalLM, draft: LocalBackend, task: Task
) -> None:
    """Of two samples of the draft on held-out problems, one right and one wrong, it mostly prefers the right one."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path())
    level = {"word_problem": 6, "countdown": 3}[task]  # where the draft is often wrong, too
    problems = [ProblemRef(task, level, "test", i) for i in range(50)]
    scores, right = list[float](), list[bool]()
    for one in samples.sample(draft, problems, 4, HOT):
        written = zip(one.texts, one.ended, strict=True)
        steps = reward.step_scores(
            prm, tokenizer, [(one.problem.question, text, end) for text, end in written]
        )
        scores += [given[-1] if given else 0.0 for given in steps]
        right += [judgements.verdicts(one, k)[-1:] == [True] for k in range(4)]
    assert measures.auc(np.array(scores), np.array(right)) > 0.75
