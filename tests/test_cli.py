"""The command line: what it prints where, what it refuses, and with which exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from profiles import OPTIONS, RIGHT, TOKENS, cells
from typer.testing import CliRunner, Result

from langchain_pareto import ChatPareto
from langchain_pareto.cli import app
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.profile import Profile
from langchain_pareto.planning.store import profile_path

CUPS = "Ben has 3 more cups than Ava. Ava has 5 cups. How many cups does Ben have?"
QUESTIONS = [f"Use {a} 4 5 to make 35." for a in (3, 7, 11, 15, 19)]
COLUMNS = [
    "question",
    "answer",
    "text",
    "strategy",
    "stopped_by",
    "budget",
    "spent",
    "samples",
    "usage",
]
PARETO = [sys.executable, "-m", "langchain_pareto.cli"]


def pareto(
    *arguments: str, given: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command line; without `given`, stdin is empty."""
    return subprocess.run(
        [*PARETO, *arguments],
        input=given or "",
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def here(*arguments: str) -> Result:
    """The same in this process, with an empty stdin: quicker, and as good where streams do not matter."""
    return CliRunner().invoke(app, arguments)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_help_loads_nothing_heavy() -> None:
    """`pareto ask --help` answers without torch and without LangChain."""
    code = (
        "import sys\nfrom langchain_pareto import cli\n"
        "try:\n    cli.app(['ask', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--budget" in done.stdout
    loaded = set(done.stderr.split())
    assert loaded.isdisjoint({"torch", "transformers", "langchain_core", "langchain", "langgraph"})


def test_version() -> None:
    """`pareto --version` names the installed version."""
    done = pareto("--version")
    assert (done.returncode, done.stdout) == (0, f"pareto {version('langchain-pareto')}\n")


def test_json_is_one_line_and_nothing_else() -> None:
    """A piped question with --json gives one row of the documented columns; the device is told on stderr."""
    done = pareto("ask", "--json", "--seed", "1", "--budget", "60 tokens", given=f"{CUPS}\n")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    row = json.loads(line)
    assert list(row) == COLUMNS
    assert row["question"] == CUPS
    assert row["budget"] == "60 tokens"
    assert row["strategy"]["kind"] == "auto"
    assert 0 < row["spent"]["tokens"] <= 60
    assert {"seconds", "flops"} <= set(row["spent"])
    assert row["usage"]["output_tokens"] == row["spent"]["tokens"]
    assert "Answer:" in row["text"]
    assert row["answer"] in row["text"]
    assert "on cpu" in done.stderr or "on cuda" in done.stderr
    assert "Traceback" not in done.stderr


def test_people_get_answer_spending_and_tree() -> None:
    """Without --json: the answer, what was spent of what, and a tree with one chosen thought; no colours in a pipe."""
    settings = ["--strategy", '{"kind": "vote", "n": 20, "adaptive": false}', "--seed", "1"]
    done = pareto("ask", QUESTIONS[0], *settings, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert QUESTIONS[0] in done.stdout
    assert "tokens" in done.stdout
    assert "vote of 20 · 20 samples" in done.stdout
    assert done.stdout.count("✓") == 1
    assert "… 4 more thoughts" in done.stdout


def test_a_search_shows_its_steps() -> None:
    """A scorer by its name, the bundled reward model in its role; a step is no missing answer."""
    settings = ["--strategy", "rebase", "--scorer", "process_reward", "--seed", "1"]
    done = here("ask", "Use 11 7 3 to make 74.", *settings, "--budget", "400 tokens")
    assert done.exit_code == 0, done.output
    assert "step  " in done.stdout
    assert "score 0" in done.stdout


def test_any_terminal_can_show_it() -> None:
    """Where stdout is ASCII, so is all that is printed."""
    done = pareto("ask", "Use 3 4 to make 7 é", "--max-tokens", "30", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "+--" in done.stdout


def test_a_file_is_answered_in_order(tmp_path: Path) -> None:
    """Five questions run side by side and come back in the file's order, with what else stood on their lines."""
    rows = [{"id": i, "question": q, "answer": "gold"} for i, q in enumerate(QUESTIONS)]
    file = write(tmp_path / "questions.jsonl", rows)
    done = here("ask", "--file", file, "--json", "--seed", "1", "--budget", "80 tokens")
    assert done.exit_code == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["question"] for row in found] == QUESTIONS
    assert [row["id"] for row in found] == [0, 1, 2, 3, 4]
    assert all(list(row) == [*COLUMNS, "id"] for row in found)
    assert "gold" not in {row["answer"] for row in found}
    alone = here("ask", QUESTIONS[3], "--json", "--seed", "1", "--budget", "80 tokens")
    assert json.loads(alone.stdout)["text"] == found[3]["text"]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_question_that_fails_does_not_stop_the_others(tmp_path: Path, as_json: bool) -> None:
    """It gets a row with its error, the others are answered, and the exit code is 1."""
    rows = [{"question": QUESTIONS[0]}, {"question": "x" * 9000}, {"question": QUESTIONS[1]}]
    file = write(tmp_path / "questions.jsonl", rows)
    done = here("ask", "--file", file, "--budget", "40", *(["--json"] if as_json else []))
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    if as_json:
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert ["error" in row for row in found] == [False, True, False]
        assert "9002 tokens" in found[1]["error"]
    else:
        assert done.stdout.count("on the device") == 2
        assert "9002 tokens" in done.stdout


def test_an_error_at_a_limit_is_exit_code_1() -> None:
    """`on error` raises at the limit: one line in words, and what to do."""
    done = here("ask", CUPS, "--budget", "5 tokens, on error")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "error: Budget exhausted: 5 of 5 tokens spent." in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hi", "--budget", "5 parsecs"], "5 parsecs"),
        (["hi", "--budget", "0 tokens"], "above zero"),
        (["hi", "--strategy", "guess"], "known strategies: auto, beam, best_of_n, "),
        (["hi", "--scorer", "guess"], "known scorers: judge_score, "),
        (["hi", "--role", "judge"], "names no role and its model"),
        (["hi", "--role", "judge=/no/such/model"], "/no/such/model"),
        (["hi", "--backend", "abacus"], "known backends: auto, torch"),
        (["hi", "--task", "never-measured"], "there is no profile 'never-measured'"),
        (["hi", "--need", "0.8"], "Name a profile with --task"),
        (["hi", "--guarantee", "agree"], "Name a profile with --task"),
        (["hi", "--model", "a", "--model", "b", "--strategy", "vote"], "a plan chooses"),
        (["hi", "--model", "a=x", "--model", "a=y"], "two models are called 'a'"),
        (["hi", "--budget", "5 J"], "Give watts="),
        (["hi", "--budget", "$1", "--watts", "9"], "usd_per_hour="),
        (["hi", "--watts", "-1"], "--watts"),
        (["hi", "--watts", "inf"], "--watts: "),
        (["hi", "--usd-per-hour", "inf"], "--usd-per-hour: "),
        (["hi", "--model", f"a={'x' * 5000}", "--need", "0.5"], "Name a profile with --task"),
        (["hi", "--model", "a=x", "--model", "b=y", "--need", "0.5"], "Name a profile with --task"),
        (["hi", "--model", "a=x", "--model", "b=y", "--strategy", '{"kind": "vote"}'], "a plan"),
        (["hi", "--model", "/no/such/model"], "/no/such/model"),
        (["hi", "--model", "x" * 5000], "xxx"),
        (["hi", "--task", f"{'x' * 5000}.json"], "xxx"),
        (["hi", "--device", "abacus"], "cpu"),
        (["hi", "--dtype", "int3"], "float32"),
        (["hi", "--file", "some.jsonl"], "Leave one of them out"),
        (["--file", "missing.jsonl"], "cannot read missing.jsonl"),
        (["--file", "."], "cannot read ."),
        (["hi", "--temperature", "-1"], "--temperature"),
        (["hi", "--max-tokens", "0"], "--max-tokens"),
        (["hi", "--seed", "one"], "--seed"),
        ([" "], "the question is empty"),
        (["-"], "the question is empty"),
        ([], "the question is empty"),
    ],
)
def test_wrong_settings_are_exit_code_2(arguments: list[str], told: str) -> None:
    """A mistake is named in words on stderr, with nothing on stdout and no traceback."""
    done = here("ask", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.output


def test_a_setting_that_only_loading_finds_wrong_is_exit_code_2_too(tmp_path: Path) -> None:
    """Of several models the one that a plan chose loads with the first question: every row says what is wrong."""
    models = ["--model", "a=nano", "--model", "b=nano-draft", "--device", "abacus"]
    file = write(tmp_path / "questions.jsonl", [{"question": q} for q in QUESTIONS[:2]])
    done = here("ask", "--file", file, *models, "--json")
    assert done.exit_code == 2
    assert [("abacus" in json.loads(line)["error"]) for line in done.stdout.splitlines()] == [
        True
    ] * 2
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('{"question": "a"}\n\nnot json\n', "line 3: not JSON"),
        ('{"question": "a"}\n{"answer": "b"}\n', "line 2: no JSON object"),
        ('["question"]\n', "line 1: no JSON object"),
        ('{"question": 3}', "line 1: no JSON object"),
        ('{"question": " "}', "line 1: the question is empty"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"question": "a", "id": 1e999}', "line 1: not JSON: 1e999 is too large"),
        ("\n \n", "has no line with a question"),
    ],
)
def test_a_bad_line_is_named_before_anything_runs(tmp_path: Path, lines: str, told: str) -> None:
    """The message has the number of the line, and no model was loaded for it."""
    (tmp_path / "questions.jsonl").write_text(lines)
    done = here("ask", "--file", str(tmp_path / "questions.jsonl"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert " on cpu" not in done.stderr


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A profile called "mine", in a home and a working directory of the test's own."""
    monkeypatch.setenv("LANGCHAIN_PARETO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.json").mkdir()
    keys = dict(ChatPareto().plans().keys)
    options = tuple(Option(o.strategy, {"policy": "nano"}) for o in OPTIONS[:2])
    table = {"tokens": cells(RIGHT[:2], TOKENS[:2], questions=20)}
    Profile("mine", options, table, keys=keys).save(profile_path("mine"))
    return "mine"


def test_a_profile_answers_too(profile: str) -> None:
    """What `pareto plan` would take is what `pareto ask --task` runs, and the JSON says so."""
    told = json.loads(here("plan", CUPS, "--task", profile, "--budget", "200", "--json").stdout)
    done = here("ask", CUPS, "--task", profile, "--budget", "200", "--seed", "1", "--json")
    assert done.exit_code == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["plan"]["strategy"] == told["strategy"]
    assert row["plan"]["source"] == told["source"]
    assert row["spent"]["tokens"] <= 200
    assert row["answer"] == "8"


def test_a_plan_on_a_line_is_not_the_plan_of_a_row(profile: str, tmp_path: Path) -> None:
    """As with every other column, what was found stands there; what else was on the line stays."""
    file = write(tmp_path / "q.jsonl", [{"question": CUPS, "plan": "buy milk", "id": 7}])
    done = here("ask", "--file", file, "--task", profile, "--budget", "200", "--json")
    assert done.exit_code == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["plan"]["strategy"] == row["strategy"]
    assert row["id"] == 7


def test_budgets_in_joules_and_money_have_rates() -> None:
    """A device's watts, or what an hour or a million tokens cost."""
    for budget, rate in (
        ("500 J", ["--watts", "100"]),
        ("$1", ["--usd-per-hour", "2"]),
        ("$1", ["--usd-per-million-tokens", "1"]),
    ):
        done = here("ask", CUPS, "--budget", budget, *rate, "--json")
        assert done.exit_code == 0, done.stderr
        spent = json.loads(done.stdout)["spent"]
        assert spent["joules" if budget.endswith("J") else "usd"] > 0
        plan = here("plan", CUPS, "--budget", budget, *rate)
        assert plan.exit_code == 0, plan.stderr
        assert "refused" not in plan.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "./folder"], "--task ./folder is a folder, not a profile"),
        (["--task", "folder.json"], "--task folder.json is a folder, not a profile"),
        (["--task", "other"], "Known profiles: mine."),
        (["--task", "no/such.json"], "is no file"),
        (["--task", "mine", "--plot", "nodir/x.png"], "there is no folder nodir"),
        (["--task", "mine", "--plot", "x.unknown"], "ends in .png, .svg, .pdf"),
        (["--task", "mine", "--plot", "x"], "ends in .png, .svg, .pdf"),
        (["--task", "mine", "--plot", "folder"], "ends in .png, .svg, .pdf"),
        (["--plot", "x.png"], "Name one with --task."),
        (["--task", "mine", "--need", "0.5", "--guarantee", "agree"], "Leave one of them out."),
        (["--task", "mine", "--need", "2"], "between 0 and 1"),
        (["--task", "mine", "--watts", "inf"], "--watts: "),
    ],
)
def test_what_cannot_be_planned_or_plotted_is_exit_code_2(
    profile: str, tmp_path: Path, arguments: list[str], told: str
) -> None:
    """In words, with what to do, and nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    done = here("plan", "hi", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="who may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_refused_first(profile: str, tmp_path: Path) -> None:
    """By `pareto plan --plot`, and by a calibration before it draws."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    questions = write(tmp_path / "q.jsonl", [{"question": CUPS}])
    for arguments in (
        ["plan", "hi", "--task", profile, "--plot", str(locked / "x.png")],
        ["calibrate", "quality", questions, "--task", str(locked / "x.json")],
    ):
        done = here(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "may not be writ" in done.stderr


@pytest.mark.parametrize("task", ["./folder", "folder.json", "q.jsonl/x.json", "a b"])
def test_a_calibration_that_could_not_be_kept_is_refused_first(
    profile: str, tmp_path: Path, task: str
) -> None:
    """Before a model is loaded."""
    questions = write(tmp_path / "q.jsonl", [{"question": CUPS}])
    done = here("calibrate", "quality", questions, "--task", task)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert not list(tmp_path.rglob("*.samples.jsonl"))


def test_a_measurement_that_could_not_be_kept_is_refused_first(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a minute is spent on each model."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LANGCHAIN_PARETO_HOME", str(tmp_path / "file"))
    done = here("calibrate", "device", "--model", "/no/such/model")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot be written" in done.stderr
    assert "LANGCHAIN_PARETO_HOME" in done.stderr


def test_a_plot_is_written_beside_the_plan(profile: str, tmp_path: Path) -> None:
    """`--plot` draws, and the plan is told all the same."""
    pytest.importorskip("matplotlib")
    done = here("plan", "hi", "--task", profile, "--plot", "x.svg")
    assert done.exit_code == 0, done.output
    assert "Plan: " in done.stdout
    assert "<svg" in (tmp_path / "x.svg").read_text()


def test_a_traceback_for_who_asks() -> None:
    """PARETO_TRACEBACK=1 shows where an error comes from."""
    done = pareto("ask", "hi", "--budget", "5 parsecs", PARETO_TRACEBACK="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


# in the background a shell starts its children with it ignored
_INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from langchain_pareto.cli import main
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_ctrl_c_is_exit_code_130(tmp_path: Path) -> None:
    """An interrupt in the middle of a search ends the process in silence."""
    file = write(
        tmp_path / "questions.jsonl",
        [{"question": f"{q} {i}"} for q in QUESTIONS for i in range(40)],
    )
    settings = ["--strategy", '{"kind": "best_of_n", "n": 500}']
    running = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, "ask", "--file", file, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    assert "nano" in running.stderr.readline()  # the model is loaded
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, "", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_an_interrupted_calibration_says_that_it_goes_on(tmp_path: Path) -> None:
    """Where what was drawn is kept, and that the same command resumes; the exit code is that of any interrupt."""
    rows = [{"question": f"{q} {i}"} for q in QUESTIONS for i in range(100)]
    file = write(tmp_path / "q.jsonl", rows)
    samples = tmp_path / "home" / "profiles" / "t.samples.jsonl"
    running = subprocess.Popen(
        [
            *(sys.executable, "-c", _INTERRUPTIBLE, "calibrate", "quality", file),
            *("--task", "t", "--questions", "500", "--samples", "8"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LANGCHAIN_PARETO_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
    )
    while running.poll() is None and not (samples.exists() and samples.read_text().count("\n") > 1):
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=200)
    assert (running.returncode, out) == (130, "")
    assert str(samples) in err
    assert "The same command goes on from there." in err
    assert "Traceback" not in err
    assert samples.read_text().count("\n") > 1


def test_an_interrupt_before_the_first_draw_promises_nothing(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not drawn is not kept anywhere."""

    async def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("langchain_pareto.calibration.calibrate_quality", interrupted)
    file = write(tmp_path / "q.jsonl", [{"question": CUPS}])
    done = here("calibrate", "quality", file, "--task", "never-begun")
    assert done.exit_code == 130
    assert "kept in" not in done.stderr
