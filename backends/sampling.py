"""Keyed draws: the next token of every row of a step, in one batch.

Knows logits, keys and sampling settings; nothing of branches, models, text or the engine. keys.py
makes the words that are mixed here into noise, warpers.py edits the logits. A row's token is

    argmax over t of p(t) / E(key, position, t)

where p is the warped distribution and E ~ Exp(1) comes from a hash: the exponential race, which
draws t with probability p(t) (Gumbel's trick by another name). Nothing depends on arrival order or
on batch mates, and two models that are close and draw with the same key and position mostly agree
(Daliri, Musco and Suresh, arXiv 2408.07978).

The logarithm is not taken over the whole vocabulary. With u uniform and E = -ln(1 - u), E >= u, so
p / u bounds p / E from above: the race is run exactly, in float64, only among the `_BEST` blocks of
`BLOCK` tokens with the largest bound. The winner, of value m, lies outside only if `_BEST` blocks
have a bound above m, each by a token with u < p / m < E, a gap of relative width (p / m) / 2; but
no E below p / m anywhere has probability exp(-1 / m). Both at once is rare enough to ignore, by
estimate under 1e-9, not by proof: in 26,880 draws from seven distributions, 8192 tokens, the
winner's block ranked fourth at worst. Vocabularies up to `SMALL` are raced exactly throughout.
About one pair of token ids in a million has words that differ in one to three bits; the noise of
some of these is correlated, by up to 3 % where measured.

top-k, top-p and min-p each keep a prefix of one ranking (by logit, then by lower token id), so the
race is run on that prefix alone.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from langchain_pareto.backends import coupling, gpu_draws
from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.draws import Draws, Row
from langchain_pareto.backends.gpu_support import usable
from langchain_pareto.backends.keys import draw_words, token_words, uniforms
from langchain_pareto.backends.logit_blocks import (
    BLOCK,
    SMALL,
    Peaks,
    block_count,
    block_tokens,
    greedy,
    leaders,
    write_peaks,
)
from langchain_pareto.backends.logit_passes import LOG2E, Passes
from langchain_pareto.backends.warpers import Warpers, edit, prefix

_NOISE_A, _NOISE_B = 0x21F0AAAD, 0x735A2D97  # lowbias32 (Wellons 2018), below 2^31

_BEST = 16  # blocks raced exactly
_TRIES = 4  # winners of the unfiltered race looked up in a wide nucleus before it is sorted
_NEUTRAL = Sampling()

_Kind = Literal["greedy", "race", "ranked"]
_Found = tuple[Tensor, Tensor]  # tokens (rows, 1), and whether they are sure (rows, 1)


class Sampler:
    """Draws for all rows of a step; holds one thread's scratch memory and caches, no state."""

    def __init__(self) -> None:
        self._passes = Passes()
        self._tables: dict[torch.device, Tensor] = {}
        self._warpers: OrderedDict[tuple[object, ...], Warpers] = OrderedDict()

    def draw(self, logits: Tensor, rows: Sequence[Row], *, stats: bool = False) -> Draws:
        """One token a row from logits (rows, vocab) of any float type.

        `finite` is False for a row whose raw logits hold a NaN or +inf, or nothing but -inf; its
        token means nothing but is a valid id. Raises SettingError for a biased, allowed or past
        token outside the vocabulary, and for an empty `allowed`. Penalties read the history
        anew on every draw, O(context) on the host.
        """
        assert logits.ndim == 2
        assert logits.shape[0] == len(rows) > 0
        # our own kernels run on the current device
        with torch.inference_mode(), torch.cuda.device_of(logits):
            logits = logits.detach()
            self._grow_table(block_count(logits) * BLOCK, logits.device)
            raw = Peaks(logits, self._passes.peaks)
            edited = edit(logits, rows)
            x = logits if edited is None else edited
            peaks = raw if edited is None else Peaks(edited, self._passes.peaks)
            if edited is None and not stats:
                alike = self._drawn_alike(x, peaks, rows)
                if alike is not None:
                    return Draws(alike)
            tokens = self._tokens(x, peaks, rows)
            if guessed := [i for i, row in enumerate(rows) if row.guess is not None]:
                at = torch.tensor(guessed, device=x.device)
                some = [rows[i] for i in guessed]
                tokens[at] = self._coupled(tokens[at], x[at], peaks.take(at), some)
            columns = [tokens.double(), torch.isfinite(raw.top).double()]
            if stats:
                columns += self._passes.statistics(logits, raw, tokens)
            return Draws(torch.cat(columns, 1))

    def distribution(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """What each row is drawn from, after every warper: float32, (rows, vocab)."""
        with torch.inference_mode(), torch.cuda.device_of(logits):
            edited = edit(logits, rows)
            x = logits.detach() if edited is None else edited
            return self._distribution(x, Peaks(x, self._passes.peaks), rows)

    def _tokens(self, x: Tensor, peaks: Peaks, rows: Sequence[Row]) -> Tensor:
        """Splits the rows by kind of draw, so that none pays for another's warpers: (rows, 1)."""
        first, vocab = rows[0].sampling, x.shape[1]
        if all(row.sampling is first for row in rows):
            return self._one_kind(_kind(first, vocab), x, peaks, rows, (first,))
        groups: dict[_Kind, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(_kind(row.sampling, vocab), []).append(i)
        if len(groups) == 1:
            samplings = tuple(row.sampling for row in rows)
            return self._one_kind(next(iter(groups)), x, peaks, rows, samplings)
        tokens = torch.empty((len(rows), 1), dtype=torch.int64, device=x.device)
        for kind, members in groups.items():
            at = torch.tensor(members, device=x.device)
            some = [rows[i] for i in members]
            samplings = tuple(row.sampling for row in some)
            tokens[at] = self._one_kind(kind, x[at], peaks.take(at), some, samplings)
        return tokens

    def _one_kind(
        self,
        kind: _Kind,
        x: Tensor,
        peaks: Peaks,
        rows: Sequence[Row],
        samplings: tuple[Sampling, ...],
    ) -> Tensor:
        if kind != "ranked" and usable(x.device):
            return self._by_kernels(kind, x, peaks, rows, samplings)[:, :1].long()
        if kind == "greedy":
            tokens = greedy(x, peaks)
        else:
            warpers, words = self._warpers_of(samplings, x), _words(rows, x.device)
            if kind == "race":
                scores, ids = self._race(x, peaks.top, words, warpers)
                tokens = ids.gather(1, scores.argmax(-1, keepdim=True))
            else:
                tokens = self._ranked(x, peaks, words, warpers)
        return tokens.clamp_(max=x.shape[1] - 1)  # a broken row may point into the padding

    def _drawn_alike(self, x: Tensor, peaks: Peaks, rows: Sequence[Row]) -> Tensor | None:
        """Tokens, and whether the rows are in order, all at once on a GPU: (rows, 2); None where that cannot be."""
        if not usable(x.device):
            return None
        first = rows[0].sampling
        kind = _kind(first, x.shape[1])
        if kind == "ranked" or any(
            row.sampling is not first or row.guess is not None for row in rows
        ):
            return None
        return self._by_kernels(kind, x, peaks, rows, (first,))

    def _by_kernels(
        self,
        kind: Literal["greedy", "race"],
        x: Tensor,
        peaks: Peaks,
        rows: Sequence[Row],
        samplings: tuple[Sampling, ...],
    ) -> Tensor:
        if kind == "greedy":
            return gpu_draws.largest(x, peaks.blocks)
        warpers, words = self._warpers_of(samplings, x), _words(rows, x.device)
        inverse, table = warpers.inverse_temperature, self._tables[x.device]
        return gpu_draws.race(x, peaks.blocks, words, inverse, table, _BEST)

    def _race(
        self, x: Tensor, top: Tensor, words: Tensor, warpers: Warpers
    ) -> tuple[Tensor, Tensor]:
        """Log scores and ids of the tokens that can win the unfiltered race: (rows, candidates)."""
        if x.shape[1] <= SMALL:
            ids = torch.arange(x.shape[1], device=x.device).expand(x.shape)
            return self._scores(x.float(), ids, top, words, warpers), ids
        blocks = self._bounds(x, top, words, warpers).topk(_BEST, sorted=False).indices
        values, ids = block_tokens(x, blocks)
        return self._scores(values, ids, top, words, warpers), ids

    def _bounds(self, x: Tensor, top: Tensor, words: Tensor, warpers: Warpers) -> Tensor:
        """The largest p / |noise| of each block, up to a factor a row: (rows, blocks).

        Noise 0 gives infinity, or NaN where p is 0 too; both rank first, so their blocks are raced.
        """
        table = self._tables[x.device]
        if usable(x.device):  # their logarithms, which rank alike
            peaks = gpu_draws.block_peaks(x)
            return gpu_draws.bounds(x, peaks, words, warpers.inverse_temperature, table)
        rate = warpers.inverse_temperature.float() * LOG2E  # (rows or 1, 1)
        bounds = torch.empty((x.shape[0], block_count(x)), device=x.device)
        for start, f, h, spare in self._passes.chunks(x):
            f.sub_(top).mul_(rate).exp2_()
            torch.bitwise_xor(table[start : start + f.shape[1]], words[:, :1], out=h)
            _mix(h, words[:, 1:], spare)
            size = spare.view(torch.float32)
            f.div_(size.copy_(h).abs_())
            write_peaks(f, start, bounds)
        return bounds

    def _scores(
        self, values: Tensor, ids: Tensor, top: Tensor, words: Tensor, warpers: Warpers
    ) -> Tensor:
        """ln(p / E) of the named tokens, up to a constant a row, in float64: (rows, candidates)."""
        h = self._tables[ids.device][ids]
        h.bitwise_xor_(words[:, :1])
        _mix(h, words[:, 1:], torch.empty_like(h))
        u = h.double().abs_().add_(0.5).mul_(1 / (2**31 + 1))  # in (0, 1)
        log_e = u.neg_().log1p_().neg_().log_()
        return (values.double() - top).mul_(warpers.inverse_temperature).sub_(log_e)

    def _ranked(self, x: Tensor, peaks: Peaks, words: Tensor, warpers: Warpers) -> Tensor:
        """The race within top-k, top-p and min-p: (rows, 1).

        First among a few of the most probable tokens; rows whose filters keep more than those (a
        flat distribution) go on to the race over everything, whose winner is mostly in so wide a
        nucleus, and the last of them are sorted whole.
        """
        top = peaks.top
        if warpers.needs_mass:
            mass = self._passes.mass(x, top, warpers.inverse_temperature)[0]
        else:
            mass = torch.ones_like(top, dtype=torch.float64)
        values, ids = leaders(x, peaks, warpers.ranked)
        tokens, done = self._prefix_race(values, ids, top, words, warpers, mass, x.shape[1])
        attempts: list[Callable[[Tensor, Tensor, Tensor, Warpers, Tensor], _Found]]
        attempts = [self._wide_race, self._sorted_race]
        for attempt in attempts:
            at = (~done & torch.isfinite(top)).squeeze(1).nonzero().squeeze(1)
            if not at.numel():
                break
            found, sure = attempt(x[at], top[at], words[at], warpers.take(at), mass[at])
            tokens[at], done[at] = found, sure
        return tokens

    def _coupled(self, drawn: Tensor, x: Tensor, peaks: Peaks, rows: Sequence[Row]) -> Tensor:
        """The rows' guesses where they are kept, else a draw of the residual, or `drawn` where that is empty: (rows, 1)."""
        guesses = [row.guess for row in rows if row.guess is not None]
        u = uniforms([row.key for row in rows], [row.position for row in rows])
        host = torch.tensor([[guess.token for guess in guesses], u.tolist()], dtype=torch.float64)
        ids, u_ = host.unsqueeze(2).to(x.device)
        p = self._distribution(x, peaks, rows)
        q = torch.stack([guess.distribution for guess in guesses])
        kept = coupling.kept(p, q, ids.long(), u_)
        logs = coupling.residual(p, q)
        top = logs.amax(-1, keepdim=True)
        neutral = self._warpers_of((_NEUTRAL,), logs)
        scores, candidates = self._race(logs, top, _words(rows, x.device), neutral)
        redrawn = candidates.gather(1, scores.argmax(-1, keepdim=True))
        redrawn = torch.where(torch.isfinite(top), redrawn, drawn)
        return torch.where(kept, ids.long(), redrawn)

    def _distribution(self, x: Tensor, peaks: Peaks, rows: Sequence[Row]) -> Tensor:
        """The distributions behind `_tokens`, which keep and leave out the same tokens: (rows, vocab)."""
        groups: dict[_Kind, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(_kind(row.sampling, x.shape[1]), []).append(i)
        p = torch.zeros(x.shape, device=x.device)
        for kind, members in groups.items():
            at = torch.tensor(members, device=x.device)
            some, heights = x[at], peaks.take(at)
            if kind == "greedy":
                p[at, greedy(some, heights).squeeze(1).clamp_(max=x.shape[1] - 1)] = 1.0
                continue
            warpers = self._warpers_of(tuple(rows[i].sampling for i in members), some)
            if kind == "race":
                rate = warpers.inverse_temperature.float()
                p[at] = some.float().sub_(heights.top).mul_(rate).softmax(-1)
            else:
                p[at] = self._ranked_distribution(some, heights, warpers)
        return p

    def _ranked_distribution(self, x: Tensor, peaks: Peaks, warpers: Warpers) -> Tensor:
        """The distribution behind `_ranked`: the few leaders, or everything sorted where they are too few."""
        top = peaks.top
        mass = torch.ones_like(top, dtype=torch.float64)
        if warpers.needs_mass:
            mass = self._passes.mass(x, top, warpers.inverse_temperature)[0]
        p = torch.zeros((len(x), x.shape[1]), dtype=torch.float64, device=x.device)
        values, ids = leaders(x, peaks, warpers.ranked)
        logs, kept, done = prefix(values, top, warpers, mass, x.shape[1])
        p.scatter_(1, ids, logs.exp().masked_fill_(~kept, 0.0))
        wide = (~done & torch.isfinite(top)).squeeze(1).nonzero().squeeze(1)
        if wide.numel():
            values, ids = x[wide].float().sort(dim=-1, descending=True, stable=True)
            some = warpers.take(wide)
            logs, kept, _ = prefix(values, top[wide], some, mass[wide], x.shape[1])
            p[wide] = torch.zeros_like(values, dtype=torch.float64).scatter_(
                1, ids, logs.exp().masked_fill_(~kept, 0.0)
            )
        return p.div_(p.sum(-1, keepdim=True)).float()

    def _prefix_race(
        self,
        values: Tensor,
        ids: Tensor,
        top: Tensor,
        words: Tensor,
        warpers: Warpers,
        mass: Tensor,
        vocab: int,
    ) -> _Found:
        """The winner within the kept prefix of ranked tokens, and whether it surely ends there."""
        _, kept, done = prefix(values, top, warpers, mass, vocab)
        scores = self._scores(values, ids, top, words, warpers).masked_fill_(~kept, -math.inf)
        return ids.gather(1, scores.argmax(-1, keepdim=True)), done

    def _wide_race(
        self, x: Tensor, top: Tensor, words: Tensor, warpers: Warpers, mass: Tensor
    ) -> _Found:
        """The best finisher in the unfiltered race that top-p and min-p keep; not for top-k."""
        scores, ids = self._race(x, top, words, warpers)
        finishers = ids.gather(1, scores.topk(_TRIES).indices)  # (rows, tries)
        tokens = finishers[:, :1].clone()
        done = torch.zeros_like(tokens, dtype=torch.bool)
        for token in torch.split(finishers, 1, -1):
            value = x.gather(1, token).float()
            before = self._passes.mass_ahead(x, top, value, token, warpers.inverse_temperature)
            logs = (value.double() - top) * warpers.inverse_temperature
            kept = (before < warpers.top_p * mass) & (logs >= warpers.log_min_p)
            kept &= warpers.top_k >= x.shape[1]
            tokens = torch.where(done, tokens, token)
            done |= kept
            if bool(done.all()):
                break
        return tokens, done

    def _sorted_race(
        self, x: Tensor, top: Tensor, words: Tensor, warpers: Warpers, mass: Tensor
    ) -> _Found:
        values, ids = x.float().sort(dim=-1, descending=True, stable=True)
        return self._prefix_race(values, ids, top, words, warpers, mass, x.shape[1])

    def _warpers_of(self, samplings: tuple[Sampling, ...], x: Tensor) -> Warpers:
        """Settings as device tensors, the same ones while the batch keeps its settings."""
        key = (samplings, x.shape[1], x.device)
        warpers = self._warpers.pop(key, None)
        if warpers is None:
            warpers = Warpers.of(samplings, x)
        self._warpers[key] = warpers
        if len(self._warpers) > 64:
            self._warpers.popitem(last=False)
        return warpers

    def _grow_table(self, tokens: int, device: torch.device) -> None:
        """Makes the device's table of mixed int32 words, one a token id, long enough."""
        table = self._tables.get(device)
        if table is None or len(table) < tokens:
            self._tables[device] = torch.from_numpy(token_words(tokens)).to(device)


def _kind(sampling: Sampling, vocab: int) -> _Kind:
    if sampling.temperature == 0 or sampling.top_k == 1:
        return "greedy"
    if 0 < sampling.top_k < vocab or sampling.top_p < 1 or sampling.min_p > 0:
        return "ranked"
    return "race"


def _words(rows: Sequence[Row], device: torch.device) -> Tensor:
    """The two words of each row's key and position, on the device: (rows, 2)."""
    words = draw_words([row.key for row in rows], [row.position for row in rows])
    return torch.from_numpy(words).to(device, non_blocking=True)


def _mix(h: Tensor, second: Tensor, spare: Tensor) -> None:
    """Mixes int32 in place, wrapping; `second` (rows, 1) is the second word of the row's key."""
    h.mul_(_NOISE_A)
    h.bitwise_xor_(torch.bitwise_right_shift(h, 15, out=spare))
    h.bitwise_xor_(second).mul_(_NOISE_B)
