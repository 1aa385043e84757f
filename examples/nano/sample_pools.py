"""
What was sampled, as arrays for measuring, and as files that planning is measured on.

A pool says of every sample what it answered, whether that was right, its length, its mean log-probability and its PRM score; it has no
texts. Answers are equal where a vote takes them for equal, so two expressions of one value are. Knows no model.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from langchain_pareto.planning.calibrate import classes_of
from nano.data import encoder
from nano.paths import POOLS
from nano.problem import answer_of
from nano.samples import ProblemRef, Samples
from nano.tasks import is_right
from nano.tokenizer import prompt_of


@dataclass(frozen=True, slots=True)
class Pool:
    """The samples of one model, as arrays of (problems, samples)."""

    right: npt.NDArray[np.bool_]
    answers: npt.NDArray[np.int64]  # classes of equal answers; -1 for none
    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64]  # mean of a sample's tokens, nats
    scores: npt.NDArray[np.float64] | None  # the PRM's, of the outcome

    def part(self, problems: Sequence[int]) -> "Pool":
        """The pool of some problems."""
        scores = None if self.scores is None else self.scores[problems]
        return Pool(
            self.right[problems],
            self.answers[problems],
            self.tokens[problems],
            self.logprobs[problems],
            scores,
        )


def pool_of(
    samples: Sequence[Samples],
    scores: list[list[float]] | None = None,
    *,
    classes: Mapping[ProblemRef, Mapping[str, int]] | None = None,
) -> Pool:
    """Samples as arrays; one that did not come to an end has no answer and is wrong.

    `classes` are those of `equal_answers`, by default of these samples.
    """
    known = equal_answers([samples]) if classes is None else classes
    right, answers = [], []
    for one in samples:
        problem, of = one.problem, known[one.ref]
        given = _given(one)
        right.append([is_right(problem, answer) for answer in given])
        answers.append([-1 if answer is None else of[answer] for answer in given])
    return Pool(
        np.array(right, bool),
        np.array(answers, np.int64),
        np.array([one.tokens for one in samples], np.int64),
        np.array([one.logprobs for one in samples]),
        None if scores is None else np.array(scores),
    )


def equal_answers(of_models: Iterable[Sequence[Samples]]) -> dict[ProblemRef, dict[str, int]]:
    """The class of each answer to each problem: pools of several models then give equal answers one class."""
    given: dict[ProblemRef, dict[str, None]] = defaultdict(dict)
    for samples in of_models:
        for one in samples:
            given[one.ref] |= dict.fromkeys(a for a in _given(one) if a is not None)
    return {
        ref: dict(zip(answers, classes_of(list(answers)), strict=True))
        for ref, answers in given.items()
    }


def _given(one: Samples) -> list[str | None]:
    written = zip(one.texts, one.ended, strict=True)
    return [answer_of(text) if ended else None for text, ended in written]


def keep(name: str, samples: Sequence[Samples], pool: Pool) -> None:
    """Writes pools/TASK.NAME.jsonl.gz, one line per problem."""
    POOLS.mkdir(exist_ok=True)
    prompts = [len(encoder().encode(prompt_of(one.problem.question)).ids) for one in samples]
    lines: dict[str, list[str]] = defaultdict(list)
    for i, one in enumerate(samples):
        row = {
            "question": f"{one.task}/{one.difficulty}/{one.split}/{one.index}",
            "right": pool.right[i].astype(int).tolist(),
            "answer": pool.answers[i].tolist(),
            "tokens": pool.tokens[i].tolist(),
            "prompt": prompts[i],
            "logprob": [round(x, 3) for x in pool.logprobs[i].tolist()],
        }
        if pool.scores is not None:
            row["score"] = [round(x, 3) for x in pool.scores[i].tolist()]
        lines[one.task].append(json.dumps(row, separators=(",", ":")))
    for task, rows in lines.items():
        data = "".join(f"{row}\n" for row in rows).encode()
        path = POOLS / f"{task}.{name}.jsonl.gz"
        path.write_bytes(gzip.compress(data, 9, mtime=0))  # the same bytes for the same samples
