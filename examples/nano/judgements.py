"""
What the PRM learns and reads: solutions with a place for a judgement at the end of each line.

Knows judged samples, attempts and tokens; knows no model. A search asks about a line before anybody knows whether it is the last, so half of
the finished samples are shown without their end token, as those are that were cut off.
"""

import random
from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer

from nano import misreadings
from nano.attempts import attempt
from nano.data import IGNORED, Example, Stream, encoder
from nano.problem import written_lines
from nano.samples import ATTEMPTED, HARD, HARDER, MISREADABLE, Kind, Samples, path_of, read
from nano.tasks import Problem, Split, draw, judge
from nano.tokenizer import BAD, END, GOOD, SPECIAL, prompt_of

# Attempts are made at word problems in which there is something to misread: the first of some draws with two sums, else the last one.
# Three facts seldom have as many.
FEWEST_SUMS, TRIES, LEVELS = 2, 8, HARD[1:]


def puzzles_first() -> Stream:
    """What the PRM learns first: attempts at puzzles without end, and between them each of M's samples once an epoch."""
    return mixed((attempts("train"), 3), (judgements("train"), 1))


def both_tasks() -> Stream:
    """What it learns then: attempts at both tasks and exercises without end, and between them M's samples of either task.

    Examples of word problems are two or three times as long, so that puzzles are nearly two thirds of the tokens.
    """
    return mixed(
        (misreadings_of("train"), 4),
        (judgements("train", of="words", spoken=True), 5),
        (attempts("train"), 57),
        (judgements("train", of="puzzles"), 18),
        (exercises("train"), 8),
    )


def held_out_of_both() -> Stream:
    """M's samples of validation problems of either task; of a puzzle there are twice as many."""
    of_words, of_puzzles = (judgements("validation", of=of) for of in ("words", "puzzles"))
    return mixed((of_words, 1), (of_puzzles, 2))


def mixed(*parts: tuple[Stream, int]) -> Stream:
    """So many examples of each stream in every turn, each stream in its own order."""
    places = [which for which, (_, share) in enumerate(parts) for _ in range(share)]
    random.Random(0).shuffle(places)
    before = [places[:k].count(which) for k, which in enumerate(places)]

    def example(index: int) -> Example:
        turn, k = divmod(index, len(places))
        stream, share = parts[places[k]]
        return stream(turn * share + before[k])

    return example


def attempts(split: Split) -> Stream:
    """Attempts at puzzles that nobody sampled, judged exactly."""

    def example(index: int) -> Example:
        rng = random.Random(f"attempt/{split}/{index}")
        problem = draw("countdown", ATTEMPTED + index, split=split, difficulty=rng.choice(HARDER))
        return _attempted(rng, problem, attempt(rng, problem))

    return example


def misreadings_of(split: Split) -> Stream:
    """Attempts at word problems, most of them with two sums or more, judged exactly."""

    def example(index: int) -> Example:
        rng = random.Random(f"misreading/{split}/{index}")
        for k in range(TRIES):
            number = MISREADABLE + TRIES * index + k
            problem = draw("word_problem", number, split=split, difficulty=rng.choice(LEVELS))
            if misreadings.sums(problem) >= FEWEST_SUMS:
                break
        return _attempted(rng, problem, misreadings.attempt(rng, problem), spoken=True)

    return example


def _attempted(
    rng: random.Random, problem: Problem, lines: list[str], *, spoken: bool = False
) -> Example:
    good = judge(problem, "\n".join(lines)).steps
    ended = rng.random() < 0.5
    return of_lines(encoder(), problem.question, lines, good, ended=ended, spoken=spoken)


def exercises(split: Split) -> Stream:
    """Who has how many, without a question."""

    def example(index: int) -> Example:
        lines, good = misreadings.exercise(random.Random(f"exercise/{split}/{index}"))
        return of_lines(encoder(), "", lines, good, ended=False, spoken=True)

    return example


def judgements(split: Split, name: str = "M", *, of: Kind = "both", spoken: bool = False) -> Stream:
    """Samples of the model `name`, and after each line whether it is good: every sample once an epoch, in an order of its own."""
    path = path_of(name, split, of)
    samples = read(path)
    if not samples:
        raise FileNotFoundError(
            f"{path} has no samples; draw them first: python -m nano.samples {name} --split {split} --of {of}"
        )
    each = len(samples[0].texts)
    count = len(samples) * each

    @cache
    def example(index: int) -> Example:
        one, k = samples[index // each], index % each
        lines = written_lines(one.texts[k])
        ended = one.ended[k] and random.Random(index).random() < 0.5
        good = verdicts(one, k)
        return of_lines(encoder(), one.problem.question, lines, good, ended=ended, spoken=spoken)

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
    tokenizer: Tokenizer,
    question: str,
    lines: Sequence[str],
    good: Sequence[bool],
    *,
    ended: bool,
    spoken: bool = False,
) -> Example:
    """One solution, and after the last token of each of its lines whether the line is good.

    `ended` puts the end token after the last line, where a sample has it; otherwise a line end, as after every other. `spoken` has the
    numbers of good calculations learned too, as the policy learned them: who forgets how to say them soon cannot tell a wrong one.
    """
    ids = list(tokenizer.encode(prompt_of(question)).ids)
    targets = [IGNORED] * len(ids)
    for i, (line, verdict) in enumerate(zip(lines, good, strict=True)):
        last = ended and i == len(lines) - 1
        added = tokenizer.encode(line if last else f"{line}\n").ids + [SPECIAL.index(END)] * last
        learned = [IGNORED] * (len(added) - 1) + [SPECIAL.index(GOOD if verdict else BAD)]
        if spoken and verdict and line.count(" = ") > 1:
            said = len(tokenizer.encode(" = ".join(line.split(" = ")[:2])).ids)
            learned[said:-2] = added[said + 1 : -1]
        ids += added
        targets += learned
    return Example(ids, targets)
