"""
What people read in a terminal beside answers: errors, warnings, and a bar while they wait.

Knows terminals and their signs; knows no file, no model, no report and no exit code.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from langchain_pareto.errors import ParetoError

_PATIENCE = 2.0  # seconds before a progress bar appears

# --- while people wait


@contextmanager
def progress_bar(total: int) -> Iterator[Progress]:
    """A bar on stderr, if somebody looks and it takes long enough."""
    err = stderr()
    columns = [TextColumn("Answering"), BarColumn(), TimeElapsedColumn()]
    if total > 1:
        columns.insert(2, MofNCompleteColumn())
    progress = Progress(
        *columns, console=err, transient=True, redirect_stdout=False, disable=not err.is_terminal
    )
    progress.add_task("", total=total if total > 1 else None)
    later = asyncio.get_running_loop().call_later(_PATIENCE, progress.start)
    try:
        yield progress
    finally:
        later.cancel()
        progress.stop()


@contextmanager
def hidden(progress: Progress) -> Iterator[None]:
    """Takes the bar away while something is printed: both may be on one terminal."""
    shown = progress.live.is_started
    if shown:
        progress.stop()
    yield
    if shown and not progress.finished:
        progress.start()


# --- the terminal


def stdout() -> Console:
    """What was asked for goes here."""
    return Console(highlight=False)


def stderr() -> Console:
    """What is said beside it goes here."""
    return Console(stderr=True, highlight=False)


def replace_unknown_signs() -> None:
    """From now on, signs that a stream cannot show become `?`, and what is not text an escape."""
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="backslashreplace" if is_utf8(stream) else "replace")


def show_error(error: ParetoError) -> None:
    """In red on stderr, and what to do in a line of its own."""
    err = stderr()
    err.print(Text(f"error: {clean(str(error))}", "red"), soft_wrap=True)
    if error.hint:
        err.print(Text(clean(error.hint)), soft_wrap=True)


def show_failure(error: Exception, title: str) -> None:
    """In red on stdout, where the answer would stand."""
    told = Text(clean(str(error)), "red")
    stdout().print(Panel(told, title=Text(clean(title)), title_align="left"))


def show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - as the warnings module calls it
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """In yellow on stderr: `warnings.showwarning`."""
    stderr().print(Text(f"note: {clean(str(message))}", "yellow"), soft_wrap=True)


def is_utf8(stream: TextIO) -> bool:
    """Whether the stream can show every sign."""
    return (stream.encoding or "").lower().startswith("utf")


def clean(text: str) -> str:
    """Text without what steers a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
