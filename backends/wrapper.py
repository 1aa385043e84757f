"""
A backend around a backend: whatever a wrapper does not do in a way of its own, its target does.

Knows the names of what is asked of a backend, and nothing of what any of it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from langchain_pareto.backends.base import Branch, Capabilities, ModelSpec, Request, Sampling, Task
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.tokens import Tokenizer


class BackendWrapper:
    """All of a Backend but `extend`: how tokens are drawn, if they are, is what wrappers differ in."""

    def __init__(self, target: LocalBackend) -> None:
        self.target = target

    @property
    def name(self) -> str:
        """The target's."""
        return self.target.name

    @property
    def spec(self) -> ModelSpec:
        """The target's shape."""
        return self.target.spec

    @property
    def capabilities(self) -> Capabilities:
        """The target's."""
        return self.target.capabilities

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's."""
        return self.target.tokenizer

    @property
    def sampling(self) -> Sampling:
        """The target's."""
        return self.target.sampling

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root."""
        return self.target.open(prompt, seed=seed)

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> Task:
        """Computes all but the last token, on the target."""
        return self.target.prefill(branch, deadline=deadline)

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> Task:
        """Raw log-probabilities of each continuation's tokens, by the target."""
        return self.target.score(branch, continuations, deadline=deadline)

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs of a request, and the bytes of KV cache that it adds."""
        return self.target.estimate(request)

    def close(self) -> None:
        """Closes the target; twice is once."""
        self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
