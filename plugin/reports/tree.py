"""
The shape of a search: which thought goes on from which, in what order they are shown, and where the tokens went.

Knows numbers and relations; draws nothing. A tree may have thousands of thoughts, one below the other: nothing here recurses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from langchain_pareto.reports.run import Node

PROMPT = 0


@dataclass(frozen=True, slots=True)
class Forest:
    """Thoughts in depth-first order; one whose parent is not among them hangs on the prompt.

    `start` counts the tokens drawn from the prompt up to a thought, `depth` the thoughts above it.
    """

    nodes: tuple[Node, ...]
    children: dict[int, list[Node]]
    start: dict[int, int]
    depth: dict[int, int]
    by_id: dict[int, Node] = field(repr=False)

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Forest:
        """The forest of a search's thoughts, parents before their children or not."""
        by_id = {node.id: node for node in nodes}
        children: dict[int, list[Node]] = {}
        start, depth = {PROMPT: 0}, {PROMPT: 0}
        for node in sorted(nodes, key=lambda node: node.id):
            parent = by_id.get(node.parent)
            above = PROMPT if parent is None else parent.id
            children.setdefault(above, []).append(node)
            start[node.id] = start[above] + (0 if parent is None else parent.sampled)
            depth[node.id] = depth[above] + 1
        return cls(tuple(_depth_first(children)), children, start, depth, by_id)

    def end(self, node: Node) -> int:
        """Tokens drawn from the prompt to its end."""
        return self.start[node.id] + node.sampled

    def parent(self, node: Node) -> Node | None:
        """The thought that it goes on from, None at the prompt."""
        return self.by_id.get(node.parent)

    @property
    def leaves(self) -> list[Node]:
        """The thoughts that nothing goes on from."""
        return [node for node in self.nodes if node.id not in self.children]

    @property
    def chosen(self) -> list[Node]:
        """The path of the answer, from the prompt on."""
        return [node for node in self.nodes if node.chosen]

    @property
    def tokens(self) -> int:
        """Tokens drawn into all thoughts."""
        return sum(node.sampled for node in self.nodes)

    @property
    def longest(self) -> int:
        """Tokens of the longest path."""
        return max((self.end(node) for node in self.nodes), default=0)

    def first(self, most: int) -> Forest:
        """At most `most` thoughts: of the chosen path as many as that allows, and the first drawn of the others."""
        if len(self.nodes) <= most:
            return self
        order = sorted(self.nodes, key=lambda node: (not node.chosen, node.id))
        return Forest.of(order[:most])


def _depth_first(children: dict[int, list[Node]]) -> Iterator[Node]:
    stack = children.get(PROMPT, [])[::-1]
    while stack:
        node = stack.pop()
        yield node
        stack += children.get(node.id, [])[::-1]
