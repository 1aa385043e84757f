"""Sequences of llama.cpp under the slot pool: few lanes for many sequences, and no cell that nobody needs."""

import random

import pytest

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.kv_pool import SlotPool
from langchain_pareto.backends.llama_cells import HomeLanes
from langchain_pareto.backends.prefixes import PrefixIndex
from langchain_pareto.backends.sequences import Sequence
from langchain_pareto.errors import CapacityError

WAIT = 60  # seconds


class Cells:
    """llama.cpp's cache in Python: which token each lane has at each position."""

    def __init__(self, lanes: int) -> None:
        self.lanes = [dict[int, int]() for _ in range(lanes)]  # position to cell

    def copy(self, source: int, to: int, start: int, stop: int) -> None:
        """As llama_memory_seq_cp."""
        for position in range(start, stop):
            if position in self.lanes[source]:
                assert position not in self.lanes[to], "two cells at one position"
                self.lanes[to][position] = self.lanes[source][position]

    def remove(self, lane: int, start: int = -1, stop: int = -1) -> bool:
        """As llama_memory_seq_rm."""
        for position in list(self.lanes[lane]):
            if (start < 0 or position >= start) and (stop < 0 or position < stop):
                del self.lanes[lane][position]
        return True

    @property
    def used(self) -> set[int]:
        """Cells that some lane has."""
        return {cell for lane in self.lanes for cell in lane.values()}


class Book:
    """A runner without a model: what LlamaRunner does besides decoding."""

    def __init__(self, slots: int, lanes: int) -> None:
        self.cells = Cells(lanes)
        self.pool = SlotPool(slots + 1)
        self.prefixes = PrefixIndex(self.pool)
        self.lanes = HomeLanes(self.cells, self.pool, lanes)

    def fork(self, sequence: Sequence) -> Sequence:
        child = sequence.fork()
        self.pool.retain(child.slots)
        return child

    def truncate(self, sequence: Sequence, length: int) -> None:
        self.lanes.shorten(sequence, length - 1)
        self.pool.release(sequence.truncate(length))

    def share(self, sequence: Sequence) -> None:
        self.prefixes.insert(sequence.tokens[: sequence.cached], sequence.slots)

    def drop(self, sequence: Sequence) -> None:
        self.lanes.leave(sequence)
        self.pool.release(sequence.take_back(sequence.cached))

    def reuse(self, sequence: Sequence) -> None:
        found = self.prefixes.match(sequence.tokens[:-1])[sequence.cached :]
        self.pool.retain(found)
        sequence.put(found)
        self.lanes.adopt(sequence, len(found))

    def compute(self, sequence: Sequence, *, fails: bool = False) -> None:
        n = sequence.pending
        lane = self.lanes.lane(sequence)
        slots = self.pool.allocate(n)
        for position, slot in enumerate(slots.tolist(), sequence.cached):
            assert position not in self.cells.lanes[lane]
            self.cells.lanes[lane][position] = slot
        if fails:
            self.lanes.revert(sequence, n)
            self.pool.release(slots)
        else:
            sequence.put(slots)
            self.lanes.computed(sequence, n)

    def check(self, sequences: list[Sequence]) -> None:
        """The cells in use are the slots in use, and every lane has just its sequence's cells, each at its place."""
        for sequence in sequences:
            if self.lanes.has(sequence):
                lane = self.cells.lanes[self.lanes.lane(sequence)]
                assert lane == dict(enumerate(sequence.slots.tolist()))
        assert len(self.cells.used) == self.pool.capacity - self.pool.free


@pytest.mark.parametrize("seed", range(12))
def test_cells_follow_slots(seed):
    """Whatever happens in whatever order, llama.cpp keeps just what the pool counts, and every sequence finds its cells."""
    rng = random.Random(seed)
    book = Book(slots=400, lanes=6 + seed)
    sequences = [Sequence.root([rng.randrange(3) for _ in range(5)])]
    for _ in range(600):
        event, chosen = rng.random(), rng.choice(sequences)
        if event < 0.15 and len(sequences) < 12:
            sequences.append(book.fork(chosen))
        elif event < 0.2 and len(sequences) < 12:
            sequences.append(Sequence.root([*chosen.tokens[: rng.randint(1, 9)], rng.randrange(3)]))
            book.reuse(sequences[-1])
        elif event < 0.3:
            book.truncate(chosen, rng.randint(1, len(chosen.tokens)))
        elif event < 0.35:
            book.reuse(chosen)
        elif event < 0.4:
            book.share(chosen)
        elif event < 0.45:
            book.drop(chosen)
        elif event < 0.5:
            book.prefixes.evict(rng.randint(1, 20))
        elif event < 0.6 and len(sequences) > 1:
            if rng.random() < 0.7:
                book.share(chosen)
            book.drop(chosen)
            sequences.remove(chosen)
        elif len(chosen.tokens) < 60:
            if not book.lanes.has(chosen) and not book.lanes.free:
                with pytest.raises(CapacityError, match="in use"):
                    book.lanes.lane(chosen)
            elif book.pool.can_allocate(chosen.pending):
                book.compute(chosen, fails=rng.random() < 0.1)
                chosen.tokens += [rng.randrange(3) for _ in range(rng.randint(1, 3))]
        book.check(sequences)
    for sequence in sequences:
        book.drop(sequence)
    book.prefixes.clear()
    book.check([])
    assert (book.lanes.free, book.pool.free) == (book.lanes.count, book.pool.capacity)


# --- with llama.cpp itself


@pytest.mark.parametrize("make_runner", ["llama"], indirect=True)
def test_more_branches_than_lanes_wait_for_their_turn(make_backend):
    """Three hundred branches of one prompt finish with the texts that they have in small groups; afterwards nothing is held."""
    backend = make_backend(slots=6000)
    prompt = [i % 256 for i in range(40)]

    def texts(size):
        root = backend.open(prompt)
        branches = root.fork(300)
        out = []
        for start in range(0, 300, size):
            part = branches[start : start + size]
            tasks = [backend.extend(b, Sampling(), Stop(6, eos=False)) for b in part]
            out += [task.future.result(WAIT).tokens for task in tasks]
        for branch in (root, *branches):
            branch.free()
        assert backend.engine.call(lambda: backend.runner.pool.live).result(WAIT) == 0
        return out

    replayed = backend.engine.meter.replayed_tokens
    assert texts(300) == texts(20)
    assert backend.engine.meter.replayed_tokens == replayed


@pytest.mark.parametrize("make_runner", ["llama"], indirect=True)
def test_many_idle_branches_give_way(make_backend):
    """Branches that wait with tails of their own, more than llama.cpp can tell apart, are computed again when they go on."""
    backend = make_backend(slots=8000)
    branches = [backend.open([i % 256, i // 256, 7], seed=i) for i in range(400)]
    for _ in range(2):
        tasks = [backend.extend(b, Sampling(), Stop(3, eos=False)) for b in branches]
        for task in tasks:
            assert len(task.future.result(WAIT).tokens) == 3
    fresh = [backend.open([i % 256, i // 256, 7], seed=i) for i in range(0, 400, 57)]
    tasks = [backend.extend(b, Sampling(), Stop(6, eos=False)) for b in fresh]
    for branch, task in zip(branches[::57], tasks, strict=True):
        assert list(branch.tokens)[3:] == task.future.result(WAIT).tokens
