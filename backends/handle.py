"""
A handle on a branch, as far as it is the same for every backend that computes nothing.

Knows its key, its children's keys, and whether it is busy or was given back; knows no token.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from langchain_pareto.backends.keys import child_key
from langchain_pareto.errors import SequenceError


class Handle:
    """What takes one request at a time, until it is given back."""

    def __init__(self, key: int, count: Callable[[int], None]) -> None:
        """`count` is told of each handle that is made (1) or given back (-1)."""
        self.key = key
        self._count = count
        self._children = itertools.count()
        self._lock = threading.Lock()
        self._busy = False
        self._freed = False
        count(1)

    def free(self) -> None:
        """Gives the branch back; twice is once. A branch that is being extended is freed when that ends."""
        with self._lock:
            freed, self._freed = self._freed, True
            if not freed and not self._busy:
                self._count(-1)

    def begin(self) -> None:
        """Marks the branch busy."""
        with self.idle("extend"):
            self._busy = True

    def end(self) -> None:
        """The request on the branch has ended."""
        with self._lock:
            self._busy = False
            if self._freed:
                self._count(-1)

    @contextmanager
    def idle(self, action: str) -> Iterator[None]:
        """Keeps others away meanwhile; raises SequenceError where the branch was freed or is busy."""
        with self._lock:
            if self._freed:
                msg = f"cannot {action} a branch that was freed"
                raise SequenceError(msg)
            if self._busy:
                msg = f"cannot {action} a branch while it is being extended"
                raise SequenceError(msg, hint="Wait for the extension, or fork before it starts.")
            yield

    def child_keys(self, n: int) -> list[int]:
        """The keys of the next `n` children."""
        return [child_key(self.key, next(self._children)) for _ in range(n)]
