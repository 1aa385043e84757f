"""
What one step of the torch runner attends to: a few padded tensors in bucketed shapes, the same for every layer.

Knows sequences, groups of them (`attention_groups.py`) and shapes, no model. While the same sequences decode step after step, the
tensors stay on the device and only the new columns are written: O(branches) a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Sequence_
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from langchain_pareto.backends.attention_groups import (
    Group,
    Member,
    classes,
    column_bucket,
    row_bucket,
    split,
    wide_bucket,
)
from langchain_pareto.backends.sequences import Chunk, Segment, Sequence

_IN_ORDER_ROWS = 128  # from here on one sequence's chunk attends causally, without a mask tensor
_HIDDEN = float("-inf")


@dataclass(slots=True)
class Call:
    """One padded attention call over `groups` unions of at most `columns` slots.

    A mask adds 0 where a row sees a column and -inf elsewhere; those of other layers are derived from it on demand.
    """

    rows: torch.Tensor  # (groups, rows) into the packed tokens
    columns: torch.Tensor  # (groups, columns) slots
    mask: torch.Tensor  # (groups, 1, rows * heads per kv head, columns)
    row_positions: torch.Tensor  # (groups, rows)
    column_positions: torch.Tensor  # (groups, columns)
    heads: int  # query heads per kv head that the mask is laid out for
    whole: bool  # whether its rows are all packed rows, in their order
    # of a plan that was extended: the new columns (flat), and the packed rows that they came from
    fresh: tuple[torch.Tensor, torch.Tensor] | None = None
    # what layers gathered, by their number and its name, and the same as attention takes it; a later step of the plan adds to it
    gathered: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _derived: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def masked(self, window: int | None = None, heads: int | None = None) -> torch.Tensor:
        """The mask of a layer with this attention window and so many query heads per kv head."""
        heads = self.heads if heads is None else heads
        if window is None and heads == self.heads:
            return self.mask
        if (window, heads) not in self._derived:
            self._derived[window, heads] = self._derive(window, heads)
        return self._derived[window, heads]

    def _derive(self, window: int | None, heads: int) -> torch.Tensor:
        groups, rows = self.rows.shape
        mask = self.mask.view(groups, rows, self.heads, -1)[:, :, :1]
        if window is not None:
            far = self.row_positions[:, :, None] - self.column_positions[:, None, :] >= window
            mask = mask.masked_fill(far[:, :, None], _HIDDEN)
        mask = mask.expand(-1, -1, heads, -1).contiguous()
        return mask.view(groups, 1, rows * heads, -1)

    def forget_derived(self) -> None:
        """The positions have changed."""
        self._derived.clear()


@dataclass(slots=True)
class InOrder:
    """One sequence's chunk of consecutive rows: it sees its whole past, and itself causally."""

    start: int
    stop: int
    past: torch.Tensor  # (past tokens,) slots


@dataclass(slots=True)
class StepPlan:
    """Everything that a forward needs besides the weights and the pool."""

    tokens: torch.Tensor  # (1, rows)
    positions: torch.Tensor  # (1, rows)
    write: torch.Tensor  # (rows,) slots; padding rows write slot 0
    keep: torch.Tensor  # (logit rows,) into the packed tokens
    kept: int  # logit rows that are real
    in_order: InOrder | None
    calls: list[Call]
    # (rows,) into the rows of `in_order` and then of the calls, laid end to end; None where they are in that order
    gather: torch.Tensor | None
    union: int  # distinct slots read, for metering
    reach: int  # all positions are below it

    @property
    def shape(self) -> tuple[int, ...]:
        """What a captured forward of calls alone depends on: the sizes, and which of the tensors are read."""
        calls = tuple(
            n for call in self.calls for n in (*call.rows.shape, call.columns.shape[1], call.whole)
        )
        return (self.tokens.shape[1], len(self.keep), self.gather is not None, *calls)


