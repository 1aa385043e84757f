"""A vocabulary in blocks of tokens: where its greatest logits lie, without sorting it.

Knows logits (rows, vocab) and the greatest of each block, (rows, blocks); nothing of keys and
settings. The last block is padded with -inf. A small vocabulary is looked through as it is.
"""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 64  # tokens
SMALL = 4096  # tokens; up to here blocks cost more than they save


class Peaks:
    """The greatest logits of each row and of each of its blocks, found when somebody asks; a NaN is the greatest."""

    def __init__(self, x: Tensor, find: Callable[[Tensor], Tensor]) -> None:
        """`find` gives those of the blocks, float32."""
        self._x, self._find = x, find

    @cached_property
    def blocks(self) -> Tensor:
        """Of each block: (rows, blocks)."""
        return self._find(self._x)

    @cached_property
    def top(self) -> Tensor:
        """Of each row: (rows, 1)."""
        if self._x.shape[1] <= SMALL:
            return self._x.amax(-1, keepdim=True).float()
        return self.blocks.amax(-1, keepdim=True)

    def take(self, at: Tensor) -> "Peaks":
        """Those of some rows."""
        return Peaks(self._x[at], self._find)


def block_count(x: Tensor) -> int:
    """Blocks of a vocabulary, the last one padded."""
    return -(-x.shape[1] // BLOCK)


def write_peaks(f: Tensor, start: int, out: Tensor) -> None:
    """Writes each block's largest value of a chunk, which starts at column `start`, into `out`."""
    count = f.shape[1] // BLOCK
    first = start // BLOCK
    out[:, first : first + count] = f.view(len(f), count, BLOCK).amax(-1)


def block_tokens(x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 values and ids of the named blocks' tokens, padded with -inf: (rows, tokens)."""
    offsets = torch.arange(BLOCK, device=x.device)
    ids = (blocks.unsqueeze(2) * BLOCK + offsets).flatten(1)
    if x.shape[1] % BLOCK == 0:
        return x.gather(1, ids).float(), ids
    values = x.gather(1, ids.clamp(max=x.shape[1] - 1)).float()
    return values.masked_fill_(ids >= x.shape[1], -math.inf), ids


def greedy(x: Tensor, peaks: Peaks) -> Tensor:
    """The most probable token, the lowest id of several: (rows, 1)."""
    if x.shape[1] <= SMALL:
        return x.argmax(-1, keepdim=True)
    values, ids = block_tokens(x, peaks.blocks.argmax(-1, keepdim=True))
    return ids.gather(1, values.argmax(-1, keepdim=True))


def leaders(x: Tensor, peaks: Peaks, n: int) -> tuple[Tensor, Tensor]:
    """The `n` most probable tokens (or all), by falling value, then by rising id: (rows, n) each.

    They lie in the `n` blocks with the largest peaks. Which tokens come that tie for the last
    place is open.
    """
    if n >= x.shape[1]:
        values, ids = x.float().sort(dim=-1, descending=True, stable=True)
        return values, ids
    if 2 * n < block_count(x) and x.shape[1] > SMALL:
        values, ids = block_tokens(x, peaks.blocks.topk(n, sorted=False).indices)
        chosen = values.topk(n, sorted=False).indices
        ids = ids.gather(1, chosen)
    else:
        ids = x.topk(n, sorted=False).indices
    ids = ids.sort(-1).values
    values, order = x.gather(1, ids).float().sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)
