"""Warpers and keyed draws: the next token of every row of a step, in one batch.

Knows logits, keys and sampling settings; nothing of branches, models, text or the engine. A row's
token is

    argmax over t of p(t) / E(key, position, t)

where p is the warped distribution and E ~ Exp(1) comes from a hash: the exponential race, which
draws t with probability p(t) (Gumbel's trick by another name). Nothing depends on arrival order or
on batch mates, and two models that are close and draw with the same key and position mostly agree
(Daliri, Musco and Suresh, arXiv 2408.07978).

The logarithm is not taken over the whole vocabulary. With u uniform and E = -ln(1 - u), E >= u, so
p / u bounds p / E from above: the race is run exactly, in float64, only among the `_BEST` blocks of
`_BLOCK` tokens with the largest bound. The winner, of value m, lies outside only if `_BEST` blocks
have a bound above m, each by a token with u < p / m < E, a gap of relative width (p / m) / 2; but
no E below p / m anywhere has probability exp(-1 / m). Both at once is rare enough to ignore, by
estimate under 1e-9, not by proof: in 26,880 draws from seven distributions, 8192 tokens, the
winner's block ranked fourth at worst. Vocabularies up to `_SMALL` are raced exactly throughout.
About one pair of token ids in a million has words that differ in one to three bits; the noise of
some of these is correlated, by up to 3 % where measured.

top-k, top-p and min-p each keep a prefix of one ranking (by logit, then by lower token id), so the
race is run on that prefix alone.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langchain_pareto.backends.base import Sampling
from langchain_pareto.errors import SettingError

MASK64 = (1 << 64) - 1

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A, _MIX_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64 (Steele, Lea and Flood 2014)
_NOISE_A, _NOISE_B = 0x21F0AAAD, 0x735A2D97  # lowbias32 (Wellons 2018), below 2^31
_DRAW = 0x5851F42D4C957F2D  # keeps a key's draws apart from its children

_BLOCK = 64  # tokens
_BEST = 16  # blocks raced exactly
_SMALL = 4096  # tokens; up to here everything is raced exactly
_CHUNK_CPU, _CHUNK_CUDA = 8192, 65536  # columns; 16 rows of float32 fit into an L2 cache on a CPU
_RANKED = 128  # tokens ranked at first for top-k, top-p and min-p
_TRIES = 4  # winners of the unfiltered race looked up in a wide nucleus before it is sorted
_TOP = 20  # tokens in the mean of `top_logprobs`
_LOG2E = math.log2(math.e)

_Kind = Literal["greedy", "race", "ranked"]
_Found = tuple[Tensor, Tensor]  # tokens (rows, 1), and whether they are sure (rows, 1)


def root_key(seed: int, tokens: Sequence[int]) -> int:
    """The 64-bit key of a root: hash(seed, prompt), for any integer seed."""
    digest = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    digest.update(np.asarray(tokens, dtype="<i8").tobytes())
    return int.from_bytes(digest.digest(), "little")


def child_key(parent: int, index: int) -> int:
    """The 64-bit key of a branch's child number `index` (one step of splitmix64)."""
    z = (parent + _GOLDEN * (index + 1)) & MASK64
    z = ((z ^ (z >> 30)) * _MIX_A) & MASK64
    z = ((z ^ (z >> 27)) * _MIX_B) & MASK64
    return z ^ (z >> 31)


@dataclass(slots=True)
class Row:
    """One wanted draw."""

    key: int
    position: int
    sampling: Sampling
    history: Sequence[int] = ()  # read only when the settings penalise it
    prompt_length: int = 0  # tokens of `history` that are prompt
    allowed: Sequence[int] | None = None  # token ids that may come; None lets any