class Planner:
    """Makes the StepPlan of each step, and keeps the last one to extend it."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        heads_per_kv_head: int,
        *,
        padded: bool | None = None,
    ) -> None:
        """`heads_per_kv_head` is 0 for a model without attention: its plans have no calls, and read no slot.

        `padded` rows and columns come in few numbers, as captured graphs need them; by default not on a CPU, where a row that is padding
        takes as long as any.
        """
        padded = device.type != "cpu" if padded is None else padded
        self._size: Callable[[int], int] = row_bucket if padded else int
        self._width = wide_bucket if padded else column_bucket
        self._device = device
        self._dtype = dtype
        self._heads = heads_per_kv_head
        # the sequences themselves: the id of one that is gone may come again
        self._key: tuple[tuple[Sequence, int], ...] = ()
        self._decode: _Decode | None = None

    def plan(self, chunks: Sequence_[Chunk]) -> StepPlan:
        """The plan of a step whose new slots are already noted in the sequences (`Sequence.put`)."""
        plain = all(chunk.n == 1 and chunk.rows == 1 for chunk in chunks)
        key = tuple((c.sequence, c.sequence.version) for c in chunks) if plain else ()
        if plain and self._decode is not None and key == self._key and self._decode.can_extend():
            return self._decode.extend(chunks)
        built = self._build(chunks)
        self._key, self._decode = key, built if plain else None
        return built.plan

    def forget(self) -> None:
        """Drops the kept plan."""
        self._key, self._decode = (), None

    def _build(self, chunks: Sequence_[Chunk]) -> _Decode:
        members, row = list[Member](), 0
        for chunk in chunks:
            members.append(Member(chunk.sequence, row, chunk.n, chunk.sequence.cached))
            row += chunk.n
        total = self._size(row)
        ids, positions, write, gather = (np.zeros(total, np.int64) for _ in range(4))
        keep = list[int]()
        for m, chunk in zip(members, chunks, strict=True):
            span = slice(m.first, m.first + m.n)
            ids[span] = m.sequence.tokens[m.context - m.n : m.context]
            positions[span] = np.arange(m.context - m.n, m.context)
            write[span] = m.sequence.slots[m.context - m.n :]
            keep.extend(range(m.first + m.n - chunk.rows, m.first + m.n))
        kept = len(keep)
        keep += [0] * (self._size(kept) - kept) if kept else []

        attending = members if self._heads else []
        longest = max(attending, key=lambda m: m.n, default=None)
        in_order = longest if longest is not None and longest.n >= _IN_ORDER_ROWS else None
        ahead = 0  # rows of output before the next call's
        if in_order is not None:
            gather[in_order.first : in_order.first + in_order.n] = np.arange(in_order.n)
            ahead = in_order.n
        groups = list(split([m for m in attending if m is not in_order]))
        layouts = [
            _Layout(*shape, self._heads) for shape in classes(groups, self._size, self._width)
        ]
        for layout in layouts:
            layout.place(gather, ahead)
            ahead += layout.groups * layout.rows

        moved = ahead != total or not np.array_equal(gather, np.arange(total))
        host = np.concatenate([ids, positions, write, gather, np.array(keep, np.int64)])
        sizes = [total, total, total, total, len(keep)]
        ids_, positions_, write_, gather_, keep_ = _upload(host, self._device).split(sizes)
        plan = StepPlan(
            tokens=ids_[None],
            positions=positions_[None],
            write=write_,
            keep=keep_,
            kept=kept,
            in_order=None if in_order is None else self._in_order(in_order),
            calls=[layout.call(total, self._device, self._dtype) for layout in layouts],
            gather=gather_ if moved else None,
            union=sum(g.union for g in groups) + (in_order.context if in_order else 0),
            reach=max(m.context for m in members),
        )
        return _Decode(plan, layouts, self._device)

    def _in_order(self, m: Member) -> InOrder:
        past = m.sequence.slots[: m.context - m.n].astype(np.int64)
        return InOrder(m.first, m.first + m.n, torch.from_numpy(past).to(self._device))


class _Layout:
    """The host side of one Call: where each member's rows and columns are."""

    def __init__(
        self, groups: list[Group], padded: int, rows: int, columns: int, heads: int
    ) -> None:
        self.groups, self.rows, self.columns, self.heads = padded, rows, columns, heads
        self.used = np.array([group.union for group in groups])  # columns in use
        self.counts = np.array([len(group.members) for group in groups])
        self.members = list[Member]()
        self.places = list[tuple[int, int]]()  # (group, row) of each member's first row
        self._row_index, self._row_positions = (
            np.zeros((padded, rows), np.int64) for _ in range(2)
        )
        self._slots, self._column_positions = (
            np.zeros((padded, columns), np.int64) for _ in range(2)
        )
        self._seen = np.zeros((padded, rows, columns), np.bool_)
        self._seen[:, :, 0] = True  # padding rows see something: no row is all -inf
        for g, group in enumerate(groups):
            self._fill(g, group)

    def _fill(self, g: int, group: Group) -> None:
        column, at = dict[Segment, int](), 0
        for segment, (start, stop, m) in group.stretches.items():
            span = slice(at, at + stop - start)
            self._slots[g, span] = m.sequence.slots[start:stop]
            self._column_positions[g, span] = np.arange(start, stop)
            column[segment] = at
            at += stop - start
        row = 0
        for m in group.members:
            span = slice(row, row + m.n)
            first = m.context - m.n
            self._row_index[g, span] = np.arange(m.first, m.first + m.n)
            self._row_positions[g, span] = np.arange(first, m.context)
            seen = self._seen[g, span]
            seen[:, 0] = False
            for segment, start, stop in m.sequence.segments(m.context):
                block = seen[:, column[segment] : column[segment] + stop - start]
                block[:] = True
                if m.n > 1 and stop > first:  # causal among the new tokens
                    block &= np.arange(start, stop) <= np.arange(first, m.context)[:, None]
            self.members.append(m)
            self.places.append((g, row))
            row += m.n

    def place(self, gather: npt.NDArray[np.int64], ahead: int) -> None:
        """Writes where each packed row's output will be found."""
        for m, (g, row) in zip(self.members, self.places, strict=True):
            start = ahead + g * self.rows + row
            gather[m.first : m.first + m.n] = np.arange(start, start + m.n)

    def call(self, total: int, device: torch.device, dtype: torch.dtype) -> Call:
        """The tensors, of a step of so many rows."""
        seen = torch.from_numpy(self._seen).to(device)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, _HIDDEN)
        mask = mask[:, :, None, :].expand(-1, -1, self.heads, -1).contiguous()
        mask = mask.view(self.groups, 1, self.rows * self.heads, self.columns)
        arrays = (self._row_index, self._slots, self._row_positions, self._column_positions)
        parts = _upload(np.concatenate([a.ravel() for a in arrays]), device).split(
            [a.size for a in arrays]
        )
        rows, slots, row_positions, column_positions = (
            part.view(a.shape) for part, a in zip(parts, arrays, strict=True)
        )
        whole = np.array_equal(self._row_index.ravel(), np.arange(total))
        return Call(rows, slots, mask, row_positions, column_positions, self.heads, whole)


