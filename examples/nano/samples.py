"""
Samples of a trained model, drawn with the project's own engine.

    python -m nano.samples M --split train
    python -m nano.samples M --split train --of words

write work/samples/M.train.jsonl and M.words.train.jsonl, one problem per line, for the training of the PRM; the same command again
resumes. Knows the engine and the tasks; knows no training.
"""

import argparse
import hashlib
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Semaphore
from typing import Literal

from langchain_pareto.backends.base import Branch, Extension, Sampling, Stop, Task as Request
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from nano import growing
from nano.paths import SAMPLES, TOKENIZER, trained_or_shipped
from nano.tasks import DIFFICULTIES, TASKS, Problem, Split, Task, draw
from nano.tokenizer import prompt_of

Kind = Literal["both", "words", "puzzles"]

LONGEST = 400  # tokens of a solution; the longest honest one has about 250
AT_ONCE = 256  # branches in one step
# Numbers of the first problems that the PRM learns from: no policy's training comes so far.
FIRST = 10**7
ATTEMPTED = 2 * 10**7  # puzzles that attempts are made at
APART = 3 * 10**7  # each task by itself
MISREADABLE = 4 * 10**7  # word problems that attempts are made at
HARD = (3, 4, 5, 6, 7, 8)  # of word problems by themselves: easier ones M does not get wrong
HARDER = (3, 4, 4)  # of puzzles: the harder ones twice as often as the easy ones
WORD_PROBLEMS = 2400  # of the mixture; the rest are puzzles


@dataclass(frozen=True, slots=True)
class ProblemRef:
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
class Samples(ProblemRef):
    """What a model wrote: texts, their lengths in tokens, mean log-probabilities, and whether they came to an end."""

    texts: list[str]
    tokens: list[int]
    logprobs: list[float]
    ended: list[bool]

    @property
    def ref(self) -> ProblemRef:
        """The problem's number alone."""
        return ProblemRef(self.task, self.difficulty, self.split, self.index)


def sample(
    backend: LocalBackend,
    problems: Iterable[ProblemRef],
    n: int,
    sampling: Sampling,
    *,
    seed: int = 0,
) -> Iterator[Samples]:
    """`n` samples of each problem, in order; as many at once as fill a step."""
    waiting: deque[tuple[ProblemRef, Branch, list[Branch], list[Request]]] = deque()
    stop = Stop(max_tokens=LONGEST)
    free = Semaphore(AT_ONCE)

    def finish() -> Samples:
        ref, root, branches, requests = waiting.popleft()
        drawn: list[Extension] = [request.future.result() for request in requests]
        for branch in [*branches, root]:
            branch.free()
        return Samples(
            **asdict(ref),
            texts=[d.text for d in drawn],
            tokens=[len(d.tokens) for d in drawn],
            logprobs=[round(sum(d.logprobs) / len(d.logprobs), 4) for d in drawn],
            ended=[d.finish == "eos" for d in drawn],
        )

    for ref in problems:
        for _ in range(n):
            free.acquire()
        root = backend.open(prompt_of(ref.problem.question), seed=seed)
        branches = root.fork(n)
        requests: list[Request] = [backend.extend(b, sampling, stop, stats=True) for b in branches]
        for request in requests:
            request.future.add_done_callback(lambda _: free.release())
        waiting.append((ref, root, branches, requests))
        while waiting and all(request.future.done() for request in waiting[0][3]):
            yield finish()
    while waiting:
        yield finish()


def write(
    path: Path,
    folder: Path,
    backend: LocalBackend,
    problems: list[ProblemRef],
    n: int,
    sampling: Sampling,
) -> None:
    """Samples what the file has not yet, and prints how it goes; `folder` is where the backend's weights are from."""
    header = {
        "weights": weights_of(folder),
        "samples": n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "problems": hashlib.sha256(repr(problems).encode()).hexdigest()[:16],
    }
    done = growing.resume(path, header)
    began, tokens = time.monotonic(), 0
    with path.open("a") as file:
        for i, one in enumerate(sample(backend, problems[done:], n, sampling), done + 1):
            file.write(json.dumps(asdict(one)) + "\n")
            tokens += sum(one.tokens)
            if i % 200 == 0:
                file.flush()
                speed = tokens / (time.monotonic() - began)
                print(f"{path.name}: {i} of {len(problems)}, {speed:.0f} tokens/s", flush=True)


def read(path: Path) -> list[Samples]:
    """What has been sampled so far."""
    return [Samples(**row) for row in growing.rows(path)]


def read_all(path: Path, problems: list[ProblemRef]) -> list[Samples]:
    """The samples of exactly these problems; ValueError where the file has others, or not all of them yet."""
    samples = read(path)
    of = [s.ref for s in samples]
    if of != problems:
        raise ValueError(
            f"{path} has samples of {len(of)} problems, not of the {len(problems)} that are wanted: draw the rest first"
        )
    return samples


def weights_of(folder: Path) -> str:
    """A hash of a model's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


def mixture(split: Split, count: int) -> list[ProblemRef]:
    """Both tasks in turn, of every difficulty, then puzzles alone."""
    rng = random.Random(split)
    levels = {"word_problem": DIFFICULTIES["word_problem"], "countdown": HARDER}
    return [
        ProblemRef(task, rng.choice(levels[task]), split, FIRST + i)
        for i in range(count)
        for task in [TASKS[i % 2] if i < 2 * WORD_PROBLEMS else "countdown"]
    ]


def words(split: Split, count: int) -> list[ProblemRef]:
    """Word problems alone, of three facts and more."""
    return _alone("words", "word_problem", HARD, split, count)


def puzzles(split: Split, count: int) -> list[ProblemRef]:
    """Puzzles alone."""
    return _alone("puzzles", "countdown", HARDER, split, count)


def _alone(
    kind: str, task: Task, levels: Sequence[int], split: Split, count: int
) -> list[ProblemRef]:
    rng = random.Random(f"{kind}/{split}")
    return [ProblemRef(task, rng.choice(levels), split, APART + i) for i in range(count)]


def path_of(name: str, split: Split, of: Kind) -> Path:
    """Where samples of the model `name` lie, of which kind of problems."""
    return SAMPLES / f"{name}.{'' if of == 'both' else f'{of}.'}{split}.jsonl"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sampled for the PRM: which problems, how many samples of each, and how many problems of a split."""

    drawn: Callable[[Split, int], list[ProblemRef]]
    samples: int
    problems: dict[Split, int]


PLANS: dict[Kind, Plan] = {
    "both": Plan(mixture, 8, {"train": 16_000, "validation": 600}),
    "words": Plan(words, 4, {"train": 17_000, "validation": 300}),
    "puzzles": Plan(puzzles, 8, {"train": 3_000, "validation": 300}),
}


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--split", choices=["train", "validation"], required=True)
    parser.add_argument("--of", choices=PLANS, default="both")
    parser.add_argument("--problems", type=int, help="where other than the PRM was trained on")
    options = parser.parse_args()
    path = path_of(options.name, options.split, options.of)
    folder = trained_or_shipped(options.name)
    plan = PLANS[options.of]
    problems = plan.drawn(options.split, options.problems or plan.problems[options.split])
    with load(folder, tokenizer=TOKENIZER, dtype="auto") as backend:  # the faster one
        write(path, folder, backend, problems, plan.samples, Sampling(temperature=1.0))


if __name__ == "__main__":
    main()
