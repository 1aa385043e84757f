"""
What the PRM learns and reads: solutions with a place for a judgement at the end of each line.

Knows judged samples, attempts and tokens; knows no model. A search asks about a line before anybody knows whether it is the last, so half of
the finished samples are shown without their end token, as those are that were cut off.
"""

import random
from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer

from nano.attempts import attempt
from nano.data import IGNORED, Example, Stream
from nano.paths import SAMPLES, TOKENIZER
from nano.problem import written_lines
from nano.samples import ATTEMPTED, HARDER, Samples, read
from nano.tasks import Split, draw, judge
from nano.tokenizer import BAD, END, GOOD, SPECIAL, prompt_of

ATTEMPTS = 3  # for each sample of a model


def lessons(split: Split) -> Stream:
    """What the PRM learns: attempts at puzzles without end, and between them each of M's samples once an epoch."""
    samples, tried = judgements(split), attempts(split)
    each = ATTEMPTS + 1

    def example(index: int) -> Example:
        turn, k = divmod(index, each)
        return tried(turn * ATTEMPTS + k) if k < ATTEMPTS else samples(turn)

    return example


def attempts(split: Split) -> Stream:
    """Attempts at puzzles that nobody sampled, judged exactly."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))

    def example(index: int) -> Example:
        rng = random.Random(f"attempt/{split}/{index}")
        problem = draw("countdown", ATTEMPTED + index, split=split, difficulty=rng.choice(HARDER))
        lines = attempt(rng, problem)
        good = judge(problem, "\n".join(lines)).steps
        return of_lines(tokenizer, problem.question, lines, good, ended=rng.random() < 0.5)

    return example


def judgements(split: Split, name: str = "M") -> Stream:
    """Samples of the model `name`, and after each line whether it is good: every sample once an epoch, in an order of its own."""
    path = SAMPLES / f"{name}.{split}.jsonl"
    samples = read(path)
    if not samples:
        raise FileNotFoundError(
            f"{path} has no samples; draw them first: python -m nano.samples {name} --split {split}"
        )
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    each = len(samples[0].texts)
    count = len(samples) * each

    @cache
    def example(index: int) -> Example:
        one, k = samples[index // each], index % each
        lines = written_lines(one.texts[k])
        ended = one.ended[k] and random.Random(index).random() < 0.5
        return of_lines(tokenizer, one.problem.question, lines, verdicts(one, k), ended=ended)

    @cache
    def order(epoch: int) -> list[int]:
        shuffled = list(range(count))
        random.Random(epoch).shuffle(shuffled)
        return shuffled

    return lambda index: example(order(index // count)[index % count])


def verdicts(samples: Samples, k: int) -> list[bool]:
    """Whether each line of sample `k` is good, exactly; the last line of one that was cut off is not."""
    good = list(judge(samples.problem, samples.texts[k]).steps)
    if good and not samples.ended[k]:
        good[-1] = False
    return good


def of_lines(
    tokenizer: Tokenizer, question: str, lines: Sequence[str], good: Sequence[bool], *, ended: bool
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
