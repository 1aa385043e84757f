"""
Decoding many branches, against transformers' own batch: `python examples/bench/decode.py [a b c d prefill]`.

A random Llama of 100M parameters in float32 decodes greedily, its prompt cached on both sides. Ours is the engine (`ours`,
through `Backend.extend`) and a bare loop over `TorchRunner.step` (`bare`); theirs is a DynamicCache expanded to one row a branch and a
batched forward a token. `ratio` is their seconds by ours. Each side decodes 5 rounds of 13 tokens, in turns. What is cached was
never computed: keys and values are random, the same on both sides, and `same` is the share of tokens on which both sides agree. About
three minutes in all, a minute for the longest row.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from _measure import LLAMA_100M, alternate, backend_of, extend, pretend_cached, report, settle
from transformers import DynamicCache, LlamaForCausalLM

from langchain_pareto.backends.base import Branch, Sampling
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.local_branch import LocalBranch
from langchain_pareto.backends.sequences import Chunk, Sequence
from langchain_pareto.backends.torch_runner import TorchRunner

TOKENS = 13  # a round
POOL = 2 * 18_500  # slots: each row twice, for the engine and for the bare loop


def random_tokens(n: int) -> list[int]:
    """`n` token ids."""
    return torch.randint(LLAMA_100M.vocabulary, (n,)).tolist()


def scribble(runner: TorchRunner) -> None:
    """Random keys and values all over the pool."""
    for layer in runner._stage.pools.values():  # noqa: SLF001 - there is no other way in
        layer.keys.normal_(std=0.5)
        layer.values.normal_(std=0.5)


def tree(backend: LocalBackend, prefix: int, own: int, n: int) -> list[Branch]:
    """`n` branches of one prompt, each with one drawn token and `own` more; all cached but each branch's last."""
    root = backend.open(random_tokens(prefix))
    pretend_cached(backend, [root])
    branches = root.fork(n)
    # the prompt's last token is pending and the same for all: it must be computed
    extend(backend, branches, 1, Sampling())
    if own:
        for branch in branches:
            branch.append(random_tokens(own))
        pretend_cached(backend, branches)
    return branches


def forest(backend: LocalBackend, prefix: int, n: int) -> list[Branch]:
    """`n` unrelated prompts; all cached but each one's last token."""
    branches = [backend.open(random_tokens(prefix + 1)) for _ in range(n)]
    pretend_cached(backend, branches)
    return branches


def twins(backend: LocalBackend, branches: list[Branch]) -> list[Sequence]:
    """The engine's branches once more, for the bare loop: the same slots, and tokens that go their own way."""
    out = list[Sequence]()
    for branch in branches:
        assert isinstance(branch, LocalBranch)
        out.append(backend.engine.call(lambda b=branch: backend.runner.fork(b.sequence)).result())
    return out


def theirs(
    twin: LlamaForCausalLM, runner: TorchRunner, branches: list[Branch], drawn: list[list[int]]
) -> Callable[[], None]:
    """A round of transformers' greedy loop over a batch that has the branches' keys and values."""
    sequences = [b.sequence for b in branches if isinstance(b, LocalBranch)]
    slots = torch.stack([torch.from_numpy(s.slots.astype("int64")) for s in sequences])
    cache = DynamicCache(config=twin.config)
    for i, layer in runner._stage.pools.items():  # noqa: SLF001 - there is no other way in
        # (rows, kv heads, tokens, width)
        k, v = (x[:, slots].transpose(0, 1).contiguous() for x in (layer.keys, layer.values))
        cache.update(k, v, i)
    last = torch.tensor([[s.tokens[-1]] for s in sequences])

    def decode() -> None:
        nonlocal last
        with torch.inference_mode():
            for _ in range(TOKENS):
                out = twin(last, past_key_values=cache, use_cache=True, logits_to_keep=1)
                last = out.logits[:, -1].argmax(-1, keepdim=True)
                for tokens, token in zip(drawn, last[:, 0].tolist(), strict=True):
                    tokens.append(token)

    return decode


