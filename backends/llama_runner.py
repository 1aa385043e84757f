"""
One llama.cpp context over the slot pool: every branch of every search is a marked set of cells, and all of them one decode a step.

Knows one context, its pool and its sequences; knows no text, no sampling and no strategy. `open`, `fork`, `append`, `truncate` and
`free` only move integers and marks; `step` computes everything that is asked for at once. All of it belongs to the engine's thread.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import dataclass

import numpy as np
import torch

from langchain_pareto.backends.base import ModelSpec
from langchain_pareto.backends.kv_pool import SlotPool
from langchain_pareto.backends.lanes import Lanes
from langchain_pareto.backends.llama_context import LlamaContext, LlamaModel
from langchain_pareto.backends.prefixes import PrefixIndex
from langchain_pareto.backends.sequences import Chunk, Segment, Sequence


@dataclass(slots=True)
class Logits:
    """What a step gives: one row a wanted position, in the order of the chunks."""

    rows: torch.Tensor  # (wanted rows, vocabulary)
    union: int  # cells read, for metering


class LlamaRunner:
    """One model of attention layers over one pool of cells."""

    partial = True

    def __init__(
        self, model: LlamaModel, context: LlamaContext, spec: ModelSpec, *, slots: int
    ) -> None:
        """Takes `model` and `context` over until `close`; the context has at least `slots` cells."""
        self.model, self.context, self.spec = model, context, spec
        self.pool = SlotPool(max(2, slots + 1))
        self.prefixes = PrefixIndex(self.pool)
        self._lanes = self._make_lanes()
        self.closed = False

    def _make_lanes(self) -> Lanes:
        return Lanes(self.context, self.pool, self.context.lanes)

    # --- sequences: integers and marks only

    def open(self, tokens: Sequence_[int]) -> Sequence:
        """A sequence that shares nothing yet; what the prefix index has of it is taken over by `reuse`."""
        return Sequence.root(tokens)

    def fork(self, sequence: Sequence) -> Sequence:
        """A child that continues from here; it gets a lane with its first step."""
        child = sequence.fork()
        self.pool.retain(child.slots)
        return child

    def append(self, sequence: Sequence, tokens: Sequence_[int]) -> None:
        """Adds pending tokens."""
        sequence.check_usable()
        sequence.tokens.extend(tokens)

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Cuts back to the first `length` tokens."""
        if 0 < length <= len(sequence.tokens):
            self._lanes.shorten(sequence, length - 1)
        self.pool.release(sequence.truncate(length))

    def free(self, sequence: Sequence) -> None:
        """Gives the slots back; what was computed stays in the prefix index until the room is needed."""
        if sequence.freed:
            return
        self.share(sequence)
        self._lanes.leave(sequence)
        self.pool.release(sequence.slots)
        sequence.cached = 0
        sequence.freed = True
        sequence.version += 1

    def reuse(self, sequence: Sequence, rows: int = 1) -> int:
        """Takes over what the prefix index has beyond what is computed; returns how many tokens that saves.

        The last `rows` tokens stay pending: their logits are wanted.
        """
        tokens = sequence.tokens[:-rows]
        if sequence.cached >= len(tokens):
            return 0
        found = self.prefixes.match(tokens)[sequence.cached :]
        if not found.size:
            return 0
        self.pool.retain(found)
        sequence.put(found)
        sequence.version += 1
        self._lanes.adopt(sequence, int(found.size))
        return int(found.size)

    def share(self, sequence: Sequence) -> None:
        """Lets other sequences reuse what this one has computed."""
        self.prefixes.insert(sequence.tokens[: sequence.cached], sequence.slots)

    def drop(self, sequence: Sequence) -> None:
        """Preemption: forgets what is computed and keeps the tokens."""
        self._lanes.leave(sequence)
        self.pool.release(sequence.take_back(sequence.cached))

    def placed(self, sequence: Sequence) -> bool:
        """Whether the sequence has a lane."""
        return self._lanes.has(sequence)

    def can_step(self, tokens: int, new: int = 0) -> bool:
        """Whether there is room for so many more tokens, and lanes for so many sequences that have none yet."""
        short = tokens - self.pool.free
        if short > 0 and self.pool.cached:
            self.prefixes.evict(max(short, self.pool.capacity // 64))
        return tokens <= self.pool.free and self._can_place(new)

    def _can_place(self, new: int) -> bool:
        while self._lanes.free < new and self.pool.cached:
            self.prefixes.evict(1)  # the end of a branch at a time
        return new <= self._lanes.free

    # --- the model

    def step(self, chunks: Sequence_[Chunk]) -> Logits:
        """Computes every chunk in one decode; raises CapacityError, or llama.cpp's own failure, and changes nothing then."""
        sizes = [chunk.n for chunk in chunks]
        self._can_place(sum(not self._lanes.has(chunk.sequence) for chunk in chunks))
        slots = self.pool.allocate(sum(sizes))
        starts = np.cumsum([0, *sizes])
        done = 0
        try:
            lanes = [self._lanes.lane(chunk.sequence) for chunk in chunks]
            for chunk, at in zip(chunks, starts, strict=False):
                chunk.sequence.put(slots[at : at + chunk.n])
                done += 1
            rows = self._decode(chunks, lanes)
        except BaseException:
            for chunk in chunks[:done]:
                chunk.sequence.take_back(chunk.n)
            for chunk in chunks:
                self._lanes.revert(chunk.sequence, chunk.n)
            self.pool.release(slots)
            raise
        for chunk in chunks:
            self._lanes.computed(chunk.sequence, chunk.n)
        return Logits(torch.from_numpy(rows), self._union(chunks))

    def _decode(self, chunks: Sequence_[Chunk], lanes: Sequence_[int]) -> np.ndarray:
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
