"""How calls end with their process: interrupts, exits and forks, each tried in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

GUARD = 60.0  # seconds for a whole process; a guard against hangs, not a measure of speed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

# Importing torch takes seconds: one process has done so, and forks a fresh child for each request, before any thread.
NURSERY = """
import os, sys
import asyncio, signal, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
from langchain_pareto import ChatPareto
from langchain_pareto.backends.loading import load
from langchain_pareto.errors import EngineClosedError

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored

for folder in sys.stdin:
    folder = folder.rstrip()
    child = os.fork()
    if child == 0:
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
        break  # and goes on below
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()

PROMPT = "Use 11 7 3 to make 74."
backend = load(self_check=False)
engine = backend.engine
llm = ChatPareto(backend=backend, seed=1, temperature=3.0, max_tokens=2000, strategy="vote")
single = llm.bind(strategy="single")

def until(fact):
    end = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.001)

exec(compile(open(f"{folder}/body").read(), "body", "exec"))
"""


@dataclass
class Child:
    """A process of its own that has the nano model, and runs a test's lines."""

    pid: int
    folder: Path
    nursery: subprocess.Popen[str]

    def said(self, name: str = "out") -> str:
        """What it wrote so far."""
        return (self.folder / name).read_text() if (self.folder / name).exists() else ""

    def interrupt(self) -> None:
        """Ctrl-C once it has said "running"."""
        while "running" not in self.said():
            assert not self.said("err"), self.said("err")
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        code = int(self.nursery.stdout.readline())
        return code, self.said(), self.said("err")


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """What children are forked from."""
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        yield process
        process.stdin.close()
        process.wait(GUARD)


@pytest.fixture
def start(nursery, tmp_path):
    """Starts a child with the given lines; it is killed if the test does not see it end."""
    children = []

    def make(body: str) -> Child:
        (tmp_path / "body").write_text(textwrap.dedent(body))
        nursery.stdin.write(f"{tmp_path}\n")
        nursery.stdin.flush()
        children.append(Child(int(nursery.stdout.readline()), tmp_path, nursery))
        return children[-1]

    return make


SAY_RUNNING = """
def say():
    until(lambda: engine.steps > 3)
    print("running", flush=True)
threading.Thread(target=say).start()
"""


@pytest.mark.parametrize(
    "call",
    [
        "llm.invoke(PROMPT)",
        "single.invoke(PROMPT)",
        "list(single.stream(PROMPT))",
        "asyncio.run(llm.ainvoke(PROMPT))",
    ],
)
def test_ctrl_c_stops_a_call_within_a_step(start, call):
    """KeyboardInterrupt reaches the caller, and the engine does nothing more."""
    process = start(
        SAY_RUNNING
        + f"""
try:
    {call}
except KeyboardInterrupt:
    before = engine.steps
    until(lambda: engine.live == 0)
    print("interrupted", engine.steps - before <= 1)
"""
    )
    process.interrupt()
    assert process.end() == (0, "running\ninterrupted True\n", "")


def test_an_interrupt_that_nobody_catches_ends_the_process(start):
    """By the signal, with Python's own traceback."""
    process = start(SAY_RUNNING + "llm.invoke(PROMPT)")
    process.interrupt()
    code, _, err = process.end()
    assert code == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")


EXITS = {
    "a pool of threads": """
        pool = ThreadPoolExecutor(16)
        calls = [pool.submit(single.invoke, PROMPT) for _ in range(16)]
        until(lambda: engine.live == 16)
    """,
    "a pool with more calls waiting": """
        pool = ThreadPoolExecutor(16)
        calls = [pool.submit(single.invoke, PROMPT) for _ in range(200)]
        until(lambda: engine.live == 16)
    """,
    "asyncio": """
        async def main():
            calls = [asyncio.create_task(single.ainvoke(PROMPT)) for _ in range(16)]
            await asyncio.to_thread(until, lambda: engine.live == 16)
        asyncio.run(main())
    """,
    "streams left open": """
        streams = [single.stream(PROMPT) for _ in range(16)]
        for stream in streams:
            next(stream)
        assert engine.live == 16
    """,
    "a stream nobody closes": """
        async def main():
            streams = [single.astream(PROMPT) for _ in range(16)]
            for stream in streams:
                await anext(stream)
        asyncio.run(main())
    """,
    "a vote of sixteen": """
        calls = ThreadPoolExecutor(1).submit(llm.invoke, PROMPT, strategy={"kind": "best_of_n"})
        until(lambda: engine.live == 16)
    """,
    "threads that never end": """
        def again():
            while True:
                try:
                    single.invoke(PROMPT)
                except BaseException:
                    time.sleep(0.001)
        for _ in range(16):
            threading.Thread(target=again, daemon=True).start()
        until(lambda: engine.live == 16)
    """,
}