def bare(runner: TorchRunner, sequences: list[Sequence]) -> Callable[[], None]:
    """A round of the shortest loop over the runner."""

    def decode() -> None:
        for _ in range(TOKENS):
            logits = runner.step([Chunk(sequence, 1, 1) for sequence in sequences])
            for sequence, token in zip(sequences, logits.rows.argmax(-1).tolist(), strict=True):
                runner.append(sequence, [token])

    return decode


def decode_row(
    name: str,
    bar: float,
    backend: LocalBackend,
    twin: LlamaForCausalLM,
    branches: list[Branch],
) -> None:
    """Times one row and frees it."""
    runner = backend.runner
    assert isinstance(runner, TorchRunner)
    before = [len(branch.tokens) for branch in branches]
    drawn: list[list[int]] = [[] for _ in branches]
    other = theirs(twin, runner, branches, drawn)
    copies = twins(backend, branches)
    seconds = alternate(
        {
            "engine": lambda: extend(backend, branches, TOKENS),
            "bare": bare(runner, copies),
            "theirs": other,
        },
        warm=0,
    )
    pairs = [
        a == b
        for branch, start, tokens in zip(branches, before, drawn, strict=True)
        for a, b in zip(branch.tokens[start:], tokens, strict=True)
    ]
    for sequence in copies:
        backend.engine.call(lambda s=sequence: runner.free(s)).result()
    for branch in branches:
        branch.free()
    backend.engine.call(runner.prefixes.clear).result()
    ms = {k: 1e3 * v / TOKENS for k, v in seconds.items()}
    report(
        "decode",
        name,
        ms["engine"],
        ms["theirs"],
        ms["theirs"] / ms["engine"],
        "ms/step",
        bar=f">= {bar}",
        bare=round(ms["bare"], 2),
        bare_ratio=round(ms["theirs"] / ms["bare"], 3),
        same=sum(pairs) / len(pairs),
    )


def fork_row(backend: LocalBackend) -> None:
    """How long 32 forks of 1024 cached tokens take until the engine has done them."""
    root = backend.open([*random_tokens(1024), 0])
    pretend_cached(backend, [root])
    seconds = list[float]()
    for _ in range(5):
        began = time.perf_counter()
        branches = root.fork(32)
        settle(backend)
        seconds.append(time.perf_counter() - began)
        for branch in branches:
            branch.free()
    ms = 1e3 * statistics.median(seconds)
    report("decode", "fork 32 branches of 1024", ms, 10.0, ms / 10, "ms", bar="< 10 ms")


def prefill_row(backend: LocalBackend, twin: LlamaForCausalLM) -> None:
    """A prompt of 1024 and the first token."""

    def ours() -> None:
        extend(backend, [backend.open(random_tokens(1024))], 1)

    def other() -> None:
        with torch.inference_mode():
            cache = DynamicCache(config=twin.config)
            ids = torch.tensor([random_tokens(1024)])
            twin(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    ms = {k: 1e3 * v for k, v in alternate({"ours": ours, "theirs": other}, rounds=3).items()}
    ratio = ms["theirs"] / ms["ours"]
    report("decode", "prefill of 1024", ms["ours"], ms["theirs"], ratio, "ms", bar=None)


def main(rows: list[str]) -> None:
    """Runs the named rows, or all."""
    torch.set_num_threads(1)
    model = LLAMA_100M.model()
    twin = LLAMA_100M.twin(model)
    with backend_of(model, POOL) as backend:
        assert isinstance(backend.runner, TorchRunner)
        scribble(backend.runner)
        if "a" in rows:
            fork_row(backend)
            branches = tree(backend, 1024, 0, 32)
            decode_row("a: prefix 1024, 32 branches", 2.5, backend, twin, branches)
        if "b" in rows:
            branches = tree(backend, 256, 0, 8)
            decode_row("b: prefix 256, 8 branches", 1.0, backend, twin, branches)
        if "c" in rows:
            branches = tree(backend, 64, 1024, 16)
            decode_row("c: prefix 64, 16 branches of 1024 own", 0.95, backend, twin, branches)
        if "d" in rows:
            branches = forest(backend, 512, 16)
            decode_row("d: 16 unrelated prompts of 512", 0.95, backend, twin, branches)
        if "prefill" in rows:
            prefill_row(backend, twin)


if __name__ == "__main__":
    main(sys.argv[1:] or ["a", "b", "c", "d", "prefill"])
