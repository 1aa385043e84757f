"""
One live program: what it wants, what it got, and what it cost.

Knows a program and its works; knows no other program. Made by whoever asks, from then on the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from langchain_pareto.backends.base import Finish, Runner, Usage
from langchain_pareto.backends.programs import Program, Result, Work


class Running:
    """A program in flight, and the Task that its caller sees."""

    def __init__(self, program: Program, runner: Runner, deadline: float | None) -> None:
        self.program = program
        self.runner = runner
        self.deadline = deadline
        self.future: Future[object] = Future()
        self.usage = Usage()
        self.order = -1  # of admission; older programs go first
        self.admitted = 0.0
        self.on_end: Callable[[], None] = lambda: None  # called before anybody learns that it ended
        self.works: list[Work] = []
        self.results: list[Result | None] = []
        self.known = dict[int, int]()  # per sequence id: tokens that were there before this program
        self.ended = False
        self._cancelled = False

    def cancel(self) -> None:
        """Ends the program within one step; its future resolves to what it has so far."""
        self._cancelled = True

    def overdue(self, now: float) -> Finish | None:
        """Why the program must end now, if it must."""
        if self._cancelled or self.future.cancelled():
            return "cancelled"
        return "deadline" if self.deadline is not None and now >= self.deadline else None

    def want(self, works: list[Work]) -> None:
        """Takes the next work that the program yielded."""
        self.works = works
        self.results = [None] * len(works)
        for work in works:
            assert work.sequence.pending >= work.rows, (
                "a row is wanted whose token is computed already"
            )
            self.known.setdefault(id(work.sequence), len(work.sequence.tokens))
