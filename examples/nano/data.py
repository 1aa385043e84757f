"""
Training examples, cut into batches of one shape each.

Example number i is a function of i, so a stream has no end, no file and no state but a position: a run that stops goes on where it
was. Knows tasks and tokens; knows no model.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from tokenizers import Tokenizer

from nano.tasks import DIFFICULTIES, Problem, Split, draw
from nano.tokenizer import BAD, END, FOLDER, GOOD, PAD, SPECIAL, prompt_of

LENGTHS = (64, 80, 96, 112, 144, 192, 256, 320, 448)  # of rows: few shapes, little padding
WINDOW = 2048  # examples that are sorted by length together
WORD_PROBLEMS = 0.3  # the share of examples; they are longer: about two fifths of the tokens
WARM_UP = 5_000  # training examples for each further difficulty: looking facts up is learned on easy problems first
IGNORED = -100  # a target that is not learned


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and what to predict after each: an id, or -100."""

    ids: list[int]
    targets: list[int]


Stream: TypeAlias = Callable[[int], Example]


def solutions(split: Split = "train", *, warm_up: int = WARM_UP) -> Stream:
    """Problems of both tasks with their solutions; only tokens of solutions are learned."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

    def example(index: int) -> Example:
        rng = random.Random(f"{split}/{index}")
        task = "word_problem" if rng.random() < WORD_PROBLEMS else "countdown"
        levels = DIFFICULTIES[task]
        if task == "word_problem" and warm_up:
            levels = levels[: 2 + index // warm_up]
        return of_solution(tokenizer, draw(task, index, split=split, difficulty=rng.choice(levels)))

    return example


def of_solution(tokenizer: Tokenizer, problem: Problem) -> Example:
    """One problem, its solution and the end."""
    prompt = tokenizer.encode(prompt_of(problem.question)).ids
    solution = [*tokenizer.encode(problem.solution).ids, SPECIAL.index(END)]
    ids = prompt + solution
    return Example(ids[:-1], [IGNORED] * (len(prompt) - 1) + solution)


def of_judgements(
    tokenizer: Tokenizer, question: str, lines: list[str], good: list[bool], *, ended: bool
) -> Example:
    """One solution, and after the last token of each of its lines whether the line is good.

    `ended` puts the end token after the last line, where a sample has it; otherwise a line end, as after every other.
    """
    ids = list(tokenizer.encode(prompt_of(question)).ids)
    targets = [IGNORED] * len(ids)
    for i, (line, verdict) in enumerate(zip(lines, good, strict=True)):
        last = ended and i == len(lines) - 1
        ids += tokenizer.encode(line if last else f"{line}\n").ids + [SPECIAL.index(END)] * last
        targets += [IGNORED] * (len(ids) - len(targets))
        targets[-1] = SPECIAL.index(GOOD if verdict else BAD)
    return Example(ids, targets)


def batches(
    stream: Stream, tokens: int, *, window: int = 0, skip: int = 0
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Ids and targets (rows, length) of `tokens` tokens each, from window `window` on, without its first `skip` batches.

    Before them comes where to go on: a window, and how many of its batches are done. What does not fill a batch is dropped.
    """
    while True:
        by_length: dict[int, list[Example]] = {length: [] for length in LENGTHS}
        for i in range(window * WINDOW, (window + 1) * WINDOW):
            example = stream(i)
            fitting = [length for length in LENGTHS if length >= len(example.ids)]
            if fitting:
                by_length[fitting[0]].append(example)
        cut = [
            (length, examples[at : at + tokens // length])
            for length, examples in by_length.items()
            for at in range(0, len(examples) - tokens // length + 1, tokens // length)
        ]
        random.Random(window).shuffle(cut)
        for done, (length, examples) in enumerate(cut[skip:], skip + 1):
            yield window, done, *padded(examples, length)
        window, skip = window + 1, 0


def padded(examples: list[Example], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets (examples, length)."""
    ids = np.full((len(examples), length), SPECIAL.index(PAD), np.int64)
    targets = np.full((len(examples), length), IGNORED, np.int64)
    for i, example in enumerate(examples):
        ids[i, : len(example.ids)] = example.ids
        targets[i, : len(example.ids)] = example.targets
    return torch.from_numpy(ids), torch.from_numpy(targets)
