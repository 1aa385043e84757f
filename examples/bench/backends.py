"""
The same model on torch and on llama.cpp: `python examples/bench/backends.py`. Needs the extra llama-cpp.

A random 100M Llama, one thread each, both warm, in turns. `decode`: tokens a second of n branches of one prompt of 256. `prefill`:
tokens a second of a prompt of 1024. `unrelated`: tokens a second over prompts of 512 that share nothing, prefill included, by how
many of them llama.cpp works on at once (`max_roots`); `many`: the same over 128 questions to the bundled model. `cached`: what tokens that are only cached cost a branch on llama.cpp.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _measure import LLAMA_100M, Numbers, alternate, extend, report, settle

from langchain_pareto.backends.base import Branch, Sampling
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.backends.nano.gguf import Precision, write_gguf

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano.tasks import TASKS, draw
from nano.tokenizer import prompt_of

HOT = Sampling(temperature=0.8)
TOKENS = 32  # of each branch
BRANCHES = (1, 8, 32)
TORCH = ("float32", "bfloat16")
GGUF: tuple[Precision, ...] = ("f32", "f16", "q8_0")
ROOTS = (1, 2, 4, 8)
MANY_ROOTS = (4, 8, 16, 32, 64, 128)


def prompt(length: int, seed: int) -> list[int]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 400, (length,), generator=generator).tolist()


def decode(backend: LocalBackend, root: Branch, n: int) -> None:
    """`n` branches of a computed prompt."""
    branches = root.fork(n)
    extend(backend, branches, TOKENS, HOT)
    for branch in branches:
        branch.free()


def prefill(backend: LocalBackend, tokens: list[int]) -> None:
    """A prompt of which nothing is cached."""
    backend.engine.call(backend.runner.forget).result()
    branch = backend.open(tokens)
    backend.prefill(branch).future.result()
    branch.free()


def unrelated(backend: LocalBackend, prompts: list[list[int]], roots: int) -> None:
    """One branch of each prompt, so many prompts at once."""
    backend.engine.call(backend.runner.forget).result()
    backend.runner.max_roots = roots
    branches = [backend.open(tokens) for tokens in prompts]
    extend(backend, branches, TOKENS, HOT)
    for branch in branches:
        branch.free()


def compare(name: str, contenders: dict[str, Callable[[], object]], tokens: int) -> None:
    """One line per contender, each against the first."""
    seconds = alternate(contenders, rounds=3)
    first = next(iter(seconds.values()))
    for kind, s in seconds.items():
        report("backends", f"{name}, {kind}", tokens / s, tokens / first, first / s, "tokens/s")


def main() -> None:
    """All rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        backends = load_all(Path(folder))
        for n in BRANCHES:
            roots = {kind: backend.open(prompt(256, 0)) for kind, backend in backends.items()}
            work = {kind: partial(decode, b, roots[kind], n) for kind, b in backends.items()}
            compare(f"{n} branches of 256", work, n * TOKENS)
        work = {kind: partial(prefill, b, prompt(1024, 1)) for kind, b in backends.items()}
        compare("prefill of 1024", work, 1024)
        unrelated_rows(backends["llama.cpp q8_0"])
        many_rows()
        cached_rows(backends["llama.cpp q8_0"])
        for backend in backends.values():
            backend.close()


def load_all(folder: Path) -> dict[str, LocalBackend]:
    """One model in every form."""
    model, tokenizer = LLAMA_100M.model(), Numbers(LLAMA_100M.vocabulary)
    model.half().save_pretrained(folder / "model")
    backends = {
        f"torch {dtype}": load(folder / "model", tokenizer=tokenizer, dtype=dtype, device="cpu")
        for dtype in TORCH
    }
    for precision in GGUF:
        file = folder / f"{precision}.gguf"
        write_gguf(folder / "model", tokenizer_path(), file, precision)
        kwargs = {"n_threads": 1}
        backends[f"llama.cpp {precision}"] = load(file, device="cpu", model_kwargs=kwargs)
    return backends


def unrelated_rows(backend: LocalBackend) -> None:
    """How many trees at once."""
    for count in (4, 8):
        prompts = [prompt(512, 100 + i) for i in range(count)]
        work = {str(r): partial(unrelated, backend, prompts, r) for r in (*ROOTS, 1 << 20)}
        seconds = alternate(work, rounds=2)
        best = min(seconds.values())
        for roots, s in seconds.items():
            name = f"{count} unrelated prompts, {'all' if len(roots) > 3 else roots} at once"
            rate = count * TOKENS / s
            report("backends", name, rate, count * TOKENS / best, best / s, "tokens/s")
    backend.runner.max_roots = None


def many_rows() -> None:
    """How many trees at once, of short prompts to a model whose weights cost little."""
    asked = [
        prompt_of(draw(TASKS[i % 2], i, split="validation", difficulty=4).question)
        for i in range(128)
    ]
    with load(device="cpu", backend="llama-cpp", model_kwargs={"n_threads": 1}) as backend:

        def answer(roots: int) -> None:
            backend.engine.call(backend.runner.forget).result()
            backend.runner.max_roots = roots
            branches = [backend.open(text) for text in asked]
            extend(backend, branches, 200, Sampling(temperature=0.0), eos=True)
            for branch in branches:
                branch.free()

        seconds = alternate({str(r): partial(answer, r) for r in MANY_ROOTS}, rounds=2)
        best = min(seconds.values())
        for roots, s in seconds.items():
            row = f"128 short prompts to the bundled model, {roots} at once"
            report("backends", row, s, best, best / s, "s")


def cached_rows(backend: LocalBackend) -> None:
    """What stale cells cost."""
    rates = list[float]()
    for cached in (0, 4096, 16384, 32768):
        backend.engine.call(backend.runner.forget).result()
        backend.runner._most_cached = 1 << 20  # noqa: SLF001 - what the limit is worth
        for i in range(cached // 1024):
            branch = backend.open(prompt(1024, 1000 + i))
            backend.prefill(branch).future.result()
            branch.free()
            settle(backend)
        root = backend.open(prompt(64, 5))
        seconds = alternate({"one": partial(decode, backend, root, 1)}, rounds=5)["one"]
        root.free()
        rates.append(TOKENS / seconds)
        name = f"1 branch beside {cached} cached tokens"
        report("backends", name, rates[-1], rates[0], rates[-1] / rates[0], "tokens/s")


if __name__ == "__main__":
    main()
