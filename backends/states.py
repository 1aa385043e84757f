"""
Models with a recurrent state, on any device: their branches fork by copying it, and go back only to a state that was kept.

Knows lanes and snapshots; knows no model. A state has no parts: a lane holds that of one length, cannot be cut, and is of no use to
who has fewer tokens. So what a fork, a truncation and a later request with the same beginning are offered is a *snapshot*, a lane that
nobody writes to; whatever comes after it is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from langchain_pareto.backends.kv_pool import SlotPool, Slots
from langchain_pareto.backends.lanes import LaneRunner, Lanes, Memory
from langchain_pareto.backends.sequences import Sequence

# h = a h + dt B x, and y = C h: six operations for each element of the state (Dao and Gu 2024, arXiv 2405.21060, equation 1)
STATE_FLOPS = 6


@dataclass(slots=True, eq=False)
class Snapshot:
    """A state that nobody writes to, and the tokens that led to it."""

    lane: int
    tokens: list[int]
    slots: Slots
    last_used: int


class StateLanes(Lanes):
    """The lanes of one memory that cannot be cut: of sequences, and of snapshots, which are all that stays cached."""

    def __init__(self, memory: Memory, pool: SlotPool, count: int) -> None:
        super().__init__(memory, pool, count)
        self._snapshots = list[Snapshot]()
        self._awaited = dict[Sequence, Snapshot]()  # what sequences without a lane will begin from
        self._clock = 0

    def lane(self, sequence: Sequence) -> int:
        """The sequence's lane, an empty one if it has none; raises CapacityError when there is none."""
        if sequence not in self._lane_of:
            assert sequence.cached == 0, "a state was lost"
            self.make_free(1)
            self._take(sequence)
        return self._lane_of[sequence]

    def computed(self, sequence: Sequence, n: int) -> None:
        """Nothing to note: a state lies in its sequence's own lane."""

    def revert(self, sequence: Sequence, n: int) -> None:  # noqa: ARG002 - the base class's name
        """A step failed, and nobody knows what it did to the state: the sequence is computed again."""
        self.leave(sequence)
        self._pool.release(sequence.take_back(sequence.cached))

    def leave(self, sequence: Sequence) -> None:
        """Takes the sequence's lane from it."""
        self._awaited.pop(sequence, None)
        lane = self._lane_of.pop(sequence, None)
        if lane is not None:
            self._give_back(lane)

    def vacate(self, slots: Slots) -> None:
        """Nothing to do: a snapshot keeps its slots as long as it is there."""

    def make_free(self, lanes: int, keep: Snapshot | None = None) -> bool:
        """Whether there are so many free lanes, after snapshots have gone if that helps, the least used first.

        One that sequences are to begin from goes only where nobody has a lane that might become free.
        """
        while len(self._free) < lanes:
            awaited = [*self._awaited.values(), keep] if self._lane_of else [keep]
            others = [s for s in self._snapshots if s not in awaited]
            if not others:
                return False
            self._forget(min(others, key=lambda s: s.last_used))
        return True

    def evict(self, n: int) -> int:
        """Forgets snapshots, the least used first, until so many slots are free that were not; returns how many are."""
        before = self._pool.free
        while self._snapshots and self._pool.free - before < n:
            self._forget(min(self._snapshots, key=lambda s: s.last_used))
        return self._pool.free - before

    def find(self, tokens: list[int], beyond: int) -> Snapshot | None:
        """The snapshot of the longest beginning of `tokens` that is longer than `beyond`; it counts as used now."""
        best = None
        for snapshot in self._snapshots:
            n = len(snapshot.tokens)
            if beyond < n <= len(tokens) and snapshot.tokens == tokens[:n]:
                best, beyond = snapshot, n
        if best is not None:
            self._clock += 1
            best.last_used = self._clock
        return best

    def restore(self, sequence: Sequence, snapshot: Snapshot) -> bool:
        """Gives a sequence without a lane the state of `snapshot`; whether there was a lane for it."""
        if not self.make_free(1, keep=snapshot):
            return False
        self._memory.copy(snapshot.lane, self._take(sequence), -1, -1)
        self._awaited.pop(sequence, None)
        return True

    def keep(self, sequence: Sequence) -> Snapshot | None:
        """Makes a snapshot of the sequence as far as it is computed; None if there is one, or no lane to spare."""
        tokens = sequence.tokens[: sequence.cached]
        if self.find(tokens, len(tokens) - 1) is not None or not self.make_free(1):
            return None
        lane = self._free.pop()
        self._memory.copy(self._lane_of[sequence], lane, -1, -1)
        self._pool.index(sequence.slots)
        self._clock += 1
        snapshot = Snapshot(lane, tokens, sequence.slots.copy(), self._clock)
        self._snapshots.append(snapshot)
        return snapshot

    def is_of(self, snapshot: Snapshot, sequence: Sequence) -> bool:
        """Whether the snapshot is there, and of the sequence as far as that is computed."""
        there = snapshot in self._snapshots
        return there and snapshot.tokens == sequence.tokens[: sequence.cached]

    def discard(self, snapshot: Snapshot) -> None:
        """Forgets a snapshot, unless it is forgotten already or somebody is to begin from it."""
        if snapshot in self._snapshots and snapshot not in self._awaited.values():
            self._forget(snapshot)

    def wait(self, sequence: Sequence, snapshot: Snapshot) -> None:
        """The sequence, which has no state yet, is to begin from `snapshot`."""
        self._awaited[sequence] = snapshot

    def _forget(self, snapshot: Snapshot) -> None:
        self._snapshots.remove(snapshot)
        for sequence in [s for s, awaited in self._awaited.items() if awaited is snapshot]:
            del self._awaited[sequence]
        self._give_back(snapshot.lane)
        others = [s.slots for s in self._snapshots]
        self._pool.unindex(
            np.setdiff1d(snapshot.slots, np.concatenate([np.empty(0, np.int32), *others]))
        )


