"""
`pareto report`: what a search did, from the JSON that it left behind, in the terminal, as Mermaid text or as an HTML page.

Knows files and pipes; what a report says and how it looks is `report`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from langchain_pareto import console
from langchain_pareto.errors import SettingError
from langchain_pareto.exits import told


def add_report(app: typer.Typer) -> None:
    """Adds the command to a command line."""
    app.command()(report)


def report(
    file: Annotated[
        Path | None,
        typer.Argument(
            help='An answer as JSON, or lines of `pareto ask --json`; "-", or a pipe, is read from stdin.',
            show_default=False,
        ),
    ] = None,
    *,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Writes a page into this file, which needs no other file and no network."
        ),
    ] = None,
    mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Prints the tree as a Mermaid flowchart.")
    ] = False,
    line: Annotated[
        int | None, typer.Option(min=1, help="Which answer of several, counted from 1.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="What was asked, where the answer does not say so.")
    ] = None,
) -> None:
    """Shows one search: its answer, what it spent of what, why it ended, and its tree of thoughts."""
    with told():
        from langchain_pareto.reports.report import Report

        found = Report.of(_answer(file, line), question=question)
        if html is not None:
            if html.suffix.lower() not in (".html", ".htm"):
                msg = f"a page cannot be called {str(html)!r}"
                raise SettingError(msg, hint="Take a name that ends in .html.")
            path = found.save(html)
            console.stderr().print(Text(f"written to {path}", style="dim"), soft_wrap=True)
        if mermaid:
            print(found.mermaid())
        elif html is None:
            console.stdout().print(found)


def _answer(file: Path | None, line: int | None) -> Mapping[str, object]:
    """The JSON object that was asked for; raises SettingError."""
    from langchain_pareto.reports.source import one_of, read_rows, text_of

    if file is None or str(file) == "-":
        name, text = "stdin", _piped(asked_for=file is not None)
    else:
        name, text = str(file), text_of(file)
    return one_of(read_rows(text, name), name, line=line)


def _piped(*, asked_for: bool) -> str:
    if sys.stdin is None or (not asked_for and sys.stdin.isatty()):
        msg = "there is no answer to report on"
        hint = "Try: pareto ask --json ... | pareto report, or name a file."
        raise SettingError(msg, hint=hint)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        msg = f"what was piped in is not text: {error}"
        raise SettingError(msg) from error
