"""
Monte Carlo tree search over steps, guided by the run's scorer instead of random playouts.

UCT(s) = Q(s) + c sqrt(ln N(parent) / N(s)) (Kocsis and Szepesvári 2006), with Q the mean of the scores at s and below, as in the
baseline of Wu et al. 2024 (arXiv 2408.00724, appendix); whose unfinished paths are lost, and ours are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.frontier import Frontier
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Choice, Thought, promise


class MCTS(Strategy):
    """Draws `width` next steps of the most promising path, `expansions` times; `root_width` first steps of the question.

    Up to `parallel` paths are chosen before their steps are drawn together, each with a virtual loss on its way, so that they part.
    What is unfinished in the end is drawn to its end in one piece, best first: `completions` paths of it, None for all.
    """

    kind: Literal["mcts"] = "mcts"
    expansions: int = Field(default=32, ge=1)
    root_width: int = Field(default=4, ge=1)
    width: int = Field(default=2, ge=1)
    parallel: int = Field(default=4, ge=1)
    exploration: float = Field(default=1.0, ge=0, allow_inf_nan=False)  # c
    depth: int = Field(default=32, ge=1)
    completions: int | None = Field(default=None, ge=0)
    choose: Choice = "best"

    async def run(self, search: Search) -> Answer:
        """Rounds of selection, expansion and back-up."""
        frontier, tree, left = Frontier(search, self.choose), _Tree(search.root), self.expansions
        while chosen := tree.select(min(self.parallel, left), self.exploration):
            left -= len(chosen)
            drawn = await frontier.grow([t for node in chosen for t in self._named(node)])
            tree.expand(chosen, drawn, self.depth)
        paths = sorted(tree.unfinished(), key=promise, reverse=True)
        await frontier.finish(paths[: self.completions])
        return frontier.answer()

    def _named(self, node: _Node) -> list[Thought]:
        return [node.thought] * (self.root_width if node.parent is None else self.width)


@dataclass(eq=False, slots=True)
class _Node:
    """A thought, and what is known of it and of all below it."""

    thought: Thought
    parent: _Node | None = None
    closed: bool = False  # nothing is drawn below it (again)
    children: list[_Node] = field(default_factory=list)
    visits: int = 0  # N: scores backed up
    total: float = 0.0  # their sum
    pending: int = 0  # virtual losses

    @property
    def open(self) -> bool:
        """Whether there is anything to draw at it or below."""
        return any(child.open for child in self.children) if self.children else not self.closed

    def lineage(self) -> Iterator[_Node]:
        """Itself, and all above it."""
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.parent


class _Tree:
    """Selection and back-up."""

    def __init__(self, root: Thought) -> None:
        self.nodes = [_Node(root)]
        self._worst = math.inf  # the least score so far: what a virtual loss is worth

    def select(self, n: int, exploration: float) -> list[_Node]:
        """Up to `n` nodes whose next steps are drawn together, by UCT; each closes, and leaves a virtual loss on its way."""
        chosen = list[_Node]()
        while len(chosen) < n and self.nodes[0].open:
            node = self.nodes[0]
            while node.children:
                open_ = [child for child in node.children if child.open]
                node = max(open_, key=lambda child: self._uct(child, exploration))
            node.closed = True
            for above in node.lineage():
                above.pending += 1
            chosen.append(node)
        return chosen

    def expand(self, chosen: Sequence[_Node], drawn: Sequence[Thought], depth: int) -> None:
        """Takes the virtual losses back, adds what was drawn below the chosen nodes, and backs up its scores.

        What has no score is neither backed up nor followed.
        """
        parents = {node.thought: node for node in chosen}
        for node in chosen:
            for above in node.lineage():
                above.pending -= 1
        for thought in drawn:
            assert thought.parent is not None
            child = _Node(thought, parents[thought.parent])
            child.closed = thought.finished or len(thought.path) >= depth
            parents[thought.parent].children.append(child)
            self.nodes.append(child)
            if thought.score is None or not math.isfinite(thought.score):
                child.closed = True
            else:
                self._back_up(child, thought.score)

    def unfinished(self) -> list[Thought]:
        """Ends of paths that are no answer yet."""
        ends = (node.thought for node in self.nodes if not node.children)
        return [thought for thought in ends if not thought.finished]

    def _back_up(self, node: _Node, score: float) -> None:
        self._worst = min(self._worst, score)
        for above in node.lineage():
            above.visits += 1
            above.total += score

    def _uct(self, node: _Node, exploration: float) -> float:
        assert node.parent is not None
        visits, above = node.visits + node.pending, node.parent.visits + node.parent.pending
        lost = node.pending * self._worst if node.pending else 0.0  # 0 * inf is NaN
        mean = (node.total + lost) / visits
        return mean + exploration * math.sqrt(math.log(above) / visits)