class StateRunner(LaneRunner[StateLanes]):
    """What a runner does otherwise where a state has no parts."""

    recurrent = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the other bases'."""
        self._checkpoints = dict[Sequence, Snapshot]()
        super().__init__(*args, **kwargs)

    def checkpoint(self, sequence: Sequence) -> None:
        """Keeps a snapshot of here for a truncation that may come soon, in place of the last one that this kept."""
        last = self._checkpoints.pop(sequence, None)
        if last is not None and self.lanes.is_of(last, sequence):
            self._checkpoints[sequence] = last  # a truncation has just gone back to it
            return
        if sequence.cached and (new := self.lanes.keep(sequence)) is not None:
            self._checkpoints[sequence] = new
        if last is not None:
            self.lanes.discard(last)

    def free(self, sequence: Sequence) -> None:
        """Gives everything back; its last state stays cached, and no other of its own."""
        super().free(sequence)
        last = self._checkpoints.pop(sequence, None)
        if last is not None and not self.closed:
            self.lanes.discard(last)

    def fork(self, sequence: Sequence) -> Sequence:
        """A child that continues from a snapshot of here; it gets its state with its first step."""
        if sequence.cached:
            self.lanes.keep(sequence)
        child = sequence.fork()
        child.take_back(child.cached)
        return child

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Cuts back to the first `length` tokens: to the newest snapshot before them, or to nothing that is computed."""
        cut = 0 < length <= sequence.cached
        if cut:
            self.drop(sequence)
        self.pool.release(sequence.truncate(length))
        if cut and length > 1:
            self.reuse(sequence)

    def reuse(self, sequence: Sequence, rows: int = 1) -> int:
        """Takes over the longest snapshot that goes beyond what is computed; returns how many tokens that saves."""
        found = self.lanes.find(sequence.tokens[:-rows], sequence.cached)
        if found is None:
            return 0
        before = sequence.cached
        self.pool.retain(found.slots)  # before anything is dropped that might be all that keeps it
        if before:
            self.drop(sequence)
        if not self.lanes.restore(sequence, found):
            self.pool.release(found.slots)
            self.lanes.wait(sequence, found)
            return 0
        sequence.put(found.slots)
        sequence.version += 1
        return len(found.tokens) - before

    def evict(self, n: int) -> int:
        """Forgets snapshots until so many slots became free."""
        return self.lanes.evict(n)

    def share(self, sequence: Sequence) -> None:
        """Keeps a snapshot of what is computed."""
        if sequence.cached:
            self.lanes.keep(sequence)
