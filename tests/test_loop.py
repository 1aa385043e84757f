"""The private loop: sync code waits for coroutines anywhere, with its own context, and can walk away."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.runnables.config import ContextThreadPoolExecutor

from langchain_pareto.loop import iterate_sync, run_sync, waiting_loops

where = contextvars.ContextVar("where", default="nowhere")
GUARD = 20.0  # seconds that nothing here may take


async def _double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


def test_a_coroutine_runs_to_its_end():
    """And its result comes back."""
    assert run_sync(lambda: _double(4)) == 8


async def test_it_runs_while_another_loop_is_busy_with_us():
    """As in Jupyter."""
    assert run_sync(lambda: _double(4)) == 8


def test_it_runs_inside_the_private_loop_itself():
    """A callback may call a sync door again, to any depth."""

    async def outer(depth: int) -> int:
        return 1 + run_sync(lambda: outer(depth - 1)) if depth else 0

    assert run_sync(lambda: outer(3)) == 3


def test_it_runs_in_threads_that_the_private_loop_waits_for():
    """As when a scorer calls `batch`: LangChain's threads have their caller's context."""

    def both() -> list[int]:
        with ContextThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda value: run_sync(lambda: _double(value)), [1, 2]))

    async def outer() -> list[int]:
        return both()

    assert run_sync(outer) == [2, 4]


def test_leaving_an_inner_iterator_cancels_its_coroutine():
    """Also where the private loop is busy with us."""
    ended = threading.Event()

    async def produce(emit):
        try:
            emit(1)
            await asyncio.sleep(GUARD)
        finally:
            ended.set()

    async def outer() -> int:
        items = iterate_sync(produce)
        first = next(items)
        items.close()
        return first

    assert run_sync(outer) == 1
    assert ended.is_set()


def test_all_sync_callers_share_one_thread():
    """Whatever thread they are in."""

    async def name() -> str:
        return threading.current_thread().name

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: run_sync(name), range(16))) == {"pareto-loop"}


def test_errors_come_back_as_they_are():
    """Of any kind."""

    async def fail(error: BaseException) -> None:
        raise error

    for error in (ValueError("x"), asyncio.CancelledError(), ExceptionGroup("g", [OSError()])):
        with pytest.raises(type(error)) as caught:
            run_sync(lambda error=error: fail(error))
        assert caught.value is error or isinstance(error, asyncio.CancelledError)


def test_an_error_in_making_the_coroutine_comes_back():
    """Nobody waits for what never began."""

    def broken():
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        run_sync(broken)
    with pytest.raises(ValueError, match="x"):
        list(iterate_sync(lambda _: broken()))


def test_the_callers_context_is_there_and_stays_the_callers():
    """A copy: changes inside do not come out."""

    async def read_and_write() -> str:
        seen = where.get()
        where.set("inside")
        return seen

    token = where.set("outside")
    try:
        assert run_sync(read_and_write) == "outside"
        assert where.get() == "outside"
        assert run_sync(read_and_write) == "outside"
    finally:
        where.reset(token)


def test_the_context_reaches_a_call_from_inside_the_private_loop():
    """Budgets hold there as well."""

    async def read() -> str:
        return where.get()

    async def outer() -> str:
        where.set("inside")
        return run_sync(read)

    assert run_sync(outer) == "inside"


def test_items_come_as_they_are_emitted():
    """The second is made after the first was taken."""
    taken = threading.Event()

    async def produce(emit):
        emit(1)
        assert await asyncio.to_thread(taken.wait, GUARD)
        emit(2)

    items = iterate_sync(produce)
    assert next(items) == 1
    taken.set()
    assert list(items) == [2]


def test_an_error_comes_after_the_items_before_it():
    """Nothing that was emitted is lost."""

    async def produce(emit):
        emit(1)
        raise ValueError("x")

    items = iterate_sync(produce)
    assert next(items) == 1
    with pytest.raises(ValueError, match="x"):
        next(items)


def test_leaving_the_iterator_cancels_the_coroutine():
    """And waits until it has let go."""
    ended = threading.Event()

    async def produce(emit):
        try:
            emit(1)
            await asyncio.sleep(GUARD)
        finally:
            ended.set()

    items = iterate_sync(produce)
    assert next(items) == 1
    items.close()
    assert ended.is_set()


def test_an_iterator_that_is_never_started_starts_nothing():
    """Generators are lazy."""
    started = threading.Event()

    async def produce(emit):
        started.set()

    iterate_sync(produce).close()
    assert run_sync(lambda: _double(1)) == 2
    assert not started.is_set()


def test_a_coroutine_that_will_not_stop_does_not_hold_the_reader():
    """Leaving takes about a second, not for ever."""
    release = threading.Event()

    async def produce(emit):
        emit(1)
        while not release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    items = iterate_sync(produce)
    assert next(items) == 1
    items.close()
    release.set()


def test_many_at_once_do_not_wait_for_each_other():
    """One blocked on the others' progress would hang."""
    meeting = asyncio.Barrier(8)

    async def meet() -> int:
        async with asyncio.timeout(GUARD):
            return await meeting.wait()

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda _: run_sync(meet), range(8))) == list(range(8))


def test_a_blocked_loop_does_not_hang_those_it_waits_for():
    """A coroutine that blocks the private loop on threads of its own, which call back without its context, comes to its end."""

    async def quick():
        return 1

    async def blocking():
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(lambda _: run_sync(quick), range(2)))

    assert run_sync(blocking) == 2


async def test_a_coroutine_knows_which_loops_wait_for_it():
    """Those that sync code blocks until it is done, through however many calls; none once it is."""
    assert waiting_loops() == set()
    seen, over = [], threading.Event()

    async def inner():
        seen.append((asyncio.get_running_loop(), waiting_loops()))

    async def late() -> set[asyncio.AbstractEventLoop]:
        await asyncio.to_thread(over.wait, GUARD)
        return waiting_loops()

    async def outer():
        seen.append((asyncio.get_running_loop(), waiting_loops()))
        run_sync(inner)
        return asyncio.create_task(late())

    task = run_sync(outer)
    (middle, of_outer), (last, of_inner) = seen
    here = asyncio.get_running_loop()
    assert of_outer == {here}
    assert of_inner == {here, middle}
    assert last not in of_inner

    async def ended():
        over.set()
        return await task

    assert run_sync(ended) == set()


def test_nothing_waits_for_what_a_thread_without_a_loop_calls():
    """Only that thread does."""

    async def read() -> set[asyncio.AbstractEventLoop]:
        return waiting_loops()

    assert run_sync(read) == set()