@dataclass(slots=True)
class HostDraws:
    """What a step drew, one entry a row; the last three in nats, and empty unless asked for."""

    tokens: list[int]
    finite: list[bool]
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Draws:
    """What a step drew, on the device: float64 columns in the order of HostDraws' fields."""

    packed: Tensor  # (rows, 2 or 5)

    @property
    def tokens(self) -> Tensor:
        """Token ids on the device, int64."""
        return self.packed[:, 0].long()

    def to_host(self) -> HostDraws:
        """Everything in one device-to-host copy."""
        columns = self.packed.cpu().T.tolist()
        return HostDraws([int(t) for t in columns[0]], [f == 1.0 for f in columns[1]], *columns[2:])


def named_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Raw log-softmax of a named token a row, float32, nats: (rows, vocab), (rows,) -> (rows,)."""
    top = logits.amax(-1, keepdim=True).float()  # (rows, 1)
    mass = torch.zeros_like(top)
    for part in torch.split(logits, _CHUNK_CUDA, -1):
        mass += ((part.float() - top) * _LOG2E).exp2_().sum(-1, keepdim=True)
    named = logits.gather(1, ids.unsqueeze(1)).float()
    return (named - top - mass.log()).squeeze(1)


class Sampler:
    """Draws for all rows of a step; holds one thread's scratch memory and caches, no state."""

    def __init__(self) -> None:
        self._scratch: dict[torch.device, Tensor] = {}
        self._tables: dict[torch.device, Tensor] = {}
        self._settings: OrderedDict[tuple[object, ...], _Settings] = OrderedDict()

    def draw(self, logits: Tensor, rows: Sequence[Row], *, stats: bool = False) -> Draws:
        """One token a row from logits (rows, vocab) of any float type.

        `finite` is False for a row whose raw logits hold a NaN or +inf, or nothing but -inf; its
        token means nothing but is a valid id. Raises SettingError for a biased, allowed or past
        token outside the vocabulary, and for an empty `allowed`. Penalties read the history
        anew on every draw, O(context) on the host.
        """
        assert logits.ndim == 2
        assert logits.shape[0] == len(rows) > 0
        with torch.inference_mode():
            logits = logits.detach()
            self._grow_table(_blocks(logits) * _BLOCK, logits.device)
            words = torch.from_numpy(_words(rows)).to(logits.device, non_blocking=True)
            raw_peaks = self._peaks(logits)  # (rows, blocks)
            raw_top = raw_peaks.amax(-1, keepdim=True)  # (rows, 1)
            edited = _edited(logits, rows)
            peaks = raw_peaks if edited is None else self._peaks(edited)
            tokens = self._tokens(logits if edited is None else edited, peaks, words, rows)
            columns = [tokens.double(), torch.isfinite(raw_top).double()]
            if stats:
                columns += self._statistics(logits, raw_peaks, raw_top, tokens)
            return Draws(torch.cat(columns, 1))

    def _tokens(self, x: Tensor, peaks: Tensor, words: Tensor, rows: Sequence[Row]) -> Tensor:
        """Splits the rows by kind of draw, so that none pays for another's warpers: (rows, 1)."""
        first, vocab = rows[0].sampling, x.shape[1]
        if all(row.sampling is first for row in rows):
            return self._one_kind(_kind(first, vocab), x, peaks, words, (first,))
        groups: dict[_Kind, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(_kind(row.sampling, vocab), []).append(i)
        if len(groups) == 1:
            samplings = tuple(row.sampling for row in rows)
            return self._one_kind(next(iter(groups)), x, peaks, words, samplings)
        tokens = torch.empty((len(rows), 1), dtype=torch.int64, device=x.device)
        for kind, members in groups.items():
            at = torch.tensor(members, device=x.device)
            samplings = tuple(rows[i].sampling for i in members)
            tokens[at] = self._one_kind(kind, x[at], peaks[at], words[at], samplings)
        return tokens

    def _one_kind(
        self, kind: _Kind, x: Tensor, peaks: Tensor, words: Tensor, samplings: tuple[Sampling, ...]
    ) -> Tensor:
        if kind == "greedy":
            tokens = _greedy(x, peaks)
        else:
            settings = self._settings_of(samplings, x)
            top = peaks.amax(-1, keepdim=True)
            if kind == "race":
                scores, ids = self._race(x, top, words, settings)
                tokens = ids.gather(1, scores.argmax(-1, keepdim=True))
            else:
                tokens = self._ranked(x, peaks, top, words, settings)
        return tokens.clamp_(max=x.shape[1] - 1)  # a broken row may point into the padding

    def _race(
        self, x: Tensor, top: Tensor, words: Tensor, settings: "_Settings"
    ) -> tuple[Tensor, Tensor]:
        """Log scores and ids of the tokens that can win the unfiltered race: (rows, candidates)."""
        if x.shape[1] <= _SMALL:
            ids = torch.arange(x.shape[1], device=x.device).expand(x.shape)
            return self._scores(x.float(), ids, top, words, settings), ids
        blocks = self._bounds(x, top, words, settings).topk(_BEST, sorted=False).indices
        values, ids = _members(x, blocks)
        return self._scores(values, ids, top, words, settings), ids

    def _bounds(self, x: Tensor, top: Tensor, words: Tensor, settings: "_Settings") -> Tensor:
        """The largest p / |noise| of each block, up to a factor a row: (rows, blocks).

        Noise 0 gives infinity, or NaN where p is 0 too; both rank first, so their blocks are raced.
        """
        rate = settings.inverse_temperature.float() * _LOG2E  # (rows or 1, 1)
        table = self._tables[x.device]
        bounds = torch.empty((x.shape[0], _blocks(x)), device=x.device)
        for start, f, h, spare in self._chunks(x):
            f.sub_(top).mul_(rate).exp2_()
            torch.bitwise_xor(table[start : start + f.shape[1]], words[:, :1], out=h)
            _mix(h, words[:, 1:], spare)
            size = spare.view(torch.float32)
            f.div_(size.copy_(h).abs_())
            _block_amax(f, start, bounds)
        return bounds

    def _scores(
        self, values: Tensor, ids: Tensor, top: Tensor, words: Tensor, settings: "_Settings"
    ) -> Tensor:
        """ln(p / E) of the named tokens, up to a constant a row, in float64: (rows, candidates)."""
        h = self._tables[ids.device][ids]
        h.bitwise_xor_(words[:, :1])
        _mix(h, words[:, 1:], torch.empty_like(h))
        u = h.double().abs_().add_(0.5).mul_(1 / (2**31 + 1))  # in (0, 1)
        log_e = u.neg_().log1p_().neg_().log_()
        return (values.double() - top).mul_(settings.inverse_temperature).sub_(log_e)

    def _ranked(
        self, x: Tensor, peaks: Tensor, top: Tensor, words: Tensor, settings: "_Settings"
    ) -> Tensor:
        """The race within top-k, top-p and min-p: (rows, 1).

        First among a few of the most probable tokens; rows whose filters keep more than those (a
        flat distribution) go on to the race over everything, whose winner is mostly in so wide a
        nucleus, and the last of them are sorted whole.
        """
        if settings.needs_mass:
            mass = self._mass(x, top, settings.inverse_temperature)[0]
        else:
            mass = torch.ones_like(top, dtype=torch.float64)
        values, ids = _leaders(x, peaks, settings.ranked)
        tokens, done = self._prefix_race(values, ids, top, words, settings, mass, x.shape[1])
        attempts: list[Callable[[Tensor, Tensor, Tensor, _Settings, Tensor], _Found]]
        attempts = [self._wide_race, self._sorted_race]
        for attempt in attempts:
            at = (~done & torch.isfinite(top)).squeeze(1).nonzero().squeeze(1)
            if not at.numel():
                break
            found, sure = attempt(x[at], top[at], words[at], settings.take(at), mass[at])
            tokens[at], done[at] = found, sure
        return tokens

    def _prefix_race(
        self,
        values: Tensor,
        ids: Tensor,
        top: Tensor,
        words: Tensor,
        settings: "_Settings",
        mass: Tensor,
        vocab: int,
    ) -> _Found:
        """The winner within the kept prefix of ranked tokens, and whether it surely ends there.

        It does if it ends above the lowest value: tokens left out may tie with that one only.
        """
        logs = (values.double() - top) * settings.inverse_temperature  # (rows, ranked)
        place = torch.arange(values.shape[1], device=values.device)
        kept = place < settings.top_k.expand_as(top)
        p = logs.exp().masked_fill_(~kept, 0.0)
        through = p.cumsum(-1)
        total = torch.where(settings.top_k < vocab, through[:, -1:], mass)
        kept &= through - p < settings.top_p * total
        kept &= logs >= settings.log_min_p
        kept[:, 0] = True
        last = kept.sum(-1, keepdim=True) - 1
        done = values.gather(1, last) > values[:, -1:]
        if values.shape[1] == vocab:
            done = torch.ones_like(done)
        scores = self._scores(values, ids, top, words, settings).masked_fill_(~kept, -math.inf)
        return ids.gather(1, scores.argmax(-1, keepdim=True)), done

    def _wide_race(
        self, x: Tensor, top: Tensor, words: Tensor, settings: "_Settings", mass: Tensor
    ) -> _Found:
        """The best finisher in the unfiltered race that top-p and min-p keep; not for top-k."""
        scores, ids = self._race(x, top, words, settings)
        finishers = ids.gather(1, scores.topk(_TRIES).indices)  # (rows, tries)
        tokens = finishers[:, :1].clone()
        done = torch.zeros_like(tokens, dtype=torch.bool)
        for token in torch.split(finishers, 1, -1):
            value = x.gather(1, token).float()
            before = self._mass_ahead(x, top, value, token, settings)
            logs = (value.double() - top) * settings.inverse_temperature
            kept = (before < settings.top_p * mass) & (logs >= settings.log_min_p)
            kept &= settings.top_k >= x.shape[1]
            tokens = torch.where(done, tokens, token)
            done |= kept
            if bool(done.all()):
                break
        return tokens, done

    def _mass_ahead(
        self, x: Tensor, top: Tensor, value: Tensor, token: Tensor, settings: "_Settings"
    ) -> Tensor:
        """Mass, as in `_mass`, of larger tokens and of equal ones with a lower id: (rows, 1)."""
        rate = settings.inverse_temperature.float() * _LOG2E
        below = value.nextafter(torch.full_like(value, -math.inf))
        mass = torch.zeros_like(value, dtype=torch.float64)
        for start, f, h, spare in self._chunks(x):
            lower_id = torch.arange(start, start + f.shape[1], device=x.device) < token
            bar = torch.where(lower_id, below, value, out=spare.view(torch.float32))
            e = torch.sub(f, top, out=h.view(torch.float32)).mul_(rate).exp2_()
            mass += e.masked_fill_(f <= bar, 0.0).sum(-1, keepdim=True)
        return mass

    def _sorted_race(
        self, x: Tensor, top: Tensor, words: Tensor, settings: "_Settings", mass: Tensor
    ) -> _Found:
        values, ids = x.float().sort(dim=-1, descending=True, stable=True)
        return self._prefix_race(values, ids, top, words, settings, mass, x.shape[1])

    def _statistics(
        self, logits: Tensor, peaks: Tensor, top: Tensor, tokens: Tensor
    ) -> list[Tensor]:
        """Raw log-probability, entropy and mean of the top, in nats: each (rows, 1)."""
        mass, weighted = self._mass(logits, top, torch.ones_like(top), weighted=True)
        log_mass = mass.log()
        drawn = logits.gather(1, tokens).double() - top - log_mass
        entropy = log_mass - weighted / mass
        values, _ = _members(logits, peaks.topk(min(_TOP, peaks.shape[1]), sorted=False).indices)
        best = values.topk(min(_TOP, logits.shape[1]), sorted=False).values
        return [drawn, entropy, best.double().mean(-1, keepdim=True) - top - log_mass]

    def _mass(
        self, x: Tensor, top: Tensor, inverse_temperature: Tensor, *, weighted: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Sums of e^y and, if weighted, y e^y; y = (x - top) / temperature: each (rows, 1)."""
        rate = inverse_temperature.float() * _LOG2E
        mass = torch.zeros((x.shape[0], 1), dtype=torch.float64, device=x.device)
        weights = torch.zeros_like(mass)
        for _, f, _, spare in self._chunks(x):
            f.sub_(top).mul_(rate)
            e = torch.exp2(f, out=spare.view(torch.float32))
            mass += e.sum(-1, keepdim=True)
            if weighted:
                weights += f.clamp_min_(-1e4).mul_(e).sum(-1, keepdim=True)  # -inf * 0 is NaN
        return mass, weights.mul_(math.log(2))

    def _peaks(self, x: Tensor) -> Tensor:
        """The largest logit of each block of tokens; a NaN is the largest: (rows, blocks)."""
        peaks = torch.empty((x.shape[0], _blocks(x)), device=x.device)
        for start, f, _, _ in self._chunks(x):
            _block_amax(f, start, peaks)
        return peaks

    def _chunks(self, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Columns of `x` as float32 scratch, chunk by chunk, and two int32 buffers alike."""
        rows, vocab = x.shape
        width = min(_CHUNK_CPU if x.device.type == "cpu" else _CHUNK_CUDA, _blocks(x) * _BLOCK)
        scratch = self._scratch.get(x.device)
        if scratch is None or scratch.shape[1] < rows * width:
            scratch = torch.empty((3, rows * width), dtype=torch.int32, device=x.device)
            self._scratch[x.device] = scratch
        edges = [*range(0, vocab, width), vocab]
        for start, end in pairwise(edges):
            padded = -(-(end - start) // _BLOCK) * _BLOCK
            f, h, spare = (part[: rows * padded].view(rows, padded) for part in scratch)
            f = f.view(torch.float32)
            f[:, : end - start].copy_(x[:, start:end])
            f[:, end - start :].fill_(-math.inf)
            yield start, f, h, spare

    def _settings_of(self, samplings: tuple[Sampling, ...], x: Tensor) -> "_Settings":
        """Settings as device tensors, the same ones while the batch keeps its settings."""
        key = (samplings, x.shape[1], x.device)
        settings = self._settings.pop(key, None)
        if settings is None:
            settings = _Settings.of(samplings, x)
        self._settings[key] = settings
        if len(self._settings) > 64:
            self._settings.popitem(last=False)
        return settings

    def _grow_table(self, tokens: int, device: torch.device) -> None:
        """Makes the device's table of mixed int32 words, one a token id, long enough."""
        table = self._tables.get(device)
        if table is None or len(table) < tokens:
            self._tables[device] = torch.from_numpy(_token_words(tokens)).to(device)


@dataclass(slots=True)
class _Settings:
    """Warpers as tensors (rows, 1), or (1, 1) where all rows share them; neutral where off."""

    inverse_temperature: Tensor  # float64
    top_k: Tensor  # int64
    top_p: Tensor  # float64
    log_min_p: Tensor  # float64
    ranked: int  # tokens to rank at first
    needs_mass: bool  # whether top-p refers to the whole vocabulary in any row

    @classmethod
    def of(cls, samplings: Sequence[Sampling], x: Tensor) -> "_Settings":
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

    def take(self, at: Tensor) -> "_Settings":
        """The settings of some of the rows."""
        if len(self.top_k) == 1:
            return self
        return _Settings(
            inverse_temperature=self.inverse_temperature[at],
            top_k=self.top_k[at],
            top_p=self.top_p[at],
            log_min_p=self.log_min_p[at],
            ranked=self.ranked,
            needs_mass=self.needs_mass,
        )


def _kind(sampling: Sampling, vocab: int) -> _Kind:
    if sampling.temperature == 0 or sampling.top_k == 1:
        return "greedy"
    if 0 < sampling.top_k < vocab or sampling.top_p < 1 or sampling.min_p > 0:
        return "ranked"
    return "race"


def _blocks(x: Tensor) -> int:
    return -(-x.shape[1] // _BLOCK)


def _block_amax(f: Tensor, start: int, out: Tensor) -> None:
    """Writes each block's largest value of the chunk that starts at column `start`."""
    count = f.shape[1] // _BLOCK
    first = start // _BLOCK
    out[:, first : first + count] = f.view(len(f), count, _BLOCK).amax(-1)


def _members(x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 values and ids of the named blocks' tokens, padded with -inf: (rows, tokens)."""
    offsets = torch.arange(_BLOCK, device=x.device)
    ids = (blocks.unsqueeze(2) * _BLOCK + offsets).flatten(1)
    if x.shape[1] % _BLOCK == 0:
        return x.gather(1, ids).float(), ids
    values = x.gather(1, ids.clamp(max=x.shape[1] - 1)).float()
    return values.masked_fill_(ids >= x.shape[1], -math.inf), ids


def _greedy(x: Tensor, peaks: Tensor) -> Tensor:
    """The most probable token, the lowest id of several: (rows, 1)."""
    values, ids = _members(x, peaks.argmax(-1, keepdim=True))
    return ids.gather(1, values.argmax(-1, keepdim=True))


def _leaders(x: Tensor, peaks: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The `n` most probable tokens (or all), by falling value, then by rising id: (rows, n) each.

    They lie in the `n` blocks with the largest peaks. Which tokens come that tie for the last
    place is open.
    """
    if n >= x.shape[1]:
        values, ids = x.float().sort(dim=-1, descending=True, stable=True)
        return values, ids
    if 2 * n < peaks.shape[1]:
        members, ids = _members(x, peaks.topk(n, sorted=False).indices)
        chosen = members.topk(n, sorted=False).indices
        ids = ids.gather(1, chosen)
    else:
        ids = x.topk(n, sorted=False).indices
    ids = ids.sort(-1).values
    values, order = x.gather(1, ids).float().sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _mix(h: Tensor, second: Tensor, spare: Tensor) -> None:
    """Mixes int32 in place, wrapping; `second` (rows, 1) is the second word of the row's key."""
    h.mul_(_NOISE_A)
    h.bitwise_xor_(torch.bitwise_right_shift(h, 15, out=spare))
    h.bitwise_xor_(second).mul_(_NOISE_B)


def _splitmix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_A)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_B)
    return z ^ (z >> np.uint64(31))


def _words(rows: Sequence[Row]) -> NDArray[np.int32]:
    """Two mixed 32-bit words of each row's key and position: (rows, 2)."""
    keys = np.array([row.key & MASK64 for row in rows], dtype=np.uint64)
    positions = np.array([row.position & MASK64 for row in rows], dtype=np.uint64)
    z = _splitmix(_splitmix(keys ^ np.uint64(_DRAW)) + positions * np.uint64(_GOLDEN))
    return z.astype("<u8").view("<i4").astype(np.int32).reshape(-1, 2)


def _token_words(n: int) -> NDArray[np.int32]:
    """Mixed words of the ids below `n`, all different since the mixer is a bijection: (n,)."""
    x = np.arange(n, dtype=np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)  # murmur3's finalizer
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (x ^ (x >> np.uint32(16)) ^ np.uint32(0x9E3779B9)).view(np.int32)


def _edited(logits: Tensor, rows: Sequence[Row]) -> Tensor | None:
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
        allowed = [_ids(rows[i].allowed or (), x.shape[1], "allowed") for i in constrained]
        at = _places(constrained, allowed, x)
        masked = torch.full_like(x, -math.inf)
        masked[at] = x[at].clamp_min_(torch.finfo(torch.float32).min)  # -inf alone is still allowed
        free = [i for i, row in enumerate(rows) if row.allowed is None]
        if free:
            masked[free] = x[free]
        x = masked
    return x


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
