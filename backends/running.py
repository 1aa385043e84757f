"""
One live program: what it wants, what it got, and what it cost.

Knows a program and its works; knows no other program. Made by whoever asks, from then on the engine's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from langchain_pareto.backends.base import Finish, Runner, Usage
from langchain_pareto.backends.programs import Draw, Program, Result, Work
from langchain_pareto.backends.sequences import Sequence as TokenSequence, goes_on


class Running:
    """A program in flight, and the Task that its caller sees."""

    def __init__(
        self,
        program: Program,
        runner: Runner,
        deadline: float | None,
        *,
        drafter: Runner | None = None,
        draws: bool = True,
    ) -> None:
        """`drafter` is the runner of a model that guesses ahead for this program, if there is one; `draws`: it writes tokens."""
        self.program = program
        self.runner = runner
        self.drafter = drafter
        self.deadline = deadline
        self.future: Future[object] = Future()
        self.usage = Usage()
        self.meter = Usage()  # the engine's, from admission on
        self.order = -1  # of admission; older programs go first
        self.ready = 0.0  # when it last wanted work
        self.waited = 0  # steps since then that went without it
        self.admitted = 0.0
        self.on_end: Callable[[], None] = lambda: None  # called before anybody learns that it ended
        self.works: list[Work] = []
        self.results: list[Result | None] = []
        self.known = dict[TokenSequence, int]()  # tokens that were there before this program
        self.held = dict[TokenSequence, Runner]()  # everything that it has worked on
        self.draws = draws
        self.decodes = False  # whether it draws token by token by now: it has read its prompt
        self.counted = False  # by the engine, as one that decodes
        self.ended = False
        self._cancelled = False

    @property
    def drafting(self) -> bool:
        """Whether it waits for guesses of another model."""
        return any(
            work.runner is not self.runner and not work.looks and result is None
            for work, result in zip(self.works, self.results, strict=True)
        )

    def count(
        self, *, new_tokens: int, drafted: int = 0, accepted: int = 0, rounds: int = 0
    ) -> None:
        """Adds what only the program can count, to its usage and to the meter."""
        for usage in (self.usage, self.meter):
            usage.new_tokens += new_tokens
            usage.drafted += drafted
            usage.accepted += accepted
            usage.rounds += rounds

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
        self.ready, self.waited = time.monotonic(), 0
        for work in works:
            work.runner = work.runner or self.runner
            assert work.sequence.pending >= work.rows, (
                "a row is wanted whose token is computed already"
            )
            guesses = work.rows - 1 if isinstance(work.want, Draw) else 0
            self.known.setdefault(work.sequence, len(work.sequence.tokens) - guesses)
            self.held[work.sequence] = work.runner
        self.decodes = all(map(self._decodes, works))

    def _decodes(self, work: Work) -> bool:
        """Whether a work draws the next tokens of a sequence, or guesses them."""
        sequence = work.sequence
        return isinstance(work.want, Draw) and (
            work.runner is not self.runner or goes_on(sequence.cached, sequence.pending, work.rows)
        )
