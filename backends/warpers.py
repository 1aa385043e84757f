"""Warpers: what a row's settings do to its logits before the draw.

Bias, penalties and constraints edit the logits; temperature, top-k, top-p and min-p stay numbers
until the draw, which applies them to the few tokens that it looks at. Knows logits, settings and
token histories; nothing of keys and noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.constraint import TokenMask
from langchain_pareto.backends.draws import Row
from langchain_pareto.errors import SettingError

_RANKED = 128  # tokens ranked at first for top-k, top-p and min-p
_FULL, _LITTLE = 0xFF, 64  # of a byte's tokens; one of so many of the vocabulary
_CHUNK = 8192  # columns; a multiple of 8
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8), bitorder="little").astype(np.int8)
_SIGNS = (2 * _BITS - 1).view(np.int64)  # of each byte: its eight bits as 1 and -1, a byte each


@dataclass(slots=True)
class Warpers:
    """Warpers as tensors (rows, 1), or (1, 1) where all rows share them; neutral where off."""

    inverse_temperature: Tensor  # float64
    top_k: Tensor  # int64
    top_p: Tensor  # float64
    log_min_p: Tensor  # float64
    ranked: int  # tokens to rank at first
    needs_mass: bool  # whether top-p refers to the whole vocabulary in any row

    @classmethod
    def of(cls, samplings: Sequence[Sampling], x: Tensor) -> "Warpers":
        """Those of each row of logits `x` (rows, vocab), on its device."""
        vocab = x.shape[1]
        top_k = [s.top_k if 0 < s.top_k < vocab else vocab for s in samplings]
        columns = [
            [1 / s.temperature if s.temperature else 1.0 for s in samplings],
            [s.top_p if s.top_p < 1 else math.inf for s in samplings],
            [math.log(s.min_p) if s.min_p > 0 else -math.inf for s in samplings],
        ]
        floats = torch.tensor(columns, dtype=torch.float64).unsqueeze(2).to(x.device)
        widest = max((k for k in top_k if k < vocab), default=0)
        return cls(
            inverse_temperature=floats[0],
            top_k=torch.tensor(top_k).unsqueeze(1).to(x.device),
            top_p=floats[1],
            log_min_p=floats[2],
            ranked=max(_RANKED, 1 << (2 * widest - 1).bit_length() if widest else 0),
            needs_mass=any(
                k == vocab and s.top_p < 1 for k, s in zip(top_k, samplings, strict=True)
            ),
        )

    def take(self, at: Tensor) -> "Warpers":
        """Those of some of the rows."""
        if len(self.top_k) == 1:
            return self
        return Warpers(
            inverse_temperature=self.inverse_temperature[at],
            top_k=self.top_k[at],
            top_p=self.top_p[at],
            log_min_p=self.log_min_p[at],
            ranked=self.ranked,
            needs_mass=self.needs_mass,
        )


def prefix(
    values: Tensor, top: Tensor, warpers: Warpers, mass: Tensor, vocab: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which of some ranked tokens top-k, top-p and min-p keep, a prefix: log weights, kept, each (rows, ranked), and done, (rows, 1).

    `done` says whether the prefix surely ends there. It does if it ends above the lowest value: tokens left out may tie with that
    one only. `mass` is that of the whole vocabulary, read where `warpers.needs_mass`.
    """
    logs = (values.double() - top) * warpers.inverse_temperature
    place = torch.arange(values.shape[1], device=values.device)
    kept = place < warpers.top_k.expand_as(top)
    p = logs.exp().masked_fill_(~kept, 0.0)
    through = p.cumsum(-1)
    total = torch.where(warpers.top_k < vocab, through[:, -1:], mass)
    kept &= through - p < warpers.top_p * total
    kept &= logs >= warpers.log_min_p
    kept[:, 0] = True
    last = kept.sum(-1, keepdim=True) - 1
    done = values.gather(1, last) > values[:, -1:]
    if values.shape[1] == vocab:
        done = torch.ones_like(done)
    return logs, kept, done


def edit(logits: Tensor, rows: Sequence[Row]) -> Tensor | None:
    """Logits after bias, penalties and constraint, in a float32 copy; None where no row has any."""
    biased = [i for i, row in enumerate(rows) if row.sampling.logit_bias]
    penalised = [i for i, row in enumerate(rows) if row.sampling.penalised and len(row.history)]
    constrained = [i for i, row in enumerate(rows) if row.allowed is not None]
    if not (biased or penalised or constrained):
        return None
    x = logits.to(torch.float32, copy=True)
    if biased:
        pairs = [list(zip(*rows[i].sampling.logit_bias, strict=True)) for i in biased]
        at = _places(biased, [_ids(tokens, x.shape[1], "biased") for tokens, _ in pairs], x)
        x.index_put_(at, _floats([np.asarray(bias) for _, bias in pairs], x), accumulate=True)
    if penalised:
        _penalise(x, rows, penalised)
    if constrained:
        allowed = [row.allowed for row in rows if row.allowed is not None]
        packed = np.stack([_packed(tokens, x.shape[1]) for tokens in allowed])
        barred = [_barred(bits, x.shape[1]) for bits in packed]
        few = [k for k, tokens in enumerate(barred) if tokens is not None]
        if few:
            places = [constrained[k] for k in few]
            x[_places(places, [barred[k] for k in few], x)] = -math.inf  # type: ignore[misc]  # not None
        many = [k for k, tokens in enumerate(barred) if tokens is None]
        if len(many) == len(rows):
            _restrict(x, packed)
        elif many:
            places = [constrained[k] for k in many]
            some = x[places]
            _restrict(some, packed[many])
            x[places] = some
    return x


