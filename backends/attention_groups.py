"""
Which sequences of a step attend together, and which of these groups are padded into one call.

Knows sequences, the tree that they form, and what columns and rows cost; knows no tensor and no model. Branches of one tree attend
over the *union* of their slots while that is cheaper, so a shared prefix is read once; groups are split along the tree, down to single
sequences, when attending apart costs less. Groups of like shape are padded into one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from langchain_pareto.backends.sequences import Segment, Sequence

_SMALL = 256  # columns: below, one more call costs more than padding
# gathering and streaming a column costs about as much as attending to it with so many rows (measured, CPU: 5 to 15)
_COLUMN_ROWS = 8


def bucket(n: int, least: int, parts: int) -> int:
    """The next size at or above `n` in steps of at most 1/`parts` of its power of two."""
    if n <= least:
        return least
    step = max(least // parts, 1 << max(0, n.bit_length() - 1 - (parts.bit_length() - 1)))
    return -(-n // step) * step


def row_bucket(n: int) -> int:
    """Packed rows: 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, then in eighths."""
    if n <= 4:
        return 1 << (n - 1).bit_length()
    return bucket(n, 4, 2) if n <= 64 else bucket(n, 64, 8)


def column_bucket(n: int) -> int:
    """Columns of a union: at least 128, then in quarters."""
    return bucket(n, 128, 4)


def wide_bucket(n: int) -> int:
    """Columns of a union where graphs are captured, in few sizes: at least 256, then in halves."""
    return bucket(n, 256, 2)


@dataclass(slots=True)
class Member:
    """A sequence with its new rows in a step."""

    sequence: Sequence
    first: int  # its first packed row
    n: int
    context: int  # tokens it sees with its last row


class Group:
    """Sequences of one tree that attend over the union of their slots."""

    __slots__ = ("members", "rows", "stretches", "union")

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.rows = sum(m.n for m in members)
        # each segment as far as any member sees it, and the member that does
        self.stretches = dict[Segment, tuple[int, int, Member]]()
        for m in members:
            for segment, start, stop in m.sequence.segments(m.context):
                known = self.stretches.get(segment)
                if known is None or known[1] < stop:
                    self.stretches[segment] = (start, stop, m)
        self.union = sum(stop - start for start, stop, _ in self.stretches.values())

    @property
    def pays(self) -> bool:
        """Whether attending over the union costs at most what each member's own context would, padding counted."""
        apart = sum((_COLUMN_ROWS + m.n) * column_bucket(m.context) for m in self.members)
        return (_COLUMN_ROWS + self.rows) * column_bucket(self.union) <= apart


def split(members: list[Member]) -> Iterator[Group]:
    """Groups by tree, each split along the tree while its union does not pay."""
    trees = dict[Segment, list[Member]]()
    for m in members:
        trees.setdefault(m.sequence.path[0], []).append(m)
    for tree in trees.values():
        yield from _split_tree(tree, 1)


def _split_tree(members: list[Member], depth: int) -> Iterator[Group]:
    group = Group(members)
    if len(members) == 1 or group.pays:
        yield group
        return
    parts = dict[Segment | None, list[Member]]()
    while len(parts) < 2:  # down to where the paths part
        parts.clear()
        for m in members:
            path = m.sequence.path
            parts.setdefault(path[depth] if depth < len(path) else None, []).append(m)
        depth += 1
    for part in parts.values():
        yield from _split_tree(part, depth)


def classes(
    groups: list[Group], size: Callable[[int], int], width: Callable[[int], int] = column_bucket
) -> Iterator[tuple[list[Group], int, int, int]]:
    """Groups that are padded into one call: (groups, padded groups, rows, columns), few shapes and less than half of it padding.

    `size` says to how many groups or rows a number of them is padded, and `width` the same of columns.
    """
    alike = dict[int, list[Group]]()
    for group in groups:
        alike.setdefault(row_bucket(group.rows), []).append(group)
    for candidates in alike.values():
        candidates.sort(key=lambda g: -g.union)  # stable: equal sizes stay in order
        while candidates:
            first = candidates[0]
            columns = width(first.union + 4 * first.rows)  # room for a few steps more
            n = sum(2 * (g.union + g.rows) >= columns or columns <= _SMALL for g in candidates)
            n = max(n, 1)
            rows = max(group.rows for group in candidates[:n])
            yield candidates[:n], size(n), size(rows), columns
            del candidates[:n]
