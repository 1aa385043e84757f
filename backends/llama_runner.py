"""
One llama.cpp context over the slot pool: every branch of every search in one decode a step.

Knows one context, its pool and its sequences, and that `lanes.py` gives a sequence its number (`llama_seq_id`); knows no text, no sampling and no
strategy. All of it belongs to the engine's thread.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence as Sequence_
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch

from langchain_pareto.backends.base import Logits, ModelSpec
from langchain_pareto.backends.lanes import L, LaneRunner
from langchain_pareto.backends.llama_context import LlamaContext
from langchain_pareto.backends.llama_model import LlamaModel
from langchain_pareto.backends.sequences import Chunk, Segment, Sequence

# A query looks at every cell in use, also at those that are only cached. The path that was freed last stays whole, for a
# conversation goes on there; of others so many cells stay, that reading them is a small part of reading the weights.
_CACHED_SHARE = 4  # times less than the weights
_FEWEST_CACHED = 256  # cells: attention takes so many at a time


class LlamaRunner(LaneRunner[L], Generic[L]):
    """One model over one pool of cells."""

    def __init__(
        self,
        model: LlamaModel,
        context: LlamaContext,
        spec: ModelSpec,
        *,
        slots: int,
        max_roots: int | None = None,
    ) -> None:
        """Takes `model` and `context` over until `close`; the context has at least `slots` cells."""
        super().__init__(slots)
        self.max_roots = max_roots
        cheap = spec.weight_bytes // (_CACHED_SHARE * max(1, spec.kv_bytes_per_token))
        self._most_cached = max(_FEWEST_CACHED, cheap)
        self._newest = 0  # tokens of the path that was freed last
        self.model, self.context, self.spec = model, context, spec
        self.lanes = self._make_lanes()

    @abstractmethod
    def _make_lanes(self) -> L: ...

    def free(self, sequence: Sequence) -> None:
        """Gives the slots back; what was computed stays cached, as far as that slows nobody down."""
        self._newest = sequence.cached or self._newest
        super().free(sequence)
        extra = self.pool.cached - self._newest - self._most_cached
        if extra > 0 and not self.closed:
            self.evict(extra + self._most_cached // 8)  # some to spare: not at every call

    def step(self, chunks: Sequence_[Chunk]) -> Logits:
        """Computes every chunk in one decode; raises CapacityError, or llama.cpp's own failure, and changes nothing then."""
        lanes = self._lanes_for(chunks)
        with self._slots_for(chunks):
            rows = self._decode(chunks, lanes)
        for chunk in chunks:
            self.lanes.computed(chunk.sequence, chunk.n)
        return Logits(torch.from_numpy(rows), _union(chunks))

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

    def synchronize(self) -> None:
        """Waits for the device."""
        self.context.synchronize()

    def trim(self) -> None:
        """llama.cpp's buffers have one size from the start."""

    def interrupt(self) -> None:
        """Makes the step in progress fail, and every later one; from any thread."""
        self.context.abort()

    def close(self) -> None:
        """Frees the cache and the weights."""
        if self.closed:
            return
        self.closed = True
        self.context.close()
        self.model.close()


def _union(chunks: Sequence_[Chunk]) -> int:
    """Distinct cells that the sequences of a step see."""
    seen = dict[Segment, tuple[int, int]]()
    for chunk in chunks:
        for segment, start, stop in chunk.sequence.segments(chunk.sequence.cached):
            seen[segment] = (start, max(stop, seen.get(segment, (0, 0))[1]))
    return sum(stop - start for start, stop in seen.values())
