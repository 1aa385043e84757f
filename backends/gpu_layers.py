"""
What a layer of a step does on a GPU besides its matrix products, in few kernels: attention over the slot pool, rotation, gates.

Knows tensors and the calls of a plan; knows no model. Attention reads keys and values where they lie in the pool: nothing is gathered
first. Its columns are split over the multiprocessors and the parts put together by their log-sum-exp, as in Flash-Decoding (Dao et al.,
2023), so that the step of one branch fills the device as that of many does. Query heads that share a key head share a tile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from langchain_pareto.backends.gpu_support import multiprocessors, power, programs
from langchain_pareto.backends.step_plan import Call

# What a tile of columns takes in shared memory stays below the 99 KB of GeForce cards, at 64 lines and in two stages (measured).
_TILE_BYTES = 16 << 10  # of keys
_COLUMN_BYTES = 128  # of one element in all columns
_HEAD_BYTES = 512  # of one head's keys or values of a token
_MOST_LINES = 64  # rows times heads of one tile: more spill registers at a head width of 128
_LEAST = 16  # lines and widths that a matrix product of Triton takes
_WAVES = 2  # programs for each multiprocessor: where fewer are at work, columns are split
_GATES = 1024  # of one program


def fits(width: int, itemsize: int) -> bool:
    """Whether `attend` takes heads of this width, of elements of so many bytes."""
    most = _HEAD_BYTES // itemsize
    return itemsize <= 4 and _LEAST <= width <= most and power(width) == width


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    calls: list[Call],
    *,
    places: Tensor | None,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attention of each call's rows over its columns: (rows, heads, value width).

    `query` is (rows, heads, width); `keys` and `values` are one layer's pools, (kv heads, slots, width), of its dtype. `places` (rows,)
    tells where each row's result is in the rows of the calls laid end to end; None where they are in that order.
    """
    total, heads, width = query.shape
    if query.stride(1) != width or query.stride(2) != 1:  # heads lie apart, as after `torch.cat`
        query = query.contiguous()
    kv_heads, value_width = keys.shape[0], values.shape[2]
    per_kv = heads // kv_heads
    laid = sum(call.rows.numel() for call in calls)
    tile = min(_COLUMN_BYTES, _TILE_BYTES // width) // keys.itemsize
    busy = sum(len(call.rows) * kv_heads * _tiles(call, per_kv)[1] for call in calls)
    widest = max(call.columns.shape[1] for call in calls)
    splits = max(1, min(_WAVES * multiprocessors(query.device) // busy, widest // tile))
    sums = query.new_empty((splits, laid, heads, value_width), dtype=torch.float32)
    logs = query.new_empty((splits, laid, heads), dtype=torch.float32)
    ahead = 0  # rows of the calls before
    for call in calls:
        groups, rows = call.rows.shape
        columns = call.columns.shape[1]
        lines, tiles = _tiles(call, per_kv)
        programs().attend_split[groups * kv_heads, tiles, splits](
            query,
            keys,
            values,
            call.rows,
            call.columns,
            call.mask,
            call.row_positions,
            call.column_positions,
            sums,
            logs,
            scale * math.log2(math.e),
            0 if window is None else window,
            rows,
            columns,
            call.heads,
            query.stride(0),
            keys.stride(0),
            values.stride(0),
            ahead,
            laid,
            math.ceil(columns / (splits * tile)) * tile,  # columns of one split
            KV_HEADS=kv_heads,
            PER_KV=per_kv,
            WINDOWED=window is not None,
            M=lines,
            N=tile,
            D=width,
            DV=value_width,
            num_warps=4,
            num_stages=2,
        )
        ahead += groups * rows
    out = query.new_empty((total, heads, value_width))
    together = power(splits)
    programs().join_splits[total, heads](
        sums,
        logs,
        places,
        out,
        laid,
        splits,
        HEADS=heads,
        PLACED=places is not None,
        S=together,
        DV=value_width,
        num_warps=min(8, max(1, together * value_width // 2048)),
    )
    return out


def _tiles(call: Call, per_kv: int) -> tuple[int, int]:
    """Lines of a tile, and how many of those a group of the call fills."""
    lines = call.rows.shape[1] * per_kv
    tile = min(_MOST_LINES, max(_LEAST, power(lines)))
    return tile, math.ceil(lines / tile)


def rotate_and_keep(
    qkv: Tensor,
    rotations: Tensor,
    at: Tensor,
    write: Tensor,
    keys: Tensor,
    values: Tensor,
    norm: tuple[Tensor, float] | None,
) -> None:
    """Normalises and rotates queries and keys in place, and writes keys and values into the pool.

    `qkv` is (rows, heads + 2 kv heads, width) and contiguous; `rotations` (positions, 2, width) holds cosines and sines, those of the
    first half negative. `at` and `write` are each row's place in them and its slot, (rows,). `norm` is the weight (heads + kv heads,
    width) and the epsilon of a root mean square norm of each head (Qwen 3).
    """
    rows, heads, width = qkv.shape
    weight, epsilon = (qkv, 0.0) if norm is None else norm
    programs().rotate_head[rows, heads](
        qkv,
        rotations,
        at,
        write,
        keys,
        values,
        weight,
        epsilon,
        keys.stride(0),
        values.stride(0),
        HEADS=heads - 2 * len(keys),
        KV_HEADS=len(keys),
        NORMED=norm is not None,
        D=width,
        HALF=width // 2,
        num_warps=1,
    )


def gate(gate_up: Tensor) -> Tensor:
    """SiLU of the first half of each row times the second: (rows, 2 n) -> (rows, n)."""
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, n))
    programs().gate_piece[rows, math.ceil(n / _GATES)](gate_up, out, n, N=_GATES, num_warps=4)
    return out


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm of each row (Zhang and Sennrich, 2019): (rows, n)."""
    rows, n = x.shape
    out = torch.empty_like(x)
    size = power(n)
    warps = min(16, max(1, size // 512))
    programs().norm_row[(rows,)](x, weight, out, n, epsilon, N=size, num_warps=warps)
    return out
