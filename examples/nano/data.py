"""
Training examples, cut into batches of one shape each.

Example number i is a function of i, so a stream has no end, no file and no state but a position: a run that stops goes on where it
was. Knows tasks and tokens; knows no model.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from tokenizers import Tokenizer

from nano.paths import TOKENIZER
from nano.tasks import DIFFICULTIES, Problem, Split, Task, draw
from nano.tokenizer import END, PAD, SPECIAL, prompt_of

LENGTHS = (64, 80, 96, 112, 144, 192, 256, 320, 448, 640)  # of rows: few shapes, little padding
WINDOW = 2048  # examples that are sorted by length together
WORD_PROBLEMS = (
    0.3  # the share of examples; they are longer than puzzles, and so half of the tokens
)
CURRICULUM = 5_000  # examples for each further difficulty: looking facts up is learned on easy problems first
IGNORED = -100  # a target that is not learned


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and what to predict after each: an id, or -100."""

    ids: list[int]
    targets: list[int]


class Batch(NamedTuple):
    """Ids and targets (rows, length), and where the stream resumes after them: a window, and how many of its batches are done."""

    window: int
    done: int
    ids: torch.Tensor
    targets: torch.Tensor


Stream: TypeAlias = Callable[[int], Example]


@cache
def encoder() -> Tokenizer:
    """The family's tokenizer, read once."""
    return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))


def solutions(split: Split = "train", *, curriculum: int = CURRICULUM) -> Stream:
    """Problems of both tasks with their solutions; only tokens of solutions are learned."""

    def example(index: int) -> Example:
        rng = random.Random(f"{split}/{index}")
        task: Task = "word_problem" if rng.random() < WORD_PROBLEMS else "countdown"
        levels = DIFFICULTIES[task]
        if task == "word_problem" and curriculum:
            levels = levels[: 2 + index // curriculum]  # two at first: one fact asks for no lookup
        return of_solution(encoder(), draw(task, index, split=split, difficulty=rng.choice(levels)))

    return example


def of_solution(tokenizer: Tokenizer, problem: Problem) -> Example:
    """One problem, its solution and the end."""
    prompt = tokenizer.encode(prompt_of(problem.question)).ids
    solution = [*tokenizer.encode(problem.solution).ids, SPECIAL.index(END)]
    ids = prompt + solution
    return Example(ids[:-1], [IGNORED] * (len(prompt) - 1) + solution)


def batches(stream: Stream, tokens: int, *, window: int = 0, skip: int = 0) -> Iterator[Batch]:
    """Batches of `tokens` tokens each, from window `window` on, without its first `skip` batches.

    Left out are examples longer than the longest row, and what does not fill a batch at the end of a window.
    """
    while True:
        by_length: dict[int, list[Example]] = {n: [] for n in LENGTHS if n <= tokens}
        for i in range(window * WINDOW, (window + 1) * WINDOW):
            example = stream(i)
            fitting = [length for length in by_length if length >= len(example.ids)]
            if fitting:
                by_length[fitting[0]].append(example)
        cut = [
            (length, examples[at : at + tokens // length])
            for length, examples in by_length.items()
            for at in range(0, len(examples) - tokens // length + 1, tokens // length)
        ]
        random.Random(window).shuffle(cut)
        for done, (length, examples) in enumerate(cut[skip:], skip + 1):
            yield Batch(window, done, *padded(examples, length))
        window, skip = window + 1, 0


def padded(examples: list[Example], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets (examples, length)."""
    ids = np.full((len(examples), length), SPECIAL.index(PAD), np.int64)
    targets = np.full((len(examples), length), IGNORED, np.int64)
    for i, example in enumerate(examples):
        ids[i, : len(example.ids)] = example.ids
        targets[i, : len(example.ids)] = example.targets
    return torch.from_numpy(ids), torch.from_numpy(targets)
