"""The radix index against a dictionary from token prefixes to slots."""

import numpy as np
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from langchain_pareto.backends.kv_pool import SlotPool
from langchain_pareto.backends.prefixes import PrefixIndex

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)


class IndexMachine(RuleBasedStateMachine):
    """Sequences that compute, share, reuse and go: the index finds what a dictionary of prefixes would."""

    @initialize(size=st.integers(12, 60))
    def start(self, size):
        self.pool = SlotPool(size)
        self.index = PrefixIndex(self.pool)
        self.sequences: list[tuple[list[int], np.ndarray]] = []
        self.known: dict[tuple[int, ...], int] = {}  # prefix -> the slot of its last token

    def found(self, tokens):
        """The naive longest prefix."""
        out = []
        for n in range(1, len(tokens) + 1):
            if tuple(tokens[:n]) not in self.known:
                break
            out.append(self.known[tuple(tokens[:n])])
        return out

    @rule(tokens=TOKENS, reuse=st.booleans())
    def compute(self, tokens, reuse):
        hit = self.index.match(tokens) if reuse else np.empty(0, np.int32)
        if reuse:
            assert hit.tolist() == self.found(tokens)
        missing = len(tokens) - len(hit)
        self.pool.retain(hit)
        if not self.pool.can_allocate(missing):
            self.pool.release(hit)
            return
        own = np.concatenate([hit, self.pool.allocate(missing)])
        self.sequences.append((tokens, own))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), free=st.booleans())
    def insert(self, data, free):
        at = data.draw(st.integers(0, len(self.sequences) - 1))
        tokens, own = self.sequences[at]
        self.index.insert(tokens, own)
        for n in range(1, len(tokens) + 1):
            self.known.setdefault(tuple(tokens[:n]), int(own[n - 1]))
        if free:
            self.pool.release(own)
            del self.sequences[at]

    @rule(n=st.integers(1, 20))
    def evict(self, n):
        before, cached = self.pool.free, self.pool.cached
        freed = self.index.evict(n)
        assert self.pool.free - before == freed
        assert freed >= min(n, cached), "what is cached must give way"
        self.forget()

    @rule()
    def clear(self):
        self.index.clear()
        assert self.pool.cached == 0
        self.forget()

    def forget(self):
        """What the index no longer finds, the dictionary forgets; it must still be closed under prefixes."""
        for prefix, slot in list(self.known.items()):
            hit = self.index.match(prefix)
            if len(hit) < len(prefix):
                del self.known[prefix]
            else:
                assert hit[-1] == slot

    @invariant()
    def nothing_leaks(self):
        held = {slot for _, own in self.sequences for slot in own.tolist()}
        assert self.pool.live == len(held)
        assert self.pool.cached == len(set(self.known.values()) - held)

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        for _, own in self.sequences:
            self.pool.release(own)
        self.index.evict(self.pool.capacity)
        assert self.pool.free == self.pool.capacity


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def kept(pool, index, tokens):
    """A sequence that was computed, kept and freed."""
    own = pool.allocate(len(tokens))
    index.insert(tokens, own)
    pool.release(own)
    return own.tolist()


def test_a_split_keeps_both_ends():
    """Two prompts that part in the middle share their start, whichever came first."""
    pool = SlotPool(50)
    index = PrefixIndex(pool)
    long = kept(pool, index, [1, 2, 3, 4, 5])
    other = kept(pool, index, [1, 2, 9, 9])
    assert index.match([1, 2, 3, 4, 5, 6]).tolist() == long
    assert index.match([1, 2, 9, 9]).tolist() == long[:2] + other[2:]
    assert index.match([1, 2]).tolist() == long[:2]
    assert index.match([2]).tolist() == []
    assert pool.cached == 7


def test_the_least_recently_used_goes_first():
    """Eviction takes what was not looked at for longest, from its end, and leaves what is in use."""
    pool = SlotPool(50)
    index = PrefixIndex(pool)
    for prompt in ([1, 1, 1], [2, 2, 2], [3, 3, 3]):
        kept(pool, index, prompt)
    held = index.match([3, 3])
    pool.retain(held)
    index.match([1, 1, 1])
    assert index.evict(1) == 3
    assert index.match([2, 2, 2]).tolist() == []
    assert len(index.match([1, 1, 1])) == 3
    assert index.evict(100) == 4
    assert index.match([3, 3, 3]).tolist() == held.tolist()
    assert pool.cached == 0


def test_what_lies_above_a_held_end_can_be_evicted():
    """A sequence may hold the end of a cached path and its own copies of the start: the start still gives way."""
    pool = SlotPool(20)
    index = PrefixIndex(pool)
    kept(pool, index, [1, 2, 3])
    own = pool.allocate(5)
    index.insert([1, 2, 3, 4, 5], own)
    assert pool.cached == 3
    assert index.evict(3) == 3
    assert (pool.cached, pool.live) == (0, 5)
    pool.release(own)
    index.evict(100)
    assert pool.free == pool.capacity


@given(st.lists(TOKENS, max_size=12), TOKENS)
@settings(max_examples=100, deadline=None)
def test_the_longest_prefix_of_any_set_is_found(prompts, question):
    """Whatever was kept in whatever order, a match is the longest common prefix."""
    pool = SlotPool(400)
    index = PrefixIndex(pool)
    for prompt in prompts:
        kept(pool, index, prompt)
    longest = max(
        (
            next(
                (i for i, (a, b) in enumerate(zip(p, question, strict=False)) if a != b),
                min(len(p), len(question)),
            )
            for p in prompts
        ),
        default=0,
    )
    assert len(index.match(question)) == longest
