"""
Triton programs: each is one tile, head, row or block of what a step computes between its matrix products, and of its draws.

Knows addresses and strides; `gpu_layers.py` and `gpu_draws.py` say how many of each run, and over what. Sums are float32, and products of
float32 are not rounded to TF32.
"""

import triton
import triton.language as tl

# Integers for which Triton must not compile another program where they are 1, or a multiple of 16, and pointers where they are aligned:
# these change from step to step.
_ATTENDED = (
    "rows columns row_positions column_positions window row_count mask_heads ahead laid".split()
)
_JOINED = "places laid splits".split()
_ROTATED = "at write".split()
_DRAWN = "words stride step".split()

_LOG2E = tl.constexpr(1.4426950408889634)
_NOISE_A = tl.constexpr(0x21F0AAAD)  # as in `sampling`
_NOISE_B = tl.constexpr(0x735A2D97)


@triton.jit(do_not_specialize=_ATTENDED)
def attend_split(
    query,
    keys,
    values,
    rows,
    columns,
    mask,
    row_positions,
    column_positions,
    sums,
    logs,
    scale,
    window,
    row_count,
    column_count,
    mask_heads,
    query_stride,
    key_stride,
    value_stride,
    ahead,
    laid,
    share,
    KV_HEADS: tl.constexpr,
    PER_KV: tl.constexpr,
    WINDOWED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
):
    """One tile of a group's rows and heads over one split of its columns."""
    group = tl.program_id(0) // KV_HEADS
    head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(2)
    line = tl.program_id(1) * M + tl.arange(0, M)  # of the group's rows times heads
    row = line // PER_KV
    real = row < row_count
    d = tl.arange(0, D)
    dv = tl.arange(0, DV)
    of = head * PER_KV + line % PER_KV  # which query head
    packed = tl.load(rows + group * row_count + row, mask=real, other=0)
    q = tl.load(
        query + packed[:, None] * query_stride + (of * D)[:, None] + d[None, :],
        mask=real[:, None],
        other=0.0,
    )
    own = tl.zeros((M,), tl.int64)
    if WINDOWED:
        own = tl.load(row_positions + group * row_count + row, mask=real, other=0)
    key_base = keys + head.to(tl.int64) * key_stride
    value_base = values + head.to(tl.int64) * value_stride
    mask_base = mask + ((group * row_count + row).to(tl.int64) * mask_heads * column_count)[:, None]
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    out = tl.zeros((M, DV), tl.float32)
    stop = tl.minimum(column_count, (split + 1) * share)
    for start in range(split * share, stop, N):
        n = start + tl.arange(0, N)
        inside = n < stop
        slot = tl.load(columns + group * column_count + n, mask=inside, other=0)
        k = tl.load(key_base + slot[None, :] * D + d[:, None])
        score = tl.dot(q, k, input_precision="ieee") * scale
        seen = tl.load(
            mask_base + n[None, :], mask=real[:, None] & inside[None, :], other=float("-inf")
        )
        score += seen.to(tl.float32)
        if WINDOWED:
            at = tl.load(column_positions + group * column_count + n, mask=inside, other=0)
            score = tl.where(own[:, None] - at[None, :] >= window, float("-inf"), score)
        higher = tl.maximum(top, tl.max(score, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(score - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(p, 1)
        v = tl.load(value_base + slot[:, None] * DV + dv[None, :])
        out = out * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = higher
    some = total > 0
    out = out / tl.where(some, total, 1.0)[:, None]
    log = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    place = (split * laid + ahead + group * row_count + row).to(tl.int64) * (KV_HEADS * PER_KV) + of
    tl.store(logs + place, log, mask=real)
    tl.store(sums + place[:, None] * DV + dv[None, :], out, mask=real[:, None])


@triton.jit(do_not_specialize=_JOINED)
def join_splits(
    sums,
    logs,
    places,
    out,
    laid,
    splits,
    HEADS: tl.constexpr,
    PLACED: tl.constexpr,
    S: tl.constexpr,
    DV: tl.constexpr,
):
    """One head of one row: the splits' results, weighted by what each saw."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    source = row.to(tl.int64)
    if PLACED:
        source = tl.load(places + row)
    s = tl.arange(0, S)
    dv = tl.arange(0, DV)
    there = s < splits
    place = (s * laid + source) * HEADS + head
    log = tl.load(logs + place, mask=there, other=float("-inf"))
    weight = tl.exp2(log - tl.max(log, 0))
    parts = tl.load(sums + place[:, None] * DV + dv[None, :], mask=there[:, None], other=0.0)
    whole = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + (row * HEADS + head) * DV + dv, whole.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=_ROTATED)
def rotate_head(
    qkv,
    rotations,
    at,
    write,
    keys,
    values,
    weight,
    epsilon,
    key_stride,
    value_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    NORMED: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
):
    """One head of one row."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    base = qkv + (row * (HEADS + 2 * KV_HEADS) + head).to(tl.int64) * D
    slot = tl.load(write + row)
    if head >= HEADS + KV_HEADS:
        own = (head - HEADS - KV_HEADS).to(tl.int64)
        tl.store(values + own * value_stride + slot * D + d, tl.load(base + d))
    else:
        turned = (d + HALF) % D
        x = tl.load(base + d).to(tl.float32)
        other = tl.load(base + turned).to(tl.float32)
        if NORMED:
            size = tl.rsqrt(tl.sum(x * x, 0) / D + epsilon)
            x = x * size * tl.load(weight + head * D + d).to(tl.float32)
            other = other * size * tl.load(weight + head * D + turned).to(tl.float32)
        rotation = rotations + tl.load(at + row) * (2 * D)
        cos = tl.load(rotation + d).to(tl.float32)
        sin = tl.load(rotation + D + d).to(tl.float32)
        y = (x * cos + other * sin).to(qkv.dtype.element_ty)
        tl.debug_barrier()  # both halves are read before either is written
        tl.store(base + d, y)
        if head >= HEADS:
            of = (head - HEADS).to(tl.int64)
            tl.store(keys + of * key_stride + slot * D + d, y)


@triton.jit
def gate_piece(gate_up, out, n, N: tl.constexpr):
    """A piece of one row."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * N + tl.arange(0, N)
    gate = tl.load(gate_up + row * 2 * n + i, mask=i < n, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * n + n + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(out + row * n + i, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=i < n)


@triton.jit
def _mixed(h, first, second):
    """Words of tokens, mixed with the two words of a draw: what `sampling` does, bit for bit."""
    h = (h ^ first) * _NOISE_A
    return ((h ^ (h >> 15)) ^ second) * _NOISE_B


@triton.jit(do_not_specialize=_DRAWN)
def find_peaks(x, peaks, vocabulary, blocks, stride, BLOCK: tl.constexpr, K: tl.constexpr):
    """The largest of each of `K` blocks of one row; a NaN is the largest."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * K + tl.arange(0, K)
    i = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    value = tl.load(x + row * stride + i, mask=i < vocabulary, other=float("-inf")).to(tl.float32)
    broken = tl.max((value != value).to(tl.int32), 1) > 0  # noqa: PLR0124 - NaN
    peak = tl.where(broken, float("nan"), tl.max(value, 1))
    tl.store(peaks + row * blocks + block, peak, mask=block < blocks)


@triton.jit
def _top(peaks, row, blocks, B: tl.constexpr):
    """The largest logit of a row without its NaN, and whether it is a finite number and there is no NaN."""
    b = tl.arange(0, B)
    peak = tl.load(peaks + row * blocks + b, mask=b < blocks, other=float("-inf"))
    number = peak == peak  # noqa: PLR0124 - not NaN
    top = tl.max(tl.where(number, peak, float("-inf")), 0)
    broken = tl.max(tl.where(number, 0, 1), 0)  # 1 where there is a NaN
    return top, (tl.abs(top) < float("inf")) & (broken == 0)


@triton.jit(do_not_specialize=_DRAWN)
def find_bounds(
    x,
    peaks,
    table,
    words,
    inverse,
    bounds,
    vocabulary,
    blocks,
    stride,
    step,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
    B: tl.constexpr,
):
    """The logarithm of the largest p / |noise| of each of `K` blocks of one row, up to a number a row."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * K + tl.arange(0, K)
    i = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = i < vocabulary
    value = tl.load(x + row * stride + i, mask=inside, other=float("-inf")).to(tl.float32)
    rate = tl.load(inverse + row * step).to(tl.float32) * _LOG2E
    rate = tl.minimum(rate, 3e38)  # infinity times the top's distance from itself would be NaN
    h = tl.load(table + i, mask=inside, other=0)
    h = _mixed(h, tl.load(words + 2 * row), tl.load(words + 2 * row + 1))
    top, _ = _top(peaks, row, blocks, B)
    bound = (value - top) * rate - tl.log2(tl.abs(h.to(tl.float32)))
    tl.store(bounds + row * blocks + block, tl.max(bound, 1), mask=block < blocks)


@triton.jit(do_not_specialize=_DRAWN)
def find_winner(
    x,
    peaks,
    table,
    words,
    inverse,
    chosen,
    drawn,
    vocabulary,
    blocks,
    stride,
    step,
    ALL: tl.constexpr,
    BLOCK: tl.constexpr,
    BEST: tl.constexpr,
    B: tl.constexpr,
):
    """The token of one row with the largest ln(p / E) in the chosen blocks, or in all, in float64; and whether the row is in order."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BEST)
    block = k.to(tl.int64) if ALL else tl.load(chosen + row * BEST + k)
    i = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (i < vocabulary) & (block < blocks)[:, None]
    value = tl.load(x + row * stride + i, mask=inside, other=float("-inf"))
    h = tl.load(table + i, mask=inside, other=0)
    h = _mixed(h, tl.load(words + 2 * row), tl.load(words + 2 * row + 1))
    whole = (tl.zeros((1, 1), tl.int64) + 2147483649).to(tl.float64)  # no constant of float32 is
    u = (tl.abs(h.to(tl.float64)) + 0.5) / whole
    # below 1, and off by rounding: what is lost is made good (log1p as in Goldberg 1991, theorem 4)
    rest = 1.0 - u
    log = tl.log(rest) * (-u / (rest - 1.0))
    top, fine = _top(peaks, row, blocks, B)
    height = value.to(tl.float32).to(tl.float64) - top.to(tl.float64)
    score = height * tl.load(inverse + row * step) - tl.log(-log)
    score = tl.where(score == score, score, float("-inf"))  # noqa: PLR0124 - NaN
    best = tl.max(tl.max(score, 1), 0)
    token = tl.min(tl.min(tl.where(score == best, i, vocabulary), 1), 0)
    tl.store(drawn + 2 * row, tl.minimum(token, vocabulary - 1).to(tl.float64))
    tl.store(drawn + 2 * row + 1, fine.to(tl.float64))


@triton.jit(do_not_specialize=_DRAWN)
def find_largest(x, peaks, drawn, vocabulary, blocks, stride, BLOCK: tl.constexpr, B: tl.constexpr):
    """The first of one row's largest logits, by the peaks of its blocks, NaN aside; and whether the row is in order."""
    row = tl.program_id(0).to(tl.int64)
    top, fine = _top(peaks, row, blocks, B)
    b = tl.arange(0, B)
    peak = tl.load(peaks + row * blocks + b, mask=b < blocks, other=float("nan"))
    block = tl.min(tl.where(peak == top, b, blocks), 0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * stride + i, mask=i < vocabulary, other=float("nan")).to(tl.float32)
    token = tl.min(tl.where(value == top, i, vocabulary), 0)
    tl.store(drawn + 2 * row, tl.minimum(token, vocabulary - 1).to(tl.float64))
    tl.store(drawn + 2 * row + 1, fine.to(tl.float64))


@triton.jit
def norm_row(x, weight, out, n, epsilon, N: tl.constexpr):
    """The root mean square norm of one row."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N)
    value = tl.load(x + row * n + i, mask=i < n, other=0.0).to(tl.float32)
    size = tl.rsqrt(tl.sum(value * value, 0) / n + epsilon)
    scaled = value * size * tl.load(weight + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(out + row * n + i, scaled.to(out.dtype.element_ty), mask=i < n)
