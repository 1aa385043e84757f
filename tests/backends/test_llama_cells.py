"""Sequences of llama.cpp under the slot pool: few lanes for many sequences, and no cell that nobody needs."""

import numpy as np
import pytest
from hypothesis import assume, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from langchain_pareto.backends.base import ModelSpec, Sampling, Stop
from langchain_pareto.backends.llama_cells import CellRunner
from langchain_pareto.backends.sequences import Chunk, Sequence
from langchain_pareto.errors import CapacityError, EngineFailedError

WAIT = 60  # seconds
SPEC = ModelSpec("fake", "F32", "cpu", 1, 1, 1, 1, 1, (None,), 1, 1, 1, 1000)
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


class FakeModel:
    def close(self) -> None:
        """Nothing to free."""


class FakeContext:
    """llama.cpp's cache in Python: a cell holds the text up to its token, and each lane has cells by position."""

    vocabulary = 1

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.cells = [dict[int, tuple[int, ...]]() for _ in range(lanes)]
        self.fails = False

    def decode(self, tokens, positions, lanes, wanted):
        """Writes cells instead of computing; where told, half of them before it fails."""
        for i, (token, position, lane) in enumerate(zip(tokens, positions, lanes, strict=True)):
            if self.fails and i >= len(tokens) // 2:
                raise EngineFailedError("half-way")
            assert int(position) == len(self.cells[lane]), "a position is missing"
            before = self.cells[lane].get(int(position) - 1, ())
            self.cells[lane][int(position)] = Text((*before, int(token)))
        return np.zeros((int(wanted.sum()), 1), np.float32)

    def copy(self, source: int, to: int, start: int, stop: int) -> None:
        """As llama_memory_seq_cp."""
        for position in range(start, stop):
            assert position not in self.cells[to], "two cells at one position"
            self.cells[to][position] = self.cells[source][position]

    def remove(self, lane: int, start: int = -1, stop: int = -1) -> None:
        """As llama_memory_seq_rm."""
        for position in list(self.cells[lane]):
            if (start < 0 or position >= start) and (stop < 0 or position < stop):
                del self.cells[lane][position]

    def close(self) -> None:
        """Nothing to free."""

    @property
    def used(self) -> int:
        """How many cells some lane has."""
        return len({id(cell) for lane in self.cells for cell in lane.values()})


class Text(tuple):
    """A cell; two of equal text are two cells."""

    __slots__ = ()


class CellMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, llama.cpp keeps just what the pool counts, and every sequence finds its cells."""

    @initialize(lanes=st.integers(2, 8), tokens=TOKENS)
    def begin(self, lanes: int, tokens: list[int]) -> None:
        self.context = FakeContext(lanes)
        self.runner = CellRunner(FakeModel(), self.context, SPEC, slots=120)
        self.sequences = [self.runner.open(tokens)]

    def some(self, i: int) -> Sequence:
        return self.sequences[i % len(self.sequences)]

    @rule(i=st.integers(0, 99))
    def fork(self, i: int) -> None:
        if len(self.sequences) < 12:
            self.sequences.append(self.runner.fork(self.some(i)))

    @rule(i=st.integers(0, 99), length=st.integers(1, 20), more=TOKENS)
    def open_alike(self, i: int, length: int, more: list[int]) -> None:
        if len(self.sequences) < 12:
            sequence = self.runner.open(self.some(i).tokens[:length] + more)
            self.runner.reuse(sequence)
            self.sequences.append(sequence)

    @rule(i=st.integers(0, 99), share=st.floats(0, 1))
    def truncate(self, i: int, share: float) -> None:
        sequence = self.some(i)
        self.runner.truncate(sequence, 1 + int(share * (len(sequence.tokens) - 1)))

    @rule(i=st.integers(0, 99))
    def reuse(self, i: int) -> None:
        self.runner.reuse(self.some(i))

    @rule(i=st.integers(0, 99))
    def share(self, i: int) -> None:
        self.runner.share(self.some(i))

    @rule(i=st.integers(0, 99))
    def drop(self, i: int) -> None:
        self.runner.drop(self.some(i))

    @rule(n=st.integers(1, 20))
    def evict(self, n: int) -> None:
        self.runner.prefixes.evict(n)

    @precondition(lambda self: len(self.sequences) > 1)
    @rule(i=st.integers(0, 99))
    def free(self, i: int) -> None:
        sequence = self.some(i)
        self.runner.free(sequence)
        self.sequences.remove(sequence)

    @rule(chosen=st.sets(st.integers(0, 11), min_size=1), fails=st.booleans(), more=TOKENS)
    def step(self, chosen: set[int], fails: bool, more: list[int]) -> None:
        sequences = [s for i, s in enumerate(self.sequences) if i in chosen and s.pending]
        assume(sequences)
        chunks = [Chunk(s, s.pending, 1) for s in sequences]
        before = [s.cached for s in sequences]
        unplaced = sum(not self.runner.placed(s) for s in sequences)
        fits = self.runner.can_step(sum(c.n for c in chunks), unplaced)
        self.context.fails = fails
        if fails or not fits:
            with pytest.raises(EngineFailedError if fits else CapacityError):
                self.runner.step(chunks)
            assert [s.cached for s in sequences] == before
        else:
            self.runner.step(chunks)
            for sequence in sequences:
                assert sequence.pending == 0
                if len(sequence.tokens) < 40:
                    self.runner.append(sequence, more)

    @invariant()
    def cells_are_slots(self) -> None:
        if not hasattr(self, "runner"):
            return
        for sequence in self.sequences:
            if self.runner.placed(sequence):
                cells = self.context.cells[self.runner.lanes.lane(sequence)]
                texts = [tuple(sequence.tokens[: n + 1]) for n in range(sequence.cached)]
                assert [cells[i] for i in sorted(cells)] == texts
        assert self.context.used == self.runner.pool.capacity - self.runner.pool.free

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        for sequence in self.sequences:
            self.runner.free(sequence)
        self.runner.prefixes.clear()
        assert self.context.used == 0
        assert self.runner.lanes.free == self.context.lanes
        assert self.runner.pool.free == self.runner.pool.capacity


TestCells = CellMachine.TestCase
TestCells.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


# --- with llama.cpp itself


@pytest.mark.parametrize("make_runner", ["llama-cpp"], indirect=True)
def test_more_branches_than_lanes_wait_for_their_turn(make_backend):
    """Three hundred branches of one prompt finish with the texts that they have in small groups; nothing is computed twice, and afterwards nothing is held."""
    backend = make_backend(slots=6000)
    prompt = [i % 256 for i in range(40)]

    def drawn(size):
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
    assert drawn(300) == drawn(20)
    assert backend.engine.meter.replayed_tokens == replayed


@pytest.mark.parametrize("make_runner", ["llama-cpp"], indirect=True)
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
    assert backend.engine.meter.replayed_tokens > 0
    for branch, task in zip(branches[::57], tasks, strict=True):
        assert list(branch.tokens)[3:] == task.future.result(WAIT).tokens
