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

from langchain_pareto.backends.gpu_support import multiprocessors, programs
from langchain_pareto.backends.step_plan import Call

_TILE_BYTES = 128  # of one head's element in all columns of a tile: what fits beside the rest into 99 KB of shared memory
_HEAD_BYTES = 512  # of one head's keys or values of a token, for the same reason
_MOST_LINES = 64  # rows times heads of one tile: more spill registers at a head width of 128
_LEAST = 16  # lines and widths that a matrix product of Triton takes
_WAVES = 2  # programs for each multiprocessor: where fewer are at work, columns are split
_GATES = 1024  # of one program


def fits(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `attend` takes heads of these widths."""
    return all(
        _LEAST <= (n := x.shape[2]) <= _HEAD_BYTES // x.itemsize and n & (n - 1) == 0
        for x in (query, keys, values)
    )


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

    `query` is (rows, heads, width), its last two dimensions contiguous; `keys` and `values` are one layer's pools, (kv heads, slots,
    width). `places` (rows,) tells where each row's result is in the rows of the calls laid end to end; None where they are in that
    order.
    """
    kernels = programs()
    total, heads, width = query.shape
    kv_heads, value_width = keys.shape[0], values.shape[2]
    per_kv = heads // kv_heads
    tile_columns = _TILE_BYTES // keys.itemsize
    laid = sum(call.rows.numel() for call in calls)
    lines = [call.rows.shape[1] * per_kv for call in calls]
    tiles = [min(_MOST_LINES, max(_LEAST, 1 << (n - 1).bit_length())) for n in lines]
    busy = sum(
        len(call.rows) * kv_heads * math.ceil(n / tile)
        for call, n, tile in zip(calls, lines, tiles, strict=True)
    )
    widest = max(call.columns.shape[1] for call in calls)
    splits = max(1, min(_WAVES * multiprocessors(query.device) // busy, widest // tile_columns))
    sums = query.new_empty((splits, laid, heads, value_width), dtype=torch.float32)
    logs = query.new_empty((splits, laid, heads), dtype=torch.float32)
    ahead = 0  # rows of the calls before
    for call, n, tile in zip(calls, lines, tiles, strict=True):
        groups, rows = call.rows.shape
        columns = call.columns.shape[1]
        kernels.attend_split[groups * kv_heads, math.ceil(n / tile), splits](
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
            math.ceil(columns / (splits * tile_columns)) * tile_columns,  # of one split
            KV_HEADS=kv_heads,
            PER_KV=per_kv,
            WINDOWED=window is not None,
            M=tile,
            N=tile_columns,
            D=width,
            DV=value_width,
            num_warps=4,
        )
        ahead += groups * rows
    out = query.new_empty((total, heads, value_width))
    kernels.join_splits[total, heads](
        sums,
        logs,
        places,
        out,
        laid,
        splits,
        HEADS=heads,
        PLACED=places is not None,
        S=1 << (splits - 1).bit_length(),
        DV=value_width,
        num_warps=1,
    )
    return out


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
    size = 1 << (n - 1).bit_length()
    warps = min(16, max(1, size // 512))
    programs().norm_row[(rows,)](x, weight, out, n, epsilon, N=size, num_warps=warps)
    return out
