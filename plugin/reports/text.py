"""
One search in a terminal: the answer, what it took, why it ended, and its tree.

Knows rich; what it says is `words`', and what hangs on what is `tree`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from langchain_pareto.console import clean
from langchain_pareto.reports import words
from langchain_pareto.reports.run import Node, Run
from langchain_pareto.reports.tree import Forest

_DEEPEST = 12  # levels of indentation: what is deeper stands side by side
_ASCII = str.maketrans({"·": ",", "–": "-", "−": "-", "✓": "*", "…": "~", "⏎": "/"})


@dataclass(frozen=True, slots=True)
class TextReport:
    """A rich renderable, as wide as its console."""

    run: Run
    forest: Forest | None
    thoughts: int  # that are shown at most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts, one below the other."""
        page = _Page(self.run, self.forest, self.thoughts, options.max_width, options.ascii_only)
        yield from page.parts()


@dataclass(frozen=True, slots=True)
class _Page:
    run: Run
    forest: Forest | None
    thoughts: int
    width: int
    ascii_only: bool

    def parts(self) -> Iterator[RenderableType]:
        yield self._answer()
        yield Group("", self._spending(), "", *self._notes(), "")
        if self.forest is not None:
            yield self._tree(self.forest)

    def _say(self, text: str, style: str = "") -> Text:
        """A text of ours, in signs that the console has."""
        if self.ascii_only:
            text = text.replace(" · ", ", ").translate(_ASCII)
        return Text(text, style)

    def _line(self, text: str, most: int, style: str = "", *, newline: str = " ") -> Text:
        """One line of a text that is not ours."""
        return self._say(clean(words.one_line(text, max(8, most), newline=newline)), style)

    def _answer(self) -> RenderableType:
        run = self.run
        found = words.NO_ANSWER if run.answer is None else clean(words.one_line(run.answer, 60))
        share = "" if run.share is None else f" · {run.share:.0%} of the votes"
        colour = "yellow" if run.answer is None else "green"
        asked = "Answer" if run.question is None else run.question
        return Panel(
            Text(clean(run.text if run.text is not None else run.answer or "")),
            title=self._line(asked, self.width - 6),
            subtitle=self._say(f"{found}{share}", f"bold {colour}"),
            title_align="left",
            subtitle_align="right",
            border_style=colour,
        )

    def _spending(self) -> Table:
        """What was spent of what, and what had been expected."""
        run, most = self.run, words.limits(self.run)
        expected = {} if run.plan is None else run.plan.expected
        columns = ["spent", "limit"]
        if expected:
            columns += ["expected", "p90"]
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 1), header_style="dim")
        table.add_column("resource")
        for name in columns:
            table.add_column(name, justify="right")
        for name, taken in run.spent.items():
            limit = "–" if name not in most else words.amount(most[name], name)
            row = [
                self._say(clean(words.resource_name(name))),
                self._say(words.amount(taken, name), "yellow" if name == run.stopped_by else ""),
                self._say(limit),
            ]
            if expected:
                spend = expected.get(name)
                known = (None, None) if spend is None else (spend.mean, spend.p90)
                row += [self._say("–" if one is None else words.amount(one, name)) for one in known]
            table.add_row(*row)
        return table

    def _notes(self) -> Iterator[Text]:
        run = self.run
        yield self._say(f" {clean(words.stopped(run))}")
        facts = [words.strategy(run)]
        if run.samples is not None:
            facts.append(words.counted(run.samples, "sample"))
        if (decoder := words.kind(run.decoder)) not in (None, "plain"):
            facts.append(f"decoder {decoder}")
        if run.speculation is not None:
            facts.append(words.speculation(run.speculation))
        if run.prompt_tokens is not None:
            facts.append(f"prompt {words.counted(run.prompt_tokens, 'token')}")
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
            yield self._say(f" {words.NO_TREE}", "dim")

    def _plan(self) -> Iterator[Text]:
        assert self.run.plan is not None
        plan = self.run.plan
        told = [f"{name} {value}" for name, value in words.of_plan(plan).items()]
        if plan.rejected:
            told.append(words.not_taken(plan))
        yield self._say(f" {clean(' · '.join(told))}", "dim")
        for note in plan.notes:
            yield self._say(f" note: {clean(note)}", "dim")

    def _tree(self, forest: Forest) -> Tree:
        total = f"prompt · {words.counted(len(forest.nodes), 'thought')}, {words.counted(forest.tokens, 'token')}"
        tree = Tree(self._say(total, "bold"), guide_style="dim")
        shown = forest.first(self.thoughts)
        deepest = max(1, min(_DEEPEST, self.width // 8))
        branch = {0: tree}  # the last one of each level
        for node in shown.nodes:
            level = min(shown.depth[node.id], deepest)
            under = branch[level - 1]
            branch[level] = under.add(self._thought(node, level))
        hidden = len(forest.nodes) - len(shown.nodes)
        if hidden:
            tree.add(self._say(f"… {words.counted(hidden, 'more thought')}", "dim"))
        if dropped := words.dropped(self.run, forest.tokens):
            tree.add(self._say(f"… {dropped}", "dim"))
        return tree

    def _thought(self, node: Node, level: int) -> Text:
        """One thought: a line about it, and a line of it."""
        facts = words.facts(node)
        ended = facts.pop("ended")
        told = "no answer" if ended == "ended" else ended
        count = words.counted(node.tokens, "token")
        about = [count, *(f"{name} {value}" for name, value in facts.items() if name != "tokens")]
        if node.answer is not None:
            told = node.answer
            if ended != "ended":
                about.append(ended)
        line = Text(no_wrap=True, overflow="ellipsis")
        style = "bold green" if node.chosen else ""
        line.append_text(self._say(f"{'✓ ' if node.chosen else ''}{node.id}  ", style))
        line.append_text(self._line(told, 36, style))
        line.append_text(self._say(f"  {' · '.join(clean(fact) for fact in about)}\n", "dim"))
        most = self.width - 4 * level - 2
        line.append_text(self._line(node.text, most, "dim italic", newline=" ⏎ "))
        return line
