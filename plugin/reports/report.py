"""
Report: one search, for people: in a terminal, in Markdown, in a notebook, or as a page of its own.

Knows which forms there are and what to call their files; each form is a module of its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from langchain_pareto.errors import SettingError
from langchain_pareto.reports import words
from langchain_pareto.reports.run import Run
from langchain_pareto.reports.source import read_run
from langchain_pareto.reports.tree import Forest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from langchain_pareto.reports.source import Source

_WIDTH = 100  # characters, where no terminal says how wide it is


@dataclass(frozen=True, slots=True)
class Report:
    """What one search did: its answer, what it spent of what, why it ended, and its tree of thoughts.

    `print(report)` and rich's `print` show it; a notebook shows it by itself.
    """

    run: Run

    @classmethod
    def of(cls, source: Source, *, question: str | None = None) -> Self:
        """The report of an answer (an AIMessage of ChatPareto or StrategyRunnable), a Reply, or either as JSON: a mapping, a text, a file.

        An answer does not know its question: `question` adds it. Raises SettingError for what tells of no search.
        """
        return cls(read_run(source, question=question))

    def renderable(self, *, thoughts: int = 40) -> RenderableType:
        """For a terminal: what rich prints, as wide as its console, with at most so many of the thoughts."""
        if thoughts < 0:
            msg = f"a report cannot show {thoughts} thoughts"
            raise SettingError(msg, hint="Give 0 or more.")
        from langchain_pareto.reports.text import TextReport

        return TextReport(self.run, self._forest(), thoughts)

    def mermaid(self) -> str:
        """A Mermaid flowchart of the tree; raises SettingError where the source had no tree."""
        from langchain_pareto.reports.mermaid import mermaid

        if (forest := self._forest()) is None:
            raise SettingError(
                words.NO_TREE, hint="Make the report of the answer itself, an AIMessage."
            )
        return mermaid(self.run, forest)

    def html(self) -> str:
        """A page that needs no other file and no network."""
        from langchain_pareto.reports.html import page

        return page(self.run, self._forest())

    def save(self, path: str | Path) -> Path:
        """Writes the form that the file's name ends in: .html or .htm, .mmd (Mermaid), .md, .txt, or .json (to be read again)."""
        path = Path(path)
        forms: dict[str, Callable[[], str]] = {
            ".html": self.html,
            ".htm": self.html,
            ".mmd": lambda: f"{self.mermaid()}\n",
            ".md": lambda: f"```mermaid\n{self.mermaid()}\n```\n",
            ".txt": lambda: f"{self}\n",
            ".json": lambda: f"{self.run.model_dump_json(exclude_none=True)}\n",
        }
        form = forms.get(path.suffix.lower())
        if form is None:
            msg = f"a report cannot be written as {path.suffix or path.name!r}"
            raise SettingError(msg, hint=f"Take a name that ends in {', '.join(forms)}.")
        try:
            path.write_text(form(), encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            msg = f"cannot write {str(path)!r:.200}: {getattr(error, 'strerror', None) or error}"
            raise SettingError(
                msg, hint="Take a name in a folder that exists and may be written to."
            ) from None
        return path

    def _forest(self) -> Forest | None:
        return None if self.run.tree is None else Forest.of(self.run.tree)

    def _repr_html_(self) -> str:
        """For notebooks: as the page, without its script."""
        from langchain_pareto.reports.html import fragment

        return fragment(self.run, self._forest())

    def __rich__(self) -> RenderableType:
        """For rich's `print`."""
        return self.renderable()

    def __str__(self) -> str:
        """For `print`: text without colours."""
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=_WIDTH, color_system=None, highlight=False).print(self)
        return out.getvalue().rstrip("\n")
