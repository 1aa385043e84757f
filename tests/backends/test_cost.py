"""The closed forms of the cost model against sums over tokens and layers."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from langchain_pareto.backends import cost
from langchain_pareto.backends.base import ModelSpec, Request, Sampling, Stop

WINDOWS = st.one_of(st.none(), st.integers(1, 40))


def spec(windows):
    return ModelSpec(
        name="any",
        dtype="float32",
        device="cpu",
        vocabulary=100,
        hidden=16,
        heads=4,
        kv_heads=2,
        head_dim=4,
        windows=tuple(windows),
        matmul_parameters=5000,
        weight_bytes=30_000,
        kv_bytes_per_token=64,
        context_length=4096,
    )


@given(st.integers(0, 60), st.integers(0, 60), WINDOWS)
def test_attended_is_the_sum_over_positions(start, n, window):
    """Every position attends to itself and what is before it, inside the window."""
    expected = sum(min(p + 1, window or p + 1) for p in range(start, start + n))
    assert cost.attended(start, start + n, window) == expected


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.lists(WINDOWS, min_size=1, max_size=5),
    st.integers(0, 50),
)
def test_flops_are_the_sum_over_tokens_and_layers(start, n, windows, rows):
    """Two FLOPs a weight and token, two a vocabulary weight and row, four a head, width and attended token."""
    s = spec(windows)
    expected = 2 * s.hidden * s.vocabulary * rows
    for p in range(start, start + n):
        expected += 2 * s.matmul_parameters
        for window in windows:
            expected += 4 * s.heads * s.head_dim * min(p + 1, window or p + 1)
    assert cost.forward_flops(s, start, start + n, rows) == expected


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6), st.lists(WINDOWS, min_size=1, max_size=3)
)
def test_chunks_cost_what_the_whole_costs(chunks, windows):
    """However a prefill is cut, its FLOPs are the same."""
    s, at, total = spec(windows), 0, 0
    for n in chunks:
        total += cost.forward_flops(s, at, at + n, 0)
        at += n
    assert total == cost.forward_flops(s, 0, at, 0)


def test_bytes_are_weights_and_slots():
    """A forward reads all weights once, reads the union of slots, and writes its tokens."""
    assert cost.forward_bytes(spec([None]), slots_read=10, tokens=3) == 30_000 + 64 * 13


def test_a_request_without_draws_is_its_prefill():
    """Scoring a prompt costs no logits; a request of no branches holds its prefill."""
    s = spec([None, 8])
    request = Request(context=5, prefill=20)
    assert cost.worst_flops(s, request) == cost.forward_flops(s, 5, 25, 0)
    assert cost.kv_bytes(s, request) == 20 * 64


def test_states_are_moved_by_sequence_and_updated_by_token():
    """A recurrent state is read and written once a sequence and step, updated for each token, and held once a branch."""
    plain = spec([None])
    s = replace(plain, state_bytes_per_sequence=5000, state_flops_per_token=70)
    assert cost.forward_bytes(s, 10, 3, 2) == cost.forward_bytes(plain, 10, 3, 2) + 2 * 2 * 5000
    assert cost.forward_flops(s, 4, 9, 1) == cost.forward_flops(plain, 4, 9, 1) + 5 * 70
    for n in (0, 1, 6):
        request = Request(context=5, prefill=20, n=n, max_tokens=8)
        assert cost.kv_bytes(s, request) == cost.kv_bytes(plain, request) + max(1, n) * 5000


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2", "mamba2", "qwen3_next"])
def test_no_request_costs_more_than_its_worst_case(make_backend, name):
    """What the engine meters stays below what was estimated beforehand, and meets it when all is drawn."""
    backend = make_backend(name, slots=20_000)
    rng = random.Random(1)

    def metered():
        return backend.engine.call(lambda: backend.engine.meter.flops).result(60)

    for i in range(12):  # prompts that share nothing
        tokens = [i, *[rng.randrange(256) for _ in range(rng.randint(0, 60))]]
        n, max_tokens = rng.randint(1, 4), rng.randint(1, 12)
        root, before = backend.open(tokens), metered()
        children = root.fork(n)
        tasks = [
            backend.extend(child, Sampling(), Stop(max_tokens, eos=False)) for child in children
        ]
        for task in tasks:
            task.future.result(60)
        spent = metered() - before
        worst, held = backend.estimate(Request(0, len(tokens), n, max_tokens))
        exact, _ = backend.estimate(
            Request(0, len(tokens) - 1, n, max_tokens)
        )  # the last is pending
        assert spent == exact <= worst
        spec = backend.spec
        kv = (len(tokens) + n * max_tokens) * spec.kv_bytes_per_token
        assert held == kv + n * spec.state_bytes_per_sequence
        before = metered()  # the prompt is cached now
        backend.extend(backend.open(tokens), Sampling(), Stop(1, eos=False)).future.result(60)
        assert metered() - before == backend.estimate(Request(len(tokens) - 1, 0, 1, 1))[0]
