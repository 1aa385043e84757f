"""
One replayed call: its clock, its books, and the draws that run side by side.

Knows players and draws; knows no strategy, and not why something is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from langchain_pareto.backends.base import Sampling
from langchain_pareto.planning.allowance import FREE, Allowance, Charge, minus
from langchain_pareto.planning.draws import Draw, Tree
from langchain_pareto.planning.players import Cast
from langchain_pareto.planning.recording import Timing
from langchain_pareto.strategies.record import Lengths, Record
from langchain_pareto.strategies.run import anytime
from langchain_pareto.strategies.thoughts import Answer, Thought


class Play:
    """What one run shares among its searches: its clock, its books, and what it learned of lengths."""

    def __init__(self, cast: Cast, sampling: Sampling, row: int, seed: int, *, turns: bool) -> None:
        self.cast = cast
        self.sampling = sampling  # of a role's first search
        self.row = row
        self.question = cast.questions[row]
        self.seed = seed
        self.turns = turns  # whether others may run where a search waits
        self.trees = list[Tree]()
        self.roots = dict[str, tuple[Tree, Thought]]()  # beside the first one, by role
        self.thoughts = list[Thought]()
        self.placed = 0
        self.lengths = Lengths()
        self.offer: Answer | None = None
        self.limited_by: str | None = None
        self.bound = (
            False  # whether a limit had a say, be it only in how many draws ran side by side
        )
        self.clock = 0.0  # seconds
        self.steps = 0
        self.spent = FREE
        self.batch = list[Draw]()  # whose time has not passed yet
        self.races = list[Race]()

    def tree(self, role: str) -> Tree:
        """The question put to a role."""
        player = self.cast.players[role]
        samples = self.cast.order(self.question, self.seed, player.samples)
        tree = Tree(player, player.prompts[self.row], samples)
        self.trees.append(tree)
        return tree

    def lack(self, allowance: Allowance, charge: Charge) -> str | None:
        """What stands in the way of a request, None if nothing does."""
        return "seconds" if self.clock >= allowance.deadline else allowance.lack(charge)

    def pay(self, allowance: Allowance, charge: Charge) -> None:
        """Puts a request on the books."""
        tokens, flops, nanodollars, memory = self.spent
        self.spent = (
            tokens + charge[0],
            flops + charge[1],
            nanodollars + charge[2],
            memory + charge[3],
        )
        allowance.pay(charge)

    def take(self, draw: Draw, tokens: int) -> None:
        """So many tokens of a sample are drawn, be that more than so far or less: pays, or gives back."""
        tree, player = draw.tree, draw.tree.player
        last = tree.prompt - 1
        if tokens:
            flops = player.flops(0 if draw.first else last, last + tokens, tokens)
            kept = player.kv * (tokens + (tree.prompt if draw.first else 1)) + player.state
        else:
            flops, kept = 0, player.state
            tree.computed = tree.computed and not draw.first
        charge, old = (tokens, flops, player.nanodollars(tokens), min(draw.most, kept)), draw.charge
        draw.drawn, draw.charge = tokens, charge
        self.pay(draw.allowance, minus(charge, old))

    def pass_time(self) -> None:
        """All that waits is drawn, side by side; what a deadline comes before is cut off."""
        batch, self.batch = self.batch, []
        for tree in dict.fromkeys(draw.tree for draw in batch):  # one model after the other
            draws = [draw for draw in batch if draw.tree is tree]
            self.clock += self.reach(draws, self.clock)
            self.steps += max(draw.drawn for draw in draws)

    def reach(self, draws: Sequence[Draw], now: float) -> float:
        """Seconds from `now` until draws of one tree have ended; cuts them off at their deadlines."""
        tree, timing = draws[0].tree, draws[0].tree.player.recording.timing
        if timing is None:
            return 0.0
        known = tree.player.prompt_seconds(tree.prompt) if tree.read else 0.0
        tree.read = True
        seconds = _seconds(timing, [d.drawn for d in draws], tree.prompt, known)
        for deadline in sorted({draw.allowance.deadline for draw in draws}):
            left = max(0.0, deadline - now)
            if seconds <= left:
                break
            lengths = [draw.drawn for draw in draws]
            reached = (
                timing.drawn_by(lengths, tree.prompt, left + known) if left else [0] * len(draws)
            )
            for draw, tokens in zip(draws, reached, strict=True):
                if draw.allowance.deadline == deadline and tokens < draw.drawn:
                    draw.late = self.bound = True
                    self.take(draw, tokens)
            lengths = [draw.drawn for draw in draws]
            begun = left or any(lengths)
            seconds = max(left, _seconds(timing, lengths, tree.prompt, known)) if begun else 0.0
        return seconds

    def reason(self, answer: Answer | None) -> str:
        """Why it ended."""
        if self.limited_by is not None:
            return self.limited_by
        return "length" if answer is not None and answer.thought.finish == "length" else "done"

    def anytime(self) -> Answer | None:
        """The best there is, where the strategy has none."""
        return anytime(Record(thoughts=self.thoughts, offer=self.offer))

    def end(self) -> None:
        """Whoever is still drawn is cut off."""
        for race in self.races:
            race.leave()


class Race:
    """Draws that are seen as they end. Who leaves has drawn no more of the others than of the last that was seen."""

    def __init__(self, play: Play, draws: Sequence[Draw]) -> None:
        self._play, self._draws = play, draws
        self._began, self._at, self._left = play.clock, 0, not draws
        self._read = bool(draws) and draws[0].tree.read
        if draws:
            play.reach(draws, play.clock)
        play.races.append(self)

    def ended(self) -> Iterator[list[Draw]]:
        """Those that end together, the shortest first; of equal ones those that a deadline cuts come last: it is noticed after the step."""
        ranked = sorted(self._draws, key=lambda draw: (draw.drawn, draw.late, draw.number))
        for (tokens, late), group in groupby(ranked, key=lambda draw: (draw.drawn, draw.late)):
            self._at = tokens
            self._pass_time(late=late)
            yield list(group)

    def leave(self) -> None:
        """Ends the others; twice is once."""
        if self._left:
            return
        self._left = True
        for draw in self._draws:
            if draw.drawn > self._at:
                self._play.take(draw, self._at)
        self._play.steps += self._at

    def _pass_time(self, *, late: bool) -> None:
        """Until the last of those that are seen has ended; where it is `late`, until the deadline."""
        tree = self._draws[0].tree
        timing = tree.player.recording.timing
        if timing is not None:
            known = tree.player.prompt_seconds(tree.prompt) if self._read else 0.0
            lengths = [min(draw.drawn, self._at) for draw in self._draws]
            now = self._began + _seconds(timing, lengths, tree.prompt, known)
            ends = [draw.allowance.deadline for draw in self._draws] if late else []
            self._play.clock = max(self._play.clock, now, *ends)


def _seconds(timing: Timing, lengths: Sequence[int], prompt: int, known: float) -> float:
    """Seconds of a batch, less those of a prompt that was read before."""
    return max(0.0, timing.batch_seconds(lengths, prompt) - known)