@pytest.mark.parametrize("case", EXITS)
def test_the_process_ends_with_live_generations(start, case):
    """With code 0, and without a word."""
    assert start(EXITS[case]).end() == (0, "", "")


@pytest.mark.parametrize("daemon", [True, False])
def test_plain_threads_end_with_the_process(start, daemon):
    """Code 0, and nothing hangs; Python itself may print what a thread raises."""
    code, out, _ = start(
        f"""
            for _ in range(16):
                threading.Thread(target=single.invoke, args=(PROMPT,), daemon={daemon}).start()
            until(lambda: engine.live == 16)
            """
    ).end()
    assert (code, out) == (0, "")


@pytest.mark.parametrize("busy", [False, True])
def test_a_forked_child_is_told_at_once(start, busy):
    """It has the memory, but not the engine; the parent goes on."""
    code, out, err = start(
        f"""
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, on fork
            first = single.invoke(PROMPT, max_tokens=5, temperature=0).content
            if {busy}:
                stream = single.stream(PROMPT)
                next(stream)
            child = os.fork()
            if child == 0:
                for model in (single, ChatPareto(backend=backend)):
                    try:
                        model.invoke(PROMPT)
                    except EngineClosedError as error:
                        print("told:", error, flush=True)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            again = single.invoke(PROMPT, max_tokens=5, temperature=0).content
            print(status, again == first)
            """
    ).end()
    *told, last = out.splitlines()
    assert (code, last, err) == (0, "0 True", "")
    assert len(told) == 2
    assert all("parent process" in line for line in told)


def test_a_forked_child_that_loads_by_itself_works_or_is_told(start):
    """A model given by name loads anew in the child, or says why not; it does not hang."""
    code, out, _ = start(
        """
            warnings.simplefilter("ignore", DeprecationWarning)
            named = ChatPareto(seed=1, strategy="single", max_tokens=5)
            named.invoke(PROMPT)
            child = os.fork()
            if child == 0:
                try:
                    named.invoke(PROMPT)
                except EngineClosedError:
                    pass
                os._exit(0)
            print(os.waitpid(child, 0)[1])
            """
    ).end()
    assert (code, out) == (0, "0\n")


def _loaded_by(statement: str) -> set[str]:
    listing = f"import sys; {statement}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True, timeout=GUARD
    )
    assert done.stderr == ""
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_is_light():
    """Neither torch nor LangChain nor pydantic; the public names bring what they need."""
    heavy = {"torch", "transformers", "numpy", "langchain_core", "pydantic", "asyncio"}
    assert not _loaded_by("import langchain_pareto") & heavy


def test_making_a_chat_model_loads_no_device_library():
    """torch comes with the first call."""
    made = "from langchain_pareto import ChatPareto; ChatPareto(budget='5s')"
    assert not _loaded_by(made) & {"torch", "transformers"}


def test_a_closed_backend_ends_live_calls(start):
    """They fail with an error that says why, and nothing hangs."""
    code, out, err = start(
        """
            pool = ThreadPoolExecutor(4)
            calls = [pool.submit(single.invoke, PROMPT) for _ in range(4)]
            until(lambda: engine.live == 4)
            backend.close()
            print(*(type(call.exception(timeout=20)).__name__ for call in calls))
            """
    ).end()
    assert (code, err) == (0, "")
    assert set(out.split()) <= {"EngineClosedError", "EngineFailedError"}
