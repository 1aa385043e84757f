"""
What every runner does with integers: sequences that share slots, and slots that stay cached for whoever comes next.

Knows slots, prefixes and sequences; knows no model. A runner adds the forward, and where its device keeps books of its own, what must
happen there when a sequence takes cells over, gives some back, or leaves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence as Sequence_
from contextlib import contextmanager

from langchain_pareto.backends.base import Logits, ModelSpec
from langchain_pareto.backends.kv_pool import SlotPool, Slots
from langchain_pareto.backends.prefixes import PrefixIndex
from langchain_pareto.backends.sequences import Chunk, Sequence


class SlotRunner(ABC):
    """Sequences over one pool of slots; `slots` of them can be used."""

    recurrent = False
    max_roots: int | None = None
    spec: ModelSpec

    def __init__(self, slots: int) -> None:
        self.pool = SlotPool(max(2, slots + 1), on_free=self._freed)
        self.prefixes = PrefixIndex(self.pool)
        self.closed = False

    def open(self, tokens: Sequence_[int]) -> Sequence:
        """A sequence that shares nothing yet; what is cached of it is taken over by `reuse`."""
        return Sequence.root(tokens)

    def fork(self, sequence: Sequence) -> Sequence:
        """A child that continues from here."""
        child = sequence.fork()
        self.pool.retain(child.slots)
        return child

    def append(self, sequence: Sequence, tokens: Sequence_[int]) -> None:
        """Adds pending tokens."""
        sequence.check_usable()
        sequence.tokens.extend(tokens)

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Cuts back to the first `length` tokens."""
        if 0 < length <= sequence.cached:
            self._cutting(sequence, length - 1)
        self.pool.release(sequence.truncate(length))

    def run_beside(self) -> None:
        """Steps come one after another: by default the device does nothing at once."""

    def join(self) -> None:
        """Whatever comes next does so by itself."""

    def checkpoint(self, sequence: Sequence) -> None:
        """Nothing to keep: tokens are cut off one by one."""

    def free(self, sequence: Sequence) -> None:
        """Gives the slots back; what was computed stays in the prefix index until the room is needed."""
        if sequence.freed:
            return
        if not self.closed:
            self.share(sequence)
            self._leaving(sequence)
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
        self._took_over(sequence, int(found.size))
        return int(found.size)

    def share(self, sequence: Sequence) -> None:
        """Lets other sequences reuse what this one has computed."""
        self.prefixes.insert(sequence.tokens[: sequence.cached], sequence.slots)

    def drop(self, sequence: Sequence) -> None:
        """Preemption: forgets what is computed and keeps the tokens."""
        self._leaving(sequence)
        self.pool.release(sequence.take_back(sequence.cached))

    def evict(self, n: int) -> int:
        """Gives at least `n` slots back if that many are cached and unused, those least recently used first; returns how many."""
        return self.prefixes.evict(n)

    def forget(self) -> int:
        """Gives back every slot that is only cached; returns how many."""
        return self.evict(self.pool.cached)

    def placed(self, sequence: Sequence) -> bool:  # noqa: ARG002 - the protocol's name
        """Whether the device knows the sequence; where it need not, always."""
        return True

    def can_step(self, tokens: int, new: int = 0) -> bool:  # noqa: ARG002 - the protocol's name
        """Whether `tokens` more slots are there, evicting cached prefixes if that helps."""
        short = tokens - self.pool.free
        if short > 0 and self.pool.cached:
            # some to spare: the index is searched once in many steps
            self.evict(max(short, self.pool.capacity // 64))
        return tokens <= self.pool.free

    @abstractmethod
    def step(self, chunks: Sequence_[Chunk]) -> Logits:
        """One forward over all chunks; changes nothing when it raises."""

    def interrupt(self) -> None:
        """A step in progress goes on to its end."""

    @contextmanager
    def _slots_for(self, chunks: Sequence_[Chunk]) -> Iterator[None]:
        """Counts every chunk as computed inside; whatever is raised inside undoes that. Raises CapacityError before anything."""
        slots = self.pool.allocate(sum(chunk.n for chunk in chunks))
        at = 0
        for chunk in chunks:
            chunk.sequence.put(slots[at : at + chunk.n])
            at += chunk.n
        try:
            yield
        except BaseException:
            for chunk in chunks:
                chunk.sequence.take_back(chunk.n)
                self._undone(chunk)
            self.pool.release(slots)
            raise

    # --- for books that the device keeps

    def _undone(self, chunk: Chunk) -> None:
        """A step with this chunk has failed."""

    def _freed(self, slots: Slots) -> None:
        """Nobody holds these slots any more."""

    def _took_over(self, sequence: Sequence, n: int) -> None:
        """The last `n` computed tokens of the sequence were found in the index."""

    def _cutting(self, sequence: Sequence, length: int) -> None:
        """The sequence is about to give back its computed tokens from `length` on."""

    def _leaving(self, sequence: Sequence) -> None:
        """The sequence is about to give back everything."""
