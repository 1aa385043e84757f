"""Keyed draws against a slow, obvious reference: numpy, float64, the whole vocabulary."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.draws import HostDraws, Row
from langchain_pareto.backends.keys import MASK64, child_key, root_key
from langchain_pareto.backends.logit_passes import named_logprobs
from langchain_pareto.backends.sampling import Sampler

Floats = NDArray[np.float64]
PLAIN = Sampling(temperature=1.0)
ROOT, CHILD = 14480071847300980454, 3065924906642835985  # of seed 0 and prompt 1 2 3


def mix64(z: int) -> int:
    """splitmix64's finalizer."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def exponentials(key: int, position: int, vocab: int) -> Floats:
    """E(key, position, t) for every t, written out with 64-bit integers and masks."""
    keyed = mix64((key & MASK64) ^ 0x5851F42D4C957F2D)
    word = mix64((keyed + position * 0x9E3779B97F4A7C15) & MASK64)
    x: NDArray[np.uint64] = np.arange(vocab, dtype=np.uint64)
    low, sign = np.uint64(0xFFFFFFFF), np.uint64(0x80000000)
    first, second = np.uint64(word & 0xFFFFFFFF), np.uint64(word >> 32)
    u = np.uint64
    x = ((x ^ (x >> u(16))) * u(0x85EBCA6B)) & low
    x = ((x ^ (x >> u(13))) * u(0xC2B2AE35)) & low
    x = x ^ (x >> u(16)) ^ u(0x9E3779B9)
    x = ((x ^ first) * u(0x21F0AAAD)) & low
    x = x ^ (x >> u(15)) ^ ((x & sign) >> u(31)) * u(0xFFFE0000)  # the shift keeps the sign
    x = ((x ^ second) * u(0x735A2D97)) & low
    distance: Floats = np.where(x >= 2**31, 2.0**32 - x.astype(np.float64), x.astype(np.float64))
    noise: Floats = -np.log1p(-(distance + 0.5) / (2**31 + 1))
    return noise


def warped(logits: Floats, row: Row) -> Floats:
    """ln p after every warper in turn, -inf where a token is cut, up to a constant."""
    s, x = row.sampling, logits.astype(np.float32)
    for token, bias in s.logit_bias:
        x[token] += np.float32(bias)
    for token in set(row.history):
        count = list(row.history[row.prompt_length :]).count(token)
        factor = np.float32(s.repetition_penalty)
        x[token] = x[token] * factor if x[token] < 0 else x[token] / factor
        x[token] -= np.float32(s.presence_penalty * (count > 0) + s.frequency_penalty * count)
    if row.allowed is not None:
        banned = np.ones(len(x), bool)
        banned[list(row.allowed)] = False
        x[banned] = -np.inf
    if s.temperature == 0:
        greedy: Floats = np.full(len(x), -np.inf)
        greedy[int(x.argmax())] = 0.0
        return greedy
    logs: Floats = (x.astype(np.float64) - x.max()) / s.temperature
    order = np.argsort(-x, kind="stable")
    if s.top_k:
        logs[order[s.top_k :]] = -np.inf
    p = np.exp(logs)
    if s.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        cut = order[before >= s.top_p * p.sum()]
        logs[cut[cut != order[0]]] = -np.inf
    if s.min_p:
        logs[p < s.min_p] = -np.inf
    return logs


def expected(logits: Tensor, row: Row, index: int) -> int:
    """The reference's draw."""
    logs = warped(logits[index].double().numpy(), row)
    return int((logs - np.log(exponentials(row.key, row.position, len(logs)))).argmax())


def drawn(logits: Tensor, rows: Sequence[Row], *, stats: bool = False) -> HostDraws:
    """One batch through a fresh sampler."""
    return Sampler().draw(logits, rows, stats=stats).to_host()


