"""
One private event loop for everybody who calls without one: sync doors work in scripts, threads, Jupyter and inside running loops.

Knows coroutines and threads only. A coroutine runs in a copy of its caller's context, so budgets and callbacks reach it.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Generic, TypeVar

from langchain_pareto.errors import EngineClosedError

T = TypeVar("T")

_PATIENCE = 1.0  # seconds that a call waits for the private loop to take it up
_ENDING = 1.0  # seconds that the process waits for the loop at its end


# Whether the caller runs on behalf of a coroutine of ours: the private loop may be waiting for it.
_inside: ContextVar[bool] = ContextVar("langchain_pareto_inside", default=False)
# The loops that sync code blocks until a coroutine of ours is done, each with what says whether it is.
_waiting: ContextVar[tuple[tuple[asyncio.AbstractEventLoop, Callable[[], bool]], ...]] = ContextVar(
    "langchain_pareto_waiting", default=()
)


class _Loop:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self.thread = threading.Thread(target=self._run, name="pareto-loop", daemon=True)
        self.thread.start()

    def post(self, callback: Callable[..., None], *args: object) -> None:
        """Runs `callback` on the loop; raises EngineClosedError at the end of the process."""
        with self._lock:
            if self._closed:
                raise EngineClosedError("the process is ending, and its calls with it")
            self.loop.call_soon_threadsafe(callback, *args)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        with self._lock:
            self._closed = True
        self.loop.run_until_complete(
            asyncio.sleep(0)
        )  # what was posted before starts, to be cancelled
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    def stop(self) -> None:
        with suppress(EngineClosedError):
            self.post(self.loop.stop)
        self.thread.join(_ENDING)


_current: _Loop | None = None
_lock = threading.Lock()


def _private() -> _Loop:
    global _current  # noqa: PLW0603 - one loop a process
    with _lock:
        if _current is None or _current.pid != os.getpid():
            if _current is None:
                threading._register_atexit(_stop)  # type: ignore[attr-defined]  # noqa: SLF001
            _current = _Loop()
        return _current


def _stop() -> None:
    if _current is not None and _current.pid == os.getpid():
        _current.stop()


class Started(Generic[T]):
    """A coroutine running on the private loop, or on one of its own if that may be waiting for us."""

    def __init__(self, make: Callable[[], Coroutine[object, object, T]]) -> None:
        self.future: Future[T] = Future()
        self._make = make
        self._task: asyncio.Task[T] | None = None
        self._alone = _inside.get()
        context = contextvars.copy_context()
        context.run(_inside.set, True)
        with suppress(RuntimeError):  # there is none
            loop = asyncio.get_running_loop()
            context.run(_waiting.set, (*_waiting.get(), (loop, self.future.done)))
        self._begun = threading.Event()
        self._claim = threading.Lock()  # taken by the loop that runs it
        if not self._alone:
            private = _private()
            self._loop = private.loop
            private.post(self._start, context)
            # whoever blocks the private loop for so long may be waiting for us
            self._alone = not self._begun.wait(_PATIENCE) and self._claim.acquire(blocking=False)
        else:
            self._claim.acquire()
        if self._alone:
            self._loop = asyncio.new_event_loop()
            self._loop.call_soon(self._create, context)
            threading.Thread(target=self._run, name="pareto-inner-loop", daemon=True).start()

    def cancel(self) -> None:
        """Cancels the coroutine, and waits until it has let go."""

        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()

        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(cancel)
        with suppress(BaseException):
            self.future.result(timeout=_ENDING)

    def result(self) -> T:
        """The coroutine's result; an interrupt from the keyboard cancels it."""
        try:
            return self.future.result()
        except BaseException:
            if not self.future.done():
                self.cancel()
            raise

    def _start(self, context: contextvars.Context) -> None:
        self._begun.set()
        if self._claim.acquire(blocking=False):
            self._create(context)

    def _create(self, context: contextvars.Context) -> None:
        try:
            self._task = self._loop.create_task(self._make(), context=context)
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            self.future.set_exception(error)
            self._end()
        else:
            self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.future.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())
        self._end()

    def _end(self) -> None:
        if self._alone:
            self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def waiting_loops() -> set[asyncio.AbstractEventLoop]:
    """The event loops that stand still until the caller is done: sync code has called it from them."""
    return {loop for loop, done in _waiting.get() if not done()}


def run_sync(make: Callable[[], Coroutine[object, object, T]]) -> T:
    """Runs a coroutine to its end from code that has no loop, or has one that is busy calling us."""
    return Started(make).result()


def iterate_sync(
    make: Callable[[Callable[[T], None]], Coroutine[object, object, None]],
) -> Iterator[T]:
    """What a coroutine emits, as it does; leaving the iterator cancels the coroutine."""
    items: SimpleQueue[tuple[T] | None] = SimpleQueue()
    started = Started(lambda: make(lambda item: items.put((item,))))
    started.future.add_done_callback(lambda _: items.put(None))
    try:
        while (item := items.get()) is not None:
            yield item[0]
        started.future.result()
    finally:
        if not started.future.done():
            started.cancel()
