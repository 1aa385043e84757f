"""Every example runs as a user would run it, is short, and says something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTICE = "no model was named: the bundled nano model answers"
TOLD = {
    "agent": ("last answer: Answer: ", "tokens of 700"),
    "budgets": ("run_budget", "in all", "on error: 20 of 20 tokens spent"),
    "langgraph_parallel": ("Use 3 4 5 to make 35. -> ", "of 600 tokens, 30 s"),
    "lcel": ("Answer: ", "3 4 5 to 35 -> ", "with 40 tokens: "),
    "structured_vote": ("the winner, with ", "Cups(who=", "tokens of 600 tokens"),
    "search": ("weighted_vote: ", "rebase: ", "score "),
}


def test_all_are_tested() -> None:
    """A new example needs a line above; the demo has a make target of its own."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*TOLD, "demo"}


@pytest.mark.parametrize("name", TOLD)
def test_an_example_runs(name: str) -> None:
    """It exits with 0, prints what it is for, and nothing on stderr but the notice of the bundled model."""
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert [told for told in TOLD[name] if told not in done.stdout] == []
    (line,) = done.stderr.splitlines()
    assert line.startswith(NOTICE)
