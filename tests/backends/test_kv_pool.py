"""Token slots against a pool of dictionaries and sets."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from langchain_pareto.backends.kv_pool import SlotPool
from langchain_pareto.errors import CapacityError


def slots(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


class PoolMachine(RuleBasedStateMachine):
    """Holders of slots, and an index that keeps some: the pool counts as a Counter and a set do."""

    @initialize(size=st.integers(2, 20))
    def start(self, size):
        self.pool = SlotPool(size)
        self.size = size
        self.holders: list[list[int]] = []
        self.indexed: set[int] = set()
        self.peak = 0

    def references(self) -> Counter:
        return Counter(slot for holder in self.holders for slot in holder)

    @rule(n=st.integers(0, 8))
    def allocate(self, n):
        held = set(self.references()) | self.indexed
        free = self.size - 1 - len(held)
        assert self.pool.can_allocate(n) == (n <= free)
        if n > free:
            with pytest.raises(CapacityError) as caught:
                self.pool.allocate(n)
            assert (caught.value.needed, caught.value.free) == (n, free)
            return
        new = self.pool.allocate(n).tolist()
        assert len(set(new)) == n
        assert not held & set(new)
        assert 0 not in new
        self.holders.append(new)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def retain(self, data):
        holder = data.draw(st.sampled_from(self.holders))
        part = holder[: data.draw(st.integers(0, len(holder)))]
        self.pool.retain(slots(*part))
        self.holders.append(part)

    @precondition(lambda self: self.indexed)
    @rule(data=st.data())
    def reuse(self, data):
        part = data.draw(st.lists(st.sampled_from(sorted(self.indexed)), unique=True))
        self.pool.retain(slots(*part))
        self.holders.append(part)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(slots(*holder))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def index(self, data):
        holder = data.draw(st.sampled_from(self.holders))
        self.pool.index(slots(*holder))
        self.indexed |= set(holder)

    @precondition(lambda self: self.indexed)
    @rule(data=st.data())
    def unindex(self, data):
        part = data.draw(st.lists(st.sampled_from(sorted(self.indexed)), unique=True))
        references = self.references()
        assert self.pool.unindex(slots(*part)) == sum(references[slot] == 0 for slot in part)
        self.indexed -= set(part)

    @invariant()
    def counts_agree(self):
        references = self.references()
        held = set(references)
        self.peak = max(self.peak, len(held))
        assert self.pool.live == len(held)
        assert self.pool.cached == len(self.indexed - held)
        assert self.pool.free == self.size - 1 - len(held | self.indexed)
        assert self.pool.live + self.pool.cached + self.pool.free == self.pool.capacity
        assert self.pool.peak == self.peak
        every = slots(*range(self.size))
        assert set(np.flatnonzero(self.pool.referenced(every)).tolist()) == held


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_refusal_changes_nothing():
    """A pool that is too small says how much it lacks, and hands out nothing."""
    pool = SlotPool(5)
    pool.allocate(3)
    with pytest.raises(CapacityError, match="2 token slots are needed and 1 of 4 are free"):
        pool.allocate(2)
    assert (pool.live, pool.free, pool.cached) == (3, 1, 0)
    assert pool.allocate(1).size == 1


def test_slots_come_in_order():
    """Fresh slots are neighbours in memory, and those given back last are handed out first."""
    pool = SlotPool(10)
    first = pool.allocate(4)
    assert first.tolist() == [1, 2, 3, 4]
    pool.release(first[2:])
    assert pool.allocate(3).tolist() == [3, 4, 5]


def test_a_double_release_is_an_assertion():
    """Giving a slot back twice would let two sequences write into it: it is our own mistake, and loud."""
    pool = SlotPool(4)
    one = pool.allocate(1)
    pool.release(one)
    with pytest.raises(AssertionError):
        pool.release(one)


def test_a_slot_of_the_index_survives_its_sequence():
    """Released while indexed is cached; reused is live again; unindexed and released is free."""
    pool = SlotPool(4)
    held = pool.allocate(2)
    pool.index(held)
    pool.release(held)
    assert (pool.live, pool.cached, pool.free) == (0, 2, 1)
    pool.retain(held)
    assert (pool.live, pool.cached, pool.free) == (2, 0, 1)
    assert pool.unindex(held) == 0
    pool.release(held)
    assert (pool.live, pool.cached, pool.free) == (0, 0, 3)
