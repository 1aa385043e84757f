"""
Predicted seconds against live calls: `python examples/bench/cost_model.py [calls] [model ...]`.

Calibrates each model (the bundled policy M and draft S and a random Llama of 100M, on torch and, where it is installed, on llama.cpp), then
runs calls of mixed widths, prompts and lengths through the strategies and predicts each from the lengths that it turned out to have. `ours`
is the mean of the predictions, `theirs` that of the calls. `forks`: one prompt a call. `prompts at once`: unrelated prompts, a draw each.
`median` is that of the relative errors, `above p95` the share of calls that took longer than the margin allows. Each is predicted by
the drift and the margin that the calls before it have shown. A margin that learns is exceeded about as often as it should be: what tells of
the cost model itself is `calibration alone`, the same without either. With `--cpu` seconds are those of the processor in this process, for a
machine that others use, too.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from _measure import LLAMA_100M, backend_of, report

from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.planning.cost_model import CostModel
from langchain_pareto.planning.device import calibrate
from langchain_pareto.planning.drift import Drift, Margins
from langchain_pareto.planning.timed_runs import Clock
from langchain_pareto.strategies import BestOfN, Single
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano.tasks import TASKS, draw
from nano.tokenizer import prompt_of

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LONGEST = 256  # tokens of a draw
Call = tuple[float, float]  # predicted and measured seconds


class Ending:
    """A tokenizer by which every so many tokens of a random model end a text: lengths are geometric."""

    def __init__(self, tokenizer: Tokenizer, every: int) -> None:
        self._tokenizer = tokenizer
        self.end_tokens = frozenset(range(0, LLAMA_100M.vocabulary, every))

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)


@contextmanager
def opened(name: str, folder: Path) -> Iterator[tuple[LocalBackend, Callable[[int], list[int]]]]:
    """A backend, and prompts for it by their number."""
    kind, _, engine = name.partition(" on ")
    settings = {"n_threads": 1} if engine == "llama-cpp" else None
    if kind == "100M":
        if engine == "torch":
            backend = backend_of(LLAMA_100M.model(), 40_000)
        else:
            from langchain_pareto.backends.nano.gguf import write_gguf

            path = folder / "100m.gguf"
            if not path.exists():
                LLAMA_100M.model().half().save_pretrained(folder / "model")
                write_gguf(folder / "model", tokenizer_path(), path, "q8_0")
            backend = load(path, model_kwargs=settings, device="cpu")
        backend.tokenizer = Ending(backend.tokenizer, every=40)  # type: ignore[assignment]  # a proxy
        with backend:
            yield backend, random_prompt
        return
    dtype = "float32" if engine == "torch" else None
    model = {"nano M": "nano", "nano S": "nano-draft"}[kind]
    with load(model, backend=engine, model_kwargs=settings, device="cpu", dtype=dtype) as backend:
        yield backend, lambda i: backend.tokenizer.encode_prompt(problem(i))


def random_prompt(i: int) -> list[int]:
    """20 to 300 random tokens."""
    source = random.Random(i)
    return [source.randrange(10, 400) for _ in range(source.randint(20, 300))]


def problem(i: int) -> str:
    """A problem, as the bundled models read it."""
    return prompt_of(draw(TASKS[i % 2], i, split="validation", difficulty=4).question)


def live(
    backend: LocalBackend, prompts: Sequence[Sequence[int]], n: int, seed: int
) -> list[Outcome]:
    """Calls of `n` draws each, side by side."""
    strategy = Single() if n == 1 else BestOfN(n=n)
    settings = Settings(backend.sampling, max_tokens=LONGEST)  # what a calibration measures

    async def all_of_them() -> list[Outcome]:
        calls = (run(strategy, backend, p, settings=settings, seed=seed) for p in prompts)
        return await asyncio.gather(*calls)

    return asyncio.run(all_of_them())


def lengths(out: Outcome) -> list[int]:
    """How long the draws of a call turned out."""
    return [len(thought.tokens) for thought in out.thoughts]


def forks(
    backend: LocalBackend,
    model: CostModel,
    prompts: Callable[[int], list[int]],
    calls: int,
    clock: Clock,
) -> Iterator[Call]:
    """Calls one after another."""
    for i in range(calls):
        prompt, n = prompts(i), random.Random(f"{i}").choice(WIDTHS)
        began = clock()
        [out] = live(backend, [prompt], n, i)
        took = clock() - began
        yield model.batch_seconds(lengths(out), len(prompt), out.cache_read), took


def at_once(
    backend: LocalBackend,
    model: CostModel,
    prompts: Callable[[int], list[int]],
    calls: int,
    clock: Clock,
) -> Iterator[Call]:
    """Unrelated calls of one draw each, side by side."""

    for i in range(calls):
        n = random.Random(f"{i}").choice(WIDTHS[1:-2])
        asked = [prompts(1000 + 100 * i + k) for k in range(n)]
        began = clock()
        outs = live(backend, asked, 1, i)
        took = clock() - began
        each = [(len(p), *lengths(out), out.cache_read) for p, out in zip(asked, outs, strict=True)]
        predicted = (
            sum(model.batch_seconds([0], p, cached) for p, _, cached in each) + n * model.draw
        )
        for step in range(max(drawn for _, drawn, _ in each)):
            contexts = [p + step for p, drawn, _ in each if drawn > step]
            predicted += model.decode.seconds(len(contexts), sum(contexts))
        yield predicted, took


def row(name: str, model: CostModel, calls: Sequence[Call], clock: str) -> None:
    """One line of the table."""
    drift, margins = Drift(), Margins(0.05, model.margin)
    told, above = list[Call](), 0
    for predicted, took in calls:
        told.append((predicted * drift.factor(name), took))
        longer = took > told[-1][0] * margins.of(name)
        above += longer
        margins.observe(name, longer=longer)
        drift.observe(name, predicted, took)
    ours, theirs = (statistics.mean(column) for column in zip(*told, strict=True))
    alone = sum(took > predicted * model.margin for predicted, took in calls)
    report(
        "cost model",
        name,
        ours,
        theirs,
        ours / theirs,
        f"s ({clock})",
        bar="median <= 0.15, ratio 0.85 to 1.15, above p95 <= 0.07",
        calls=len(calls),
        **_errors(told, above),
        **{"calibration alone": _errors(calls, alone) | {"ratio": round(_ratio(calls), 3)}},
    )


def _errors(calls: Sequence[Call], above: int) -> dict[str, object]:
    off = [abs(predicted / took - 1) for predicted, took in calls]
    return {
        "median": round(statistics.median(off), 3),
        "above p95": round(above / len(calls), 3),
    }


def _ratio(calls: Sequence[Call]) -> float:
    predicted, took = zip(*calls, strict=True)
    return sum(predicted) / sum(took)


def bench(name: str, folder: Path, calls: int, seconds: float, clock: str) -> None:
    """One model on one engine."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    with opened(name, folder) as (backend, prompts):
        began = time.perf_counter()
        model = calibrate(backend, seconds=seconds, clock=now)
        took = time.perf_counter() - began
        report(
            "cost model",
            f"{name}, calibration",
            took,
            seconds,
            took / seconds,
            "s",
            bar="<= 1",
            sigma=round(model.sigma, 3),
            held_out=None if model.error is None else round(model.error, 3),
            bends=len(model.decode.bends),
        )
        row(f"{name}, forks", model, list(forks(backend, model, prompts, calls, now)), clock)
        few = max(2, calls // 5)
        apart = list(at_once(backend, model, prompts, few, now))
        row(f"{name}, prompts at once", model, apart, clock)


def main() -> None:
    """All models, or those that are named."""
    engines = ["torch", *(["llama-cpp"] if importlib.util.find_spec("llama_cpp") else [])]
    known = [f"{kind} on {engine}" for engine in engines for kind in ("nano M", "nano S", "100M")]
    parser = argparse.ArgumentParser()
    parser.add_argument("calls", nargs="?", type=int, default=100)
    parser.add_argument("models", nargs="*", choices=[*known, []], default=[])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a calibration")
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.models or known:
            bench(name, Path(folder), asked.calls, asked.seconds, "cpu" if asked.cpu else "wall")


if __name__ == "__main__":
    main()
