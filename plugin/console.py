"""
What people read in a terminal: an answer, what it took, its tree of thoughts; errors, warnings and a bar while they wait.

Knows terminals, and what an answer says of itself in `response_metadata["pareto"]`; knows no file, no model and no exit code.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NotRequired, TextIO, TypedDict, cast

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from langchain_pareto.errors import ParetoError

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage
    from langchain_core.messages.ai import UsageMetadata

    from langchain_pareto.budget import Budget

_PATIENCE = 2.0  # seconds before a progress bar appears
_NODES = 16  # thoughts that a tree shows
_ENDS = {"eos": "ended", "stop": "ended", "length": "cut off", "deadline": "out of time"}
_PARTS = {"step": "step", None: "given"}  # of a text that goes on; nobody sampled what is given
_UNITS = {
    "flops": "FLOP",
    "memory": "B",
    "seconds": "s",
    "device_seconds": "s",
    "joules": "J",
    "usd": "$",
}


class Node(TypedDict):
    """One thought of `response_metadata["pareto"]["tree"]`."""

    id: int
    parent: int
    text: str
    tokens: int
    finish: str
    answer: str | None
    score: float | None
    mean_logprob: float | None
    chosen: bool


class Report(TypedDict):
    """`response_metadata["pareto"]`, as far as it is shown."""

    strategy: dict[str, object]
    budget: str | None
    spent: dict[str, float]
    stopped_by: str
    samples: int
    answer: str | None
    share: float | None
    seed: int
    decoder: dict[str, object]
    speculation: NotRequired[dict[str, float]]
    tree: list[Node]


def report_of(message: AIMessage) -> Report:
    """What an answer of ChatPareto says of itself."""
    return cast("Report", message.response_metadata["pareto"])


# --- one answer


def show_answer(question: str, message: AIMessage, title: str, out: Console) -> None:
    """Prints the answer, what it took, and the tree."""
    report = report_of(message)
    out.print(_answer(str(message.text), report, title, out))
    out.print(_spending(report, message.usage_metadata, out))
    out.print(show_tree(report["tree"], question, out))


def show_failure(error: Exception, title: str, out: Console) -> None:
    """Prints the error in the answer's place."""
    out.print(Panel(Text(clean(str(error)), "red"), title=Text(title), title_align="left"))


def _answer(text: str, report: Report, title: str, out: Console) -> RenderableType:
    found = report["answer"]
    told = "no answer found in it" if found is None else short(found, 60)
    if report["share"] is not None:
        told += f"{_sign(out, ' · ', ', ')}{report['share']:.0%} of the votes"
    return Panel(
        Text(clean(text)),
        title=Text(title),
        subtitle=Text(told, "bold green" if found is not None else "yellow"),
        title_align="left",
        subtitle_align="right",
        border_style="green" if found is not None else "yellow",
    )


def _spending(report: Report, usage: UsageMetadata | None, out: Console) -> RenderableType:
    """What was spent of what, and why it ended."""
    from langchain_pareto.budget import Budget

    budget = Budget() if report["budget"] is None else Budget.parse(report["budget"])
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 1), header_style="dim")
    table.add_column("resource")
    table.add_column("spent", justify="right")
    table.add_column("limit", justify="right")
    for resource, amount in report["spent"].items():
        limit = _limit(budget, resource)
        reached = resource == report["stopped_by"]
        table.add_row(
            "on the device" if resource == "device_seconds" else resource,
            Text(_amount(amount, resource), "yellow" if reached else ""),
            _sign(out, "–", "-") if limit is None else _amount(limit, resource),
        )
    ended = {"done": "ended by itself", "length": "cut off"}
    stopped_by = report["stopped_by"]
    samples = report["samples"]
    notes = [
        str(report["strategy"]["kind"]),
        f"{samples} sample{'s' if samples != 1 else ''}",
        ended.get(stopped_by, f"stopped by its {stopped_by}"),
        f"prompt {usage['input_tokens']} tokens" if usage is not None else "",
        _guessed(report.get("speculation")),
        f"seed {report['seed']}",
    ]
    line = _sign(out, " · ", ", ").join(note for note in notes if note)
    return Group("", table, Text(f" {line}", "dim"), "")


