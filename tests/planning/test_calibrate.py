"""Calibrations: what may be asked, one at a time in one file, and files of costs that are damaged."""

import asyncio
import json
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from langchain_pareto import ChatPareto
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.calibration import calibrate_device, calibrate_quality, known_cost
from langchain_pareto.errors import ContextLengthError, SettingError
from langchain_pareto.planning import device
from langchain_pareto.planning.calibrate import Asked, Drawn, Samples, checked, pools_of
from langchain_pareto.planning.catalogue import catalogue
from langchain_pareto.planning.cost_model import CostModel
from langchain_pareto.planning.identity import key_of, use_of
from langchain_pareto.planning.measure import budgets, measure
from langchain_pareto.planning.profile import load_profile
from langchain_pareto.planning.recording import Recording
from langchain_pareto.planning.step_cost import PrefillCost, StepCost
from langchain_pareto.planning.store import device_path, profile_path, samples_path
from langchain_pareto.questions import read_questions

ASKED = [Asked(f"q{i}", f"Question {i}?", "7") for i in range(4)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own directory of profiles."""
    monkeypatch.setenv("LANGCHAIN_PARETO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    with ScriptedBackend(["Answer: 7"], name="small") as found:
        yield found


async def seven(_model: str, _question: Asked, n: int) -> Drawn:
    """Draws at once, after a turn of the loop."""
    await asyncio.sleep(0)
    return Drawn(["7"] * n, [3] * n, 5)


# --- one at a time


def test_two_calibrations_do_not_share_a_file(tmp_path: Path) -> None:
    """The second is refused while the first draws, and the file has every row once."""
    kept = Samples(tmp_path / "deep" / "s.jsonl", {"m": "k"}, 2)

    async def both() -> list[object]:
        return await asyncio.gather(
            *(kept.draw(ASKED, seven) for _ in range(2)), return_exceptions=True
        )

    first, second = asyncio.run(both())
    assert first == 0
    assert isinstance(second, SettingError)
    assert "another calibration" in str(second)
    assert second.hint
    assert len(kept.lines()) == len(ASKED)
    assert asyncio.run(kept.draw(ASKED, seven)) == 0


HOLDER = """
    import sys
    from pathlib import Path
    from langchain_pareto.planning.files import held
    with held(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    """Another process keeps us out until it is killed, and then no longer."""
    path = tmp_path / "s.jsonl"
    kept = Samples(path, {"m": "k"}, 2)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(SettingError, match="another calibration"):
            asyncio.run(kept.draw(ASKED, seven))
        other.kill()
    assert asyncio.run(kept.draw(ASKED, seven)) == 0


def test_an_interrupted_calibration_goes_on(tmp_path: Path) -> None:
    """Cancelled while it draws it keeps what it has, lets go of the file, and draws the rest later."""
    kept = Samples(tmp_path / "s.jsonl", {"m": "k"}, 2)

    async def slow(model: str, question: Asked, n: int) -> Drawn:
        if question.id in ("q2", "q3"):
            await asyncio.Event().wait()
        return await seven(model, question, n)

    async def interrupted() -> None:
        rows, two = list[None](), asyncio.Event()

        def on_row() -> None:
            rows.append(None)
            if len(rows) == 2:
                two.set()

        task = asyncio.create_task(kept.draw(ASKED, slow, on_row))
        await two.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    again = list[str]()

    async def rest(model: str, question: Asked, n: int) -> Drawn:
        again.append(question.id)
        return await seven(model, question, n)

    assert asyncio.run(kept.draw(ASKED, rest)) == 0
    assert again == ["q2", "q3"]


def test_samples_of_other_settings_say_which(tmp_path: Path) -> None:
    """Not two hashes, but the setting with both values; and a model that was not there, or another number of samples."""
    path = tmp_path / "s.jsonl"
    asyncio.run(Samples(path, {"m": use_of("m", temperature=0.6)}, 2).draw(ASKED, seven))
    with pytest.raises(SettingError, match=r"m: temperature 0\.6, this call has 0\.8"):
        Samples(path, {"m": use_of("m", temperature=0.8)}, 2).lines()
    with pytest.raises(SettingError, match="2 of each, not 3"):
        Samples(path, {"m": use_of("m", temperature=0.6)}, 3).lines()
    with pytest.raises(SettingError, match="some of m; there are none of n"):
        Samples(path, {"n": "k"}, 2).lines()


def test_what_ends_a_calibration_names_its_question(tmp_path: Path) -> None:
    """One of many may be too long for a model: the error is the same one, and says which."""
    kept = Samples(tmp_path / "s.jsonl", {"m": "k"}, 2)
    asked = [*ASKED, Asked("long", "x" * 99, "7", "line 5 of q.jsonl")]

    async def draw(model: str, question: Asked, n: int) -> Drawn:
        if question.id == "long":
            raise ContextLengthError("too long", length=99, limit=9, hint="Shorten it.")
        return await seven(model, question, n)

    with pytest.raises(ContextLengthError, match=r"^line 5 of q\.jsonl: too long") as caught:
        asyncio.run(kept.draw(asked, draw))
    assert (caught.value.length, caught.value.hint) == (99, "Shorten it.")
    assert len(kept.lines()) == len(ASKED)


def test_a_line_without_all_its_samples_is_named(tmp_path: Path) -> None:
    """With what to do, where an edited file would break every plan that is measured over it."""
    kept = Samples(tmp_path / "s.jsonl", {"m": "k"}, 2)
    asyncio.run(kept.draw(ASKED, seven))
    text = kept.path.read_text()
    kept.path.write_text(text.replace('"tokens":[3,3]', '"tokens":[3]', 1))
    with pytest.raises(SettingError, match=r"s\.jsonl, line 2: it does not hold 2") as caught:
        kept.lines()
    assert "drawn again" in str(caught.value.hint)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where else it could go."""
    kept = Samples(tmp_path / "s.jsonl", {"m": "k"}, 2)

    def full(self: Path, *_: object, **__: object):
        return open("/dev/full", "a")  # noqa: PTH123 - Path.open is this function

    async def draw(model: str, question: Asked, n: int) -> Drawn:
        monkeypatch.setattr(Path, "open", full)
        return await seven(model, question, n)

    with pytest.raises(SettingError, match=r"cannot write .*s\.jsonl: No space left") as caught:
        asyncio.run(kept.draw(ASKED, draw))
    assert caught.value.hint


def test_a_cancelled_calibration_ends_while_it_measures(backend: ScriptedBackend) -> None:
    """After the option that it is at: nothing is awaited there, and all options take minutes."""
    llm, options = ChatPareto(backend=backend, max_tokens=60), list[None]()

    async def cancelled() -> None:
        def on_option() -> None:
            options.append(None)
            task.cancel()

        task = asyncio.create_task(
            calibrate_quality(llm, ASKED, task="t", samples=4, on_option=on_option)
        )
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert len(options) == 1
    assert not profile_path("t").exists()


@pytest.mark.parametrize("name", ["maths", "maths-v1.2"])
def test_a_profile_is_called_as_its_task(backend: ScriptedBackend, name: str) -> None:
    """Whatever dots the name has."""
    llm = ChatPareto(backend=backend, max_tokens=60)
    asyncio.run(calibrate_quality(llm, ASKED, task=name, samples=4))
    assert load_profile(profile_path(name)).name == name


# --- questions and labels


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked_in(path: Path) -> list[Asked]:
    return [Asked(key_of(q.text), q.text, q.answer, q.place) for q in read_questions(None, path)]


@pytest.mark.parametrize("label", [[1], {"a": 1}, True, False, "", "  ", []])
def test_a_label_is_a_text_or_a_number(tmp_path: Path, label: object) -> None:
    """Anything else is refused with its line, and from Python with its question."""
    path = lines(
        tmp_path / "q.jsonl", {"question": "a", "answer": "1"}, {"question": "b", "answer": label}
    )
    with pytest.raises(SettingError, match=r"line 2 of q\.jsonl: .* is no right answer"):
        asked_in(path)
    with pytest.raises(SettingError, match=r"the question 'B\?': .* is no right answer"):
        checked([Asked("b", "B?", label)])  # type: ignore[arg-type]


def test_numbers_are_labels(tmp_path: Path) -> None:
    """As they are written; null is none."""
    path = lines(
        tmp_path / "q.jsonl", *({"question": f"{x}", "answer": x} for x in (7, 2.5, "x", None))
    )
    assert [q.label for q in asked_in(path)] == ["7", "2.5", "x", None]
    assert checked([Asked("a", "A?", 7)])[0].label == "7"  # type: ignore[arg-type]


def test_what_stands_beside_a_question_that_is_only_asked_does_not_matter(tmp_path: Path) -> None:
    """A list beside a question is no label until somebody asks for one."""
    path = lines(tmp_path / "q.jsonl", {"question": "a", "answer": [1]})
    assert [q.text for q in read_questions(None, path)] == ["a"]


def test_missing_labels_are_refused_with_their_lines(tmp_path: Path) -> None:
    """Among labelled questions; none at all is another kind of calibration, and so is a judge."""
    rows = [{"question": f"q{i}"} | ({"answer": i} if i % 3 else {}) for i in range(9)]
    asked = asked_in(lines(tmp_path / "q.jsonl", *rows))
    told = r"missing for 3 of 9 questions: line 1 of q\.jsonl, line 4 of q\.jsonl, line 7"
    with pytest.raises(SettingError, match=told):
        checked(asked)
    assert checked(asked, judged=True) == asked
    bare = [Asked(q.id, q.text) for q in asked]
    assert checked(bare) == bare
    many = [*ASKED, *(Asked(f"x{i}", f"X{i}?") for i in range(9))]
    with pytest.raises(SettingError, match=r"'X4\?' and 4 more"):
        checked(many)


def test_contradictions_are_refused_with_both_lines(tmp_path: Path) -> None:
    """One question with two right answers, or two questions with one id."""
    rows = [
        {"question": "a", "answer": 1},
        {"question": "b", "answer": 1},
        {"question": "a", "answer": 2},
    ]
    asked = asked_in(lines(tmp_path / "q.jsonl", *rows))
    with pytest.raises(
        SettingError, match=r"line 1 of q\.jsonl and line 3 of q\.jsonl ask the same"
    ):
        checked(asked)
    with pytest.raises(SettingError, match="the id 'a'"):
        checked([Asked("a", "A?"), Asked("a", "B?")])


def test_a_question_counts_once(tmp_path: Path) -> None:
    """Exact duplicates are left out, and a warning names them."""
    rows = [{"question": q, "answer": 1} for q in "abab"]
    asked = asked_in(lines(tmp_path / "q.jsonl", *rows))
    with pytest.warns(
        UserWarning, match=r"2 questions were there before: line 3 of q\.jsonl, line 4"
    ):
        assert checked(asked) == asked[:2]


def test_a_calibration_checks_its_questions(backend: ScriptedBackend) -> None:
    """Before anything is drawn."""
    llm = ChatPareto(backend=backend, max_tokens=60)
    with pytest.raises(SettingError, match="missing for 1 of 5 questions"):
        asyncio.run(calibrate_quality(llm, [*ASKED, Asked("x", "X?")], task="t", samples=2))
    assert not samples_path("t").exists()


@pytest.mark.parametrize("content", ['{"question": "2 + 2"}\n', "[1, 2]", "notes"])
def test_a_file_that_is_no_profile_is_not_replaced(
    tmp_path: Path, backend: ScriptedBackend, content: str
) -> None:
    """It is refused before anything is drawn, and stays; a profile is made anew, and an empty file is filled."""
    path = tmp_path / "questions.json"
    path.write_text(content)
    llm = ChatPareto(backend=backend, max_tokens=60)
    with pytest.raises(SettingError, match="it would be lost"):
        asyncio.run(calibrate_quality(llm, ASKED, task=path, samples=2))
    assert path.read_text() == content
    assert not samples_path(path).exists()
    path.write_text("")
    for _ in range(2):
        asyncio.run(calibrate_quality(llm, ASKED, task=str(path), samples=2))
    assert load_profile(path).questions == len(ASKED)


# --- what devices take


def cost_of(backend: ScriptedBackend) -> CostModel:
    key = device.key_of(backend)
    return CostModel(key, StepCost(1e-3, 1e-4, 0.0), PrefillCost(1e-3, 1e-5, 0.0), sigma=0.1)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"",
        b"{}",
        b"[]",
        lambda text: text.replace('"sigma": 0.1', '"sigma": NaN'),
        lambda text: text.replace('"a": 0.001', '"a": 1e999'),
        lambda text: re.sub(r'"([abc])": [0-9.e-]+', r'"\1": 0', text),
        lambda text: text.replace('"model": "small"', '"model": "large"'),
    ],
)
def test_a_damaged_cost_model_is_named(backend: ScriptedBackend, content) -> None:
    """With its file, and that the device is measured again by a command: nothing is drawn first."""
    cost = cost_of(backend)
    path = device_path(key_of(cost.key))
    path.parent.mkdir(parents=True)
    path.write_text(cost.to_json())
    assert known_cost(backend) == cost
    text = path.read_text()
    path.write_bytes(content if isinstance(content, bytes) else content(text).encode())
    assert path.read_bytes() != text.encode()
    with pytest.raises(SettingError) as caught:
        known_cost(backend)
    assert str(path) in str(caught.value)
    assert "pareto calibrate device" in str(caught.value.hint)
    llm = ChatPareto(backend=backend, max_tokens=60)
    with pytest.raises(SettingError, match="cost model"):
        asyncio.run(calibrate_quality(llm, ASKED, task="t", samples=2))
    assert backend.draws == []


def test_a_missing_cost_model_is_none_and_an_unreadable_one_is_named(
    backend: ScriptedBackend,
) -> None:
    """A folder in its place cannot be read."""
    assert known_cost(backend) is None
    path = device_path(key_of(device.key_of(backend)))
    path.mkdir(parents=True)
    with pytest.raises(SettingError, match=f"cannot read the cost model {path}"):
        known_cost(backend)


def test_a_measured_device_is_kept_whole(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside it no temporary file stays, and what it holds is read again."""
    cost = cost_of(backend)
    monkeypatch.setattr(device, "calibrate", lambda *_, **__: cost)
    llm = ChatPareto(backend=backend, max_tokens=60)
    asyncio.run(calibrate_device(llm))
    path = device_path(key_of(cost.key))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert known_cost(backend) == cost


def test_a_cancelled_measurement_ends_its_thread(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its next run: else nobody could leave before all of its time is over."""
    begun, ended = threading.Event(), threading.Event()
    runs = list[None]()

    def measuring(*_: object, progress: device.Progress, **__: object) -> CostModel:
        try:
            for _ in range(5000):
                progress(0.1, "reading 16 tokens")
                begun.set()
                time.sleep(1e-3)
                runs.append(None)
        finally:
            ended.set()
        return cost_of(backend)

    async def cancelled() -> None:
        llm = ChatPareto(backend=backend, max_tokens=60)
        task = asyncio.create_task(calibrate_device(llm))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        await task

    monkeypatch.setattr(device, "calibrate", measuring)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert ended.wait(60)
    assert len(runs) < 5000
    assert known_cost(backend) is None


def test_a_profile_says_where_its_seconds_were_measured(backend: ScriptedBackend) -> None:
    """Of each model that has a cost model; without one there are no seconds."""
    llm = ChatPareto(backend=backend, max_tokens=60)
    bare = asyncio.run(calibrate_quality(llm, ASKED, task="t", samples=4))
    assert (set(bare.cells), bare.devices) == ({"tokens"}, {})
    cost = cost_of(backend)
    path = device_path(key_of(cost.key))
    path.parent.mkdir(parents=True)
    path.write_text(cost.to_json())
    timed = asyncio.run(calibrate_quality(llm, ASKED, task="t", samples=4))
    assert set(timed.cells) == {"tokens", "seconds"}
    assert set(timed.devices.values()) == {cost.key.device}
    assert device.is_here(cost.key.device)
    assert not device.is_here("Abacus 3000")


def test_a_checker_judges_each_spelling() -> None:
    """What a vote takes for equal need not be equally right: of a puzzle, one expression of a value may be and another not."""
    written = ["( 1 + 6 ) * 1", "7", "3 + 4", None]
    row = Drawn([*written], [3] * len(written), 5)
    line = {"model": "m", "label": None, "scores": None, "logprobs": None}
    lines = [_line(line, Asked("a", "Use 3 and 4 to make 7."), row)]
    pool = pools_of(lines, ["m"], lambda _, answer: answer == "3 + 4")["m"]
    assert pool.answers.tolist() == [[0, 0, 0, -1]]
    assert pool.right is not None
    assert pool.right.tolist() == [[False, False, True, False]]


# --- short samples


@pytest.mark.parametrize("length", [0, 1])
def test_short_samples_have_budgets(length: int) -> None:
    """Samples of one token or none make a grid of whole, ascending budgets, by which everything can be measured."""
    kept = Samples(Path("unused"), {"m": "k"}, 4)

    async def drawn() -> Drawn:
        answer = "7" if length else None
        return Drawn([answer] * kept.samples, [length] * kept.samples, 5)

    row = asyncio.run(drawn())
    line = {"model": "m", "label": "7", "scores": None, "logprobs": None}
    found = [_line(line, question, row) for question in ASKED]
    pools = pools_of(found, ["m"])
    grid = budgets(pools)
    assert grid[0] >= 1
    assert (np.diff(grid) > 0).all()
    runs = measure(catalogue(["m"], samples=4), {"m": Recording(pools["m"])}, grid, orders=1)
    assert (runs.right == length).all()


def _line(fields: dict[str, object], question: Asked, row: Drawn):
    from langchain_pareto.planning.calibrate import _Line

    return _Line.model_validate(
        fields
        | {"question": question.id, "text": question.text}
        | {"answers": row.answers, "tokens": row.tokens, "prompt": row.prompt}
    )
