"""
One search as Mermaid text, for Markdown pages that draw it.

Knows Mermaid's flowcharts, and that texts are hostile: whatever could mean something to Mermaid is written as an entity.
"""

from __future__ import annotations

from collections.abc import Iterator

from langchain_pareto.reports import words
from langchain_pareto.reports.run import Node, Run
from langchain_pareto.reports.tree import PROMPT, Forest

_NODES = 150  # Mermaid refuses charts of 500 edges or 50,000 signs, and larger ones cannot be read
_TEXT = 40  # characters of a thought
_PLAIN = frozenset(" .,+*=!?'|/")  # beside letters and digits; a dash or "1." could begin a list
_STYLES = (
    "classDef chosen fill:#d5efe2,stroke:#0b6e4f,stroke-width:3px,color:#0b2e22",
    "classDef cut fill:#fdf1dd,stroke:#b26a00,stroke-dasharray:4 3,color:#3d2500",
    "classDef other fill:#f1f3f5,stroke:#8a929b,color:#22262a",
)


def mermaid(run: Run, forest: Forest) -> str:
    """A flowchart from the prompt to the thoughts, the chosen path in bold."""
    shown = forest.first(_NODES)
    hidden = len(forest.nodes) - len(shown.nodes)
    return "\n".join(
        ["flowchart LR", *_nodes(run, shown, hidden), *_edges(shown), *_classes(shown)]
    )


def _nodes(run: Run, shown: Forest, hidden: int) -> Iterator[str]:
    asked = "prompt" if run.question is None else words.one_line(run.question, _TEXT)
    more = f"<br>and {words.counted(hidden, 'more thought')}" if hidden else ""
    yield f'    t{PROMPT}(["{_escape(asked)}{more}"])'
    for node in shown.nodes:
        yield f'    t{node.id}["{_label(node)}"]'


def _label(node: Node) -> str:
    facts = words.facts(node)
    ended = facts.pop("ended")
    facts["tokens"] = words.counted(node.tokens, "token")
    told = [facts.pop("tokens"), *(f"{name} {value}" for name, value in facts.items())]
    said = f"answer {node.answer}" if node.answer is not None else f"{ended}, {node.text}"
    mark = "chosen, " if node.chosen else ""
    about = _escape(f"thought {node.id}, {mark}{', '.join(told)}")
    return f"{about}<br>{_escape(words.one_line(said, _TEXT))}"


def _edges(shown: Forest) -> Iterator[str]:
    for node in shown.nodes:
        parent = shown.parent(node)
        above = PROMPT if parent is None else parent.id
        yield f"    t{above} {'==>' if node.chosen else '-->'} t{node.id}"


def _classes(shown: Forest) -> Iterator[str]:
    for style in _STYLES:
        yield f"    {style}"
    of: dict[str, list[str]] = {"chosen": [], "cut": [], "other": []}
    for node in shown.nodes:
        name = "chosen" if node.chosen else "cut" if node.cut else "other"
        of[name].append(f"t{node.id}")
    for name, ids in of.items():
        if ids:
            yield f"    class {','.join(ids)} {name}"


def _escape(text: str) -> str:
    """Letters and digits as they are, what cannot be printed as U+FFFD, and all else by its number."""
    return "".join(
        c if c.isalnum() or c in _PLAIN else f"#{ord(c) if c.isprintable() else 0xFFFD};"
        for c in text
    )
