"""Sequences of llama.cpp under the slot pool: few lanes for many sequences, and no cell that nobody needs."""

import time

import numpy as np
import pytest
from hypothesis import assume, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from langchain_pareto.backends import llama_runner
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


@pytest.mark.parametrize("freed", [True, False])
@pytest.mark.parametrize("opened", [True, False])
def test_a_path_of_many_stretches_needs_few_lanes(freed, opened):
    """Each computed by another sequence, forked or opened anew as the turns of a talk are, that is gone or idle."""
    context = FakeContext(lanes=4)
    runner = CellRunner(FakeModel(), context, SPEC, slots=120)
    sequence, idle = runner.open([1, 2, 3]), []
    for i in range(30):
        runner.reuse(sequence)
        while not runner.can_step(sequence.pending, 1):
            runner.drop(idle.pop(0))  # as the scheduler does
        runner.step([Chunk(sequence, sequence.pending, 1)])
        runner.share(sequence)
        more = runner.open(sequence.tokens) if opened else runner.fork(sequence)
        runner.append(more, [i, i])
        if freed:
            runner.free(sequence)
        else:
            idle.append(sequence)
        sequence = more
    for one in (*idle, sequence):
        runner.free(one)
    runner.prefixes.clear()
    assert (context.used, runner.lanes.free) == (0, 4)


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


@pytest.mark.parametrize("make_runner", ["llama-cpp"], indirect=True)
def test_cells_beyond_the_window_are_kept(make_runner, reference, assert_close):
    """What has left the window comes back by a truncation: no other token was put in its cells."""
    runner = make_runner("gemma3", slots=256)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 256, n).tolist() for n in (100, 10, 100, 30)]
    one, two, three = (runner.open(text) for text in texts[:3])
    for sequence in (one, two, three):
        runner.step([Chunk(sequence, sequence.pending, 1)])
    runner.free(two)
    runner.forget()
    four = runner.open(texts[3])
    runner.step([Chunk(four, 30, 1)])
    runner.truncate(three, 15)
    rows = runner.step([Chunk(three, three.pending, 1)]).rows
    assert_close(rows, reference("gemma3", texts[2][:15]))


@pytest.mark.parametrize("make_runner", ["llama-cpp"], indirect=True)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba2"])
def test_idle_children_of_freed_roots_give_way(make_backend, architecture):
    """More trees than lanes, each with a child that waits: a new one is computed all the same, and the old ones go on."""
    backend = make_backend(architecture, slots=8000, lanes=32)
    kept = []
    for i in range(80):
        root = backend.open([i % 256, (i * 7) % 256, 3, 4, 5, 6, 7, 8], seed=i)
        task = backend.extend(root, Sampling(temperature=0.0), Stop(2, eos=False))
        assert len(task.future.result(WAIT).tokens) == 2
        kept += root.fork(1)
        root.free()
    task = backend.extend(kept[0], Sampling(temperature=0.0), Stop(2, eos=False))
    assert len(task.future.result(WAIT).tokens) == 2


@pytest.mark.parametrize("make_runner", ["llama-cpp"], indirect=True)
def test_what_stays_cached_is_limited(make_backend, monkeypatch):
    """Every query looks at every cell, so what nobody holds goes when it is much beside the weights, the oldest first; the path that was freed last stays, however long."""
    monkeypatch.setattr(llama_runner, "_FEWEST_CACHED", 100)
    backend = make_backend()
    few = backend.runner._most_cached
    assert 100 <= few < 1000

    def prefill_and_free(i, length):
        branch = backend.open([(i * j) % 256 for j in range(length)])
        task = backend.prefill(branch)
        task.future.result(WAIT)
        branch.free()
        cached = backend.engine.call(lambda: backend.runner.pool.cached).result(WAIT)
        assert cached <= few + length
        return task.usage.cached_tokens

    for i in range(40):
        prefill_and_free(i, 60)
    assert prefill_and_free(39, 60) == 58  # a prefill computes one token at least
    long = 2 * few
    prefill_and_free(41, long)
    assert prefill_and_free(41, long) == long - 2


@pytest.mark.parametrize("make_runner", ["llama-cpp"], indirect=True)
def test_only_so_many_unrelated_trees_share_a_step(make_backend, gate):
    """With max_roots=2, two of five prompts are worked on at a time; branches of one prompt, and prompts half of which are the same, count once, and a deadline does not wait."""
    backend = make_backend()
    backend.runner.max_roots = 2
    steps = gate(backend).steps

    def most(prompts, deadline=None):
        del steps[:]
        branches = [b for p in prompts for b in backend.open(p).fork(3)]
        stop = Stop(4, eos=False)
        tasks = [backend.extend(b, Sampling(), stop, deadline=deadline) for b in branches]
        drawn = [task.future.result(WAIT).tokens for task in tasks]
        assert [len(d) for d in drawn] == [4] * len(branches)
        return max(len(step) for step in steps)

    assert most([[i] * 10 for i in range(5)]) == 6
    assert most([[7] * 10 + [i] for i in range(5)]) == 15
    assert most([[i] * 10 for i in range(5)], deadline=time.monotonic() + WAIT) == 15
