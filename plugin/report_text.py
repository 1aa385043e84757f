"""
One search in a terminal: the answer, what it took, why it ended, and its tree.

Knows rich; what it says is `report_words`' and what hangs on what is `report_tree`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from langchain_pareto import report_words as words
from langchain_pareto.console import clean, short
from langchain_pareto.report_run import Node, Run
from langchain_pareto.report_tree import Forest

_NODES = 40  # thoughts that a terminal shows
_DEEPEST = 12  # levels of indentation: what is deeper stands side by side
_ASCII = str.maketrans({"·": ",", "–": "-", "−": "-", "✓": "*", "…": "~"})


@dataclass(frozen=True, slots=True)
class TextReport:
    """A rich renderable, as wide as its console."""

    run: Run
    forest: Forest | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts, one below the other."""
        page = _Page(self.run, self.forest, options.max_width, options.ascii_only)
        yield from page.parts()


@dataclass(frozen=True, slots=True)
class _Page:
    run: Run
    forest: Forest | None
    width: int
    ascii_only: bool

    def parts(self) -> Iterator[RenderableType]:
        yield self._answer()
        yield Group("", self._spending(), "", *self._notes(), "")
        if self.forest is not None:
            yield self._tree(self.forest)

    def _say(self, text: str, style: str = "") -> Text:
        """A text of ours, in signs that the console has."""
        return Text(text.translate(_ASCII) if self.ascii_only else text, style)

    def _answer(self) -> RenderableType:
        run = self.run
        found = "no answer found in it" if run.answer is None else short(run.answer, 60)
        share = "" if run.share is None else f" · {run.share:.0%} of the votes"
        colour = "yellow" if run.answer is None else "green"
        asked = "Answer" if run.question is None else short(run.question, max(8, self.width - 6))
        return Panel(
            Text(clean(run.text if run.text is not None else run.answer or "")),
            title=Text(asked),
            subtitle=self._say(f"{found}{share}", f"bold {colour}"),
            title_align="left",
            subtitle_align="right",
            border_style=colour,
        )

    def _spending(self) -> Table:
        """What was spent of what, and what had been expected."""
        run, most = self.run, words.limits(self.run)
        expected = {} if run.plan is None else run.plan.expected
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 1), header_style="dim")
        table.add_column("resource")
        for name in ("spent", "limit", *(["expected"] if expected else [])):
            table.add_column(name, justify="right")
        for name, taken in run.spent.items():
            limit = "–" if name not in most else words.amount(most[name], name)
            row = [
                self._say(clean(words.resource_name(name))),
                self._say(words.amount(taken, name), "yellow" if name == run.stopped_by else ""),
                self._say(limit),
            ]
            if expected:
                told = words.amount(expected[name].mean, name) if name in expected else "–"
                row.append(self._say(told))
            table.add_row(*row)
        return table

    def _notes(self) -> Iterator[Text]:
        run = self.run
        yield self._say(f" {clean(words.stopped(run))}")
        facts = [words.strategy(run)]
        if run.samples is not None:
            facts.append(words.counted(run.samples, "sample"))
        if (decoder := words.kind(run.decoder)) is not None:
            facts.append(f"decoder {decoder}")
        if run.speculation is not None:
            facts.append(words.speculation(run.speculation))
        if run.model is not None:
            facts.append(f"model {run.model}")
        if run.seed is not None:
            facts.append(f"seed {run.seed}")
        yield self._say(f" {clean(' · '.join(facts))}", "dim")
        if run.figures:
            told = " · ".join(f"{name} {value:,.6g}" for name, value in run.figures.items())
            yield self._say(f" {clean(told)}", "dim")
        if run.plan is not None:
            yield from self._plan()
        if self.forest is None:
            yield self._say(" The tree of thoughts is not in this output.", "dim")

    def _plan(self) -> Iterator[Text]:
        assert self.run.plan is not None
        plan, quality = self.run.plan, self.run.plan.quality
        told = f" planned from {plan.source}"
        if quality is not None:
            told += (
                f" · {quality.mean:.1%} right expected ({quality.low:.1%} to {quality.high:.1%})"
            )
        if plan.rejected:
            told += f" · {words.counted(len(plan.rejected), 'plan')} not taken"
        yield self._say(clean(told), "dim")
        for note in plan.notes:
            yield self._say(f" note: {clean(note)}", "dim")

    def _tree(self, forest: Forest) -> Tree:
        total = f"prompt · {words.counted(len(forest.nodes), 'thought')}, {words.counted(forest.tokens, 'token')}"
        tree = Tree(self._say(total, "bold"), guide_style="dim")
        shown = forest.first(_NODES)
        deepest = max(1, min(_DEEPEST, self.width // 8))
        branch = {0: tree}  # the last one of each level
        for node in shown.nodes:
            level = min(shown.depth[node.id], deepest)
            under = branch[level - 1]
            branch[level] = under.add(self._thought(node, level))
        hidden = len(forest.nodes) - len(shown.nodes)
        if hidden:
            tree.add(self._say(f"… {words.counted(hidden, 'more thought')}", "dim"))
        return tree

    def _thought(self, node: Node, level: int) -> Text:
        """One thought: a line about it, and a line of it."""
        facts = words.facts(node)
        ended = facts.pop("ended")
        told = ended if node.answer is None else short(node.answer, 36)
        count = words.counted(node.tokens, "token")
        about = [count, *(f"{name} {value}" for name, value in facts.items() if name != "tokens")]
        if node.answer is not None and ended != "ended":
            about.append(ended)
        line = Text(no_wrap=True, overflow="ellipsis")
        style = "bold green" if node.chosen else ""
        line.append_text(self._say(f"{'✓ ' if node.chosen else ''}{node.id}  ", style))
        line.append(told, style)
        line.append_text(self._say(f"  {' · '.join(clean(fact) for fact in about)}\n", "dim"))
        newline = " / " if self.ascii_only else " ⏎ "
        line.append(short(node.text, max(8, self.width - 4 * level - 2), newline), "dim italic")
        return line
