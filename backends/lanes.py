"""
Which sequence has which of the places ("lanes") that a device has for sequences.

Knows lanes and slots; knows no model and no tensor. llama.cpp tells at most 256 sequences apart (`llama_seq_id`), a recurrent model has
memory for so many states, and of ours there may be thousands, so one of ours gets a lane when it is computed. What a lane shares and how
it goes back depends on the model's memory: `llama_cells.py` for attention in llama.cpp, `states.py` for recurrent and hybrid models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Sequence_
from typing import Generic, Protocol, TypeVar

from langchain_pareto.backends.kv_pool import SlotPool, Slots
from langchain_pareto.backends.sequences import Chunk, Sequence
from langchain_pareto.backends.slot_runner import SlotRunner
from langchain_pareto.errors import CapacityError


class Memory(Protocol):
    """What the device keeps of each lane."""

    def copy(self, source: int, to: int, start: int, stop: int) -> None:
        """Gives lane `to` what lane `source` has at positions start to stop; -1 and -1 for all."""
        ...

    def remove(self, lane: int, start: int = -1, stop: int = -1) -> None:
        """Takes positions from a lane, all of them by default."""
        ...


class Lanes(ABC):
    """The lanes of one device memory."""

    def __init__(self, memory: Memory, pool: SlotPool, count: int) -> None:
        self.count = count
        self._memory = memory
        self._pool = pool
        self._free = list(range(count - 1, -1, -1))
        self._lane_of = dict[Sequence, int]()

    @property
    def free(self) -> int:
        """Lanes that nobody has."""
        return len(self._free)

    def has(self, sequence: Sequence) -> bool:
        """Whether the sequence has a lane."""
        return sequence in self._lane_of

    @abstractmethod
    def make_free(self, lanes: int) -> bool:
        """Whether there are so many free lanes, after what is only cached has gone if that helps."""

    @abstractmethod
    def lane(self, sequence: Sequence) -> int:
        """The sequence's lane, given to it now if it has none; raises CapacityError when there is none."""

    @abstractmethod
    def computed(self, sequence: Sequence, n: int) -> None:
        """The last `n` computed tokens of the sequence are in its own lane."""

    @abstractmethod
    def revert(self, sequence: Sequence, n: int) -> None:
        """A step that would have added `n` tokens failed: the lane keeps what the sequence has."""

    @abstractmethod
    def leave(self, sequence: Sequence) -> None:
        """Takes the sequence's lane from it, before its slots are released."""

    @abstractmethod
    def vacate(self, slots: Slots) -> None:
        """Nobody holds these slots any more."""

    def _take(self, sequence: Sequence) -> int:
        """A free lane for the sequence; raises CapacityError when there is none."""
        if not self._free:
            raise self.none_left()
        lane = self._lane_of[sequence] = self._free.pop()
        return lane

    def _give_back(self, lane: int) -> None:
        self._memory.remove(lane)
        self._free.append(lane)

    def none_left(self) -> CapacityError:
        """What to raise when a sequence needs a lane and all are taken."""
        msg = f"all {self.count} sequences that there is room for at once are in use"
        hint = "Ask for fewer branches at once."
        return CapacityError(msg, needed=1, free=0, kind="sequences", hint=hint)


L = TypeVar("L", bound=Lanes)


class LaneRunner(SlotRunner, Generic[L]):
    """A runner whose sequences need a lane to be computed."""

    lanes: L

    def placed(self, sequence: Sequence) -> bool:
        """Whether the sequence has a lane."""
        return self.lanes.has(sequence)

    def can_step(self, tokens: int, new: int = 0) -> bool:
        """Whether there is room for so many more tokens, and lanes for so many sequences that have none yet."""
        return super().can_step(tokens) and self.lanes.make_free(new)

    def _lanes_for(self, chunks: Sequence_[Chunk]) -> list[int]:
        """The lane of each chunk's sequence; raises CapacityError before anybody gets one."""
        if not self.lanes.make_free(sum(not self.placed(chunk.sequence) for chunk in chunks)):
            raise self.lanes.none_left()
        return [self.lanes.lane(chunk.sequence) for chunk in chunks]

    def _freed(self, slots: Slots) -> None:
        self.lanes.vacate(slots)

    def _leaving(self, sequence: Sequence) -> None:
        self.lanes.leave(sequence)

    def _undone(self, chunk: Chunk) -> None:
        self.lanes.revert(chunk.sequence, chunk.n)