class _Decode:
    """A plan of one new token a sequence, which the next step extends in place."""

    def __init__(self, plan: StepPlan, layouts: list[_Layout], device: torch.device) -> None:
        self.plan = plan
        self._device = device
        self._growing = [_Growing(layout, device) for layout in layouts]

    def can_extend(self) -> bool:
        """Whether every group has room for one more column a member."""
        return all(growing.room >= 1 for growing in self._growing)

    def extend(self, chunks: Sequence_[Chunk]) -> StepPlan:
        """The same sequences, one token further."""
        plan, n = self.plan, len(chunks)
        total = plan.tokens.shape[1]
        sequences = [chunk.sequence for chunk in chunks]
        at = [sequence.cached - 1 for sequence in sequences]
        now = np.zeros((3, total), np.int64)
        now[0, :n] = [s.tokens[p] for s, p in zip(sequences, at, strict=True)]
        now[1, :n] = at
        now[2, :n] = [s.last_slot for s in sequences]
        parts = [now.ravel()]
        for growing in self._growing:
            parts += growing.step()
        uploaded = _upload(np.concatenate(parts), self._device).split([len(p) for p in parts])
        plan.tokens, plan.positions, write = uploaded[0].view(3, 1, total).unbind()
        plan.write = write[0]
        for k, (growing, call) in enumerate(zip(self._growing, plan.calls, strict=True)):
            columns, cells = uploaded[1 + 2 * k : 3 + 2 * k]
            new_positions, slots = plan.positions[0], plan.write
            if not call.whole:
                new_positions, slots = (
                    x.index_select(0, growing.packed) for x in (new_positions, slots)
                )
            call.columns.view(-1).index_copy_(0, columns, slots)
            call.column_positions.view(-1).index_copy_(0, columns, new_positions)
            call.row_positions.view(-1).index_copy_(0, growing.lines, new_positions)
            call.mask.view(-1).index_fill_(0, cells, 0.0)
            call.fresh = (columns, growing.packed)
            call.forget_derived()
        plan.union += n if self._growing else 0
        plan.reach = max(at) + 1
        return plan


class _Growing:
    """One call of a plan whose groups take a column a member with each step."""

    def __init__(self, layout: _Layout, device: torch.device) -> None:
        group, row = np.array(layout.places, np.int64).reshape(-1, 2).T
        column = layout.used[group] + _rank(group)  # a group's members take the next columns
        line = group * layout.rows + row
        heads = line[:, None] * layout.heads + np.arange(layout.heads)
        more = layout.counts[group]  # columns a step
        self._columns = group * layout.columns + column  # of all groups in a row
        self._cells = (heads * layout.columns + column[:, None]).ravel()  # of the mask
        self._more, self._more_cells = more, np.repeat(more, layout.heads)
        self.room = int(((layout.columns - layout.used) // layout.counts).min())  # steps
        packed = np.array([m.first for m in layout.members], np.int64)
        self.packed, self.lines = _upload(np.concatenate([packed, line]), device).view(2, -1)

    def step(self) -> list[npt.NDArray[np.int64]]:
        """Where the new columns are, and the cells of the mask that they open."""
        out = [self._columns, self._cells]
        self._columns = self._columns + self._more
        self._cells = self._cells + self._more_cells
        self.room -= 1
        return out


def _rank(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each element, how many equal ones came before it; equal ones are neighbours."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


def _upload(host: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """One copy of everything to the device."""
    tensor = torch.from_numpy(host)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
