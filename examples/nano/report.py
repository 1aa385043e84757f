"""
What the family can do on held-out problems: `make nano-report`.

    cd examples
    python -m nano.report sample S     # 32 samples and a greedy one of every problem; goes on where it was stopped
    python -m nano.report sample M     # the models may be sampled side by side
    python -m nano.report sample L
    python -m nano.report              # scores them with the PRM, then writes the report

Writes nano/report/report.json and report.md, the curves as nano/report/curves.png, and nano/pools: what every sample answered,
whether it was right, its length, its mean log-probability and its PRM score.
"""

import argparse
import gzip
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.loading import load
from nano import measures
from nano.models import found
from nano.problem import answer_of
from nano.reward import step_scores
from nano.samples import SAMPLES, Asked, Sampled, cut, read, whole_lines, write
from nano.tasks import TASKS, Task, is_right, judge, numbers
from nano.tokenizer import FOLDER

HERE = Path(__file__).parent
REPORT = HERE / "report"
MODELS = ("S", "M", "L")
BANDS: dict[str, tuple[Task, tuple[int, ...]]] = {
    "word problems, 1-3 facts": ("word_problem", (1, 2, 3)),
    "word problems, 4-6 facts": ("word_problem", (4, 5, 6)),
    "word problems, 7-8 facts": ("word_problem", (7, 8)),
    "Countdown, 3 numbers": ("countdown", (3,)),
    "Countdown, 4 numbers": ("countdown", (4,)),
}
EACH = 1000  # problems of a band
SAMPLES_EACH = 32
SIZES = (1, 2, 4, 8, 16, 32)
GREEDY = Sampling(temperature=0.0)
# Tried on validation problems: the mean of maj@16 of word problems of 4-6 facts and pass@16 of Countdown with 4 numbers decides.
GRID = [Sampling(temperature=t, top_p=p) for t in (0.6, 0.8, 1.0) for p in (1.0, 0.95)]
CHOICE_BANDS, CHOICE_EACH, CHOICE_SAMPLES = (
    ("word problems, 4-6 facts", "Countdown, 4 numbers"),
    100,
    16,
)


@dataclass(frozen=True, slots=True)
class Pool:
    """The samples of one model on one band, as arrays of (problems, samples)."""

    right: np.ndarray  # bool
    answers: np.ndarray  # classes; -1 for none
    tokens: np.ndarray
    logprobs: np.ndarray
    scores: np.ndarray | None  # the PRM's, of the outcome


