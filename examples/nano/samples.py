"""
Samples of a trained model, drawn with the project's own engine, and judged exactly.

    python -m nano.samples M --split train --problems 12000 --samples 8 --temperature 1

writes work/samples/M.train.jsonl, one problem a line; the same command again goes on where it was. The training of the PRM reads
them. Knows the engine, the tasks and files; knows no training.
"""

import argparse
import json
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from langchain_pareto.backends.base import Branch, Extension, Sampling, Stop, Task as Request
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from nano.data import Example, Stream, of_judgements
from nano.models import found
from nano.problem import written_lines
from nano.tasks import DIFFICULTIES, TASKS, Problem, Split, Task, draw, judge
from nano.tokenizer import FOLDER, WORK, prompt_of

SAMPLES = WORK / "samples"
LONGEST = 400  # tokens of a solution; the longest honest one has about 250
AT_ONCE = 256  # branches in one step


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem by its number."""

    task: Task
    difficulty: int
    split: Split
    index: int

    @property
    def problem(self) -> Problem:
        """The problem itself."""
        return draw(self.task, self.index, split=self.split, difficulty=self.difficulty)


@dataclass(frozen=True, slots=True)
class Sampled(Asked):
    """What a model wrote: texts, their lengths in tokens, mean log-probabilities, and whether they came to an end."""

    texts: list[str]
    tokens: list[int]
    logprobs: list[float]
    ended: list[bool]


def sample(
    backend: LocalBackend, asked: Iterable[Asked], n: int, sampling: Sampling, *, seed: int = 0
) -> Iterator[Sampled]:
    """`n` samples of each problem, in order; as many problems at once as fill a step."""
    waiting: deque[tuple[Asked, Branch, list[Branch], list[Request]]] = deque()
    stop = Stop(max_tokens=LONGEST)

    def finish() -> Sampled:
        one, root, branches, requests = waiting.popleft()
        drawn: list[Extension] = [request.future.result() for request in requests]
        for branch in [*branches, root]:
            branch.free()
        return Sampled(
            **asdict(one),
            texts=[d.text for d in drawn],
            tokens=[len(d.tokens) for d in drawn],
            logprobs=[round(sum(d.logprobs) / len(d.logprobs), 4) for d in drawn],
            ended=[d.finish == "eos" for d in drawn],
        )

    for one in asked:
        root = backend.open(prompt_of(one.problem.question), seed=seed)
        branches = root.fork(n)
        requests = [backend.extend(b, sampling, stop, stats=True) for b in branches]
        waiting.append((one, root, branches, requests))
        if len(waiting) * n >= AT_ONCE:
            yield finish()
    while waiting:
        yield finish()


def mixture(split: Split, count: int) -> list[Asked]:
    """Half of each task, of every difficulty; the harder puzzles twice as often as the easy ones."""
    rng = random.Random(split)
    levels = {"word_problem": DIFFICULTIES["word_problem"], "countdown": (3, 4, 4)}
    return [
        Asked(task, rng.choice(levels[task]), split, 10**6 + i)
        for i in range(count)
        for task in [TASKS[i % 2]]
    ]


def read(path: Path) -> list[Sampled]:
    """What has been sampled so far."""
    return [Sampled(**json.loads(line)) for line in whole_lines(path)]


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that grows and need not exist yet; without the last one while it is being written."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def cut(path: Path) -> None:
    """Takes a last line that was cut off from a file that is to grow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def write(
    path: Path, backend: LocalBackend, asked: list[Asked], n: int, sampling: Sampling
) -> None:
    """Samples what the file has not yet, and says how it goes."""
    cut(path)
    done = len(whole_lines(path))
    began, tokens = time.monotonic(), 0
    with path.open("a") as file:
        for i, sampled in enumerate(sample(backend, asked[done:], n, sampling), done + 1):
            file.write(json.dumps(asdict(sampled)) + "\n")
            tokens += sum(sampled.tokens)
            if i % 200 == 0:
                file.flush()
                speed = tokens / (time.monotonic() - began)
                print(f"{path.name}: {i} of {len(asked)}, {speed:.0f} tokens/s", flush=True)


def judgements(split: Split, name: str = "M") -> Stream:
    """What the PRM learns: samples of `name`, and after each line whether it is good."""
    samples = read(SAMPLES / f"{name}.{split}.jsonl")
    if not samples:
        raise FileNotFoundError(f"no samples of {name} for {split}: python -m nano.samples {name}")
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    each = len(samples[0].texts)

    @cache
    def example(index: int) -> Example:
        one, k = samples[index // each], index % each
        problem, text = one.problem, one.texts[k]
        lines = written_lines(text)
        good = list(judge(problem, text).steps)
        if not one.ended[k]:
            good[-1:] = [False] * len(good[-1:])
        ended = one.ended[k] and random.Random(index).random() < 0.5
        return of_judgements(tokenizer, problem.question, lines, good, ended=ended)

    def stream(index: int) -> Example:
        epoch, i = divmod(index, len(samples) * each)
        return example(_permuted(i, len(samples) * each, epoch))

    return stream


@cache
def _order(count: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(epoch).shuffle(order)
    return order


def _permuted(i: int, count: int, epoch: int) -> int:
    return _order(count, epoch)[i]


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--split", choices=["train", "validation"], default="train")
    parser.add_argument("--problems", type=int, default=12_000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    backend = load(found(options.name), tokenizer=FOLDER)
    write(
        SAMPLES / f"{options.name}.{options.split}.jsonl",
        backend,
        mixture(options.split, options.problems),
        options.samples,
        Sampling(temperature=options.temperature),
    )
    backend.close()


if __name__ == "__main__":
    main()
