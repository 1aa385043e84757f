"""
All thoughts in a plain table, and one of them beside the picture.

Knows HTML tables; the page's script reads what is shown here, so the two say the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_pareto.reports import words
from langchain_pareto.reports.markup import Markup, pairs, tag
from langchain_pareto.reports.run import Node
from langchain_pareto.reports.tree import Forest

_ROWS = 500  # of one table
_OPEN = 40  # thoughts: a longer list is folded up
_LINE = 90  # characters that are shown of a text before it is opened
_MOST = 100_000  # characters of one text: with more, a page becomes slow
_COLUMNS = (
    "answer",
    "text",
    "after",
    "tokens",
    "score",
    "mean logprob",
    "seconds",
    "ended",
    "role",
)
_NUMBERS = ("after", "tokens", "score", "mean logprob", "seconds")


def cut(text: str, most: int = _MOST) -> str:
    """The text, or its beginning and how much is missing."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n… and {len(text) - most:,} more characters"


def thoughts(forest: Forest, prefix: str) -> Markup:
    """All thoughts in order of the tree, in tables of some hundred rows: browsers take long over the columns of larger ones."""
    cells = {node.id: _cells(node, forest) for node in forest.nodes}
    known = {name for row in cells.values() for name, value in row.items() if value}
    columns = [name for name in _COLUMNS if name in known or name == "text"]
    total = len(forest.nodes)
    parts = []
    for first in range(0, total, _ROWS):
        nodes = forest.nodes[first : first + _ROWS]
        one = f"All thoughts ({total:,})"
        title = one if total <= _ROWS else f"Thoughts, rows {first + 1:,} to {first + len(nodes):,}"
        rows = [_row(node, cells[node.id], columns, prefix) for node in nodes]
        listed = tag(
            "div",
            tag("table", _head(columns), tag("tbody", *rows)),
            class_="wide all",
            tabindex=0,
            role="region",
            aria_label=title,
        )
        parts.append(
            tag("details", tag("summary", title), listed, class_="block", open=total <= _OPEN)
        )
    return tag("section", *parts)


def _head(columns: Sequence[str]) -> Markup:
    names = [tag("th", name, scope="col", class_=_class(name)) for name in columns]
    return tag("thead", tag("tr", tag("th", "thought", scope="col"), *names))


def panel(node: Node) -> list[Markup]:
    """One thought by itself."""
    title = [f"Thought {node.id} ", *([tag("em", "✓ chosen")] if node.chosen else [])]
    answer = None if node.answer is None else cut(node.answer, 2000)
    out = [tag("h3", *title), pairs({"answer": answer, **words.facts(node)})]
    if node.text:
        out.append(tag("pre", cut(node.text), dir="auto", tabindex=0))
    return out


def _cells(node: Node, forest: Forest) -> dict[str, str]:
    parent = forest.parent(node)
    return {
        "answer": "" if node.answer is None else cut(node.answer, 2000),
        "after": "" if parent is None else str(parent.id),
        **words.facts(node),
    }


def _row(node: Node, cells: dict[str, str], columns: Sequence[str], prefix: str) -> Markup:
    mark = [tag("span", " ✓", title="chosen")] if node.chosen else []
    return tag(
        "tr",
        tag("th", str(node.id), *mark, scope="row"),
        *(_cell(name, node, cells, prefix) for name in columns),
        id=f"{prefix}{node.id}",
        class_="chosen" if node.chosen else None,
    )


def _cell(name: str, node: Node, cells: dict[str, str], prefix: str) -> Markup:
    if name == "text":
        return tag("td", _text(node.text), class_="text")
    value = cells.get(name, "")
    if name == "after" and value:
        return tag("td", tag("a", value, href=f"#{prefix}{value}"), class_="n")
    return tag("td", value, class_=_class(name))


def _class(name: str) -> str | None:
    return "n" if name in _NUMBERS else None


def _text(text: str) -> Markup:
    """In one line; what is longer opens."""
    line = words.one_line(text, _LINE)
    if line == text.strip():
        return tag("span", cut(text), class_="whole", dir="auto")
    whole = tag("pre", cut(text), dir="auto", tabindex=0)
    return tag("details", tag("summary", line or "(spaces)", dir="auto"), whole)
