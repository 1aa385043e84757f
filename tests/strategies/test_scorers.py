"""Tests of the scorers; each docstring states the fact."""

import asyncio
import functools
import importlib
import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from langchain_pareto.errors import ScorerError, SettingError
from langchain_pareto.strategies.scorers import MeanConfidence, MeanLogprob, Scorer
from langchain_pareto.strategies.thoughts import Thought
from langchain_pareto.strategies.verifier import Verifier

HERE = Path(__file__).parent
Make = Callable[..., Verifier]


@dataclass(frozen=True)
class Sample:
    """The least that can be scored."""

    answer: str | None
    question: str = "2 + 2?"
    whole_text: str = "so it is 4"
    mean_logprob: float | None = None
    confidences: tuple[float, ...] = ()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Build verifiers from the names in verifier_functions.py, and close them."""
    monkeypatch.syspath_prepend(HERE)
    functions = importlib.import_module("verifier_functions")
    made: list[Verifier] = []

    def build(name: str, **options: float | str | None) -> Verifier:
        made.append(Verifier(getattr(functions, name), **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for verifier in made:
        verifier.close()


def score(scorer: Scorer, *answers: str | None) -> list[float]:
    """Score samples with these answers on a loop of their own."""
    return asyncio.run(scorer.score([Sample(answer) for answer in answers]))


def gone(pid: int) -> bool:
    """Say whether a process ends within five seconds (a zombie has ended)."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return True
        if state[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def mean(*values: float | None) -> list[float]:
    """Score samples with these mean log-probabilities."""
    return asyncio.run(MeanLogprob().score([Sample(None, mean_logprob=v) for v in values]))


def test_mean_logprob_is_the_score() -> None:
    """The score is the mean log-probability; a sample without one scores -inf."""
    assert mean(-0.5, None, -1.0) == [-0.5, -math.inf, -1.0]
    assert mean() == []
    assert MeanLogprob.model_validate_json(MeanLogprob().model_dump_json()) == MeanLogprob()


@pytest.mark.parametrize("values", [(None, None), (-1.0, math.nan)])
def test_mean_logprob_does_not_fail_silently(values: tuple[float | None, ...]) -> None:
    """No log-probabilities at all, or a NaN, is an error."""
    with pytest.raises(ScorerError):
        mean(*values)


def sure(*values: tuple[float, ...]) -> list[float]:
    """Score samples whose tokens have these confidences."""
    return asyncio.run(MeanConfidence().score([Sample(None, confidences=v) for v in values]))


def test_mean_confidence_is_the_score() -> None:
    """The mean over all tokens, whatever was drawn; a sample of none scores -inf."""
    assert sure((3.0, 6.0), (), (8.0,)) == [4.5, -math.inf, 8.0]
    assert sure() == []
    again = MeanConfidence.model_validate_json(MeanConfidence().model_dump_json())
    assert again == MeanConfidence()


def test_confidences_are_those_of_the_whole_path() -> None:
    """From the root on, in order: minus the mean log-probability of the most probable tokens."""
    root = Thought("")
    step = Thought("", root, top_logprobs=[-3.0, -4.0])
    assert Thought("", step, top_logprobs=[-5.0]).confidences == [3.0, 4.0, 5.0]


@pytest.mark.parametrize("values", [((), ()), ((1.0,), (math.nan,))])
def test_mean_confidence_does_not_fail_silently(values: tuple[tuple[float, ...], ...]) -> None:
    """No log-probabilities at all, or a NaN, is an error."""
    with pytest.raises(ScorerError):
        sure(*values)


def test_sync_verifier_scores_in_order(make: Make) -> None:
    """A bool becomes 1.0 or 0.0; without an answer the text is verified; no samples, no scores."""
    verifier = make("is_four", workers=2)
    assert score(verifier, "4", "5", None, "4") == [1.0, 0.0, 0.0, 1.0]
    assert score(verifier) == []
    assert verifier.failures == []


def test_worker_is_reused_over_event_loops_and_is_light(make: Make) -> None:
    """One process serves several loops, and it has imported neither torch nor LangChain."""
    verifier = make("act")
    assert score(verifier, "pid") == score(verifier, "pid") != [float(os.getpid())]
    assert score(make("torch_is_absent"), "4") == [1.0]


def test_hung_verifier_is_killed_and_replaced(make: Make) -> None:
    """A call past its time scores -inf and is recorded; the others are scored."""
    verifier = make("act", timeout=0.5)
    before = score(verifier, "pid")[0]
    assert score(verifier, "hang", "fine") == [-math.inf, 1.0]
    assert verifier.failures == ["the verifier took longer than 0.5 s"]
    assert gone(int(before))
    assert score(verifier, "pid")[0] != before


def test_what_a_hung_verifier_started_is_killed_too(make: Make, tmp_path: Path) -> None:
    """A program that the verifier runs does not outlive it."""
    verifier = make("act", timeout=1.0)
    assert score(verifier, f"child {tmp_path / 'pid'}", "fine") == [-math.inf, 1.0]
    assert gone(int((tmp_path / "pid").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("accident", "reason"),
    [("crash", "exit code 3"), ("raise", "ValueError: bad answer"), ("exit", "SystemExit: enough")],
)
def test_failing_call_scores_minus_infinity(make: Make, accident: str, reason: str) -> None:
    """A crash, an exception or an exit costs only its own sample, and is recorded."""
    verifier = make("act")
    assert score(verifier, "fine", accident, "fine") == [1.0, -math.inf, 1.0]
    assert len(verifier.failures) == 1
    assert reason in verifier.failures[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is the system's")
@pytest.mark.parametrize("memory", ["1 GB", 10**9])
def test_a_verifier_gets_no_more_memory_than_its_limit(make: Make, memory: str | int) -> None:
    """Of a billion bytes two billion are refused, and cost only their own sample, 100 million are not; a program that it runs has the same limit."""
    verifier = make("act", memory=memory)
    assert score(verifier, "pid", "take 2000", "take 100") == [
        *score(verifier, "pid"),
        -math.inf,
        1e8,
    ]
    assert verifier.failures == ["MemoryError"]
    assert score(verifier, "child-take 2000", "child-take 100") == [0.0, 1.0]
    assert score(make("act"), "take 2000", "child-take 2000") == [2e9, 1.0]


@pytest.mark.parametrize(
    "memory", ["2", "2 GB, 5 s", "much", "", "unlimited", 0, -1, 1.5, True, math.inf]
)
def test_a_memory_limit_that_is_none_is_refused(memory: object) -> None:
    """It is an amount of memory above zero, and nothing else; the hint says how to write it."""
    with pytest.raises(SettingError, match="memory=") as caught:
        Verifier(max, memory=memory)  # type: ignore[arg-type]
    assert "2 GB" in str(caught.value.hint)


def test_an_async_verifier_has_no_memory_limit() -> None:
    """It runs in the caller's process, which must not be limited."""
    with pytest.raises(SettingError, match="async"):
        Verifier(Judge().judge, memory="1 GB")


def test_verifier_that_always_fails_is_an_error(make: Make) -> None:
    """If every call fails, the reason is raised."""
    with pytest.raises(ScorerError, match=r"all of 2 samples: ValueError: bad answer"):
        score(make("act"), "raise", "raise")


@pytest.mark.parametrize(("answer", "got"), [("nan", "float nan"), ("words", "str 'yes'")])
def test_result_that_is_no_number_is_an_error(make: Make, answer: str, got: str) -> None:
    """NaN and words are not scores; the error names what was got."""
    with pytest.raises(ScorerError, match=got):
        score(make("act"), "fine", answer)


def test_unpicklable_verifier_is_named_at_once() -> None:
    """A lambda cannot be sent to a process; the hint says what to do."""
    with pytest.raises(SettingError) as caught:
        Verifier(lambda _question, answer: answer == "4")
    assert "make it async" in str(caught.value.hint)


@pytest.mark.parametrize("setting", [{"timeout": 0.0}, {"timeout": math.nan}, {"workers": 0}])
def test_senseless_settings_are_refused(setting: dict[str, float]) -> None:
    """A timeout and a number of workers are positive."""
    with pytest.raises(SettingError):
        Verifier(max, **setting)  # type: ignore[arg-type]


def test_verifier_missing_in_the_worker_is_a_setting_error() -> None:
    """What pickles here but cannot be imported there (as in a notebook) is explained."""
    program = """
        import asyncio
        from types import SimpleNamespace
        from langchain_pareto.errors import SettingError
        from langchain_pareto.strategies.verifier import Verifier
        def here(question, answer): return True
        verifier = Verifier(here)
        thought = SimpleNamespace(question="q", whole_text="t", answer="4", mean_logprob=None)
        try: asyncio.run(verifier.score([thought]))
        except SettingError as error: print("explained", error.hint)
    """
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert "explained A sync verifier" in done.stdout


def test_script_ends_without_close_and_leaves_no_process(tmp_path: Path) -> None:
    """A script may define its verifier, never close it, and exit in the middle of nothing."""
    script = tmp_path / "script.py"
    program = """
        import asyncio, os
        from types import SimpleNamespace
        from langchain_pareto.strategies.verifier import Verifier
        def pid(question, answer): return os.getpid()
        if __name__ == "__main__":
            thought = SimpleNamespace(question="q", whole_text="t", answer="4", mean_logprob=None)
            verifier = Verifier(pid)
            print(int(asyncio.run(verifier.score([thought]))[0]))
    """
    script.write_text(textwrap.dedent(program), encoding="utf-8")
    run = [sys.executable, str(script)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert gone(int(done.stdout))


def test_hung_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """Even if the parent is killed in the middle of a call, the worker ends."""
    script = tmp_path / "script.py"
    program = """
        import asyncio, os, pathlib, signal
        from types import SimpleNamespace
        from langchain_pareto.strategies.verifier import Verifier
        def hang(question, path):
            pathlib.Path(path).write_text(str(os.getpid()))
            os.kill(os.getppid(), signal.SIGKILL)
            while True: pass
        if __name__ == "__main__":
            thought = SimpleNamespace(question="q", whole_text=PATH, answer=None, mean_logprob=None)
            asyncio.run(Verifier(hang, timeout=60).score([thought]))
    """.replace("PATH", repr(str(tmp_path / "pid")))
    script.write_text(textwrap.dedent(program), encoding="utf-8")
    subprocess.run([sys.executable, str(script)], timeout=60, check=False)
    assert gone(int((tmp_path / "pid").read_text(encoding="utf-8")))


def test_cancelled_score_leaves_the_verifier_usable(make: Make) -> None:
    """Cancelling one call fails no other, and keeps the worker."""
    verifier = make("act")
    pid = score(verifier, "pid")

    async def cancel_one() -> list[float]:
        slow = asyncio.create_task(verifier.score([Sample("sleep 0.5"), Sample("sleep 60")]))
        await asyncio.sleep(0.1)
        other = asyncio.create_task(verifier.score([Sample("pid")]))
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        return await other

    assert asyncio.run(cancel_one()) == pid
    assert verifier.failures == []


def test_close_ends_a_call_in_progress(make: Make) -> None:
    """Closing fails the call that is running, at once; a closed verifier says so."""
    verifier = make("act", timeout=60)
    score(verifier, "fine")

    async def close_soon() -> list[float]:
        asyncio.get_running_loop().call_later(0.2, verifier.close)
        return await verifier.score([Sample("sleep 60"), Sample("sleep 60")])

    with pytest.raises(ScorerError, match="was closed"):
        asyncio.run(close_soon())
    with pytest.raises(ScorerError, match="was closed"):
        score(verifier, "fine")
    verifier.close()


async def slow_yes(wait: float, _question: str, answer: str) -> bool:
    """Accept "4" after a while; raise on "raise"."""
    if answer == "raise":
        message = "bad answer"
        raise ValueError(message)
    await asyncio.sleep(wait if answer == "slow" else 0)
    return answer == "4"


class Judge:
    """An async callable object."""

    def __call__(self, _question: str, answer: str) -> Awaitable[bool]:
        """Accept "4"."""
        return slow_yes(0, "", answer)

    async def judge(self, question: str, answer: str) -> bool:
        """Accept "4"."""
        return await self(question, answer)


def test_async_verifier_runs_on_the_loop_with_a_timeout() -> None:
    """An async function may be a closure; a slow or raising call costs only its own sample."""
    verifier = Verifier(functools.partial(slow_yes, 60), timeout=0.1, workers=4)
    assert score(verifier, "4", "slow", "raise", "5") == [1.0, -math.inf, -math.inf, 0.0]
    assert verifier.failures == ["the verifier took longer than 0.1 s", "ValueError: bad answer"]
    assert score(Verifier(Judge().judge), "4") == [1.0]
    verifier.close()
    with pytest.raises(ScorerError, match="was closed"):
        score(verifier, "4")
