"""
One thread per device: it advances programs, and merges the work that all of them want into one step per runner and round.

Knows programs, runners and time; knows no text and no strategy. Callers post metadata changes and programs into a mailbox from any
thread; everything else happens on the engine's own thread, so nothing below needs a lock. One round: end what is cancelled or late,
schedule (decode steps first, then chunks of prefill, oldest program first), step, draw for everybody at once, resume.
"""

from __future__ import annotations

import itertools
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Protocol

import torch

from langchain_pareto.backends import cost
from langchain_pareto.backends.base import Extension, Finish, ModelSpec, Usage
from langchain_pareto.backends.kv_pool import SlotPool
from langchain_pareto.backends.programs import (
    Draw,
    Drawn,
    Interrupted,
    Named,
    Program,
    Result,
    Work,
)
from langchain_pareto.backends.sampling import Row, Sampler, named_logprobs
from langchain_pareto.backends.sequences import Chunk, Sequence as TokenSequence
from langchain_pareto.errors import (
    BackendError,
    CapacityError,
    EngineClosedError,
    EngineFailedError,
    NumericalError,
    SettingError,
)

PREFILL_CHUNK = 512  # tokens a step while somebody else decodes or has a deadline
PREFILL_ALONE = 2048  # tokens a step otherwise
_HEADROOM = 32  # slots a decoding sequence that must be free besides before a prefill is let in
_SHARED_START = 16  # tokens: a prefill that starts like another one's waits for it
_DRAINING = 2.0  # seconds that close() waits for the step in progress


class Logits(Protocol):
    """What a step gives."""

    rows: torch.Tensor  # (wanted rows, vocabulary)
    union: int  # slots read


class Runner(Protocol):
    """What a device does for one model; all of it on the engine's thread."""

    spec: ModelSpec
    pool: SlotPool

    def open(self, tokens: Sequence[int]) -> TokenSequence:
        """A new root."""
        ...

    def fork(self, sequence: TokenSequence) -> TokenSequence:
        """A child that continues from here."""
        ...

    def append(self, sequence: TokenSequence, tokens: Sequence[int]) -> None:
        """Adds pending tokens."""
        ...

    def truncate(self, sequence: TokenSequence, length: int) -> None:
        """Cuts back."""
        ...

    def free(self, sequence: TokenSequence) -> None:
        """Gives everything back."""
        ...

    def reuse(self, sequence: TokenSequence, rows: int = 1) -> int:
        """Takes over what is cached of the pending tokens but the last `rows`; returns how many that is."""
        ...

    def share(self, sequence: TokenSequence) -> None:
        """Lets others reuse what is computed."""
        ...

    def drop(self, sequence: TokenSequence) -> None:
        """Forgets what is computed, keeps the tokens."""
        ...

    def can_step(self, tokens: int) -> bool:
        """Whether there is room for so many more tokens, evicting what is only cached."""
        ...

    def step(self, chunks: Sequence[Chunk]) -> Logits:
        """One forward over all chunks; changes nothing when it raises."""
        ...

    def synchronize(self) -> None:
        """Waits for the device."""
        ...

    def trim(self) -> None:
        """Gives scratch memory back."""
        ...

    def close(self) -> None:
        """Gives the model back."""
        ...


class Running:
    """One live program: what it wants, what it got, and what it cost."""

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


