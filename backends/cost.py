"""
What a request costs in floating-point operations and bytes, from the shape of the model alone.

The same formulas price a request beforehand and meter it afterwards, so a reservation made with them is never exceeded. Per forward
over T new tokens with n_out rows of logits (Kaplan et al. 2020, arXiv 2001.08361, for the factor 2):

    flops = (2 N_mm + state flops) T + 2 h V n_out + sum over attention layers of 4 H D sum_t min(context_t, window)
    bytes = weights + kv_per_token * (slots read + T) + 2 * state * sequences
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from langchain_pareto.backends.base import ModelSpec, Request


def attended(start: int, stop: int, window: int | None) -> int:
    """Sum over positions start <= p < stop of the tokens that p attends to, itself included: min(p + 1, window)."""
    full = (stop * (stop + 1) - start * (start + 1)) // 2
    if window is None or stop <= window:
        return full
    if start >= window:
        return (stop - start) * window
    return attended(start, window, None) + (stop - window) * window


@lru_cache(maxsize=64)
def _layers(windows: tuple[int | None, ...]) -> tuple[tuple[int | None, int], ...]:
    return tuple(Counter(windows).items())


def forward_flops(spec: ModelSpec, start: int, stop: int, rows: int) -> int:
    """FLOPs of computing positions start to stop of one sequence, `rows` of which give logits."""
    attention = sum(n * attended(start, stop, window) for window, n in _layers(spec.windows))
    return (
        (2 * spec.matmul_parameters + spec.state_flops_per_token) * (stop - start)
        + 2 * spec.hidden * spec.vocabulary * rows
        + 4 * spec.heads * spec.head_dim * attention
    )


def forward_bytes(spec: ModelSpec, slots_read: int, tokens: int, sequences: int = 1) -> int:
    """Bytes of weights, of keys and values, and of recurrent states that one forward of so many sequences moves."""
    attention = spec.kv_bytes_per_token * (slots_read + tokens)
    return spec.weight_bytes + attention + 2 * spec.state_bytes_per_sequence * sequences


def worst_flops(spec: ModelSpec, request: Request) -> int:
    """The most FLOPs that a request can take: all of `max_tokens` drawn in each of its branches."""
    start = (
        request.context + request.prefill
    )  # the last token before the draws is pending, and in neither
    prefill = forward_flops(spec, request.context, start, 0)
    if request.n == 0 or request.max_tokens == 0:
        return prefill
    return prefill + request.n * forward_flops(
        spec, start, start + request.max_tokens, request.max_tokens
    )


def kv_bytes(spec: ModelSpec, request: Request) -> int:
    """Bytes that a request adds to the pool at most: keys and values of its tokens, and a recurrent state for each branch."""
    tokens = request.prefill + request.n * max(1, request.max_tokens)
    return spec.kv_bytes_per_token * tokens + spec.state_bytes_per_sequence * max(1, request.n)
