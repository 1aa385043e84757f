"""How well a draft agrees with its target, and the PRM with the exact judge, on solutions that models wrote."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nano import measures
from nano.bands import by_band
from nano.judgements import verdicts
from nano.misreadings import adds
from nano.paths import trained_or_shipped
from nano.problem import ANSWER, lines_of
from nano.reward import step_scores
from nano.samples import Samples
from nano.tasks import TASKS
from nano.tokenizer import END, prompt_of

SOLUTIONS = 200  # of a task, on which a draft is held against its target: some 15 000 tokens
JUDGED = 500  # problems of a band, the lines of whose first samples the PRM judges
JUDGED_SAMPLES = 4
_FEWEST = 10  # problems with a bad line, for an area to mean something


@torch.inference_mode()
def greedy_agreement(
    small: str, large: str, solutions: list[Samples], tokenizer: PreTrainedTokenizerFast
) -> dict[str, list[float]]:
    """How often the small model's most probable token is the large one's, on the large one's own greedy solutions.

    Per cent of tokens, and its 95 % interval over solutions.
    """
    models = [
        LlamaForCausalLM.from_pretrained(trained_or_shipped(name), dtype=torch.float32)
        for name in (small, large)
    ]
    shares: dict[str, list[float]] = {}
    for task in TASKS:
        counts = []  # (equal, tokens) of each solution
        for one in _some([s for s in solutions if s.task == task], SOLUTIONS):
            prompt = prompt_of(one.problem.question)
            start = len(tokenizer.encode(prompt))
            ids = torch.tensor([tokenizer.encode(prompt + one.texts[0] + END)])
            a, b = (m(input_ids=ids).logits[0, start - 1 : -1].argmax(-1) for m in models)
            counts.append((int((a == b).sum()), len(a)))
        shares[task] = _with_interval(len(counts), partial(_share, np.array(counts)), 1)
    return shares


def _share(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> float:
    """Per cent of all tokens of some solutions that are equal; counts are (solutions, 2)."""
    equal, tokens = counts[rows].sum(0)
    return float(100 * equal / tokens)


@dataclass(frozen=True, slots=True)
class _Judged:
    """The lines of one problem's samples: what the PRM says, what is true, and which of them decide something."""

    scores: npt.NDArray[np.float64]
    good: npt.NDArray[np.bool_]
    early: npt.NDArray[np.bool_]  # no line before is bad
    open: npt.NDArray[np.bool_]  # the problem is not over with the line
    sums: npt.NDArray[np.bool_]  # the line adds what two people have


def step_auc(
    prm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: list[Samples]
) -> dict[str, dict[str, list[float]]]:
    """The area under the ROC curve of the PRM's step scores, good lines against bad ones, for each band.

    With its 95 % interval over problems. Most lines are easy: what follows a bad line is bad, and at the end the number that was made
    is the target or is not. So it is told for all lines, for those up to the first bad one, and for those of them at which something
    is left to do, where the PRM must look ahead, or which add what two people have, where it must look up whose number is whose. A band
    in which hardly a line is bad has none.
    """
    areas: dict[str, dict[str, list[float]]] = {}
    for band, rows in by_band(samples):
        judged = [_judged(prm, tokenizer, one) for one in _some([samples[i] for i in rows], JUDGED)]
        if sum(not j.good.all() for j in judged) < _FEWEST:
            continue
        areas[band] = {
            "all lines": _area(judged, lambda j: np.ones_like(j.good)),
            "up to the first bad line": _area(judged, lambda j: j.early),
            "of these, with something left to do": _area(judged, lambda j: j.early & j.open),
        }
        if sum(not j.good[j.early & j.sums].all() for j in judged) >= _FEWEST:
            areas[band]["sums up to the first bad line"] = _area(judged, lambda j: j.early & j.sums)
    return areas


def _judged(prm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, one: Samples) -> _Judged:
    texts = one.texts[:JUDGED_SAMPLES]
    question = one.problem.question
    scores = step_scores(
        prm, tokenizer, [(question, text, one.ended[k]) for k, text in enumerate(texts)]
    )
    good, early, undecided, sums = [], [], [], []
    for k, text in enumerate(texts):
        told = verdicts(one, k)
        good += told
        early += [all(told[:i]) for i in range(len(told))]
        for line in lines_of(text):
            over = line.startswith(ANSWER) or (one.task == "countdown" and ", left " not in line)
            undecided.append(not over)
            sums.append(adds(line))
    return _Judged(
        np.array([s for steps in scores for s in steps]),
        np.array(good, bool),
        np.array(early, bool),
        np.array(undecided, bool),
        np.array(sums, bool),
    )


def _area(judged: list[_Judged], which: Callable[[_Judged], npt.NDArray[np.bool_]]) -> list[float]:
    scores = [j.scores[which(j)] for j in judged]
    good = [j.good[which(j)] for j in judged]

    def area(rows: npt.NDArray[np.int64]) -> float:
        return measures.auc(
            np.concatenate([scores[i] for i in rows]), np.concatenate([good[i] for i in rows])
        )

    return _with_interval(len(judged), area, 4)


def _with_interval(
    n: int, statistic: Callable[[npt.NDArray[np.int64]], float], digits: int
) -> list[float]:
    low, high = measures.bootstrap(n, statistic, 200)
    return [round(float(x), digits) for x in (statistic(np.arange(n)), low, high)]


def _some(samples: list[Samples], count: int) -> list[Samples]:
    """About `count` of them, evenly spread over the difficulties."""
    return samples[:: max(1, len(samples) // count)]