def _guessed(speculation: Mapping[str, float] | None) -> str:
    """How well the guesses went."""
    if speculation is None:
        return ""
    drafted = max(1, speculation["drafted"])
    share = speculation["accepted"] / drafted
    return f"{share:.0%} of {drafted:,.0f} guesses right, {speculation['tokens_per_round']:.2f} tokens a verification"


def show_tree(nodes: Sequence[Node], question: str, out: Console) -> Tree:
    """The thoughts of `response_metadata["pareto"]["tree"]`, the chosen ones marked, for `out` to print."""
    tree = Tree(Text(f" {short(question, out.width - 2)}", "bold"), guide_style="dim")
    places = {0: tree}
    for node in _shown(nodes):
        under = places.get(node["parent"], tree)
        places[node["id"]] = under.add(_thought(node, out))
    hidden = len(nodes) - len(places) + 1
    if hidden:
        tree.add(Text(f"{_sign(out, '…', '...')} {hidden} more", "dim"))
    return tree


def _shown(nodes: Sequence[Node]) -> list[Node]:
    """The first ones and the chosen ones, in order, parents before their children."""
    chosen = [node["id"] for node in nodes if node["chosen"]]
    rest = [node["id"] for node in nodes if not node["chosen"]]
    ids = {*chosen, *rest[: max(0, _NODES - len(chosen))]}
    return sorted((node for node in nodes if node["id"] in ids), key=lambda node: node["id"])


def _thought(node: Node, out: Console) -> Text:
    """One thought: a line about it, and a line of it."""
    mark = _sign(out, "✓ ", "* ") if node["chosen"] else ""
    told = _PARTS.get(node["finish"], "no answer")
    if node["answer"] is not None:
        told = short(node["answer"], 36)
    facts = [f"{node['tokens']} tokens"]
    if node["score"] is not None:
        facts.append(f"score {node['score']:.3g}")
    if node["mean_logprob"] is not None:
        facts.append(f"mean logprob {node['mean_logprob']:.2f}")
    if node["finish"] not in _PARTS:
        facts.append(_ENDS.get(node["finish"], node["finish"]))
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{mark}{node['id']}  {told}", "bold green" if node["chosen"] else "")
    line.append("  " + _sign(out, " · ", ", ").join(facts) + "\n", "dim")
    line.append(short(node["text"], out.width - 10, _sign(out, " ⏎ ", " / ")), "dim italic")
    return line


def _amount(value: float, resource: str) -> str:
    """An amount with its unit, to three or four digits; counts in full."""
    unit = _UNITS.get(resource)
    if unit is None:
        return f"{value:,.0f}"
    if unit == "$":
        return f"${value:.4g}"
    if unit == "s":
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} E{unit}"


def _limit(budget: Budget, resource: str) -> float | None:
    limit = getattr(budget, resource, None)
    return None if limit is None else float(limit)


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
    """From now on, signs that a stream cannot show become `?`, and what is no text an escape."""
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="backslashreplace" if is_utf8(stream) else "replace")


def show_error(error: ParetoError) -> None:
    """In red on stderr, and what to do in a line of its own."""
    err = stderr()
    err.print(Text(f"error: {clean(str(error))}", "red"), soft_wrap=True)
    if error.hint:
        err.print(Text(clean(error.hint)), soft_wrap=True)


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


def _sign(out: Console, nice: str, plain: str) -> str:
    return plain if out.options.ascii_only else nice


def clean(text: str) -> str:
    """Text without what steers a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def short(text: str, most: int, newline: str = " ") -> str:
    """One line of at most `most` characters."""
    line = clean(newline.join(part for part in text.strip().split("\n") if part))
    return line if len(line) <= most else f"{line[: max(0, most - 3)]}..."
