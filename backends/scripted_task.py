"""
A request to a scripted backend, from its first step to its result.

Knows one program and the line that it draws; a forward is metered as the engine does, but nothing is computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from langchain_pareto.backends import cost, programs
from langchain_pareto.backends.base import Extension, Finish, Sampling, Stop, Usage

if TYPE_CHECKING:
    from langchain_pareto.backends.scripted import ScriptedBackend, ScriptedBranch


class ScriptedTask:
    """One request, a step at a time."""

    def __init__(
        self,
        backend: ScriptedBackend,
        branch: ScriptedBranch,
        program: programs.Program,
        line: Iterator[tuple[int, float]],
        deadline: float | None,
    ) -> None:
        self.branch = branch
        self.asked: tuple[Sampling, Stop] | None = None  # what a draw was asked for
        self.future: Future[object] = Future()
        self.usage = Usage()
        self._backend = backend
        self._program = program
        self._line = line
        self._deadline = deadline
        self._admitted = time.monotonic()
        self._cancelled = False
        self._ended = False
        self._lock = threading.RLock()  # `on_text` may cancel
        self._known = dict[int, int]()  # per sequence id: tokens from before this request
        self._works: list[programs.Work] | None = None

    def cancel(self) -> None:
        """Ends the request within one step; its future resolves to what it has so far."""
        self._cancelled = True
        if self._backend.manual:
            self.step()

    def step(self) -> bool:
        """Draws one token, or ends; whether there is more to do."""
        with self._lock:
            if self._ended:
                return False
            try:
                self._advance()
            except StopIteration as stop:
                self._ended = True
                value, error = stop.value, None
            except Exception as failure:  # noqa: BLE001 - it belongs to this request alone
                self._ended = True
                value, error = None, failure
            else:
                return True
        self._end(value, error)
        return False

    def fail(self, error: Exception) -> None:
        """Ends the request with `error`."""
        with self._lock:
            ended, self._ended = self._ended, True
        if not ended:
            self._program.close()
            self._end(None, error)

    def _advance(self) -> None:
        if self._works is None:
            self._want(next(self._program))
        if (finish := self._overdue()) is not None:
            try:
                self._program.throw(programs.Interrupted(finish))
            except programs.Interrupted:
                raise StopIteration from None
        assert self._works is not None
        self._want(self._program.send([self._compute(work) for work in self._works]))

    def _want(self, works: list[programs.Work]) -> None:
        self._works = works
        for work in works:
            self._known.setdefault(id(work.sequence), len(work.sequence.tokens))

    def _overdue(self) -> Finish | None:
        if self._cancelled:
            return "cancelled"
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return "deadline" if late else None

    def _compute(self, work: programs.Work) -> programs.Result:
        """One forward over all that is pending, metered as the engine does, and what came of it."""
        sequence, spec, n = work.sequence, self._backend.spec, work.sequence.pending
        sequence.put(np.zeros(n, np.int32))
        stop = sequence.cached
        start = stop - sequence.charge(stop - n, stop, work.rows)
        self._charge(
            Usage(
                prompt_tokens=max(0, min(stop, self._known[id(sequence)]) - start),
                forwards=1,
                forward_tokens=stop - start,
                flops=cost.forward_flops(spec, start, stop, work.rows),
                bytes=cost.forward_bytes(spec, stop - n, n),
            )
        )
        if isinstance(work.want, programs.Named):
            return self._backend.named(sequence.tokens, work.want.tokens, work.rows)
        token, logprob = next(self._line)
        self._charge(Usage(new_tokens=1))
        return [programs.Drawn(token, logprob, -logprob, logprob)]

    def _charge(self, share: Usage) -> None:
        self.usage.add(share)
        self._backend.charge(share)

    def _end(self, value: object, error: Exception | None) -> None:
        self.usage.wall_seconds = time.monotonic() - self._admitted
        self._backend.forget(self)
        self.branch.end()
        if isinstance(value, Extension):
            value.usage = self.usage
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)
