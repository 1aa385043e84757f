"""Bias, penalties and constraints; that their values are right is tested with the draws, against a reference."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.constraint import TokenMask
from langchain_pareto.backends.draws import HostDraws, Row
from langchain_pareto.backends.sampling import Sampler
from langchain_pareto.backends.warpers import edit
from langchain_pareto.errors import SettingError

PLAIN = Sampling(temperature=1.0)


def drawn(logits: Tensor, rows: Sequence[Row]) -> HostDraws:
    """One batch through a fresh sampler."""
    return Sampler().draw(logits, rows).to_host()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_allowed_token(temperature: float) -> None:
    """A constraint that leaves one token gives it, even if the model gives it no probability."""
    logits = torch.zeros(3, 5000)
    logits[0, 4321] = -math.inf
    s = Sampling(temperature=temperature)
    rows = [Row(1, 0, s, allowed=[4321]), Row(1, 0, s, allowed=[7]), Row(1, 0, s)]
    assert drawn(logits, rows).tokens[:2] == [4321, 7]
    assert drawn(logits, rows).tokens[2] == drawn(logits[2:], rows[2:]).tokens[0]


@pytest.mark.parametrize("bad", [{"allowed": []}, {"allowed": [100]}, {"allowed": [-1]}])
def test_tokens_outside_the_vocabulary_are_refused(bad: dict[str, list[int]]) -> None:
    """So is a constraint that allows nothing."""
    with pytest.raises(SettingError, match="allowed"):
        drawn(torch.zeros(1, 100), [Row(1, 0, PLAIN, allowed=bad["allowed"])])
    with pytest.raises(SettingError, match="biased token 100"):
        drawn(torch.zeros(1, 100), [Row(1, 0, Sampling(logit_bias=((100, 1.0),)))])


def test_presence_and_frequency_read_the_output_only() -> None:
    """Tokens of the prompt are not penalised; counts of the output are."""
    logits = torch.tensor([[1.0, 0.9, 0.0, 0.0]])
    greedy = Sampling(temperature=0.0, presence_penalty=0.05, frequency_penalty=0.03)
    assert drawn(logits, [Row(1, 0, greedy, [0, 0, 0], 3)]).tokens == [0]
    assert drawn(logits, [Row(1, 0, greedy, [0, 0, 0], 2)]).tokens == [0]
    assert drawn(logits, [Row(1, 0, greedy, [0, 0, 0], 1)]).tokens == [1]


def test_a_mask_that_bars_little_bars_exactly_that() -> None:
    """Whether a mask has few tokens, nearly all, or something between, in rows side by side: the same as token by token."""
    vocab = 1003
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(0))
    barred = [(), (0,), (5, 17, 1002), tuple(range(7, 900)), tuple(range(3, 1003, 2)), (1, 2)]
    rows = [
        Row(i, 0, PLAIN, (), 0, TokenMask.of(set(range(vocab)) - set(bars)))
        for i, bars in enumerate(barred)
    ]
    edited = edit(logits, rows)
    for row, (got, bars) in enumerate(zip(edited, barred, strict=True)):
        kept = [t for t in range(vocab) if t not in set(bars)]
        assert torch.equal(got[kept], logits[row][kept])
        assert torch.isneginf(got[list(bars)]).all()
