"""
One llama.cpp context over the slot pool: every branch of every search in one decode a step.

Knows one context, its pool and its sequences; knows no text, no sampling and no strategy. llama.cpp tells at most 256 sequences apart
("lanes"), so one of ours gets a lane when it is computed. What a lane shares, and how it goes back, depends on the model's memory:
`llama_cells.py` for attention, `llama_states.py` for recurrent and hybrid models. All of it belongs to the engine's thread.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from langchain_pareto.backends.base import ModelSpec
from langchain_pareto.backends.llama_context import LlamaContext, LlamaModel
from langchain_pareto.backends.sequences import Chunk, Segment, Sequence
from langchain_pareto.backends.slot_runner import SlotRunner
from langchain_pareto.errors import CapacityError


@dataclass(slots=True)
class Logits:
    """What a step gives: one row a wanted position, in the order of the chunks."""

    rows: torch.Tensor  # (wanted rows, vocabulary)
    union: int  # cells read, for metering


class Memory(Protocol):
    """llama.cpp's cache."""

    def copy(self, source: int, to: int, start: int, stop: int) -> None:
        """Gives lane `to` the cells of lane `source` at positions start to stop; -1 and -1 for all."""
        ...

    def remove(self, lane: int, start: int = -1, stop: int = -1) -> bool:
        """Takes cells from a lane, all of them by default."""
        ...


class Lanes(Protocol):
    """Who has which lane."""

    @property
    def free(self) -> int:
        """Lanes that nobody has."""
        ...

    def has(self, sequence: Sequence) -> bool:
        """Whether the sequence has a lane."""
        ...

    def lane(self, sequence: Sequence) -> int:
        """The sequence's lane, given to it now if it has none; raises CapacityError when there is none."""
        ...

    def computed(self, sequence: Sequence, n: int) -> None:
        """The last `n` computed tokens of the sequence are in its own lane."""
        ...

    def revert(self, sequence: Sequence, n: int) -> None:
        """Computing `n` tokens more than the sequence now has failed."""
        ...

    def leave(self, sequence: Sequence) -> None:
        """Takes the sequence's lane from it, before its slots are released."""
        ...


L = TypeVar("L", bound=Lanes)


class LlamaRunner(SlotRunner, Generic[L]):
    """One model over one pool of cells."""

    def __init__(
        self, model: LlamaModel, context: LlamaContext, spec: ModelSpec, *, slots: int
    ) -> None:
        """Takes `model` and `context` over until `close`; the context has at least `slots` cells."""
        super().__init__(slots)
        self.model, self.context, self.spec = model, context, spec
        self.lanes = self._make_lanes()

    @abstractmethod
    def _make_lanes(self) -> L: ...

    def placed(self, sequence: Sequence) -> bool:
        """Whether the sequence has a lane."""
        return self.lanes.has(sequence)

    def can_step(self, tokens: int, new: int = 0) -> bool:
        """Whether there is room for so many more tokens, and lanes for so many sequences that have none yet."""
        return super().can_step(tokens) and self.can_place(new)

    @abstractmethod
    def can_place(self, new: int) -> bool:
        """Whether there are so many free lanes, evicting what is only cached."""

    def _leaving(self, sequence: Sequence) -> None:
        self.lanes.leave(sequence)

    def step(self, chunks: Sequence_[Chunk]) -> Logits:
        """Computes every chunk in one decode; raises CapacityError, or llama.cpp's own failure, and changes nothing then."""
        sizes = [chunk.n for chunk in chunks]
        slots = self.pool.allocate(sum(sizes))
        if not self.can_place(sum(not self.lanes.has(chunk.sequence) for chunk in chunks)):
            self.pool.release(slots)
            raise no_lane(self.context.lanes)
        lanes = [self.lanes.lane(chunk.sequence) for chunk in chunks]
        for chunk, at in zip(chunks, np.cumsum([0, *sizes]), strict=False):
            chunk.sequence.put(slots[at : at + chunk.n])
        try:
            rows = self._decode(chunks, lanes)
        except BaseException:
            for chunk in chunks:
                chunk.sequence.take_back(chunk.n)
                self.lanes.revert(chunk.sequence, chunk.n)
            self.pool.release(slots)
            raise
        for chunk in chunks:
            self.lanes.computed(chunk.sequence, chunk.n)
        return Logits(torch.from_numpy(rows), self._union(chunks))

    def _decode(self, chunks: Sequence_[Chunk], lanes: Sequence_[int]) -> npt.NDArray[np.float32]:
        total = sum(chunk.n for chunk in chunks)
        tokens, positions, owners = (np.empty(total, np.int32) for _ in range(3))
        wanted = np.zeros(total, np.bool_)
        at = 0
        for chunk, lane in zip(chunks, lanes, strict=True):
            stop, span = chunk.sequence.cached, slice(at, at + chunk.n)
            tokens[span] = chunk.sequence.tokens[stop - chunk.n : stop]
            positions[span] = np.arange(stop - chunk.n, stop)
            owners[span] = lane
            at += chunk.n
            wanted[at - chunk.rows : at] = True
        return self.context.decode(tokens, positions, owners, wanted)

    def _union(self, chunks: Sequence_[Chunk]) -> int:
        """Distinct cells that the sequences of a step see."""
        seen = dict[Segment, tuple[int, int]]()
        for chunk in chunks:
            for segment, start, stop in chunk.sequence.segments(chunk.sequence.cached):
                seen[segment] = (start, max(stop, seen.get(segment, (0, 0))[1]))
        return sum(stop - start for start, stop in seen.values())

    def synchronize(self) -> None:
        """Waits for the device."""
        self.context.synchronize()

    def trim(self) -> None:
        """llama.cpp's buffers have one size from the start."""

    def close(self) -> None:
        """Frees the cache and the weights."""
        if self.closed:
            return
        self.closed = True
        self.context.close()
        self.model.close()


def no_lane(count: int) -> CapacityError:
    """What to raise when a sequence needs a lane and all are taken."""
    msg = f"all {count} sequences of llama.cpp's context are in use"
    hint = "Ask for fewer branches at once."
    return CapacityError(msg, needed=1, free=0, kind="sequences", hint=hint)
