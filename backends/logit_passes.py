"""Passes over whole rows of logits, a chunk of columns at a time: sums over them, peaks of their blocks, statistics.

Knows logits and chosen tokens; knows no key and no sampling setting. On a GPU our own kernels do some of it in one launch.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from langchain_pareto.backends import gpu_draws
from langchain_pareto.backends.gpu_support import usable
from langchain_pareto.backends.logit_blocks import (
    BLOCK,
    SMALL,
    Peaks,
    block_count,
    block_tokens,
    write_peaks,
)

LOG2E = math.log2(math.e)

_CHUNK_CPU, _CHUNK_CUDA = 8192, 65536  # columns; 16 rows of float32 fit into an L2 cache on a CPU
_TOP = 20  # tokens in the mean of `top_logprobs`


def named_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Raw log-softmax of a named token a row, float32, nats: (rows, vocab), (rows,) -> (rows,)."""
    top = logits.amax(-1, keepdim=True).float()  # (rows, 1)
    mass = torch.zeros_like(top)
    for part in torch.split(logits, _CHUNK_CUDA, -1):
        mass += ((part.float() - top) * LOG2E).exp2_().sum(-1, keepdim=True)
    named = logits.gather(1, ids.unsqueeze(1)).float()
    return (named - top - mass.log()).squeeze(1)


class Passes:
    """One thread's passes; holds its scratch memory, no state."""

    def __init__(self) -> None:
        self._scratch: dict[torch.device, Tensor] = {}

    def peaks(self, x: Tensor) -> Tensor:
        """The largest logit of each block of tokens; a NaN is the largest: (rows, blocks)."""
        if usable(x.device):
            return gpu_draws.block_peaks(x)
        peaks = torch.empty((x.shape[0], block_count(x)), device=x.device)
        for start, f, _, _ in self.chunks(x):
            write_peaks(f, start, peaks)
        return peaks

    def mass(
        self, x: Tensor, top: Tensor, inverse_temperature: Tensor, *, weighted: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Sums of e^y and, if weighted, y e^y; y = (x - top) / temperature: each (rows, 1)."""
        rate = inverse_temperature.float() * LOG2E
        mass = torch.zeros((x.shape[0], 1), dtype=torch.float64, device=x.device)
        weights = torch.zeros_like(mass)
        for _, f, _, spare in self.chunks(x):
            f.sub_(top).mul_(rate)
            e = torch.exp2(f, out=spare.view(torch.float32))
            mass += e.sum(-1, keepdim=True)
            if weighted:
                weights += f.clamp_min_(-1e4).mul_(e).sum(-1, keepdim=True)  # -inf * 0 is NaN
        return mass, weights.mul_(math.log(2))

    def mass_ahead(
        self, x: Tensor, top: Tensor, value: Tensor, token: Tensor, inverse_temperature: Tensor
    ) -> Tensor:
        """Mass, as in `mass`, of larger tokens and of equal ones with a lower id: (rows, 1)."""
        rate = inverse_temperature.float() * LOG2E
        below = value.nextafter(torch.full_like(value, -math.inf))
        mass = torch.zeros_like(value, dtype=torch.float64)
        for start, f, h, spare in self.chunks(x):
            lower_id = torch.arange(start, start + f.shape[1], device=x.device) < token
            bar = torch.where(lower_id, below, value, out=spare.view(torch.float32))
            e = torch.sub(f, top, out=h.view(torch.float32)).mul_(rate).exp2_()
            mass += e.masked_fill_(f <= bar, 0.0).sum(-1, keepdim=True)
        return mass

    def statistics(self, logits: Tensor, peaks: Peaks, tokens: Tensor) -> list[Tensor]:
        """Raw log-probability, entropy, mean of the top and the largest, in nats: each (rows, 1)."""
        if logits.shape[1] <= SMALL:
            return _small_statistics(logits, tokens)
        top = peaks.top
        mass, weighted = self.mass(logits, top, torch.ones_like(top), weighted=True)
        log_mass = mass.log()
        drawn = logits.gather(1, tokens).double() - top - log_mass
        entropy = log_mass - weighted / mass
        values, _ = block_tokens(
            logits, peaks.blocks.topk(min(_TOP, block_count(logits)), sorted=False).indices
        )
        best = values.topk(min(_TOP, logits.shape[1]), sorted=False).values
        mean = best.double().mean(-1, keepdim=True) - top - log_mass
        return [drawn, entropy, mean, -log_mass]

    def chunks(self, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Columns of `x` as float32 scratch, chunk by chunk, and two int32 buffers alike."""
        rows, vocab = x.shape
        width = min(_CHUNK_CPU if x.device.type == "cpu" else _CHUNK_CUDA, block_count(x) * BLOCK)
        scratch = self._scratch.get(x.device)
        if scratch is None or scratch.shape[1] < rows * width:
            scratch = torch.empty((3, rows * width), dtype=torch.int32, device=x.device)
            self._scratch[x.device] = scratch
        edges = [*range(0, vocab, width), vocab]
        for start, end in pairwise(edges):
            padded = -(-(end - start) // BLOCK) * BLOCK
            f, h, spare = (part[: rows * padded].view(rows, padded) for part in scratch)
            f = f.view(torch.float32)
            f[:, : end - start].copy_(x[:, start:end])
            f[:, end - start :].fill_(-math.inf)
            yield start, f, h, spare


def _small_statistics(logits: Tensor, tokens: Tensor) -> list[Tensor]:
    """The same as `Passes.statistics`, where the whole distribution is no burden."""
    logs = logits.double().log_softmax(-1)
    best = logs.topk(min(_TOP, logs.shape[1]), sorted=False).values
    entropy = torch.special.entr(logs.exp()).sum(-1, keepdim=True)
    return [
        logs.gather(1, tokens),
        entropy,
        best.mean(-1, keepdim=True),
        best.amax(-1, keepdim=True),
    ]
