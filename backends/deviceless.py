"""
What the backends that compute nothing have in common: a shape, books, and the checks of what they are asked.

Knows limits, counts and prices; knows no token that is drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Literal, Protocol, Self, TypeVar

from langchain_pareto.backends import cost
from langchain_pareto.backends.base import (
    Branch,
    Capabilities,
    ModelSpec,
    Request,
    Sampling,
    Stop,
    Usage,
)
from langchain_pareto.errors import (
    ContextLengthError,
    EngineClosedError,
    SequenceError,
    SettingError,
)


class _Owned(Protocol):
    @property
    def backend(self) -> object: ...


_B = TypeVar("_B", bound=_Owned)


class Deviceless:
    """One model without a device: `sequences` branches may each fill its context."""

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        *,
        sequences: int,
        score: Literal["exact", "none"],
        sampling: Sampling | None = None,
    ) -> None:
        self.name = name
        self.spec = spec
        self.sampling = Sampling() if sampling is None else sampling
        self.capabilities = Capabilities(
            fork="share",
            rollback="free",
            step=False,
            score=score,
            max_sequences=sequences,
            context_length=spec.context_length,
            pool_tokens=spec.context_length * sequences,
        )
        self.meter = Usage()  # the sum over all requests
        self.branches = 0  # not given back
        self._books = threading.RLock()
        self._closed = False

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs of a request, and the bytes of KV cache that it adds."""
        return cost.worst_flops(self.spec, request), cost.kv_bytes(self.spec, request)

    def close(self) -> None:
        """Takes no request any more; twice is once."""
        with self._books:
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- for branches and tasks

    def count(self, change: int) -> None:
        """Notes that branches were opened or given back."""
        with self._books:
            self.branches += change

    def charge(self, share: Usage) -> None:
        """Adds what a request took to the meter."""
        with self._books:
            self.meter.add(share)

    # --- checks

    def check_open(self) -> None:
        """Raises EngineClosedError after `close`."""
        if self._closed:
            msg = f"the backend of {self.name} was closed"
            raise EngineClosedError(msg)

    def own(self, branch: Branch, kind: type[_B]) -> _B:
        """The branch, which is one of this backend's; raises SequenceError."""
        if not isinstance(branch, kind) or branch.backend is not self:
            msg = f"this branch does not belong to the backend of {self.name}"
            raise SequenceError(msg)
        return branch

    def check_prompt(self, tokens: Sequence[int]) -> None:
        """Raises SettingError where there is nothing to continue."""
        if not tokens:
            raise SettingError("the prompt is empty: a model needs at least one token to continue")

    def check_length(self, length: int) -> None:
        """Raises ContextLengthError where the context does not hold so many tokens."""
        limit = self.spec.context_length
        if length > limit:
            msg = f"{length} tokens are more than the context of {self.name} holds ({limit})"
            raise ContextLengthError(msg, length=length, limit=limit)

    def most(self, branch: Branch, stop: Stop) -> int:
        """Tokens that a draw may have, by its caller and the context; raises SettingError and ContextLengthError."""
        if stop.max_tokens < 1:
            msg = f"max_tokens must be at least 1, got {stop.max_tokens}"
            raise SettingError(msg)
        self.check_length(len(branch.tokens) + 1)
        return min(stop.max_tokens, self.spec.context_length - len(branch.tokens))
