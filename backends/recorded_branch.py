"""
A handle on a recorded question, or on a sample that was drawn below it.

Knows who pays for the prompt, and which samples are still to come; no text but a recorded one can be in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_pareto.backends.base import Branch
from langchain_pareto.backends.handle import Handle
from langchain_pareto.backends.recorded_samples import no_more, not_recorded

if TYPE_CHECKING:
    from langchain_pareto.backends.recorded import RecordedBackend


class Root:
    """What the branches of one prompt share: the order of samples, how many were drawn, and whether the prompt is computed."""

    def __init__(self, row: int, samples: Sequence[int], prompt: int) -> None:
        self.row = row
        self.prompt = prompt  # tokens
        self._samples = samples
        self._drawn = itertools.count()
        self._computed = False

    def next_sample(self, question: str) -> int:
        """The next one; raises NotRecorded after the last."""
        number = next(self._drawn)
        if number >= len(self._samples):
            raise no_more(question, len(self._samples))
        return self._samples[number]

    def charge(self, positions: int) -> int:
        """How many of the prompt's first `positions` are on the bill of whoever computes what comes after them: all of them, once."""
        computed, self._computed = self._computed, True
        return 0 if computed else positions


class RecordedBranch(Handle):
    """A question, or what was drawn below it."""

    def __init__(self, backend: RecordedBackend, root: Root, tokens: list[int], key: int) -> None:
        super().__init__(key, backend.count)
        self.backend = backend
        self.root = root
        self.tokens: Sequence[int] = tokens

    @property
    def fresh(self) -> bool:
        """Whether nothing has been drawn into it."""
        return len(self.tokens) == self.root.prompt

    def fork(self, n: int = 1) -> list[Branch]:
        """`n` children that continue from here."""
        with self.idle("fork"):
            return [
                RecordedBranch(self.backend, self.root, list(self.tokens), key)
                for key in self.child_keys(n)
            ]

    def append(self, tokens: Sequence[int]) -> None:
        """Raises NotRecorded: nobody knows what would have been drawn after that."""
        raise not_recorded(f"what a model says after {len(tokens)} tokens of the host's")

    def truncate(self, length: int) -> None:
        """Raises NotRecorded: nobody knows what else would have been drawn there."""
        raise not_recorded(f"what a model says after the first {length} tokens of an answer")

    def put(self, tokens: Sequence[int]) -> None:
        """What was drawn; the branch is free for the next request."""
        self.tokens = [*self.tokens, *tokens]
        self.end()
