"""
Draws by the kernels of a GPU are those of the operations that they replace, token by token.

They run on a GPU, or on a CPU where Triton is installed and interprets them (`TRITON_INTERPRET=1`).
"""

import math

import pytest
import torch
from conftest import INTERPRETED, KERNEL_DTYPES, KERNELS_ON, needs_kernels

from langchain_pareto.backends import logit_passes, sampling
from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.draws import Row
from langchain_pareto.backends.keys import root_key
from langchain_pareto.backends.sampling import Sampler

pytestmark = needs_kernels
ROWS = 4 if INTERPRETED else 64
SETTINGS = [
    Sampling(0.0),
    Sampling(1.0),
    Sampling(0.3),
    Sampling(0.01),
    Sampling(1e-40),
    Sampling(0.7, top_k=50, top_p=0.9),
    Sampling(1.0, top_p=0.999),  # wide: goes on to the race over everything
    Sampling(1.0, min_p=0.02),
]


def both(logits: torch.Tensor, rows: list[Row], monkeypatch: pytest.MonkeyPatch, **kwargs: bool):
    """What the host gets of draws without and with the kernels."""
    out = []
    for kernels in (False, True):
        for module in (sampling, logit_passes):
            monkeypatch.setattr(module, "usable", lambda _, kernels=kernels: kernels)
        out.append(Sampler().draw(logits.to(KERNELS_ON), rows, **kwargs).to_host())
    return out


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("vocab", [97, 4096, 4097, 50_001])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_same_tokens(vocab, spread, dtype, monkeypatch):
    """For every setting, flat logits and peaked ones, ties among them, alone and mixed in one batch."""
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(ROWS, vocab, generator=generator) * spread).to(dtype)
    logits[:, vocab // 2] = logits[:, vocab // 3]
    mixed = [Row(root_key(i, [1]), i, SETTINGS[i % len(SETTINGS)]) for i in range(ROWS)]
    alike = [[Row(root_key(i, [2]), 5 + i, s) for i in range(ROWS)] for s in SETTINGS]
    for rows in (mixed, *alike):
        plain, kernels = both(logits, rows, monkeypatch)
        assert plain.tokens == kernels.tokens
        assert plain.finite == kernels.finite


def test_broken_rows_are_told_and_give_a_valid_token(monkeypatch):
    """NaN anywhere, infinity, and nothing but -inf; rows beside them are drawn as ever."""
    vocab = 5000
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(3))
    logits[1, 4321] = math.nan
    logits[2, 17] = math.inf
    logits[3] = -math.inf
    logits[4, 100:] = -math.inf
    for setting in SETTINGS:
        rows = [Row(root_key(i, [1]), i, setting) for i in range(6)]
        plain, kernels = both(logits, rows, monkeypatch)
        assert kernels.finite == plain.finite == [True, False, False, False, True, True]
        assert all(0 <= token < vocab for token in kernels.tokens)
        for i in (0, 4, 5):
            assert plain.tokens[i] == kernels.tokens[i]


def test_statistics_and_rows_that_are_apart(monkeypatch):
    """Logits may be a slice of something wider, and statistics are those of before."""
    wide = torch.randn(3, 12_000, generator=torch.Generator().manual_seed(4)).to(KERNELS_ON)
    rows = [Row(root_key(i, [1]), i, Sampling(0.8)) for i in range(3)]
    for logits in (wide[:, 1000:7000], wide[:, ::2]):
        plain, kernels = both(logits, rows, monkeypatch, stats=True)
        assert plain.tokens == kernels.tokens
        assert plain.logprobs == pytest.approx(kernels.logprobs)
