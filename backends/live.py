"""
The programs in flight on one engine: begun, resumed with what came of their work, ended each by itself.

Knows programs, and how many of them decode; knows no step, no schedule and no device. All of it happens on the engine's thread.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from contextlib import suppress

from langchain_pareto.backends.base import Extension, Finish, Runner, Usage
from langchain_pareto.backends.programs import Interrupted, Result
from langchain_pareto.backends.running import Running
from langchain_pareto.errors import BackendError


class Live:
    """What one engine works on, the oldest program first; `meter` is the engine's."""

    def __init__(self, meter: Usage) -> None:
        self.programs = list[Running]()
        self._new = list[Running]()  # of these, those that will draw and have not begun
        self._decoding = Counter[Runner]()  # of these, those that decode
        self._order = itertools.count()
        self._meter = meter

    def sharing(self, runner: Runner) -> int:
        """Programs that decode with `runner`."""
        return self._decoding[runner]

    def admit(self, running: Running) -> None:
        """Takes a program in: one that draws begins with the next round, any other one now."""
        running.order = next(self._order)
        running.admitted = time.monotonic()
        running.meter = self._meter
        self.programs.append(running)
        if running.draws:
            self._new.append(running)
        else:  # it forks its branch, which others may change from now on
            self.advance({running: None})

    def begin(self) -> None:
        """Starts what was taken in since the last round, all of it at once."""
        new, self._new = self._new, []
        self.advance(dict.fromkeys(new))

    def advance(self, ready: dict[Running, list[Result] | None]) -> None:
        """Resumes programs with their results, or starts them.

        How far each guesses goes by how many decode. These all do by now: what they wanted last may have been to read a prompt.
        """
        for running in ready:
            self._count(running, running.draws)
        for running, results in ready.items():
            if not running.ended:
                self._resume(running, results)
        for running in ready:
            self._count(running, running.decodes)

    def end_overdue(self, now: float) -> None:
        """Ends what is cancelled or late, with what it has so far."""
        for running in list(self.programs):
            if (finish := running.overdue(now)) is not None:
                self._interrupt(running, finish)

    def retire(self, runner: Runner, reason: BackendError) -> None:
        """Fails every program of a runner that is closing."""
        for running in list(self.programs):
            if runner in (running.runner, running.drafter):
                self.fail(running, reason)
        self._decoding.pop(runner, None)

    def fail_all(self, reason: BackendError) -> None:
        """Fails every program."""
        for running in list(self.programs):
            self.fail(running, reason)

    def fail(self, running: Running, error: BaseException) -> None:
        """Ends one program with an error, unless it has ended."""
        if running.ended:
            return
        with suppress(Exception):  # what a program does on its way out is its own, too
            running.program.close()
        self._end(running)
        if running.future.set_running_or_notify_cancel():
            running.future.set_exception(error)

    def _count(self, running: Running, decodes: bool) -> None:
        """Keeps the number of programs that decode."""
        decodes = decodes and not running.ended
        if decodes != running.counted:  # else a runner that was retired would be counted anew
            self._decoding[running.runner] += 1 if decodes else -1
            running.counted = decodes

    def _resume(self, running: Running, results: list[Result] | None) -> None:
        try:
            works = next(running.program) if results is None else running.program.send(results)
            running.want(works)
        except StopIteration as stop:
            self._resolve(running, stop.value)
        except Exception as error:  # noqa: BLE001 - it belongs to this program alone
            self.fail(running, error)

    def _interrupt(self, running: Running, finish: Finish) -> None:
        try:
            running.program.throw(Interrupted(finish))
        except StopIteration as stop:
            self._resolve(running, stop.value)
        except Interrupted:
            self._resolve(running, None)
        except Exception as error:  # noqa: BLE001 - it belongs to this program alone
            self.fail(running, error)
        else:
            self.fail(running, BackendError("a program went on after it was interrupted"))

    def _resolve(self, running: Running, value: object) -> None:
        self._end(running)
        if isinstance(value, Extension):
            value.usage = running.usage
        if running.future.set_running_or_notify_cancel():
            running.future.set_result(value)

    def _end(self, running: Running) -> None:
        for programs in (self.programs, self._new):
            if running in programs:
                programs.remove(running)
        running.usage.wall_seconds = time.monotonic() - running.admitted
        self._meter.wall_seconds += running.usage.wall_seconds
        self._meter.cached_tokens += running.usage.cached_tokens
        for work in running.works:
            # It ended before the draw. A draft's sequence may stay so: it goes on with tokens of the branch.
            if work.runner is not running.runner or work.sequence.freed:
                continue
            if work.sequence.pending == 0:
                running.runner.truncate(work.sequence, len(work.sequence.tokens))
        running.ended = True
        self._count(running, False)
        running.on_end()
