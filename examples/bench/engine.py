"""
What the engine costs beside the model: `python examples/bench/engine.py`.

Tokens a second of `Backend.extend` (ours) and of a bare loop over `TorchRunner.step` with an argmax (theirs), for 1, 16 and 64 branches
of one prompt of 64 tokens: the bundled policy, where the overhead is largest, and a random Llama of 30M. Each side decodes 5 rounds of
32 tokens, in turns.
"""

import torch
from _measure import LLAMA_30M, alternate, backend_of, extend, nano_backend, report, settle

from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.local_branch import LocalBranch
from langchain_pareto.backends.sequences import Chunk

TOKENS = 32  # a round


def engine_row(name: str, backend: LocalBackend, n: int) -> None:
    """One model with `n` branches."""
    runner = backend.runner
    root = backend.open(torch.randint(2, backend.spec.vocabulary, (64,)).tolist())
    extend(backend, [root], 1)

    def ours() -> None:
        branches = root.fork(n)
        extend(backend, branches, TOKENS)
        for branch in branches:
            branch.free()

    def theirs() -> None:
        assert isinstance(root, LocalBranch)
        settle(backend)
        sequences = [runner.fork(root.sequence) for _ in range(n)]
        for _ in range(TOKENS):
            logits = runner.step([Chunk(sequence, 1, 1) for sequence in sequences])
            for sequence, token in zip(sequences, logits.rows.argmax(-1).tolist(), strict=True):
                runner.append(sequence, [token])
        for sequence in sequences:
            runner.free(sequence)

    rate = {k: n * TOKENS / s for k, s in alternate({"ours": ours, "theirs": theirs}).items()}
    row = f"{name}, {n} branch{'es' if n > 1 else ''}"
    ratio = rate["ours"] / rate["theirs"]
    report("engine", row, rate["ours"], rate["theirs"], ratio, "tokens/s", bar=">= 0.8")
    root.free()


def main() -> None:
    """Both models, three widths."""
    torch.set_num_threads(1)
    for name, backend in (("nano", nano_backend()), ("30M", backend_of(LLAMA_30M.model(), 30_000))):
        with backend:
            for n in (1, 16, 64):
                engine_row(name, backend, n)


if __name__ == "__main__":
    main()
