"""The page on strategies says what the code says."""

import json
from pathlib import Path
from typing import get_args

import pytest

from langchain_pareto.strategies import AnyStrategy
from langchain_pareto.strategies.judge import JudgeCompare, JudgeScore, JudgeVote
from langchain_pareto.strategies.process_reward import ProcessReward

README = Path(__file__).parents[2] / "strategies" / "README.md"
STRATEGIES = get_args(get_args(AnyStrategy)[0])
SCORERS = (JudgeCompare, JudgeScore, JudgeVote, ProcessReward)


def setting(name, field) -> str:
    """A setting with its default, without it where that is a prompt or an object."""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, str):
        return f"`{name}`" if "\n" in value else f"`{name}={json.dumps(value)}`"
    return f"`{name}={value}`" if value is None or isinstance(value, int | float) else f"`{name}`"


@pytest.mark.parametrize("kind", [*STRATEGIES, *SCORERS])
def test_every_setting_is_on_the_page(kind):
    """A user finds each setting of a strategy or scorer, and its default, in one row."""
    shared = {"kind"} if kind in SCORERS else {"kind", "temperature"}
    names = {name: field for name, field in kind.model_fields.items() if name not in shared}
    told = ", ".join(setting(name, field) for name, field in names.items()) or "none"
    assert f"| `{kind.__name__}` | {told} |\n" in README.read_text(encoding="utf-8")