def _barred(bits: NDArray[np.uint8], vocab: int) -> NDArray[np.int64] | None:
    """What may not come, where that is little, as in free text: to bar it by name is cheaper. None where it is much."""
    octets = np.flatnonzero(bits != _FULL)
    if len(octets) > vocab // _LITTLE:
        return None
    at, bit = np.nonzero(np.unpackbits(bits[octets, None], axis=1, bitorder="little") == 0)
    tokens: NDArray[np.int64] = 8 * octets[at] + bit
    return tokens[tokens < vocab]


def _restrict(x: Tensor, packed: NDArray[np.uint8]) -> None:
    """Makes -inf of what may not come: (rows, vocab), and a bit a token; what may come is finite, whatever the model says.

    A cap of plus or minus infinity is put on each token: on a CPU that takes a tenth of the time of `where` and `masked_fill_`, which
    branch. In chunks, so that the caps stay in the cache.
    """
    bits, signs = (torch.from_numpy(part).to(x.device) for part in (packed, _SIGNS))
    least = torch.tensor(torch.finfo(torch.float32).min, device=x.device)
    width = _CHUNK if x.device.type == "cpu" else 8 * bits.shape[1]
    for part, octets in zip(x.split(width, 1), bits.split(width // 8, 1), strict=True):
        sign = signs.index_select(0, octets.int().view(-1)).view(torch.int8)
        caps = sign.view(len(x), -1)[:, : part.shape[1]].float().mul_(math.inf)
        torch.clamp(part, least, caps, out=part)


def _packed(tokens: Sequence[int], vocab: int) -> NDArray[np.uint8]:
    """A bit a token, whatever else a mask may have: (vocab / 8,)."""
    bits = np.zeros(-(-vocab // 8), dtype=np.uint8)
    if not isinstance(tokens, TokenMask):
        flags = np.zeros(vocab, dtype=bool)
        flags[_ids(tokens, vocab, "allowed")] = True
        return np.packbits(flags, bitorder="little")
    known = np.frombuffer(tokens.bits, dtype=np.uint8)[: len(bits)]
    bits[: len(known)] = known
    if vocab % 8:
        bits[-1] &= (1 << vocab % 8) - 1
    if not bits.any():
        message = "no token is allowed: nothing can be drawn"
        raise SettingError(message)
    return bits


def _penalise(x: Tensor, rows: Sequence[Row], penalised: Sequence[int]) -> None:
    """Repetition (CTRL, arXiv 1909.05858) over prompt and output, the others over the output."""
    tokens, repetition, subtracted = [], [], []
    for i in penalised:
        row, s = rows[i], rows[i].sampling
        skipped = 0 if s.repetition_penalty != 1.0 else row.prompt_length
        history = np.asarray(row.history[skipped:], dtype=np.int64)
        is_output = np.arange(skipped, len(row.history)) >= row.prompt_length
        seen, inverse = np.unique(history, return_inverse=True)
        counts = np.bincount(inverse, weights=is_output, minlength=len(seen))
        tokens.append(_ids(seen, x.shape[1], "past") if len(seen) else seen)
        repetition.append(np.full(len(seen), s.repetition_penalty))
        subtracted.append(s.presence_penalty * (counts > 0) + s.frequency_penalty * counts)
    at = _places(penalised, tokens, x)
    factor, minus = _floats(repetition, x), _floats(subtracted, x)
    values = x[at]
    x[at] = torch.where(values < 0, values * factor, values / factor) - minus


def _ids(tokens: Sequence[int] | NDArray[np.int64], vocab: int, what: str) -> NDArray[np.int64]:
    ids = np.asarray(tokens, dtype=np.int64)
    if not len(ids):
        message = f"no token is {what}: nothing can be drawn"
        raise SettingError(message)
    if ids.min() < 0 or ids.max() >= vocab:
        bad = int(ids[(ids < 0) | (ids >= vocab)][0])
        message = f"{what} token {bad} is outside the vocabulary of {vocab} tokens"
        raise SettingError(message)
    return ids


def _places(
    rows: Sequence[int], tokens: Sequence[NDArray[np.int64]], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Index tensors of the named tokens of the named rows, in one copy to the device."""
    flat = np.stack([np.repeat(rows, [len(t) for t in tokens]), np.concatenate(tokens)])
    first, second = torch.from_numpy(flat).to(x.device)
    return first, second


def _floats(parts: Sequence[NDArray[np.float64]], x: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(x.device)
