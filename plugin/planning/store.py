"""
Where profiles, samples and cost models lie: the user's data directory, one file for each name.

LANGCHAIN_PARETO_HOME names another directory. Knows paths and names; knows nothing of what the files hold.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_data_path

from langchain_pareto.errors import SettingError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")


def home() -> Path:
    """The directory of all."""
    own = os.environ.get("LANGCHAIN_PARETO_HOME")
    return Path(own) if own else user_data_path("langchain-pareto", appauthor=False)


def is_path(task: str | Path) -> bool:
    """Whether a profile is called by the path of a file, which may hold anything, and not by its name."""
    return isinstance(task, Path) or task.endswith(".json")


def profile_path(task: str | Path) -> Path:
    """The profile of a kind of questions, by its name or by the path of a JSON file; SettingError for what is neither."""
    if is_path(task):
        return Path(task)
    return home() / "profiles" / f"{_checked(str(task))}.json"


def samples_path(task: str | Path) -> Path:
    """What was drawn for a profile."""
    return profile_path(task).with_suffix(".samples.jsonl")


def device_path(key: str) -> Path:
    """The cost model of one model on one device."""
    return home() / "devices" / f"{_checked(key)}.json"


def known_tasks() -> list[str]:
    """The names of the profiles there are."""
    return sorted(path.stem for path in (home() / "profiles").glob("*.json"))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        msg = f"{name!r:.80} is no name of a profile"
        raise SettingError(
            msg,
            hint="Take letters, digits, dots, dashes and underscores, or the path of a .json file.",
        )
    return name
