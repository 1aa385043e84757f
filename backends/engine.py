"""
One thread per device: it advances programs, and merges the work that all of them want into one step per runner and round.

Knows programs, runners and time; knows no text and no strategy. Callers post metadata changes and programs into a mailbox from any
thread; everything else happens on the engine's own thread, so nothing below needs a lock. One round: begin what is new, end what is cancelled
or late, schedule (decode steps first, then chunks of prefill, oldest program first), step, draw for everybody at once, resume.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future

import torch

from langchain_pareto.backends import cost
from langchain_pareto.backends.base import Runner, Usage
from langchain_pareto.backends.draft_length import Acceptance
from langchain_pareto.backends.gpu_support import out_of_memory
from langchain_pareto.backends.live import Live
from langchain_pareto.backends.programs import Draw
from langchain_pareto.backends.results import Results
from langchain_pareto.backends.running import Running
from langchain_pareto.backends.scheduler import PREFILL_ALONE, Refusal, Scheduler, Step
from langchain_pareto.backends.sequences import Sequence as TokenSequence, goes_on
from langchain_pareto.backends.step_times import StepTimes
from langchain_pareto.errors import (
    BackendError,
    CapacityError,
    EngineClosedError,
    EngineFailedError,
)

_MAIL = 0.02  # seconds of mail between two steps; a batch of whole texts may take more
_DRAINING = 2.0  # seconds that close() waits for the step in progress to end by itself
_INTERRUPTED = 60.0  # seconds that it waits then for the step to give up


class Engine:
    """The thread of one device, and the programs on it."""

    def __init__(self, name: str = "cpu") -> None:
        self.name = name
        self.meter = Usage()
        self.steps = 0
        self._mailbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live = Live(self.meter)
        self._scheduler = Scheduler(self._live.programs)
        self._results = Results()
        self._times = dict[Runner, StepTimes]()
        self._acceptance = dict[tuple[object, ...], Acceptance]()
        self._lock = threading.RLock()  # a collected branch may post while its thread posts
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._stepping = list[Runner]()  # in the step in progress
        self._left = list[Runner]()  # to be closed when the thread ends
        self._closed = self._ended = False
        self._pid = os.getpid()
        _engines.add(self)

    # --- any thread

    def post(self, change: Callable[[], None]) -> None:
        """Runs a metadata change on the engine's thread, in order; raises EngineClosedError."""
        self._check_process()
        with self._lock:  # nothing comes after what closes the engine
            self._check_open()
            self._start()
            self._mailbox.put(change)

    def submit(self, running: Running) -> Running:
        """Starts a program; `running.future` resolves to its result or its error."""
        self.post(lambda: self._live.admit(running))
        return running

    def call(self, function: Callable[[], object]) -> Future[object]:
        """Runs `function` between two steps; for checks and closing, not for every token."""
        future: Future[object] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)

        self.post(run)
        return future

    @property
    def live(self) -> int:
        """Programs in flight."""
        return len(self._live.programs)

    def close(self) -> None:
        """Ends every program with EngineClosedError and stops the thread; twice is once."""
        if self._pid != os.getpid():
            return
        with self._lock:
            closed, self._closed = self._closed, True
            thread = self._thread
            if closed or thread is None:
                return
            self._mailbox.put(None)
        self._wait_for(thread)

    def dispose(self, runner: Runner) -> None:
        """Ends every program of `runner` and closes it, when no step is in progress any more.

        On the engine's own thread that may be a callback of one of them: they end once it has returned.
        """
        if threading.current_thread() is self._thread:
            self._mailbox.put(lambda: self.retire(runner))
            return
        try:
            self.call(lambda: self.retire(runner)).result()
        except BackendError:
            # The engine is gone, or about to go, and its thread may still be in a step of the runner.
            with self._lock:
                thread, ended = self._thread, self._ended or self._thread is None
                if not ended:
                    self._left.append(runner)
            if ended:
                runner.close()
            elif thread is not None:
                self._wait_for(thread)

    def _wait_for(self, thread: threading.Thread) -> None:
        """Until the thread has ended; a step that takes long is told to give up."""
        if thread is threading.current_thread():
            return
        thread.join(_DRAINING)
        if thread.is_alive():
            for runner in list(self._stepping):
                runner.interrupt()
            thread.join(_INTERRUPTED)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            msg = "this engine belongs to the parent process: a fork has its memory but not its threads or device"
            hint = "Start workers with the 'spawn' method, or make the model in the worker."
            raise EngineClosedError(msg, hint=hint)

    def _check_open(self) -> None:
        if self._failure is not None:
            msg = f"the engine on {self.name} failed: {self._failure}"
            raise EngineFailedError(msg) from self._failure
        if self._closed:
            msg = f"the engine on {self.name} was closed"
            raise EngineClosedError(msg, hint="Make a new backend or chat model.")

    def _start(self) -> None:
        if self._thread is None:
            name = f"pareto-engine-{self.name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    # --- the engine's thread

    def sharing(self, runner: Runner) -> int:
        """Programs that decode with `runner`."""
        return self._live.sharing(runner)

    def times(self, runner: Runner) -> StepTimes:
        """What decode steps of `runner` have taken so far."""
        return self._times.setdefault(runner, StepTimes())

    def acceptance(self, *pair: object) -> Acceptance:
        """How well a runner's guesses have gone so far, by who guesses and how, from one call to the next."""
        return self._acceptance.setdefault(pair, Acceptance())

    def track(self, runner: Runner, sequence: TokenSequence) -> TokenSequence:
        """Notes an open sequence, so that its slots can be taken when they are needed more elsewhere."""
        return self._scheduler.track(runner, sequence)

    def untrack(self, sequence: TokenSequence) -> None:
        """The sequence is freed."""
        self._scheduler.untrack(sequence)

    def retire(self, runner: Runner) -> None:
        """Ends every program of `runner` with EngineClosedError, and closes it."""
        reason = EngineClosedError(f"the backend of {runner.spec.name} was closed")
        self._live.retire(runner, reason)
        self._scheduler.forget(runner)
        self._results.forget(runner)
        self._times.pop(runner, None)
        for pair in [pair for pair in self._acceptance if runner in pair]:
            del self._acceptance[pair]
        runner.close()

    def _run(self) -> None:
        try:
            while self._failure is None and self._drain():
                self._round()
        except BaseException as error:  # noqa: BLE001 - whatever it was, nobody may wait for ever
            self._failure = error
        reason: BackendError = EngineClosedError(f"the engine on {self.name} was closed")
        if self._failure is not None:
            reason = EngineFailedError(f"the engine on {self.name} failed: {self._failure}")
            reason.__cause__ = self._failure
        with self._lock:
            self._closed = True
        self._live.fail_all(reason)
        self._reject(reason)
        with self._lock:
            self._ended = True
        for runner in self._left:
            runner.close()

    def _drain(self) -> bool:
        """Takes the mail, waiting for some when there is nothing else to do; False when the engine closes.

        Mail that takes long is left for after a step, so that programs in flight end in time.
        """
        spent = 0.0  # while somebody waits for a step
        while True:
            try:
                change = self._mailbox.get(block=not self._live.programs)
            except queue.Empty:
                return True
            if change is None:
                return False
            waited_for, begun = bool(self._live.programs), time.monotonic()
            change()
            spent += waited_for * (time.monotonic() - begun)
            if spent > _MAIL:
                return True

    def _reject(self, reason: BackendError) -> None:
        """Whoever posted while the engine was ending is told so."""
        while True:
            try:
                change = self._mailbox.get_nowait()
            except queue.Empty:
                return
            if change is not None:
                change()
                self._live.fail_all(reason)

    def _round(self) -> None:
        # 1. begin what is new
        self._live.begin()
        # 2. end what is cancelled or late
        self._live.end_overdue(time.monotonic())
        # 3. one step per runner, launched before any is waited for
        wanted = (work.runner for running in self._live.programs for work in running.works)
        runners = dict.fromkeys(runner for runner in wanted if runner is not None)
        self._stepping = list(runners)
        started = [step for runner in runners if (step := self._launch(runner)) is not None]
        # 4. draw, copy, meter, resume
        for step in started:
            self._finish_step(step)
        self._stepping = []

    # --- scheduling

    def _launch(self, runner: Runner) -> Step | None:
        """Schedules and starts one step of `runner`; a failure ends the programs that it belongs to."""
        limit = PREFILL_ALONE
        for _ in range(2):
            begun = time.perf_counter()
            step = self._scheduler.schedule(runner, limit)
            if isinstance(step, Refusal):
                self._live.fail(step.running, step.error)
                return None
            if step is None:
                return None
            try:
                step.logits = runner.step(step.chunks)
            except CapacityError as error:
                self._live.fail(step.items[-1][0], error)
            except Exception as error:  # noqa: BLE001 - any model code may fail in any way
                if out_of_memory(error):
                    runner.trim()
                    if limit == PREFILL_ALONE:
                        limit = max(1, max(chunk.n for chunk in step.chunks) // 2)
                        continue
                    self._live.fail(step.items[-1][0], _capacity(error, step))
                else:
                    self._fail_step(step, error)
            else:
                step.seconds = time.perf_counter() - begun
                return step
            return None
        return None

    # --- after the step

    def _finish_step(self, step: Step) -> None:
        begun = time.perf_counter()
        try:
            step.runner.join()
            results = self._results.collect(step)
        except Exception as error:  # noqa: BLE001 - a device may report a failed step only now
            self._fail_step(step, error)
            return
        seconds = step.seconds + time.perf_counter() - begun
        self.steps += 1
        self._charge(step, seconds)
        context = step.context  # before programs take back what was wrong
        touched = dict[Running, None]()  # in order
        for k, ((running, i), chunk) in enumerate(zip(step.items, step.chunks, strict=True)):
            result, sequence = results.get(k), chunk.sequence
            # what gives no row is a piece of a prompt, however short
            if chunk.rows == 0 or not goes_on(sequence.cached - chunk.n, chunk.n, chunk.rows):
                step.runner.share(sequence)
            if isinstance(result, Exception):
                self._live.fail(running, result)
            elif result is not None:
                want = running.works[i].want
                if isinstance(want, Draw) and want.counted:
                    running.count(new_tokens=len(result))
                running.results[i] = result
                touched[running] = None
        whole = [r for r in touched if not r.ended and None not in r.results]
        self._live.advance(
            {r: [result for result in r.results if result is not None] for r in whole}
        )
        if step.goes_on:
            # with what programs do between two steps: of many small guesses it is a share
            taken = step.seconds + time.perf_counter() - begun
            self.times(step.runner).note(step.tokens, taken, context)

    def _charge(self, step: Step, seconds: float) -> None:
        """Splits the step's cost over its programs; the shares add up to what the meter gets."""
        assert step.logits is not None
        spec, total = step.runner.spec, step.tokens
        moved = cost.forward_bytes(spec, step.logits.union, total, len(step.chunks))
        counted = set[Running]()
        for (running, _), chunk in zip(step.items, step.chunks, strict=True):
            sequence, stop = chunk.sequence, chunk.sequence.cached
            charged = sequence.charge(stop - chunk.n, stop, chunk.rows)
            start = stop - charged
            # a draft reads the prompt once more: that is no prompt
            own = step.runner is running.runner
            prompt = max(0, min(stop, running.known[sequence]) - start) if own else 0
            flops = cost.forward_flops(spec, start, stop, chunk.rows)
            first = running not in counted
            counted.add(running)
            for usage in (running.usage, self.meter):
                usage.forwards += first
                usage.prompt_tokens += prompt
                usage.forward_tokens += charged
                usage.replayed_tokens += chunk.n - charged
                usage.flops += flops
                usage.bytes += moved * chunk.n // total
                usage.device_seconds += seconds * chunk.n / total

    # --- failures

    def _fail_step(self, step: Step, error: Exception) -> None:
        spec = step.runner.spec
        failure = EngineFailedError(f"{spec.name} failed in a step on {spec.device}: {error}")
        failure.__cause__ = error
        if isinstance(error, getattr(torch, "AcceleratorError", ())):
            self._failure = error  # a device assertion poisons everything after it
        for running, _ in step.items:
            self._live.fail(running, failure)


def _capacity(error: Exception, step: Step) -> CapacityError:
    msg = f"the device ran out of memory in a step of {step.tokens} tokens: {error}"
    hint = "Leave more memory beside the pool (a smaller memory=...), or use a smaller model."
    out = CapacityError(msg, needed=step.tokens, free=0, kind="memory", hint=hint)
    out.__cause__ = error
    return out


# --- one engine per device, and the end of the process

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_by_device = dict[str, Engine]()
_registry_lock = threading.Lock()


def engine_for(device: str) -> Engine:
    """The process's engine for `device`, started on first use and made anew after it was closed or failed."""
    with _registry_lock:
        engine = _by_device.get(device)
        if engine is None or engine._closed or engine._pid != os.getpid():  # noqa: SLF001 - same module
            engine = _by_device[device] = Engine(device)
        return engine


def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


# Runs before the interpreter waits for the threads of executors, which may wait for us; atexit would run after.
threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # noqa: SLF001
