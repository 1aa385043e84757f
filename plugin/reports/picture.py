"""
The picture of a search: every thought is a bar as long as its tokens, which begins where the one before it ended.

Knows SVG and where things stand; what a thought says is shown elsewhere. Lengths are shares of the width, so that the picture fits any
window while its letters keep their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from langchain_pareto.reports import words
from langchain_pareto.reports.answers import Ballot
from langchain_pareto.reports.markup import Markup, tag
from langchain_pareto.reports.run import Node
from langchain_pareto.reports.tree import PROMPT, Forest

DRAWN = 2000  # thoughts: with more, browsers become slow and lines too thin
_TOP = 24  # pixels above the first row
_ROWS = ((36, 26), (120, 18), (400, 8), (DRAWN, 4))  # up to so many rows: pixels of each
_LABELLED = 18  # pixels of a row that has room for words
_LEAST = 0.4  # per cent of the width: what is shorter could not be seen
_MANY = 300  # thoughts whose bars touch: gaps between them would be wider than some of them
_TICKS = 5

LEGEND = {
    "chosen": "the answer's path",
    "same": "the same answer",
    "other": "another answer",
    "step": "no answer",
    "cut": "cut off",
    "given": "given, not sampled",
}


def sort_of(node: Node, ballot: Ballot) -> str:
    """Which entry of the legend a thought belongs to."""
    if node.chosen:
        return "chosen"
    if node.finish is None:
        return "given"
    if node.cut:
        return "cut"
    if node.answer is None:
        return "step"
    return "same" if node.answer in ballot.won else "other"


@dataclass(frozen=True, slots=True)
class Picture:
    """Places of all bars; `row` is in pixels, `across` in per cent for each token."""

    ballot: Ballot
    forest: Forest
    prefix: str  # of the ids that bars link to
    row: int
    across: float
    middle: dict[int, float]  # of each thought, in pixels from the top
    thick: dict[int, float]  # of its bar, in pixels

    @classmethod
    def of(cls, forest: Forest, ballot: Ballot, prefix: str) -> Picture:
        """The picture of at most DRAWN thoughts."""
        forest = forest.first(DRAWN)
        leaves = len(forest.leaves)
        row = next((pixels for most, pixels in _ROWS if leaves <= most), _ROWS[-1][1])
        across = 100 / max(1, forest.longest)
        return cls(
            ballot, forest, prefix, row, across, _middles(forest, row), _thickness(forest, row)
        )

    @property
    def scored(self) -> bool:
        """Whether bars differ by their scores."""
        return len({node.score for node in self.forest.nodes} - {None}) > 1

    def render(self) -> Markup:
        """The picture, and beside it what each row ended with."""
        leaves = self.forest.leaves
        height = _TOP + self.row * len(leaves)
        chosen = self.forest.chosen
        current = chosen[-1] if chosen else self.forest.nodes[0]
        picture = tag(
            "svg",
            tag("g", *self._ticks(height), class_="ticks", aria_hidden="true"),
            tag("g", *self._links(), aria_hidden="true"),
            *(self._bar(node, current) for node in self.forest.nodes),
            role="group",
            aria_label="The tree of thoughts: arrow keys go from one to the next",
            style=f"--h:{height}px",
        )
        labelled = self.row >= _LABELLED
        return tag(
            "div",
            picture,
            *([self._ends(leaves)] if labelled else []),
            class_=" ".join(
                [
                    "map",
                    *([] if labelled else ["dense"]),
                    *(["many"] if len(self.forest.nodes) > _MANY else []),
                ]
            ),
            style=f"--row:{self.row}px",
            data_prefix=self.prefix,
        )

    def _x(self, tokens: int) -> str:
        return f"{tokens * self.across:.3f}%"

    def _ticks(self, height: int) -> Iterator[Markup]:
        for tokens in range(0, self.forest.longest + 1, _step(self.forest.longest)):
            x = self._x(tokens)
            yield tag("line", class_="tick", x1=x, x2=x, y1=_TOP - 4, y2=height)
            yield tag("text", f"{tokens:,}", x=x, y=14, text_anchor="middle" if tokens else "start")

    def _links(self) -> Iterator[Markup]:
        """From where a thought ends, down to each that goes on from it; those of the answer last, above the others."""
        top = list[Markup]()
        for id_, below in self.forest.children.items():
            node = self.forest.by_id.get(id_)
            x = self._x(0 if node is None else self.forest.end(node))
            heights = [self.middle[child.id] for child in below]
            if id_ == PROMPT or len(below) > 1:
                yield self._link(x, min(heights), max(heights), "link")
            for child in below:
                if child.chosen and id_ != PROMPT and len(below) > 1:
                    ends = sorted((self.middle[id_], self.middle[child.id]))
                    top.append(self._link(x, ends[0], ends[1], "link chosen"))
        yield from top

    def _link(self, x: str, above: float, below: float, name: str) -> Markup:
        return tag("line", class_=name, x1=x, x2=x, y1=f"{above:g}", y2=f"{below:g}")

    def _bar(self, node: Node, current: Node) -> Markup:
        x = self._x(self.forest.start[node.id])
        width = max(_LEAST, node.sampled * self.across)
        y, thick = self.middle[node.id], self.thick[node.id]
        parent = self.forest.parent(node)
        bar = tag(
            "rect",
            class_="bar",
            x=x,
            width=f"{width:.3f}%",
            y=f"{y - thick / 2:g}",
            height=f"{thick:g}",
            rx=f"{min(3, thick / 2):g}",
        )
        hit = tag(
            "rect",
            class_="hit",
            x=x,
            width=f"{width:.3f}%",
            y=f"{y - self.row / 2:g}",
            height=self.row,
        )
        return tag(
            "a",
            tag("title", _told(node)),
            hit,
            bar,
            href=f"#{self.prefix}{node.id}",
            class_=sort_of(node, self.ballot),
            data_t=node.id,
            data_p=None if parent is None else parent.id,
            aria_current="true" if node is current else None,
            tabindex=0 if node is current else -1,
        )

    def _ends(self, leaves: list[Node]) -> Markup:
        heads = ["answer", *(["score"] if self.scored else []), "tokens"]
        head = [
            tag("b", name, class_={"answer": "a", "score": "n", "tokens": "n t"}[name])
            for name in heads
        ]
        rows = [tag("span", *head, class_="head"), *(self._end(node) for node in leaves)]
        return tag(
            "div", *rows, class_="ends" if self.scored else "ends unscored", aria_hidden="true"
        )

    def _end(self, node: Node) -> Markup:
        ended = "not continued" if node.finish == "step" else words.ending(node)
        answer = node.answer if node.answer is not None else ended
        cells = [("a", f"{'✓ ' if node.chosen else ''}{words.one_line(answer, 60)}")]
        if self.scored:
            cells.append(("n", "" if node.score is None else words.score(node.score)))
        cells.append(("n t", f"{self.forest.end(node):,}"))
        href = f"#{self.prefix}{node.id}"
        written = [
            tag("a", text, class_=name, href=href, tabindex=-1, data_t=node.id, dir="auto")
            for name, text in cells
        ]
        state = "chosen" if node.chosen else "has" if node.answer is not None else None
        return tag("span", *written, class_=state)


def legend(picture: Picture) -> Markup:
    """What the looks of bars mean, as far as they occur."""
    occurring = {sort_of(node, picture.ballot) for node in picture.forest.nodes}
    entries = []
    for name, meaning in LEGEND.items():
        if name in occurring:
            bar = tag("rect", class_="bar", x=0, y=0, width=22, height=10, rx=3)
            entries.append(
                tag("li", tag("svg", tag("g", bar, class_=name), aria_hidden="true"), meaning)
            )
    meaning = "longer: more tokens" + ("; thicker: a better score" if picture.scored else "")
    return tag("ul", *entries, tag("li", meaning), class_="legend")


def _told(node: Node) -> str:
    """What a pointer that rests on a bar is told, and a screen reader that comes to it."""
    told = [f"Thought {node.id}{', chosen' if node.chosen else ''}"]
    if node.answer is not None:
        told.append(f"answer {words.one_line(node.answer, 80)}")
    told += [f"{name} {value}" for name, value in words.facts(node).items()]
    return "\n".join(told)


def _middles(forest: Forest, row: int) -> dict[int, float]:
    """A row for each leaf; what has children stands in the middle of them."""
    leaves = {node.id: i for i, node in enumerate(forest.leaves)}
    out: dict[int, float] = {}
    for node in reversed(forest.nodes):
        if (i := leaves.get(node.id)) is not None:
            out[node.id] = _TOP + row * (i + 0.5)
        else:
            below = forest.children[node.id]
            out[node.id] = (out[below[0].id] + out[below[-1].id]) / 2
    return out


def _thickness(forest: Forest, row: int) -> dict[int, float]:
    """By the place of its score among all scores: outliers leave the others apart."""
    scores = sorted({node.score for node in forest.nodes if node.score is not None})
    place = {value: i / max(1, len(scores) - 1) for i, value in enumerate(scores)}
    if len(scores) < 2:
        return {node.id: round(0.5 * row, 1) for node in forest.nodes}
    return {
        node.id: round((0.2 + 0.55 * (0.0 if node.score is None else place[node.score])) * row, 1)
        for node in forest.nodes
    }


def _step(longest: int) -> int:
    """A round number of tokens, of which a few make the longest path."""
    step = 1
    while longest > _TICKS * step:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step