def p_value(observed: NDArray[np.int64], probabilities: Floats) -> float:
    """The chi-square test's."""
    mean = probabilities * observed.sum()
    statistic = ((observed - mean) ** 2 / mean).sum()
    half = torch.tensor([(len(mean) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def random_row(rng: np.random.Generator, vocab: int, *, edits: bool) -> Row:
    """Any warpers at once."""

    def pick(*values: float) -> float:
        return float(rng.choice(values))

    history = [int(t) for t in rng.integers(0, min(vocab, 40), 30)]
    sampling = Sampling(
        temperature=pick(0.0, 0.3, 1.0, 1.0, 2.5),
        top_k=int(pick(0, 0, 1, 3, 50, 300, vocab + 7)),
        top_p=pick(1.0, 1.0, 0.95, 0.5, 0.05),
        min_p=pick(0.0, 0.0, 0.1, 0.001),
        repetition_penalty=pick(1.0, 1.3, 0.8) if edits else 1.0,
        presence_penalty=pick(0.0, 0.7) if edits else 0.0,
        frequency_penalty=pick(0.0, -0.4) if edits else 0.0,
        logit_bias=((2, 1.5), (5, -100.0)) if edits and rng.random() < 0.5 else (),
    )
    allowed = None
    if edits and rng.random() < 0.3:
        allowed = [int(t) for t in rng.choice(vocab, 7, replace=False)]
    key = int(rng.integers(0, 2**63)) * 2 + 1
    return Row(key, int(rng.integers(0, 5000)), sampling, history, 12, allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("vocab", "spread"), [(16, 1.0), (777, 3.0), (4097, 0.4), (9000, 3.0), (20_011, 2.0)]
)
def test_equals_the_reference(vocab: int, spread: float, dtype: torch.dtype) -> None:
    """Mixed batches of every warper give the token that the full computation in float64 gives."""
    rng = np.random.default_rng(vocab)
    for edits in (False, True):
        logits = torch.from_numpy(rng.normal(0, spread, (24, vocab))).to(dtype)
        logits[:, 3:9] += 4
        rows = [random_row(rng, vocab, edits=edits) for _ in range(24)]
        want = [expected(logits, row, i) for i, row in enumerate(rows)]
        assert drawn(logits, rows).tokens == want


@pytest.mark.parametrize(
    "sampling",
    [
        PLAIN,
        Sampling(temperature=0.7, top_k=20),
        Sampling(temperature=1.3, top_p=0.9),
        Sampling(temperature=1.0, top_p=0.9, top_k=5000),
        Sampling(temperature=1.0, min_p=0.2),
        Sampling(temperature=0.0),
        Sampling(temperature=1e-3),
    ],
)
@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
def test_one_setting_for_all_equals_the_reference(sampling: Sampling, spread: float) -> None:
    """Wide nuclei, ties and peaks take different paths to the same definition."""
    logits = (torch.randn(12, 10_000, generator=torch.manual_seed(1)) * spread).bfloat16()
    rows = [Row(root_key(9, [i]), i, sampling) for i in range(12)]
    want = [expected(logits, row, i) for i, row in enumerate(rows)]
    assert drawn(logits, rows).tokens == want


@pytest.mark.parametrize(("vocab", "spread"), [(16, 1.0), (777, 3.0), (4097, 0.4), (20_011, 2.0)])
def test_distributions_equal_the_reference(vocab: int, spread: float) -> None:
    """What rows are drawn from after every warper, in mixed batches with ties: the same tokens are left, with the same probabilities."""
    rng = np.random.default_rng(vocab)
    for edits in (False, True):
        logits = torch.from_numpy(rng.normal(0, spread, (24, vocab))).to(torch.bfloat16)
        rows = [random_row(rng, vocab, edits=edits) for _ in range(24)]
        got = Sampler().distribution(logits, rows).double().numpy()
        for i, row in enumerate(rows):
            logs = warped(logits[i].double().numpy(), row)
            p = np.exp(logs - logs.max())
            assert ((got[i] > 0) == (p > 1e-44)).all()
            np.testing.assert_allclose(got[i], p / p.sum(), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("vocab", [16, 5000, 40_000])
def test_batch_mates_do_not_matter(vocab: int) -> None:
    """A row draws the same token and statistics alone, in a batch, and in another order."""
    rng = np.random.default_rng(5)
    logits = torch.from_numpy(rng.normal(0, 2, (20, vocab))).bfloat16()
    rows = [random_row(rng, vocab, edits=i % 2 == 0) for i in range(20)]
    sampler = Sampler()
    batch = sampler.draw(logits, rows, stats=True).packed
    backwards = sampler.draw(logits.flip(0), rows[::-1], stats=True).packed.flip(0)
    alone = [sampler.draw(logits[i : i + 1], rows[i : i + 1], stats=True).packed for i in range(20)]
    assert torch.equal(batch, backwards)
    assert torch.equal(batch[:, :2], torch.cat(alone)[:, :2])
    torch.testing.assert_close(batch, torch.cat(alone))


def test_marginals_over_positions_keys_and_siblings() -> None:
    """Draws follow p and are independent over positions, keys, siblings and chains."""
    p = np.array([0.4, 0.2, 0.1, 0.1, 0.06, 0.05, 0.05, 0.04])
    n = 60_000
    root = root_key(0, [1, 2])
    chain = [root]
    for _ in range(n - 1):
        chain.append(child_key(chain[-1], 0))
    streams = {
        "positions": [(root, i) for i in range(n)],
        "keys": [(i, 3) for i in range(n)],
        "siblings": [(child_key(root, i), 3) for i in range(n)],
        "chain": [(key, 3) for key in chain],
    }
    sampler = Sampler()
    logits = torch.tensor(np.log(p)).float().expand(n, -1)
    for name, stream in streams.items():
        rows = [Row(key, position, PLAIN) for key, position in stream]
        tokens = sampler.draw(logits, rows).packed[:, 0].long().numpy()
        assert p_value(np.bincount(tokens, minlength=8), p) > 1e-4, name
        pairs = np.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64)
        assert p_value(pairs, np.outer(p, p).ravel()) > 1e-4, name


def test_uniform_over_a_large_vocabulary() -> None:
    """Equal logits give every part of a large vocabulary the same share of the draws."""
    vocab, n = 32_000, 4096
    logits = torch.zeros(1, vocab).expand(256, -1)
    sampler = Sampler()
    tokens = [
        token
        for start in range(0, n, 256)
        for token in sampler.draw(logits, [Row(start + i, 0, PLAIN) for i in range(256)])
        .to_host()
        .tokens
    ]
    ids = np.array(tokens)
    assert p_value(np.bincount(ids * 50 // vocab, minlength=50), np.full(50, 1 / 50)) > 1e-4
    assert p_value(np.bincount(ids % 64, minlength=64), np.full(64, 1 / 64)) > 1e-4


def test_noise_is_shared_between_models() -> None:
    """Two close distributions with one key agree far more often than independent draws would."""
    target = torch.randn(1, 500, generator=torch.manual_seed(2))
    draft = target + 0.1 * torch.randn(1, 500)
    rows = [Row(i, 0, PLAIN) for i in range(2000)]
    same = np.equal(
        drawn(target.expand(2000, -1), rows).tokens, drawn(draft.expand(2000, -1), rows).tokens
    )
    assert same.mean() > 0.85


def test_statistics_are_those_of_the_raw_model() -> None:
    """Log-probability, entropy and mean top-20 ignore every warper, and -inf logits add nothing."""
    rng = np.random.default_rng(3)
    for vocab in (16, 9001):
        logits = torch.from_numpy(rng.normal(0, 3, (10, vocab))).float()
        logits[4, vocab // 2 :] = -math.inf
        rows = [random_row(rng, vocab, edits=i != 4) for i in range(10)]
        draws = drawn(logits, rows, stats=True)
        logs = logits.double().log_softmax(-1)
        want = logs.gather(1, torch.tensor(draws.tokens).unsqueeze(1)).squeeze(1)
        entropies = torch.special.entr(logs.exp()).sum(-1)
        top = logs.topk(min(20, vocab)).values.mean(-1)
        for got, exact in ((draws.logprobs, want), (draws.entropies, entropies)):
            torch.testing.assert_close(torch.tensor(got).double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            torch.tensor(draws.top_logprobs).double(), top, rtol=1e-5, atol=1e-5
        )
        assert drawn(logits, rows).tokens == draws.tokens
        named = named_logprobs(logits, torch.tensor(draws.tokens))
        torch.testing.assert_close(named.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab", [64, 10_000])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_finite_flags(vocab: int, temperature: float, top_p: float) -> None:
    """A NaN or +inf anywhere, or nothing but -inf, is flagged; the token stays a valid id."""
    logits = torch.randn(6, vocab, generator=torch.manual_seed(0))
    logits[1, -1] = math.nan
    logits[2, 7] = math.inf
    logits[3] = -math.inf
    logits[4, 1:] = -math.inf
    rows = [Row(i, 0, Sampling(temperature=temperature, top_p=top_p)) for i in range(6)]
    draws = drawn(logits, rows)
    assert draws.finite == [True, False, False, False, True, True]
    assert draws.tokens[4] == 0
    assert all(0 <= token < vocab for token in draws.tokens)


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    """Temperature 0 is the argmax, and a tie goes to the lowest id in any block."""
    logits = torch.zeros(2, 10_000, dtype=torch.bfloat16)
    logits[0, [130, 9_999, 7_000]] = 1
    draws = drawn(
        logits, [Row(1, 0, Sampling(temperature=0.0)), Row(2, 0, Sampling(temperature=0.0))]
    )
    assert draws.tokens == [130, 0]


def test_top_k_of_the_vocabulary_or_more_is_off() -> None:
    """top_k >= vocabulary draws what no top_k draws."""
    logits = torch.randn(50, 100, generator=torch.manual_seed(0))
    free = drawn(logits, [Row(i, 0, PLAIN) for i in range(50)]).tokens
    for k in (100, 1000):
        rows = [Row(i, 0, Sampling(temperature=1.0, top_k=k)) for i in range(50)]
        assert drawn(logits, rows).tokens == free


def test_warpers_are_those_of_transformers() -> None:
    """Repetition penalty, temperature, top-k, top-p and min-p do what HF's classes do in turn."""
    logits = torch.randn(40, 60, generator=torch.manual_seed(4)) * 2
    history = [1, 2, 3, 2, 50]
    s = Sampling(temperature=0.8, top_k=30, top_p=0.9, min_p=0.03, repetition_penalty=1.4)
    ids = torch.LongTensor([history]).expand(40, -1)
    scores = logits
    for warper in (
        RepetitionPenaltyLogitsProcessor(s.repetition_penalty),
        TemperatureLogitsWarper(s.temperature),
        TopKLogitsWarper(s.top_k),
        TopPLogitsWarper(s.top_p),
        MinPLogitsWarper(s.min_p),
    ):
        scores = warper(ids, scores)  # type: ignore[arg-type]
    rows = [Row(i, 7, s, history, 2) for i in range(40)]
    noise = np.stack([np.log(exponentials(i, 7, 60)) for i in range(40)])
    assert drawn(logits, rows).tokens == (scores.double().numpy() - noise).argmax(1).tolist()


def test_draws_are_fixed_for_ever() -> None:
    """A seed's draws are part of the interface: changing the hash must fail a test."""
    rows = [Row(root_key(0, [1, 2, 3]), i, PLAIN) for i in range(12)]
    assert drawn(torch.zeros(12, 1000), rows).tokens == [
        int((-np.log(exponentials(row.key, row.position, 1000))).argmax()) for row in rows
    ]
    assert root_key(0, [1, 2, 3]) == ROOT
    assert child_key(ROOT, 0) == CHILD