def asked(band: str, split: str = "test", each: int = EACH) -> list[Asked]:
    """The problems of a band, as many of each difficulty as fit."""
    task, levels = BANDS[band]
    shares = [each // len(levels) + (i < each % len(levels)) for i in range(len(levels))]
    return [
        Asked(task, level, split, i)
        for level, share in zip(levels, shares, strict=True)
        for i in numbers(task, share, split=split, difficulty=level)
    ]


def everything() -> list[Asked]:
    """All problems of the report."""
    return [one for band in BANDS for one in asked(band)]


def sample(name: str, folder: Path) -> None:
    """Chooses how to sample, then samples."""
    with load(folder, tokenizer=FOLDER) as backend:
        for i, sampling in enumerate(GRID):
            path = SAMPLES / f"{name}.choice{i}.jsonl"
            tried = [a for band in CHOICE_BANDS for a in asked(band, "validation", CHOICE_EACH)]
            write(path, backend, tried, CHOICE_SAMPLES, sampling)
        best = chosen(name)
        print(f"{name}: temperature {best.temperature}, top-p {best.top_p}")
        write(SAMPLES / f"{name}.greedy.jsonl", backend, everything(), 1, GREEDY)
        write(SAMPLES / f"{name}.test.jsonl", backend, everything(), SAMPLES_EACH, best)


def chosen(name: str) -> Sampling:
    """The setting of the grid that did best on validation problems."""
    return max(zip(GRID, choices(name), strict=True), key=lambda pair: pair[1])[0]


def choices(name: str) -> list[float]:
    """What every setting of the grid reached."""
    reached = []
    for i in range(len(GRID)):
        samples = read(SAMPLES / f"{name}.choice{i}.jsonl")
        words = pool_of([s for s in samples if s.task == "word_problem"])
        puzzles = pool_of([s for s in samples if s.task == "countdown"])
        votes = measures.vote(words.right, words.answers, CHOICE_SAMPLES).mean()
        found = measures.pass_at(puzzles.right, CHOICE_SAMPLES).mean()
        reached.append(float(votes + found) / 2)
    return reached


def pool_of(samples: list[Sampled], scores: list[list[float]] | None = None) -> Pool:
    """Samples as arrays: one row a problem."""
    right, answers = [], []
    for one in samples:
        problem = one.problem
        given = [
            answer_of(text) if end else None for text, end in zip(one.texts, one.ended, strict=True)
        ]
        classes = {a: i for i, a in enumerate(dict.fromkeys(a for a in given if a is not None))}
        right.append([is_right(problem, answer) for answer in given])
        answers.append([-1 if answer is None else classes[answer] for answer in given])
    return Pool(
        np.array(right, bool),
        np.array(answers, np.int64),
        np.array([one.tokens for one in samples], np.int64),
        np.array([one.logprobs for one in samples]),
        None if scores is None else np.array(scores),
    )


def scored(
    name: str, prm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[list[float]]:
    """The PRM's score of every outcome, kept in a file; goes on where it was stopped."""
    path = SAMPLES / f"{name}.scores.jsonl"
    cut(path)
    lines = whole_lines(path)
    with path.open("a") as file:
        for one in read(SAMPLES / f"{name}.test.jsonl")[len(lines) :]:
            question = one.problem.question
            steps = step_scores(prm, tokenizer, [(question, text) for text in one.texts])
            lines.append(json.dumps([round(s[-1], 4) if s else 0.0 for s in steps]))
            file.write(lines[-1] + "\n")
    return [json.loads(line) for line in lines]


def figures(greedy: Pool, pool: Pool) -> dict[str, object]:
    """Everything the report says of one model on one band; each figure with its 95 % interval, in per cent."""
    told: dict[str, object] = {
        "greedy": percent(greedy.right[:, 0].astype(float)),
        "mean sample": percent(pool.right.mean(1)),
        "tokens a sample": round(float(pool.tokens.mean()), 1),
    }
    for k in SIZES:
        told[f"pass@{k}"] = percent(measures.pass_at(pool.right, k))
        told[f"maj@{k}"] = percent(measures.vote(pool.right, pool.answers, k))
        if pool.scores is not None:
            told[f"best of {k}"] = percent(measures.best_of(pool.right, pool.scores, k))
            voted = measures.vote(pool.right, pool.answers, k, weights=pool.scores)
            told[f"weighted vote of {k}"] = percent(voted)
    return told


def percent(values: np.ndarray) -> list[float]:
    """Mean, and the ends of its interval, in per cent."""
    return [round(100 * x, 1) for x in (float(values.mean()), *measures.interval(values))]


def paired(first: np.ndarray, second: np.ndarray) -> list[float]:
    """The mean difference over the same problems, and the ends of its interval, in points."""
    return percent(first - second)


@torch.inference_mode()
def agreement(
    small: str, large: str, tokenizer: PreTrainedTokenizerFast, each: int = 200
) -> dict[str, float]:
    """How often the small model's most probable token is the large one's, on the large one's own greedy solutions, in per cent."""
    models = [
        LlamaForCausalLM.from_pretrained(found(m), dtype=torch.float32) for m in (small, large)
    ]
    same: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    taken: dict[str, int] = defaultdict(int)
    for one in read(SAMPLES / f"{large}.greedy.jsonl"):
        taken[one.task] += 1
        if taken[one.task] % (5 * EACH // 2 // each):
            continue
        messages = [{"role": "user", "content": one.problem.question}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False)
        start = len(tokenizer.encode(prompt))
        ids = torch.tensor([tokenizer.encode(prompt + one.texts[0] + tokenizer.eos_token)])
        a, b = (m(input_ids=ids).logits[0, start - 1 : -1].argmax(-1) for m in models)
        same[one.task][0] += int((a == b).sum())
        same[one.task][1] += len(a)
    return {task: round(100 * equal / total, 1) for task, (equal, total) in same.items()}


def step_auc(
    prm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, name: str = "M"
) -> dict[str, float]:
    """How well the PRM tells good steps from bad ones, on the first four samples of every tenth test problem."""
    found: dict[str, tuple[list[float], list[bool]]] = {task: ([], []) for task in TASKS}
    for one in read(SAMPLES / f"{name}.test.jsonl")[::10]:
        problem = one.problem
        steps = step_scores(prm, tokenizer, [(problem.question, text) for text in one.texts[:4]])
        for text, given in zip(one.texts[:4], steps, strict=True):
            found[one.task][0].extend(given)
            found[one.task][1].extend(judge(problem, text).steps)
    return {
        task: round(measures.auc(np.array(scores), np.array(good)), 4)
        for task, (scores, good) in found.items()
    }


def keep_pools(name: str, samples: list[Sampled], pool: Pool) -> None:
    """One file a task and model, one line a problem."""
    folder = HERE / "pools"
    folder.mkdir(exist_ok=True)
    lines: dict[str, list[str]] = defaultdict(list)
    for i, one in enumerate(samples):
        row = {
            "question": f"{one.task}/{one.difficulty}/{one.split}/{one.index}",
            "right": pool.right[i].astype(int).tolist(),
            "answer": pool.answers[i].tolist(),
            "tokens": pool.tokens[i].tolist(),
            "logprob": [round(x, 3) for x in pool.logprobs[i].tolist()],
        }
        if pool.scores is not None:
            row["score"] = [round(x, 3) for x in pool.scores[i].tolist()]
        lines[one.task].append(json.dumps(row, separators=(",", ":")))
    for task, rows in lines.items():
        data = "".join(f"{row}\n" for row in rows).encode()
        path = folder / f"{task}.{name}.jsonl.gz"
        path.write_bytes(gzip.compress(data, 9, mtime=0))  # the same bytes for the same samples


def by_band(samples: list[Sampled]) -> Iterator[tuple[str, list[int]]]:
    """The positions of every band's samples."""
    for band, (task, levels) in BANDS.items():
        yield band, [i for i, s in enumerate(samples) if s.task == task and s.difficulty in levels]


def part(pool: Pool, rows: Iterable[int]) -> Pool:
    """Some rows of a pool."""
    at = list(rows)
    scores = None if pool.scores is None else pool.scores[at]
    return Pool(pool.right[at], pool.answers[at], pool.tokens[at], pool.logprobs[at], scores)


def report(names: list[str]) -> dict[str, object]:
    """Scores, measures and keeps everything; what report.json says."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    prm = LlamaForCausalLM.from_pretrained(found("PRM"), dtype=torch.float32)
    told: dict[str, object] = {}
    for name in names:
        samples = read(SAMPLES / f"{name}.test.jsonl")
        pool = pool_of(samples, scored(name, prm, tokenizer))
        greedy = pool_of(read(SAMPLES / f"{name}.greedy.jsonl"))
        keep_pools(name, samples, pool)
        sampling = chosen(name)
        told[name] = {
            "sampling": {"temperature": sampling.temperature, "top_p": sampling.top_p},
            "bands": {
                band: figures(part(greedy, rows), part(pool, rows))
                for band, rows in by_band(samples)
            },
            "by difficulty, greedy": {
                f"{task} {level}": percent(greedy.right[rows, 0].astype(float))
                for task, level in dict.fromkeys((s.task, s.difficulty) for s in samples)
                for rows in [
                    [i for i, s in enumerate(samples) if (s.task, s.difficulty) == (task, level)]
                ]
            },
        }
    told["step AUC of the PRM, samples of M"] = step_auc(prm, tokenizer)
    for small, large in (("S", "L"), ("S", "M"), ("M", "L")):
        if {small, large} <= set(names):
            told[f"greedy agreement of {small} with {large}"] = agreement(small, large, tokenizer)
    return told


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["sample"])
    parser.add_argument("name", nargs="?", choices=MODELS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.command == "sample":
        for name in [options.name] if options.name else MODELS:
            sample(name, found(name))
        return
    from nano.figure import draw_curves, write_table

    told = report([name for name in MODELS if (SAMPLES / f"{name}.test.jsonl").exists()])
    REPORT.mkdir(exist_ok=True)
    (REPORT / "report.json").write_text(json.dumps(told, indent=1) + "\n")
    write_table(told, REPORT / "report.md")
    draw_curves(told, REPORT / "curves.png")


if __name__ == "__main__":
    main()
