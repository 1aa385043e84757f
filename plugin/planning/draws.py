"""
The samples that a replay draws below one question.

Knows in which order they are met, and how far each is drawn and paid; knows no price and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_pareto.backends.base import Finish
from langchain_pareto.backends.recorded_samples import no_more
from langchain_pareto.planning.allowance import FREE, Allowance
from langchain_pareto.planning.players import Player


class Tree:
    """One question put to the model of one role, and the samples below it in the order in which they are met."""

    __slots__ = ("computed", "met", "order", "player", "prompt", "read")

    def __init__(self, player: Player, prompt: int, samples: Sequence[int]) -> None:
        self.player = player
        self.prompt = prompt
        self.order = samples
        self.met = 0
        self.computed = False  # whether somebody has paid for the prompt
        self.read = False  # whether the clock has waited for it

    def next_sample(self, question: str) -> int:
        """The next one; raises NotRecorded after the last."""
        if self.met == len(self.order):
            raise no_more(question, self.met)
        self.met += 1
        return self.order[self.met - 1]


class Draw:
    """One sample, as far as it is drawn and paid."""

    __slots__ = ("allowance", "charge", "drawn", "first", "late", "length", "most", "number", "sample", "tree")  # fmt: skip

    def __init__(
        self,
        tree: Tree,
        allowance: Allowance,
        number: int,
        sample: int,
        length: int,
        most: int,
        first: bool,
    ) -> None:
        self.tree, self.allowance = tree, allowance
        self.number = number  # in order of drawing
        self.sample, self.length = sample, length
        self.most = most  # bytes of memory that were reserved
        self.first = first  # whether the prompt is charged to it
        self.drawn, self.charge, self.late = 0, FREE, False

    @property
    def finish(self) -> Finish:
        """How it ended."""
        if self.late:
            return "deadline"
        return "eos" if self.drawn == self.length else "length"
