"""
Batching and reuse on the bundled policy: `python examples/bench/batching.py`.

`16 samples`: seconds against those of 1, 64 tokens each. `batch`: engine steps for several different questions opened and extended at
once against those of the longest alone, and whether all texts are those of one by one. `turn 5`: tokens that a chat's fifth turn runs
through the model against its new ones (the prompt's and the answer's), and whether an empty prefix index gives the same text.
"""

import sys
from pathlib import Path

import torch
from _measure import alternate, extend, nano_backend, report, settle

from langchain_pareto.backends.base import Extension, Sampling
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.torch_runner import TorchRunner

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano.tasks import TASKS, draw
from nano.tokenizer import prompt_of

HOT = Sampling(temperature=0.8)


def prompts(n: int) -> list[str]:
    """Different problems, the two tasks in turn, as the models read them."""
    drawn = (draw(TASKS[i % 2], i, split="validation", difficulty=4) for i in range(n))
    return [prompt_of(problem.question) for problem in drawn]


def samples_row(backend: LocalBackend) -> None:
    """16 samples of one prompt against 1, of equal length."""
    root = backend.open(prompts(1)[0])
    extend(backend, [root], 1)

    def sample(n: int) -> None:
        branches = root.fork(n)
        extend(backend, branches, 64, HOT)
        for branch in branches:
            branch.free()

    s = alternate({"16": lambda: sample(16), "1": lambda: sample(1)})
    report("batching", "16 samples", s["16"], s["1"], s["16"] / s["1"], "s", bar="<= 3")
    root.free()


def batch_row(backend: LocalBackend, n: int) -> None:
    """`n` questions at once against one by one: engine steps and texts."""
    asked = prompts(n)

    def run(prompts: list[str]) -> tuple[int, list[Extension]]:
        forget(backend)
        before = backend.engine.steps
        branches = [backend.open(prompt) for prompt in prompts]
        answers = extend(backend, branches, 160, HOT, eos=True)
        return backend.engine.steps - before, answers

    steps, together = run(asked)
    alone = [run([prompt]) for prompt in asked]
    longest = max(steps for steps, _ in alone)
    same = sum(a.text == b.text for a, (_, [b]) in zip(together, alone, strict=True))
    row = f"batch of {n}"
    report(
        "batching", row, steps, longest, steps / longest, "steps", bar="<= 1.3", same=f"{same}/{n}"
    )


def chat_row(backend: LocalBackend) -> None:
    """A chat in which each turn is the text so far and a new question."""

    def turn(text: str) -> tuple[Extension, int, int]:
        branch = backend.open(text)
        length = len(branch.tokens)
        [answer] = extend(backend, [branch], 48, HOT)
        branch.free()
        settle(backend)
        return answer, length, length + len(answer.tokens)

    forget(backend)
    text, before = "", 0
    for question in prompts(5):
        text += question
        start = before
        answer, length, before = turn(text)
        prompt = text
        text += answer.text + "\n"
    forwarded, new = answer.usage.forward_tokens, length - start + len(answer.tokens)
    forget(backend)
    again, _, _ = turn(prompt)
    report(
        "batching",
        "turn 5 of a chat",
        forwarded,
        new,
        forwarded / new,
        "tokens",
        bar="<= 1.1",
        forwards=answer.usage.forwards,
        cold=again.usage.forward_tokens,
        prompt=length,
        same=again.text == answer.text,
    )


def forget(backend: LocalBackend) -> None:
    """Empties the prefix index."""
    runner = backend.runner
    assert isinstance(runner, TorchRunner)
    backend.engine.call(runner.prefixes.clear).result()


def main() -> None:
    """All rows."""
    torch.set_num_threads(1)
    with nano_backend() as backend:
        samples_row(backend)
        for n in (8, 32):
            batch_row(backend, n)
        chat_row(backend)


if __name__ == "__main__":
    main()
