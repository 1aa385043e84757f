"""
llama.cpp models of attention layers: a branch is a set of cells that a lane is marked on, shared and cut at any token.

Knows lanes and slots; knows no model. llama.cpp keeps a cell as long as a lane has it, and tells at most 256 lanes apart; the slot
pool keeps a slot as long as a sequence or the prefix index has it, and there may be thousands of sequences. So a sequence gets a lane
only when it is computed, and every slot in use has a *home*: one lane that has its cell. A lane whose sequence is gone stays parked
as long as it is the home of something that no other lane has taken home: a path that many sequences have computed, one after another,
would else hold as many lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from langchain_pareto.backends.kv_pool import SlotPool, Slots
from langchain_pareto.backends.lanes import Lanes, Memory
from langchain_pareto.backends.llama_runner import LlamaRunner
from langchain_pareto.backends.prefixes import PrefixIndex
from langchain_pareto.backends.sequences import Sequence


class CellLanes(Lanes):
    """The lanes of one context, beside the slot pool whose slots are its cells."""

    def __init__(self, memory: Memory, pool: SlotPool, prefixes: PrefixIndex, count: int) -> None:
        super().__init__(memory, pool, count)
        self._prefixes = prefixes
        self._parked = dict[int, int]()  # lanes without a sequence: how many cells each is home of
        self._settled = True  # no lane was parked since all lanes took home what they could
        self._home = np.full(pool.size, -1, np.int32)
        self._position = np.zeros(pool.size, np.int32)

    def make_free(self, lanes: int) -> bool:
        """Whether there are so many free lanes, evicting the ends of cached branches if that frees enough."""
        if self.free < lanes and not self._settled:
            self._settled = True
            for sequence, lane in self._lane_of.items():
                self._take_home(sequence.slots, lane)
        if self.free < lanes and self._pool.cached:
            needed = np.unique(self._home[self._pool.live_slots])
            kept = np.isin(list(self._parked), needed, assume_unique=True)
            if lanes <= self.free + len(self._parked) - int(kept.sum()):
                while self.free < lanes:
                    self._prefixes.evict(1)
        return lanes <= self.free

    def lane(self, sequence: Sequence) -> int:
        """The sequence's lane, given to it now if it has none; raises CapacityError when there is none."""
        lane = self._lane_of.get(sequence)
        if lane is None:
            lane = self._take(sequence)
            self._bring(sequence, lane, 0)
        return lane

    def adopt(self, sequence: Sequence, n: int) -> None:
        """The last `n` computed tokens of the sequence were found elsewhere: its lane, if it has one, gets their cells."""
        lane = self._lane_of.get(sequence)
        if lane is not None:
            self._bring(sequence, lane, sequence.cached - n)

    def revert(self, sequence: Sequence, n: int) -> None:
        """A step that would have added `n` tokens failed: the lane keeps what the sequence has."""
        lane = self._lane_of.get(sequence)
        if lane is None:
            return
        self._memory.remove(lane, sequence.cached, sequence.cached + n)
        if not (self._home[sequence.slots] == lane).any():
            self.leave(sequence)

    def computed(self, sequence: Sequence, n: int) -> None:
        """The last `n` computed tokens of the sequence are in its own lane."""
        slots = sequence.slots[-n:]
        self._home[slots] = self._lane_of[sequence]
        self._position[slots] = np.arange(sequence.cached - n, sequence.cached)

    def shorten(self, sequence: Sequence, length: int) -> None:
        """The sequence is about to give back its computed tokens from `length` on."""
        lane = self._lane_of.get(sequence)
        if lane is None or length >= sequence.cached:
            return
        slots = sequence.slots
        own = self._home[slots] == lane
        if not own[:length].any() or (own[length:] & self._pool.shared(slots[length:])).any():
            self.leave(sequence)  # nothing of its own is left, or others need what it gives back
        else:
            self._memory.remove(lane, length, sequence.cached)

    def leave(self, sequence: Sequence) -> None:
        """Takes the sequence's lane from it, before its slots are released; what others need stays parked."""
        lane = self._lane_of.pop(sequence, None)
        if lane is None:
            return
        own = self._home[sequence.slots] == lane
        if not own.any():
            self._give_back(lane)
            return
        for foreign, start, stop in _runs(~own):
            if foreign:
                self._memory.remove(lane, start, stop)
        self._parked[lane] = int(own.sum())
        self._settled = False

    def vacate(self, slots: Slots) -> None:
        """Nobody holds these slots any more: their homes give the cells back."""
        self._unpark(slots)
        self._home[slots] = -1

    def _bring(self, sequence: Sequence, lane: int, first: int) -> None:
        """Gives `lane` the sequence's cells from position `first` on, wherever they are at home."""
        slots = sequence.slots[first:]
        for home, start, stop in _runs(self._home[slots]):
            self._memory.copy(home, lane, first + start, first + stop)
        self._take_home(slots, lane)

    def _take_home(self, slots: Slots, lane: int) -> None:
        """Parked lanes give to `lane`, which has the cells of all these slots, what of them they are home of."""
        homes = self._home[slots]
        moved = slots[np.isin(homes, list(self._parked))]
        if moved.size:
            self._unpark(moved)
            self._home[moved] = lane

    def _unpark(self, slots: Slots) -> None:
        """Parked lanes are not the home of these slots any more."""
        homes = self._home[slots]
        for lane in np.unique(homes).tolist():
            if lane not in self._parked:
                continue  # its sequence is shortening it, or the slot was never computed
            gone = slots[homes == lane]
            self._parked[lane] -= gone.size
            if self._parked[lane]:
                positions = np.sort(self._position[gone])
                for _, start, stop in _runs(positions - np.arange(gone.size)):
                    self._memory.remove(lane, int(positions[start]), int(positions[stop - 1]) + 1)
            else:
                del self._parked[lane]
                self._give_back(lane)


class CellRunner(LlamaRunner[CellLanes]):
    """One model of attention layers."""

    def _make_lanes(self) -> CellLanes:
        return CellLanes(self.context, self.pool, self.prefixes, self.context.lanes)

    def _took_over(self, sequence: Sequence, n: int) -> None:
        self.lanes.adopt(sequence, n)

    def _cutting(self, sequence: Sequence, length: int) -> None:
        self.lanes.shorten(sequence, length)


def _runs(values: npt.NDArray[np.generic]) -> Iterator[tuple[int, int, int]]:
    """Stretches of equal neighbours: (value, start, stop)."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    bounds = [0, *edges.tolist(), len(values)]
    for start, stop in pairwise(bounds):
        if start < stop:
            yield int(values[start]), start, stop
