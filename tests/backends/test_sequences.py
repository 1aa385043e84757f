"""Sequences of one tree against lists of tokens that share nothing."""

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from langchain_pareto.backends.kv_pool import SlotPool
from langchain_pareto.backends.sequences import Sequence
from langchain_pareto.errors import SequenceError


class TreeMachine(RuleBasedStateMachine):
    """Forks, appends, truncations, steps and preemptions: every sequence is what a list of tokens would be."""

    @initialize(tokens=st.integers(1, 6))
    def start(self, tokens):
        self.pool = SlotPool(3000)
        self.stamp = 0
        root = Sequence.root(self.fresh(tokens))
        self.sequences = [root]
        self.naive = {id(root): list(root.tokens)}
        # what each slot was computed for: the whole prefix, so that sharing a wrong slot shows
        self.computed: dict[int, tuple[int, ...]] = {}
        self.charged: set[tuple[int, ...]] = set()

    def fresh(self, n):
        """Tokens that never came before, so that equal prefixes are shared prefixes."""
        self.stamp += n
        return list(range(self.stamp - n, self.stamp))

    def pick(self, data):
        return data.draw(st.sampled_from(self.sequences))

    @rule(data=st.data())
    def fork(self, data):
        parent = self.pick(data)
        child = parent.fork()
        self.pool.retain(child.slots)
        self.sequences.append(child)
        self.naive[id(child)] = list(self.naive[id(parent)])

    @rule(data=st.data(), n=st.integers(0, 5))
    def append(self, data, n):
        sequence = self.pick(data)
        new = self.fresh(n)
        sequence.tokens.extend(new)
        self.naive[id(sequence)] += new

    @rule(data=st.data())
    def truncate(self, data):
        sequence = self.pick(data)
        length = data.draw(st.integers(1, len(sequence.tokens)))
        self.pool.release(sequence.truncate(length))
        del self.naive[id(sequence)][length:]

    @rule(data=st.data())
    def drop(self, data):
        sequence = self.pick(data)
        self.pool.release(sequence.take_back(sequence.cached))
        assert sequence.cached == 0

    @rule(data=st.data())
    def step(self, data):
        sequence = self.pick(data)
        if sequence.pending == 0:
            sequence.tokens.extend(new := self.fresh(1))
            self.naive[id(sequence)] += new
        n = data.draw(st.integers(1, sequence.pending))
        wanted = data.draw(st.integers(0, n)) if n == sequence.pending else 0
        start = sequence.cached
        slots = self.pool.allocate(n)
        sequence.put(slots)
        tokens = tuple(sequence.tokens)
        for position, slot in zip(range(start, start + n), slots.tolist(), strict=True):
            self.computed[slot] = tokens[: position + 1]
        stop = start + n
        new = {tokens[: p + 1] for p in range(start, stop - wanted)} - self.charged
        assert sequence.charge(start, stop, wanted) == len(new) + wanted
        self.charged |= {tokens[: p + 1] for p in range(start, stop)}

    @precondition(lambda self: len(self.sequences) > 1)
    @rule(data=st.data())
    def free(self, data):
        sequence = self.pick(data)
        self.sequences.remove(sequence)
        self.pool.release(sequence.slots)

    @invariant()
    def tokens_and_slots_are_right(self):
        held = set()
        for sequence in self.sequences:
            assert sequence.tokens == self.naive[id(sequence)]
            assert 0 <= sequence.cached <= len(sequence.tokens)
            tokens, slots = tuple(sequence.tokens), sequence.slots.tolist()
            assert [self.computed[slot] for slot in slots] == [
                tokens[: i + 1] for i in range(len(slots))
            ]
            held |= set(slots)
        assert self.pool.live == len(held)

    @invariant()
    def two_sequences_agree_exactly_on_the_segments_that_both_name(self):
        paths = []
        for sequence in self.sequences:
            stretches = sequence.segments(len(sequence.tokens))
            ends = [stop for _, _, stop in stretches]
            assert [start for _, start, _ in stretches] == [0, *ends[:-1]][: len(stretches)]
            assert ends[-1:] == [len(sequence.tokens)]
            paths.append({segment: stop for segment, _, stop in stretches})
        for i, a in enumerate(paths):
            for j, b in enumerate(paths[:i]):
                shared = max((min(a[s], b[s]) for s in a.keys() & b.keys()), default=0)
                one, two = self.sequences[i].tokens, self.sequences[j].tokens
                assert one[:shared] == two[:shared]
                longest = next(
                    (k for k, (x, y) in enumerate(zip(one, two, strict=False)) if x != y),
                    min(len(one), len(two)),
                )
                assert shared == longest

    def teardown(self):
        for sequence in getattr(self, "sequences", []):
            self.pool.release(sequence.slots)
        if hasattr(self, "pool"):
            assert self.pool.live == 0


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def computed(n, pool):
    """A root of `n` tokens whose last one is pending."""
    sequence = Sequence.root(range(n))
    sequence.put(pool.allocate(n - 1))
    return sequence


@pytest.mark.parametrize("length", [0, -1, 5])
def test_a_length_outside_the_sequence_is_refused(length):
    """Truncating to nothing or beyond the end is a SequenceError, and changes nothing."""
    sequence = computed(4, SlotPool(10))
    with pytest.raises(SequenceError, match="1 to 4 are possible"):
        sequence.truncate(length)
    assert (sequence.tokens, sequence.cached) == ([0, 1, 2, 3], 3)


def test_a_freed_sequence_is_refused():
    """Nothing can be done with a freed sequence."""
    sequence = computed(4, SlotPool(10))
    sequence.freed = True
    for use in (sequence.fork, lambda: sequence.truncate(1), sequence.check_usable):
        with pytest.raises(SequenceError, match="freed"):
            use()


def test_truncation_leaves_the_last_token_pending():
    """Cut at any length, at least one token has still to be computed, so that logits follow without a copy."""
    for length in range(1, 7):
        sequence = computed(6, SlotPool(10))
        gone = sequence.truncate(length)
        assert sequence.pending >= 1
        assert sequence.cached + len(gone) == 5


def test_a_position_is_charged_once_in_a_tree():
    """Preempted and computed again, or computed by two children, a position without a row costs once."""
    pool = SlotPool(50)
    root = Sequence.root(range(10))
    child = root.fork()
    root.put(pool.allocate(10))
    assert root.charge(0, 10, 1) == 10
    child.put(pool.allocate(10))
    assert child.charge(0, 10, 1) == 1, "its own row"
    root.take_back(10)
    root.put(pool.allocate(10))
    assert root.charge(0, 10, 0) == 0
    root.truncate(5)
    root.tokens += [77, 78]
    root.put(pool.allocate(3))
    assert root.charge(4, 7, 0) == 2, "new tokens, and one that is known"


def test_many_tokens_grow_the_slots():
    """A sequence keeps its slots in order however often its memory grows."""
    pool = SlotPool(2000)
    sequence = Sequence.root([0])
    every = []
    for _ in range(50):
        new = pool.allocate(31)
        sequence.tokens += [0] * 31
        sequence.put(new)
        every += new.tolist()
    assert np.array_equal(sequence.slots, every)
