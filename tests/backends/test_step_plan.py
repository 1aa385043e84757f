"""Step plans: shapes in few buckets, groups by cost, and a plan that grows equal to one made anew."""

import random

import pytest
import torch
from hypothesis import given, strategies as st

from langchain_pareto.backends.attention_groups import (
    _COLUMN_ROWS,
    bucket,
    column_bucket,
    row_bucket,
    wide_bucket,
)
from langchain_pareto.backends.kv_pool import SlotPool
from langchain_pareto.backends.sequences import Chunk, Sequence
from langchain_pareto.backends.step_plan import Planner, StepPlan

CPU = torch.device("cpu")
HEADS = 2  # query heads a key head


@given(st.integers(1, 100_000))
def test_buckets_hold_and_waste_little(n):
    """A bucket is at least as large, at most half (rows) or a quarter (columns) larger, and its own bucket."""
    rows, columns = row_bucket(n), column_bucket(n)
    assert n <= rows <= max(4, 1.5 * n)
    assert n <= columns <= max(128, 1.25 * n)
    assert row_bucket(rows) == rows
    assert column_bucket(columns) == columns
    assert row_bucket(n + 1) >= rows
    assert column_bucket(n + 1) >= columns


def test_buckets_are_few():
    """All sizes up to 4096 fall into a few dozen buckets."""
    assert sorted({row_bucket(n) for n in range(1, 65)}) == [1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert len({row_bucket(n) for n in range(1, 4097)}) <= 60
    assert sorted({column_bucket(n) for n in range(1, 513)}) == [
        128,
        160,
        192,
        224,
        256,
        320,
        384,
        448,
        512,
    ]
    assert bucket(5, 8, 2) == 8


def test_columns_of_captured_steps_come_in_fewer_sizes():
    """A dozen up to 16,384, at most half of them padding: each is a graph of its own."""
    sizes = {wide_bucket(n) for n in range(1, 16_385)}
    assert len(sizes) <= 13
    assert all(n <= wide_bucket(n) <= max(256, 1.5 * n) for n in range(1, 16_385))
    assert all(wide_bucket(size) == size for size in sizes)


class Trees:
    """Sequences and the slots that hold their prefixes: what a runner keeps, without a model."""

    def __init__(self, seed=0):
        self.rng = random.Random(seed)
        self.pool = SlotPool(60_000)
        self.planner = Planner(CPU, torch.float32, HEADS)
        self.holds = {0: None}  # slot -> the prefix that was computed into it

    def open(self, n):
        return Sequence.root([self.rng.randrange(250) for _ in range(n)])

    def fork(self, parent):
        child = parent.fork()
        self.pool.retain(child.slots)
        return child

    def append(self, sequence, n=1):
        sequence.tokens += [self.rng.randrange(250) for _ in range(n)]

    def step(self, *chunks, planner=None):
        """Takes slots for the chunks' tokens as a runner does, and plans."""
        for chunk in chunks:
            sequence = chunk.sequence
            start, slots = sequence.cached, self.pool.allocate(chunk.n)
            sequence.put(slots)
            for position, slot in zip(range(start, start + chunk.n), slots.tolist(), strict=True):
                self.holds[slot] = tuple(sequence.tokens[: position + 1])
        return (planner or self.planner).plan(chunks)

    def all_of(self, *sequences, rows=1):
        """One chunk each: everything pending."""
        return [Chunk(s, s.pending, rows) for s in sequences]

    def check(self, plan: StepPlan, chunks, windows=(None, 3, 8)):
        """Every packed row sees its own prefix, whole and nothing else, in every kind of layer."""
        row, keep = 0, []
        width = [len(call.rows) * call.rows.shape[1] for call in plan.calls]
        for chunk in chunks:
            tokens, stop = chunk.sequence.tokens, chunk.sequence.cached
            keep += range(row + chunk.n - chunk.rows, row + chunk.n)
            for position in range(stop - chunk.n, stop):
                assert plan.tokens[0, row] == tokens[position]
                assert plan.positions[0, row] == position
                assert plan.write[row] == chunk.sequence.slots[position]
                at = row if plan.gather is None else int(plan.gather[row])
                span = plan.in_order
                if span is not None and span.start <= row < span.stop:
                    assert at == row - span.start
                    assert position - (row - span.start) == len(span.past)
                else:
                    at -= 0 if span is None else span.stop - span.start
                    k = 0
                    while at >= width[k]:
                        at -= width[k]
                        k += 1
                    self.check_row(plan.calls[k], at, row, tokens[: position + 1], windows)
                row += 1
        assert plan.keep[: plan.kept].tolist() == keep
        assert set(plan.write[row:].tolist()) <= {0}, "padding rows write the padding slot"
        assert plan.tokens.shape == plan.positions.shape == (1, len(plan.write))
        for call in plan.calls:
            in_order = call.rows.flatten().tolist() == list(range(len(plan.write)))
            assert call.whole == in_order, "only then rows are not picked"
            for window in windows:
                assert (call.masked(window) == 0).any(-1).all(), "no row may be all -inf"

    def check_row(self, call, at, row, prefix, windows):
        group, line = divmod(at, call.rows.shape[1])
        assert call.rows[group, line] == row
        assert call.row_positions[group, line] == len(prefix) - 1
        for window in windows:
            mask = call.masked(window).view(len(call.rows), -1, HEADS, call.columns.shape[1])
            lines = mask[group, line]
            assert torch.equal(lines[0], lines[-1]), "all heads see the same"
            seen = (lines[0] == 0).nonzero()[:, 0]
            assert torch.isneginf(lines[0]).sum() + len(seen) == len(lines[0])
            positions = call.column_positions[group, seen].tolist()
            first = 0 if window is None else max(0, len(prefix) - window)
            assert sorted(positions) == list(range(first, len(prefix)))
            for position, slot in zip(positions, call.columns[group, seen].tolist(), strict=True):
                assert self.holds[slot] == tuple(prefix[: position + 1])


def groups(plan: StepPlan) -> list[int]:
    """How many rows each group has, largest first."""
    return sorted(
        (n for call in plan.calls for n in (call.row_positions > 0).sum(1).tolist() if n),
        reverse=True,
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_row_sees_its_own_prefix(seed):
    """Through random forks, truncations, preemptions, chunks and drafts, no row sees more or less than its tokens."""
    trees = Trees(seed)
    rng = trees.rng
    sequences = [trees.open(n) for n in (1, 40, 150)]
    for _ in range(25):
        event = rng.random()
        if event < 0.35 and len(sequences) < 12:
            sequences.append(trees.fork(rng.choice(sequences)))
        elif event < 0.45:
            sequence = rng.choice(sequences)
            trees.pool.release(sequence.truncate(rng.randint(1, len(sequence.tokens))))
        elif event < 0.5:
            sequence = rng.choice(sequences)
            trees.pool.release(sequence.take_back(sequence.cached))
        elif event < 0.6:
            trees.append(rng.choice(sequences), rng.choice([2, 5, 140]))
        chosen = [s for s in sequences if event < 0.7 or rng.random() < 0.7]
        for sequence in chosen:
            if sequence.pending == 0:
                trees.append(sequence)
        chunks = []
        for sequence in chosen:
            n = rng.choice([sequence.pending, rng.randint(1, sequence.pending)])
            whole = n == sequence.pending
            chunks.append(Chunk(sequence, n, rng.randint(1, min(n, 3)) if whole else 0))
        if chunks:
            trees.check(trees.step(*chunks), chunks)


@pytest.mark.parametrize("shape", ["one", "tree", "two trees", "far forks", "uneven"])
def test_a_grown_plan_equals_one_made_anew(shape):
    """After every decode step the kept plan says what a new plan of the same step says."""
    trees = Trees(3)
    if shape == "one":
        sequences = [trees.open(20)]
    elif shape == "tree":
        root = trees.open(100)
        sequences = [root, *[trees.fork(root) for _ in range(5)]]
    elif shape == "two trees":
        roots = [trees.open(50), trees.open(60)]
        sequences = [s for root in roots for s in (root, trees.fork(root), trees.fork(root))]
    elif shape == "far forks":
        root = trees.open(4)
        sequences = [trees.fork(root) for _ in range(3)]
        for i, sequence in enumerate(sequences):
            trees.append(sequence, 40 + 30 * i)
    else:
        sequences = [trees.open(n) for n in (2, 30, 120, 125, 300)]
    trees.step(*trees.all_of(*sequences))
    grown = 0
    held = None
    for _ in range(60):
        for sequence in sequences:
            trees.append(sequence)
        chunks = trees.all_of(*sequences)
        plan = trees.step(*chunks)
        grown += plan is held
        held = plan
        new = Planner(CPU, torch.float32, HEADS).plan(chunks)
        trees.check(plan, chunks)
        trees.check(new, chunks)
        for name in ("tokens", "positions", "write", "keep"):
            assert torch.equal(getattr(plan, name), getattr(new, name)), name
        assert plan.kept == new.kept
        if shape in ("one", "uneven") and plan.shape == new.shape:  # columns in the same order
            for a, b in zip(plan.calls, new.calls, strict=True):
                used = (b.mask == 0).any(2).any(1)
                assert torch.equal(a.columns * used, b.columns * used)
                assert torch.equal(a.column_positions * used, b.column_positions * used)
                assert torch.equal(a.rows, b.rows)
                assert torch.equal(a.row_positions, b.row_positions)
                for window in (None, 3, 8):
                    assert torch.equal(a.masked(window), b.masked(window))
    assert grown >= 40, "most steps extend the plan that is there"


def test_a_changed_sequence_is_planned_anew():
    """A truncation, a fork of a member, another order or another set of sequences never reuses the kept plan."""
    trees = Trees()
    a, b = trees.open(10), trees.open(12)

    def step(*sequences):
        for sequence in sequences:
            if sequence.pending == 0:
                trees.append(sequence)
        chunks = trees.all_of(*sequences)
        plan = trees.step(*chunks)
        trees.check(plan, chunks)
        return plan

    step(a, b)
    plan = step(a, b)
    assert step(a, b) is plan
    assert step(b, a) is not plan
    plan = step(a)
    assert step(a) is plan
    trees.pool.release(a.truncate(5))
    assert step(a) is not plan
    plan = step(a)
    child = trees.fork(a)
    assert step(a) is not plan
    plan = step(a, child)
    trees.planner.forget()
    assert step(a, child) is not plan


def test_branches_share_a_group_while_it_pays():
    """Children with a long common prefix are one group; with long tails they are one group each."""
    trees = Trees()
    root = trees.open(200)
    trees.step(Chunk(root, 199, 0))
    near = [trees.fork(root) for _ in range(4)]
    plan = trees.step(*trees.all_of(*near))
    assert groups(plan) == [4]
    assert plan.union <= 204
    apart = [trees.fork(root) for _ in range(4)]
    for sequence in apart:
        trees.append(sequence, 900)
        trees.step(Chunk(sequence, sequence.pending - 1, 0))
    assert groups(trees.step(*trees.all_of(*apart))) == [1, 1, 1, 1]


def test_no_group_costs_more_than_its_members_apart():
    """Reading a union's columns, padded, for all rows stays within what the members' own contexts would take, in any tree."""
    for seed in range(8):
        trees = Trees(seed)
        rng = trees.rng
        sequences = [trees.open(rng.choice([5, 50, 300]))]
        for _ in range(12):
            child = trees.fork(rng.choice(sequences))
            trees.append(child, rng.choice([1, 10, 120]))
            sequences.append(child)
        for sequence in sequences:
            if sequence.pending > 1:
                trees.step(Chunk(sequence, sequence.pending - 1, 0))
        plan = trees.step(*trees.all_of(*sequences))
        for call in plan.calls:
            real = call.mask.view(len(call.rows), -1, HEADS, call.columns.shape[1])[:, :, 0] == 0
            for g in range(len(real)):
                rows = int((call.row_positions[g] > 0).sum())
                union = int(real[g, :rows].any(0).sum()) if rows else 0
                contexts = sum(column_bucket(n) for n in real[g, :rows].sum(1).tolist())
                assert (_COLUMN_ROWS + rows) * column_bucket(union) <= (_COLUMN_ROWS + 1) * contexts


def test_short_contexts_stay_together():
    """Apart, each of sixteen short branches would be padded to the fewest columns that there are."""
    trees = Trees()
    root = trees.open(20)
    trees.step(Chunk(root, 19, 0))
    branches = [trees.fork(root) for _ in range(16)]
    for branch in branches:
        trees.append(branch, 10)
    trees.step(*trees.all_of(*branches))
    for branch in branches:
        trees.append(branch)
    assert groups(trees.step(*trees.all_of(*branches))) == [16]


def test_groups_of_like_size_are_one_call():
    """Thirty-two single sequences of like length are one call; a long one besides has its own."""
    trees = Trees()
    alike = [trees.open(100 + i) for i in range(32)]
    trees.step(*trees.all_of(*alike))
    for sequence in alike:
        trees.append(sequence)
    assert len(trees.step(*trees.all_of(*alike)).calls) == 1
    long = trees.open(3000)
    trees.step(*trees.all_of(long))
    for sequence in (*alike, long):
        trees.append(sequence)
    plan = trees.step(*trees.all_of(*alike, long))
    assert len(plan.calls) == 2
    padded = sum(call.columns.numel() for call in plan.calls)
    assert padded < 2 * plan.union, "less than half of it is padding"


def test_a_long_chunk_is_in_order():
    """From 128 rows on, one sequence's chunk needs no mask; the others of the step keep theirs."""
    trees = Trees()
    long, short = trees.open(300), trees.open(20)
    chunks = [Chunk(short, 20, 1), Chunk(long, 200, 0)]
    plan = trees.step(*chunks)
    trees.check(plan, chunks)
    assert plan.in_order is not None
    assert (plan.in_order.start, plan.in_order.stop, len(plan.in_order.past)) == (20, 220, 0)
    chunks = [Chunk(long, 100, 1)]
    plan = trees.step(*chunks)
    trees.check(plan, chunks)
    assert plan.in_order is None
