"""
Files that are written whole or not at all, and by one at a time.

Knows paths and locks; knows nothing of what the files hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from langchain_pareto.errors import SettingError

_ELSEWHERE = "Take another place for it; LANGCHAIN_PARETO_HOME names another directory for all."


def write(path: Path, text: str) -> None:
    """Puts `text` in the place of what `path` held: who reads meanwhile finds the one or the other. Raises SettingError."""
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # of nobody else
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def append(path: Path, text: str) -> None:
    """Puts `text` at the end of a file, some of it if no more can be written. Raises SettingError."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Inside, nobody else who asks may write `path`; SettingError where somebody does already.

    A lock ends with its process, however that ends. The file beside `path` that it is on stays.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"), thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        msg = f"{path} is being written by another calibration"
        hint = "Wait until that one has ended, or end it; or take another name."
        raise SettingError(msg, hint=hint) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> SettingError:
    return SettingError(f"cannot write {path}: {error.strerror or error}", hint=_ELSEWHERE)
