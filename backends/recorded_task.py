"""
Requests to a recorded backend, metered as an engine would.

Knows lengths and the clock; knows no order of samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from langchain_pareto.backends import cost
from langchain_pareto.backends.base import Extension, Finish, ModelSpec, Usage
from langchain_pareto.backends.recorded_branch import RecordedBranch
from langchain_pareto.backends.recorded_samples import CUT


class RecordedTask:
    """One draw: a recorded sample, or as much of it as there is room and time for."""

    def __init__(
        self,
        branch: RecordedBranch,
        sample: int,
        most: int,
        deadline: float | None,
        on_text: Callable[[str], None] | None,
    ) -> None:
        self.future: Future[object] = Future()
        self.usage = Usage()
        self.sample = sample
        self._branch, self._backend = branch, branch.backend
        self._length = self._backend.length(branch.root.row, sample)
        self._most = min(self._length, most)
        self._deadline, self._on_text = deadline, on_text
        self._charged: int | None = None  # positions of the prompt that are on its bill
        self._drawn = 0
        branch.begin()

    def cancel(self) -> None:
        """Ends the draw where it is."""
        self._end("cancelled")

    def step(self, n: int = 1) -> None:
        """Draws up to `n` more tokens; ends with the sample, at the most tokens, or once the time is up."""
        if self.future.done():
            return
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._end("deadline")
            return
        if self._charged is None:
            self._charged = self._branch.root.charge(self._branch.root.prompt - 1)
        self._drawn = min(self._most, self._drawn + n)
        self._count()
        if self._drawn == self._most:
            self._end("eos" if self._most == self._length else "length")

    def _count(self) -> None:
        """What an engine counts: the prompt once in a tree, then a token a step."""
        spec, drawn, prompt = self._backend.spec, self._drawn, self._branch.root.prompt
        charged = self._charged or 0
        start, read = prompt - 1 - charged, charged + 1
        slots = drawn * prompt + drawn * (drawn - 1) // 2  # read or written, over all steps
        self.usage = Usage(
            prompt_tokens=read,
            new_tokens=drawn,
            forwards=drawn,
            forward_tokens=read + drawn - 1,
            flops=cost.forward_flops(spec, start, prompt - 1 + drawn, drawn),
            bytes=cost.forward_bytes(spec, 0, 0) * drawn + spec.kv_bytes_per_token * slots,
        )

    def _end(self, finish: Finish) -> None:
        if self.future.done():
            return
        row, n = self._branch.root.row, self._drawn
        text = self._backend.text(row, self.sample) if finish == "eos" else CUT
        logprob = self._backend.logprob(row, self.sample)
        stats = [] if logprob is None else [logprob] * n
        tokens = [self.sample] * n
        self._branch.put(tokens)
        self._backend.end(self)
        if self._on_text is not None:
            self._on_text(text)
        self.future.set_result(Extension(tokens, text, finish, logprobs=stats, usage=self.usage))


class RecordedPrefill:
    """Computes all but the last token of a prompt, at once; the future gives whether there was time for it."""

    def __init__(self, branch: RecordedBranch, deadline: float | None) -> None:
        self.future: Future[object] = Future()
        self.usage = Usage()
        in_time = deadline is None or time.monotonic() < deadline
        last = branch.root.prompt - 1  # pending, and in no prefill
        if in_time and last:
            self.usage = _prefill(branch.backend.spec, last, branch.root.charge(last - 1) + 1)
        self.future.set_result(in_time)

    def cancel(self) -> None:
        """Changes nothing: it is done."""


def _prefill(spec: ModelSpec, stop: int, read: int) -> Usage:
    """What the last `read` positions before `stop` take."""
    return Usage(
        prompt_tokens=read,
        forwards=1,
        forward_tokens=read,
        flops=cost.forward_flops(spec, stop - read, stop, 1),
        bytes=cost.forward_bytes(spec, 0, stop),
    )
