"""
A user's function as a scorer, run so that it can neither hang nor crash us.

Knows processes; does not know where thoughts come from. A worker process is isolation from accidents, no sandbox: a verifier that
runs a model's code runs it with the user's rights.
"""

import asyncio
import contextlib
import inspect
import json
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Literal, NamedTuple, cast

from langchain_pareto.budget import Budget
from langchain_pareto.errors import BudgetError, NothingScoredError, ScorerError, SettingError
from langchain_pareto.strategies.scorers import Scorable

_logger = logging.getLogger(__name__)

Verdict = bool | float
VerifierFunction = Callable[[str, str], Verdict] | Callable[[str, str], Awaitable[Verdict]]


class _Outcome(NamedTuple):
    kind: Literal["score", "failed", "invalid", "unusable"]
    score: float = -math.inf
    note: str = ""


class Verifier:
    """
    Scores with `function(question, answer)`, which gets the text where there is no answer.

    A sync function runs in worker processes (`workers` of them, spawned on first use), which are
    killed after `timeout` seconds and replaced; it must be importable by name. Each may take
    `memory` (bytes, or a text such as "2 GB") with all that it has imported, and each program that
    it starts as much again, where the system keeps such a limit (Linux does). An async function
    runs on the caller's loop, `workers` calls at a time, without one. A call that raises, crashes,
    times out or gets no more memory scores -inf and is added to `failures`; ScorerError if every
    call did, or on a result that is not a number. Use from any thread or event loop; `close()`
    ends the workers.
    """

    def __init__(
        self,
        function: VerifierFunction,
        *,
        timeout: float = 5.0,
        workers: int = 1,
        memory: int | str | None = None,
    ) -> None:
        if not callable(function):
            message = f"a verifier must be callable, got {function!r}"
            raise SettingError(message)
        if not 0 < timeout < math.inf or workers < 1:
            message = f"expected timeout > 0 and workers >= 1, got {timeout} and {workers}"
            raise SettingError(message)
        self.function = function
        self.timeout = timeout  # seconds
        self.workers = workers
        self.memory = None if memory is None else _bytes(memory)
        self.failures: list[str] = []
        self._asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            type(function).__call__
        )
        self._closed = False
        if self._asynchronous:
            if memory is not None:
                message = "an async verifier runs in this process, which has no memory limit"
                raise SettingError(message, hint="Leave memory out, or make the verifier sync.")
            return
        pickled = _pickled(function)
        self._processes = [_Worker(pickled, timeout, self.memory) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._processes:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pareto-verifier")
        # At exit this runs before multiprocessing joins its children; never in a forked child.
        self._stop = Finalize(self, _stop_all, args=(self._processes,), exitpriority=10)

    async def score(self, thoughts: Sequence[Scorable]) -> list[float]:
        if self._closed:
            message = "the verifier was closed"
            raise ScorerError(message)
        pairs = [(t.question, t.whole_text if t.answer is None else t.answer) for t in thoughts]
        if self._asynchronous:
            gate = asyncio.Semaphore(self.workers)
            outcomes = await asyncio.gather(*(self._await(*pair, gate) for pair in pairs))
        else:
            loop, lost = asyncio.get_running_loop(), list[_Outcome]()
            calls = [loop.run_in_executor(self._threads, self._call, *pair, lost) for pair in pairs]
            outcomes = await asyncio.gather(*calls)
        return self._scores(outcomes)

    def close(self) -> None:
        """End the workers, even in the middle of a call, which then fails; safe to repeat."""
        self._closed = True
        if not self._asynchronous:
            self._stop()
            self._threads.shutdown(wait=False)

    def _scores(self, outcomes: Sequence[_Outcome]) -> list[float]:
        for outcome in outcomes:
            if outcome.kind == "invalid":
                message = f"the verifier returned {outcome.note}, expected a bool or a number"
                raise ScorerError(message)
            if outcome.kind == "unusable":
                raise SettingError(outcome.note, hint=_IMPORTABLE)
        failures = [outcome.note for outcome in outcomes if outcome.kind == "failed"]
        self.failures.extend(failures)
        if failures and len(failures) == len(outcomes):
            message = f"the verifier failed on all of {len(outcomes)} samples: {failures[0]}"
            raise NothingScoredError(message)
        if failures:
            _logger.warning("verifier failed on %d of %d samples", len(failures), len(outcomes))
        return [outcome.score for outcome in outcomes]

    def _call(self, question: str, answer: str, lost: list[_Outcome]) -> _Outcome:
        """One verdict; none is tried once a process could not start, which may run the user's script again and take a minute."""
        worker = self._idle.get()
        try:
            outcome = lost[0] if lost else worker.call(question, answer)
        finally:
            self._idle.put(worker)
        if outcome.kind == "unusable":
            lost.append(outcome)
        return outcome

    async def _await(self, question: str, answer: str, gate: asyncio.Semaphore) -> _Outcome:
        function = cast("Callable[[str, str], Awaitable[Verdict]]", self.function)
        async with gate:
            try:
                async with asyncio.timeout(self.timeout) as limit:
                    return _outcome(await function(question, answer))
            except Exception as error:  # noqa: BLE001  whatever a user's function raises
                return _Outcome(
                    "failed", note=_late(self.timeout) if limit.expired() else _line(error)
                )


_START_SECONDS = 60.0  # the user's module may import much
_IMPORTABLE = (
    "A sync verifier runs in another process: define it at the top level of a module that can be "
    "imported (not in a notebook, a lambda or a closure; a script needs `if __name__ == "
    '"__main__":`), or make it async.'
)

_MEMORY = 'Write bytes above zero or a text with a unit, as memory=2_000_000_000 or memory="2 GB".'


class _Worker:
    """One child process that answers one call at a time; started on demand, replaced when lost."""

    def __init__(self, pickled: bytes, timeout: float, memory: int | None) -> None:
        self._pickled = pickled
        self._timeout = timeout
        self._memory = memory  # bytes
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._stopped = False
        self._lock = threading.Lock()  # `stop` comes from another thread

    def call(self, question: str, answer: str) -> _Outcome:
        try:
            pipe = self._started()
            if isinstance(pipe, _Outcome):
                return pipe
            pipe.send_bytes(json.dumps((question, answer)).encode())
            if not pipe.poll(self._timeout):
                self._kill()
                return _Outcome("failed", note=_late(self._timeout))
            return _Outcome(*json.loads(pipe.recv_bytes()))
        except (EOFError, OSError):
            code = self._kill()
            ended = "was closed" if self._stopped else f"died (exit code {code})"
            return _Outcome("failed", note=f"the verifier's process {ended}")

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        self._kill()

    def _started(self) -> Connection | _Outcome:
        """Return the pipe to a process that is ready, or why there is none."""
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's locked threads
        with self._lock:
            if self._stopped:
                return _Outcome("failed", note="the verifier was closed")
            self._pipe, theirs = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(theirs, self._pickled, self._memory))
            self._process.start()
            theirs.close()
        pipe, reason = self._pipe, "it ended while starting"
        with contextlib.suppress(EOFError, OSError):
            ready = pipe.poll(_START_SECONDS)
            reason = pipe.recv_bytes().decode() if ready else f"not ready in {_START_SECONDS:g} s"
        if not reason:
            return pipe
        self._kill()
        if self._stopped:
            return _Outcome("failed", note="the verifier was closed")
        return _Outcome("unusable", note=f"the verifier's process could not start: {reason}")

    def _kill(self) -> int | None:
        """End the process and what it started; return its exit code."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return None
            with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
                os.killpg(cast("int", process.pid), signal.SIGKILL)  # its group: see _serve
            process.kill()
            process.join()
            return process.exitcode


def _stop_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _serve(pipe: Connection, pickled: bytes, memory: int | None) -> None:
    """Answer calls until the parent is gone: the worker process."""
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own: Ctrl-C passes it by, and killing it kills its children
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        function: Callable[[str, str], object] = pickle.loads(pickled)  # noqa: S301  ours
        if memory is not None:
            _limit(memory)
    except BaseException as error:  # noqa: BLE001  whatever importing a user's module raises
        pipe.send_bytes(_line(error).encode())
        return
    pipe.send_bytes(b"")
    while True:
        question, answer = json.loads(pipe.recv_bytes())
        try:
            outcome = _outcome(function(question, answer))
        except BaseException as error:  # noqa: BLE001  sys.exit() too
            outcome = _Outcome("failed", note=_line(error))
        pipe.send_bytes(json.dumps(outcome).encode())


def _limit(memory: int) -> None:
    """Let this process, and those that it starts, take no more than `memory` bytes of address space."""
    if sys.platform == "win32":
        return
    import resource  # Windows has none

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _bytes(memory: int | str) -> int:
    """Read a memory limit as a budget's is read."""
    try:
        budget = Budget.parse(memory) if isinstance(memory, str) else Budget(memory=memory)
    except BudgetError as error:
        message = f"cannot read memory={memory!r:.40}"
        raise SettingError(message, hint=_MEMORY) from error
    if budget.memory is None or budget != Budget(memory=budget.memory):
        message = f"expected an amount of memory, got memory={memory!r:.40}"
        raise SettingError(message, hint=_MEMORY)
    return budget.memory


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    with contextlib.suppress(AttributeError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _pickled(function: VerifierFunction) -> bytes:
    try:
        return pickle.dumps(function)
    except Exception as error:
        message = f"verifier {function!r} cannot be sent to its process: {_line(error)}"
        raise SettingError(message, hint=_IMPORTABLE) from error


def _outcome(value: object) -> _Outcome:
    """Read a verifier's result; numpy's and torch's scalars count as numbers."""
    if not isinstance(value, str | bytes):
        with contextlib.suppress(Exception):
            score = float(value)  # type: ignore[arg-type]
            if not math.isnan(score):
                return _Outcome("score", score)
    return _Outcome("invalid", note=f"{type(value).__name__} {value!r}"[:200])


def _line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:500]


def _late(seconds: float) -> str:
    return f"the verifier took longer than {seconds:g} s"
