"""
A radix index of what is cached: token prefixes to the slots that hold their keys and values.

Knows tokens and slots, no model. What a sequence computed is inserted after each chunk of prefill, when it gives way, and when it is freed; the next
sequence that starts with the same tokens takes the slots over instead of computing them, across calls. Entries that no sequence
refers to are evicted least recently used first, from the ends of branches towards the root (RadixAttention, arXiv 2312.07104).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count

import numpy as np

from langchain_pareto.backends.kv_pool import SlotPool, Slots


class _Node:
    __slots__ = ("children", "parent", "slots", "tokens", "used")

    def __init__(self, tokens: tuple[int, ...], slots: Slots, parent: _Node | None) -> None:
        self.tokens = tokens
        self.slots = slots
        self.parent = parent
        self.children: dict[int, _Node] = {}
        self.used = 0


class PrefixIndex:
    """Token prefixes to slots; all methods are for the engine's thread."""

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        self._root = _Node((), np.empty(0, np.int32), None)
        self._clock = 0

    def match(self, tokens: Sequence[int]) -> Slots:
        """The slots of the longest cached prefix of `tokens`, which count as used now."""
        found = [node.slots[:n] for node, n in self._walk(tuple(tokens))]
        return np.concatenate(found) if found else np.empty(0, np.int32)

    def insert(self, tokens: Sequence[int], slots: Slots) -> None:
        """Keeps `slots` for `tokens`; where the index already has a prefix, its own slots stay."""
        tokens = tuple(tokens)
        assert len(tokens) == len(slots), "one slot a token"
        path = self._walk(tokens)
        have = sum(n for _, n in path)
        if have == len(tokens):
            return
        node, n = path[-1] if path else (self._root, 0)
        if n < len(node.tokens):
            node = self._split(node, n)
        child = _Node(tokens[have:], slots[have:].copy(), node)
        child.used = self._clock
        node.children[child.tokens[0]] = child
        self._pool.index(child.slots)

    def evict(self, n: int) -> int:
        """Frees at least `n` slots if that many are cached and unused; returns how many were freed."""
        order = count()
        ends = [(node.used, next(order), node) for node in self._nodes() if not node.children]
        heapq.heapify(ends)
        freed = 0
        while ends and freed < n:
            _, _, node = heapq.heappop(ends)
            freed += self._trim(node)
            parent = node.parent
            if (
                not node.tokens
                and parent is not None
                and parent is not self._root
                and not parent.children
            ):
                heapq.heappush(ends, (parent.used, next(order), parent))
        if freed < n and self._pool.cached:
            freed += self.clear()  # the rest lies above ends that sequences hold
        return freed

    def clear(self) -> int:
        """Forgets everything, what sequences hold too; returns how many slots were freed."""
        freed = sum(self._pool.unindex(node.slots) for node in self._nodes())
        self._root.children.clear()
        return freed

    def _walk(self, tokens: tuple[int, ...]) -> list[tuple[_Node, int]]:
        """The nodes along `tokens`, each with how many of its tokens agree; marks them used."""
        self._clock += 1
        node, at, path = self._root, 0, list[tuple[_Node, int]]()
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            n = _common(child.tokens, tokens, at)
            child.used = self._clock
            path.append((child, n))
            at += n
            if n < len(child.tokens):
                break
            node = child
        return path

    def _split(self, node: _Node, n: int) -> _Node:
        """Cuts `node` after its first `n` tokens and returns the upper part."""
        assert node.parent is not None
        upper = _Node(node.tokens[:n], node.slots[:n].copy(), node.parent)
        upper.used = node.used
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.slots, node.parent = node.tokens[n:], node.slots[n:].copy(), upper
        upper.children[node.tokens[0]] = node
        return upper

    def _trim(self, node: _Node) -> int:
        """Lets go of the unreferenced end of a node without children, and drops it when nothing is left."""
        held = np.flatnonzero(self._pool.referenced(node.slots))
        keep = int(held[-1]) + 1 if held.size else 0
        freed = self._pool.unindex(node.slots[keep:])
        if keep == 0:
            assert node.parent is not None
            del node.parent.children[node.tokens[0]]
        node.tokens, node.slots = node.tokens[:keep], node.slots[:keep]
        return freed

    def _nodes(self) -> list[_Node]:
        nodes, stack = list[_Node](), list(self._root.children.values())
        while stack:
            node = stack.pop()
            nodes.append(node)
            stack.extend(node.children.values())
        return nodes


def _common(have: tuple[int, ...], tokens: tuple[int, ...], at: int) -> int:
    """How many tokens of `have` agree with `tokens[at:]`; at least one does."""
    if tokens[at : at + len(have)] == have:
        return len(have)
    n = 1
    for a, b in zip(have[1:], tokens[at + 1 :], strict=False):
        if a != b:
            break
        n += 1
    return n