class Engine:
    """The thread of one device, and the programs on it."""

    def __init__(self, name: str = "cpu") -> None:
        self.name = name
        self.meter = Usage()
        self.steps = 0
        self._mailbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live = list[Running]()
        self._sequences = dict[int, tuple[Runner, TokenSequence]]()  # every open sequence
        self._order = itertools.count()
        self._samplers = dict[int, Sampler]()
        self._lock = threading.RLock()  # a collected branch may post while its thread posts
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False
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

        def admit() -> None:
            running.order = next(self._order)
            running.admitted = time.monotonic()
            self._live.append(running)
            self._advance(running, None)

        self.post(admit)
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
        return len(self._live)

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
        if thread is not threading.current_thread():
            thread.join(_DRAINING)

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

    def track(self, runner: Runner, sequence: TokenSequence) -> TokenSequence:
        """Notes an open sequence, so that its slots can be taken when they are needed more elsewhere."""
        self._sequences[id(sequence)] = (runner, sequence)
        return sequence

    def untrack(self, sequence: TokenSequence) -> None:
        """The sequence is freed."""
        self._sequences.pop(id(sequence), None)

    def retire(self, runner: Runner) -> None:
        """Ends every program of `runner` with EngineClosedError, and closes it."""
        reason = EngineClosedError(f"the backend of {runner.spec.name} was closed")
        for running in list(self._live):
            if running.runner is runner:
                self._fail(running, reason)
        for key, (owner, _) in list(self._sequences.items()):
            if owner is runner:
                del self._sequences[key]
        self._samplers.pop(id(runner), None)
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
        for running in list(self._live):
            self._fail(running, reason)
        self._reject(reason)

    def _drain(self) -> bool:
        """Takes the mail, waiting for some when there is nothing else to do; False when the engine closes."""
        while True:
            try:
                change = self._mailbox.get(block=not self._live)
            except queue.Empty:
                return True
            if change is None:
                return False
            change()

    def _reject(self, reason: BackendError) -> None:
        """Whoever posted while the engine was ending is told so."""
        while True:
            try:
                change = self._mailbox.get_nowait()
            except queue.Empty:
                return
            if change is not None:
                change()
                for running in list(self._live):
                    self._fail(running, reason)

    def _round(self) -> None:
        # 1. end what is cancelled or late
        now = time.monotonic()
        for running in list(self._live):
            if (finish := running.overdue(now)) is not None:
                self._interrupt(running, finish)
        # 2. one step per runner, launched before any is waited for
        runners = dict.fromkeys(running.runner for running in self._live)
        started = [step for runner in runners if (step := self._launch(runner)) is not None]
        # 3. draw, copy, meter, resume
        for step in started:
            self._finish_step(step)

    # --- scheduling

    def _launch(self, runner: Runner) -> _Step | None:
        """Schedules and starts one step of `runner`; a failure ends the programs that it belongs to."""
        limit = PREFILL_ALONE
        for _ in range(2):
            step = self._schedule(runner, limit)
            if step is None:
                return None
            try:
                step.logits = runner.step(step.chunks)
            except CapacityError as error:
                self._fail(step.items[-1][0], error)
            except Exception as error:  # noqa: BLE001 - any model code may fail in any way
                if _out_of_memory(error):
                    runner.trim()
                    if limit == PREFILL_ALONE:
                        limit = max(1, max(chunk.n for chunk in step.chunks) // 2)
                        continue
                    self._fail(step.items[-1][0], _capacity(error, step))
                else:
                    self._fail_step(step, error)
            else:
                return step
            return None
        return None

    def _schedule(self, runner: Runner, limit: int) -> _Step | None:
        """Decode works first, then prefill chunks, oldest program first, as far as there are slots."""
        decode, prefill = list[tuple[Running, int]](), list[tuple[Running, int]]()
        urgent = False
        for running in self._live:
            if running.runner is not runner:
                continue
            urgent = urgent or running.deadline is not None
            for i, work in enumerate(running.works):
                if running.results[i] is None:
                    few = work.sequence.pending <= max(1, work.rows)
                    (decode if few else prefill).append((running, i))
        step = _Step(runner)
        for running, i in decode:
            work = running.works[i]
            if not self._make_room(step, running, work.sequence.pending):
                break
            step.add(running, i, work.sequence.pending)
        room = min(limit, PREFILL_CHUNK if urgent or step.chunks else PREFILL_ALONE)
        room = max(room - step.tokens, min(room, 64))  # many decoders never starve a prefill
        for running, i in prefill:
            if room <= 0:
                break
            room -= self._add_prefill(step, running, i, room)
        if not step.chunks and (decode or prefill):
            return self._force(step, *(decode + prefill)[0])
        return step if step.chunks else None

    def _add_prefill(self, step: _Step, running: Running, i: int, room: int) -> int:
        """Adds the next chunk of a prefill, unless it had better wait; returns its tokens."""
        work = running.works[i]
        sequence = work.sequence
        found = step.runner.reuse(sequence, work.rows)
        running.usage.cached_tokens += found
        self.meter.cached_tokens += found
        if step.leads(sequence):
            return 0  # the same start is being computed in this very step
        headroom = _HEADROOM * len(step.chunks)
        if not step.runner.can_step(
            step.tokens + sequence.pending + headroom
        ) and not self._make_room(step, running, sequence.pending + headroom):
            return 0
        n = _part(work, room)
        step.add(running, i, n)
        return n

    def _make_room(self, step: _Step, running: Running, tokens: int) -> bool:
        """Slots for `tokens` more: evict what is cached, drop idle sequences, then preempt programs newer than this one."""
        runner, needed = step.runner, step.tokens + tokens
        if runner.can_step(needed):
            return True
        busy = {id(w.sequence) for r in self._live for w in r.works}
        for key, (owner, sequence) in list(self._sequences.items()):
            if owner is runner and key not in busy and sequence.cached:
                runner.share(sequence)  # it may still be reused, if it is not evicted
                runner.drop(sequence)
                if runner.can_step(needed):
                    return True
        for other in reversed(self._live):
            if other.order <= running.order:
                return False
            if other.runner is runner and not step.holds(other):
                for work in other.works:
                    runner.drop(work.sequence)
                if runner.can_step(needed):
                    return True
        return False

    def _force(self, step: _Step, running: Running, i: int) -> _Step | None:
        """The oldest program's work when nothing fitted: everybody else gives way, or it can never fit."""
        work, runner = running.works[i], step.runner
        sequence = work.sequence
        for other in reversed(self._live):
            if other.runner is runner:
                for held in other.works:
                    if held.sequence is not sequence and held.sequence.cached:
                        runner.drop(held.sequence)
        runner.reuse(sequence, work.rows)
        n = _part(work, PREFILL_CHUNK)
        if runner.can_step(n):
            step.add(running, i, n)
            return step
        total, pool = len(sequence.tokens), runner.pool
        msg = f"a sequence of {total} tokens does not fit into a pool of {pool.capacity} token slots, even alone"
        hint = "Give the pool more memory (memory=...), or use a shorter prompt."
        error = CapacityError(msg, needed=total, free=pool.free, kind="slots", hint=hint)
        self._fail(running, error)
        return None

    # --- after the step

    def _finish_step(self, step: _Step) -> None:
        try:
            results = self._collect(step)
        except Exception as error:  # noqa: BLE001 - a device may report a failed step only now
            self._fail_step(step, error)
            return
        seconds = time.perf_counter() - step.started
        self.steps += 1
        self._charge(step, seconds)
        touched = dict[int, Running]()
        for k, ((running, i), chunk) in enumerate(zip(step.items, step.chunks, strict=True)):
            result = results.get(k)
            if chunk.n > chunk.rows:
                step.runner.share(chunk.sequence)
            if isinstance(result, Exception):
                self._fail(running, result)
            elif result is not None:
                if isinstance(running.works[i].want, Draw):
                    running.usage.new_tokens += len(result)
                    self.meter.new_tokens += len(result)
                running.results[i] = result
                touched[id(running)] = running
        for running in touched.values():
            if not running.ended and None not in running.results:
                self._advance(running, [r for r in running.results if r is not None])

    def _collect(self, step: _Step) -> dict[int, Result | Exception]:
        """The result of each chunk that gives rows: one batched draw, one batched look-up of named tokens, one copy of each."""
        out = dict[int, Result | Exception]()
        draws, named = dict[int, list[Row]](), dict[int, tuple[int, ...]]()
        for k, ((running, i), chunk) in enumerate(zip(step.items, step.chunks, strict=True)):
            want = running.works[i].want
            if chunk.rows == 0:
                continue
            if isinstance(want, Named):
                named[k] = want.tokens
                continue
            first = len(chunk.sequence.tokens) - chunk.rows + 1
            try:
                draws[k] = [_row(want, chunk.sequence, first + r) for r in range(chunk.rows)]
            except Exception as error:  # noqa: BLE001 - a constraint belongs to its program alone
                out[k] = error
        if not draws and not named:
            step.runner.synchronize()
        try:
            out |= self._draw(step, draws)
        except SettingError:  # of one of them: each draws the same alone
            for k, rows in draws.items():
                try:
                    out |= self._draw(step, {k: rows})
                except SettingError as error:
                    out[k] = error
        return out | self._look_up(step, named)

    def _draw(self, step: _Step, draws: dict[int, list[Row]]) -> dict[int, Result | Exception]:
        if not draws:
            return {}
        sampler = self._samplers.setdefault(id(step.runner), Sampler())
        wants = (running.works[i].want for running, i in step.items)
        stats = any(isinstance(want, Draw) and want.stats for want in wants)
        rows = [row for part in draws.values() for row in part]
        host = sampler.draw(step.rows(draws), rows, stats=stats).to_host()
        nan = [float("nan")] * (0 if stats else len(rows))
        columns = (host.logprobs or nan, host.entropies or nan, host.top_logprobs or nan)
        drawn, finite = map(Drawn, host.tokens, *columns), iter(host.finite)
        out = dict[int, Result | Exception]()
        for k, part in draws.items():
            ok = all(list(itertools.islice(finite, len(part))))
            result = list(itertools.islice(drawn, len(part)))
            out[k] = result if ok else _not_finite(step.runner)
        return out

    def _look_up(
        self, step: _Step, named: dict[int, tuple[int, ...]]
    ) -> dict[int, Result | Exception]:
        if not named:
            return {}
        with torch.inference_mode():
            rows = step.rows(named)
            ids = torch.tensor(
                [token for tokens in named.values() for token in tokens], device=rows.device
            )
            logprobs = iter(named_logprobs(rows, ids).tolist())
        out = dict[int, Result | Exception]()
        for k, tokens in named.items():
            part = list(itertools.islice(logprobs, len(tokens)))
            out[k] = _not_finite(step.runner) if any(map(math.isnan, part)) else part
        return out

    def _charge(self, step: _Step, seconds: float) -> None:
        """Splits the step's cost over its programs; the shares add up to what the meter gets."""
        assert step.logits is not None
        spec, total = step.runner.spec, step.tokens
        moved = cost.forward_bytes(spec, step.logits.union, total)
        counted = set[int]()
        for (running, _), chunk in zip(step.items, step.chunks, strict=True):
            sequence, stop = chunk.sequence, chunk.sequence.cached
            charged = sequence.charge(stop - chunk.n, stop, chunk.rows)
            start = stop - charged
            share = Usage(
                prompt_tokens=max(0, min(stop, running.known[id(sequence)]) - start),
                forwards=id(running) not in counted,
                forward_tokens=charged,
                replayed_tokens=chunk.n - charged,
                flops=cost.forward_flops(spec, start, stop, chunk.rows),
                bytes=moved * chunk.n // total,
                device_seconds=seconds * chunk.n / total,
            )
            counted.add(id(running))
            running.usage.add(share)
            self.meter.add(share)

    # --- programs

    def _advance(self, running: Running, results: list[Result] | None) -> None:
        """Resumes a program with its results, or starts it."""
        try:
            works = next(running.program) if results is None else running.program.send(results)
            running.want(works)
        except StopIteration as stop:
            self._resolve(running, stop.value)
        except Exception as error:  # noqa: BLE001 - it belongs to this program alone
            self._fail(running, error)

    def _interrupt(self, running: Running, finish: Finish) -> None:
        try:
            running.program.throw(Interrupted(finish))
        except StopIteration as stop:
            self._resolve(running, stop.value)
        except Interrupted:
            self._resolve(running, None)
        except Exception as error:  # noqa: BLE001 - it belongs to this program alone
            self._fail(running, error)
        else:
            self._fail(running, BackendError("a program went on after it was interrupted"))

    def _resolve(self, running: Running, value: object) -> None:
        self._end(running)
        if isinstance(value, Extension):
            value.usage = running.usage
        if running.future.set_running_or_notify_cancel():
            running.future.set_result(value)

    def _fail(self, running: Running, error: BaseException) -> None:
        if running.ended:
            return
        running.program.close()
        self._end(running)
        if running.future.set_running_or_notify_cancel():
            running.future.set_exception(error)

    def _fail_step(self, step: _Step, error: Exception) -> None:
        spec = step.runner.spec
        failure = EngineFailedError(f"{spec.name} failed in a step on {spec.device}: {error}")
        failure.__cause__ = error
        if isinstance(error, getattr(torch, "AcceleratorError", ())):
            self._failure = error  # a device assertion poisons everything after it
        for running, _ in step.items:
            self._fail(running, failure)

    def _end(self, running: Running) -> None:
        if running in self._live:
            self._live.remove(running)
        running.usage.wall_seconds = time.monotonic() - running.admitted
        self.meter.wall_seconds += running.usage.wall_seconds
        for work in running.works:
            if not work.sequence.freed and work.sequence.pending == 0:  # it ended before the draw
                running.runner.truncate(work.sequence, len(work.sequence.tokens))
        running.ended = True
        running.on_end()


class _Step:
    """One step being put together."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.items = list[tuple[Running, int]]()
        self.chunks = list[Chunk]()
        self.tokens = 0
        self.started = time.perf_counter()
        self.logits: Logits | None = None
        self._leaders = list[TokenSequence]()

    def add(self, running: Running, i: int, n: int) -> None:
        """Takes the next `n` pending tokens of the program's work number `i`."""
        work = running.works[i]
        whole = n == work.sequence.pending
        self.items.append((running, i))
        self.chunks.append(Chunk(work.sequence, n, work.rows if whole else 0))
        self.tokens += n
        if n > work.rows or not whole:
            self._leaders.append(work.sequence)

    def holds(self, running: Running) -> bool:
        """Whether the program has work in this step."""
        return any(other is running for other, _ in self.items)

    def rows(self, chunks: Collection[int]) -> torch.Tensor:
        """The logits of the chunks of these numbers, in order; all of them without a copy."""
        assert self.logits is not None
        rows = list[int]()
        at = 0
        for k, chunk in enumerate(self.chunks):
            if k in chunks:
                rows += range(at, at + chunk.rows)
            at += chunk.rows
        logits = self.logits.rows
        if len(rows) == at:
            return logits
        return logits.index_select(0, torch.tensor(rows, device=logits.device))

    def leads(self, sequence: TokenSequence) -> bool:
        """Whether a prefill in this step starts with the same uncomputed tokens."""
        for leader in self._leaders:
            known = min(len(leader.tokens), len(sequence.tokens)) - 1
            stop = min(known, sequence.cached + _SHARED_START)
            if (
                stop > max(sequence.cached, leader.cached)
                and leader.tokens[:stop] == sequence.tokens[:stop]
            ):
                return True
        return False


def _row(want: Draw, sequence: TokenSequence, position: int) -> Row:
    """The draw of the token at `position`."""
    constraint = want.constraint
    return Row(
        key=want.key,
        position=position,
        sampling=want.sampling,
        history=sequence.tokens[:position] if want.sampling.penalised else (),
        prompt_length=want.prompt_length,
        allowed=None if constraint is None else constraint.allowed(),
    )


def _part(work: Work, room: int) -> int:
    """How many pending tokens to compute now; the rows that are wanted come in one piece, at the end."""
    pending = work.sequence.pending
    if pending <= room or pending == work.rows:
        return pending
    return min(room, pending - work.rows)


def _not_finite(runner: Runner) -> NumericalError:
    spec = runner.spec
    msg = f"{spec.name} gave NaN or infinite logits in {spec.dtype} on {spec.device}"
    hint = "Load it with another dtype (float32, or bfloat16 instead of float16), or check its weights."
    return NumericalError(msg, hint=hint)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def _capacity(error: Exception, step: _Step) -> CapacityError:
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
