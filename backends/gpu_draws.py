"""
Draws on a GPU, in few kernels: what `sampling.py` does in many operations, to the same tokens.

Knows logits (rows, vocab), a row's words, and blocks of tokens; nothing of settings but the inverse temperature. A small vocabulary is
raced whole, a large one within the blocks that can have the winner (`sampling.py` says why that is enough). What is drawn is (rows, 2) in
float64: the token, and 1 for a row whose logits are in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from langchain_pareto.backends.gpu_support import power, programs
from langchain_pareto.backends.logit_blocks import BLOCK, SMALL, block_count

_TOGETHER = 16  # blocks of one program


def block_peaks(x: Tensor) -> Tensor:
    """The largest logit of each block of tokens; a NaN is the largest: (rows, blocks), float32."""
    x = _in_rows(x)
    rows, blocks = len(x), block_count(x)
    peaks = torch.empty((rows, blocks), device=x.device)
    programs().find_peaks[rows, -(-blocks // _TOGETHER)](
        x, peaks, x.shape[1], blocks, x.stride(0), BLOCK=BLOCK, K=_TOGETHER
    )
    return peaks


def largest(x: Tensor, peaks: Tensor) -> Tensor:
    """Draws the most probable token, the lowest id of several."""
    x = _in_rows(x)
    blocks = peaks.shape[1]
    drawn = torch.empty((len(x), 2), dtype=torch.float64, device=x.device)
    programs().find_largest[(len(x),)](
        x, peaks, drawn, x.shape[1], blocks, x.stride(0), BLOCK=BLOCK, B=power(blocks)
    )
    return drawn


def bounds(x: Tensor, peaks: Tensor, words: Tensor, inverse: Tensor, table: Tensor) -> Tensor:
    """The logarithm of the largest p / |noise| of each block, up to a number a row: (rows, blocks).

    `peaks` are those of the blocks, `words` those of each row's draw (rows, 2), `inverse` the inverse temperature in float64 (rows or 1,
    1), `table` the words of all token ids.
    """
    x = _in_rows(x)
    rows, blocks = len(x), block_count(x)
    out = torch.empty((rows, blocks), device=x.device)
    programs().find_bounds[rows, -(-blocks // _TOGETHER)](
        x,
        peaks,
        table,
        words,
        inverse,
        out,
        x.shape[1],
        blocks,
        x.stride(0),
        int(len(inverse) > 1),
        BLOCK=BLOCK,
        K=_TOGETHER,
        B=power(blocks),
    )
    return out


def race(
    x: Tensor, peaks: Tensor, words: Tensor, inverse: Tensor, table: Tensor, best: int
) -> Tensor:
    """Draws by the exponential race, of a large vocabulary among the `best` blocks with the largest bounds."""
    x = _in_rows(x)
    blocks = block_count(x)
    whole = x.shape[1] <= SMALL
    chosen = words  # read only where some are chosen
    if not whole:
        chosen = bounds(x, peaks, words, inverse, table).topk(best, sorted=False).indices
    drawn = torch.empty((len(x), 2), dtype=torch.float64, device=x.device)
    programs().find_winner[(len(x),)](
        x,
        peaks,
        table,
        words,
        inverse,
        chosen,
        drawn,
        x.shape[1],
        blocks,
        x.stride(0),
        int(len(inverse) > 1),
        ALL=whole,
        BLOCK=BLOCK,
        BEST=power(blocks) if whole else best,
        B=power(blocks),
        num_warps=8,
    )
    return drawn


def _in_rows(x: Tensor) -> Tensor:
    """With each row's logits side by side."""
    return x if x.stride(1) == 1 else x.contiguous()
