"""
What the steps of one model take on one device, and by that what batches of draws, scores and whole calls take.

Knows counts of tokens and coefficients that were fitted to measured seconds; knows no model and measures nothing (`device.py` does). A
step of B sequences takes a + b B + c S: reading the weights, computing the rows, reading contexts of S tokens together. b may be another
from some width on, for the kernels are. Forks of one prompt do not read S tokens: `StepCost.sharing` says what the engine reads instead.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from langchain_pareto.backends.base import ModelSpec
from langchain_pareto.budget import Cost
from langchain_pareto.errors import SettingError
from langchain_pareto.rates import Rates

# How forks of one prompt attend: each to its own context; to the union of all while that is cheaper, as the torch runner does; or each to its
# own context after looking at every cell that is in use, as llama.cpp does.
Sharing = Literal["none", "union", "scan"]
Floats = npt.NDArray[np.float64]

PREFILL_CHUNK = 2048  # tokens of a prompt in one step
COLUMN_ROWS = 8  # rows that attending to a column costs as much as fetching it: backends/step_plan.py goes by that
FEWEST_COLUMNS = 128  # of the torch runner's attention, as there
LEAST_SIGMA = 0.05
UNCALIBRATED = 0.35  # sigma of what was only reckoned
_Z95 = 1.64
_LEAST_MARGIN = 1.10
_ROUGH = 0.25  # of a held-out run: from here on margins double
_STRAIGHT = 0.10  # the error that a simpler curve may have
_WIDEST = 256  # sequences that strategies draw side by side
_BENDS = ((), (2,), (2, 8), (2, 4, 8, 16))  # widths, simplest first
_HALF_LIFE = 20  # observations
_DRIFT = (0.5, 2.0)


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step in which B sequences draw a token each."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    a: float
    b: float  # a sequence, up to the first bend
    c: float  # a token of context that a sequence reads
    # "union": a fork that attends apart, and a column that is fetched anew since a fork has ended.
    # "scan": a cell that a sequence looks at, and a cell that is in use.
    d: float = 0.0
    e: float = 0.0
    bends: tuple[tuple[int, float], ...] = ()  # (width, what a sequence takes beyond it)
    sharing: Sharing = "none"

    def seconds(self, rows: int, context: int) -> float:
        """One step of `rows` sequences that share nothing, whose contexts are `context` tokens together."""
        total = self.width(rows) + self.c * context
        if self.sharing == "scan":
            return total + (self.d * rows + self.e) * context
        return total + (self.d * rows if self.sharing == "union" and rows > 1 else 0.0)

    def width(self, rows: int) -> float:
        """What a step takes by its width alone."""
        return self._widths[rows] if rows <= _WIDEST else self._at(rows)

    def between(self, rows: int, prompt: int, start: int, stop: int, dead: int = 0) -> float:
        """The steps that draw tokens number `start` to `stop` of each of `rows` forks of one prompt, of `prompt` tokens.

        `dead` tokens more lie in the cache, of forks that have ended.
        """
        steps, half = stop - start, (start + stop - 1) / 2  # tokens that a fork has on average
        total = steps * self.width(rows)
        if self.sharing == "scan":
            cells = prompt + dead + rows * half
            read = self.c * rows * (prompt + half) + (self.d * rows + self.e) * cells
            return total + steps * read
        if self.sharing == "none":
            return total + self.c * steps * rows * (prompt + half)
        # the union pays while (8 + B) (P + B x) <= 9 B (P + x), that is while B x <= 8 P
        parting = stop if rows == 1 else min(max(start, COLUMN_ROWS * prompt // rows + 1), stop)
        together = _columns(prompt, rows, start, parting) * (COLUMN_ROWS + rows)
        reads = together / (COLUMN_ROWS + 1) + rows * _columns(prompt, 1, parting, stop)
        fetched = (1, rows) if parting > start else (rows, 1)
        anew = fetched[0] * max(FEWEST_COLUMNS, prompt + fetched[1] * start)
        return total + self.c * reads + self.d * rows * (stop - parting) + self.e * anew

    def drawing(self, lengths: Sequence[int], prompt: int) -> float:
        """All steps until forks of one prompt have drawn so many tokens each."""
        total, dead, at = 0.0, 0, 0
        ordered = sorted(lengths)
        for i, length in enumerate(ordered):
            if length > at:
                total += self.between(len(ordered) - i, prompt, at, length, dead)
                at = length
            dead += length
        return total

    def drawn(self, lengths: Sequence[int], prompt: int, seconds: float) -> int:
        """How many tokens the longest of these forks has after so many seconds; a step that has begun is ended."""
        if seconds <= 0:
            return 0
        dead = at = 0
        ordered = sorted(lengths)
        for i, length in enumerate(ordered):
            if length > at:
                rows, start, of = len(ordered) - i, at, dead
                took = self.between(rows, prompt, start, length, of)
                if took >= seconds:
                    ends = range(start + 1, length + 1)
                    found = bisect_left(
                        ends, seconds, key=lambda end: self.between(rows, prompt, start, end, of)
                    )
                    return ends[min(found, len(ends) - 1)]
                seconds -= took
                at = length
            dead += length
        return at

    def guessing(self, draft: StepCost | None, *, guesses: int, acceptance: float) -> StepCost:
        """The same for draws whose tokens a draft guesses, `guesses` a round, each right with this chance; None guesses for free.

        A round verifies B (guesses + 1) rows and gives (1 - p^(guesses + 1)) / (1 - p) tokens a sequence on average (Leviathan et al. 2023,
        arXiv 2211.17192, equation 1).
        """
        if guesses < 1 or not 0 <= acceptance < 1:
            msg = f"a draft guesses at least 1 token, right with a chance from 0 to below 1; got {guesses} and {acceptance}"
            raise SettingError(msg)
        tokens = (1 - acceptance ** (guesses + 1)) / (1 - acceptance)
        widths = [1 << k for k in range(_WIDEST.bit_length())]
        rounds = [
            self._at(n * (guesses + 1)) + (guesses * draft.width(n) if draft else 0.0)
            for n in widths
        ]
        slopes = [
            (y - x) / (m - n) / tokens
            for n, m, x, y in zip(widths, widths[1:], rounds, rounds[1:], strict=False)
        ]
        read = guesses * draft.c if draft else 0.0
        return replace(
            self,
            a=rounds[0] / tokens - slopes[0],
            b=slopes[0],
            c=(self.c + read) / tokens,
            d=self.d / tokens,
            e=self.e / tokens if self.sharing == "scan" else self.e,  # a fork ends but once
            bends=tuple(zip(widths[1:-1], slopes[1:], strict=True)),
        )

    @cached_property
    def _widths(self) -> tuple[float, ...]:
        pads = self.sharing == "union"
        return tuple(self._at(padded(n) if pads else n) for n in range(_WIDEST + 1))

    def _at(self, rows: int) -> float:
        total, last, slope = self.a, 0, self.b
        for width, beyond in self.bends:
            if rows <= width:
                break
            total += slope * (width - last)
            last, slope = width, beyond
        return total + slope * (rows - last)


def _columns(prompt: int, rows: int, start: int, stop: int) -> float:
    """Columns of a union of `rows` forks, over the steps from `start` to `stop`; the torch runner pads what is narrow."""
    wide = min(max(start, -(-(FEWEST_COLUMNS - prompt) // rows)), stop)
    return FEWEST_COLUMNS * (wide - start) + (stop - wide) * (prompt + rows * (wide + stop - 1) / 2)


def padded(rows: int) -> int:
    """The rows that the torch runner computes: the next of 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, then in eighths."""
    least, parts = (4, 1) if rows <= 64 else (64, 3)
    if rows <= least:
        return 1 << max(0, rows - 1).bit_length()
    step = max(least >> parts, 1 << (rows.bit_length() - 1 - parts))
    return -(-rows // step) * step


@dataclass(frozen=True)
class PrefillCost:
    """Seconds of reading n tokens: a + b n + c n (tokens before them + n / 2), and `a` once for each chunk."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    a: float
    b: float
    c: float

    def seconds(self, tokens: int, cached: int = 0) -> float:
        """Reading `tokens` tokens after `cached` ones that are read already."""
        if tokens <= 0:
            return 0.0
        chunks = -(-tokens // PREFILL_CHUNK)
        return self.a * chunks + tokens * (self.b + self.c * (cached + tokens / 2))


@dataclass(frozen=True)
class Key:
    """What a cost model is valid for."""

    device: str = ""
    driver: str = ""
    backend: str = ""
    version: str = ""
    model: str = ""
    weights: str = ""
    dtype: str = ""
    threads: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CostModel:
    """All coefficients of one model on one device, and how far they are off.

    `sigma` is that of log(measured / predicted) for single runs that were not fitted, `error` the median of its size; None where nothing was
    measured. `call` and `draw` are what a call, and each draw of it, take beside the steps.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    key: Key
    decode: StepCost
    prefill: PrefillCost
    sigma: float = UNCALIBRATED
    error: float | None = None
    call: float = 0.0
    draw: float = 0.0
    busy: float = 1.0  # device seconds of a second of drawing
    watts: float | None = None  # that the device drew on average, where it tells
    measured: str = ""  # when, ISO 8601; empty where it was only reckoned

    @property
    def rough(self) -> bool:
        """Whether it is so far off that margins double, or was never measured."""
        return self.error is None or self.error > _ROUGH

    @property
    def margin(self) -> float:
        """What a prediction is multiplied by so that one call in twenty takes longer."""
        margin = max(_LEAST_MARGIN, math.exp(_Z95 * self.sigma))
        return 2 * margin - 1 if self.rough and self.error is not None else margin

    def batch_seconds(self, lengths: Sequence[int], prompt: int, cached: int = 0) -> float:
        """Seconds of a call that reads a prompt, of which `cached` tokens are known, and draws so many tokens into each fork of it."""
        return self._opening(lengths, prompt, cached) + self.decode.drawing(lengths, prompt)

    def drawn_by(
        self, lengths: Sequence[int], prompt: int, seconds: float, cached: int = 0
    ) -> list[int]:
        """How many tokens of each are drawn when the time is up."""
        left = seconds - self._opening(lengths, prompt, cached)
        reached = self.decode.drawn(lengths, prompt, left)
        return [min(length, reached) for length in lengths]

    def score_seconds(self, lengths: Sequence[int], prompt: int = 0) -> float:
        """Seconds in which this model reads texts of so many tokens after one prompt that it has read already."""
        tokens = sum(lengths)
        attended = sum(n * (prompt + n / 2) for n in lengths)
        chunks = -(-tokens // PREFILL_CHUNK)
        return self.prefill.a * chunks + self.prefill.b * tokens + self.prefill.c * attended

    def guessing(self, draft: CostModel | None, *, guesses: int, acceptance: float) -> CostModel:
        """The cost of the same draws with a draft's guesses; as in `StepCost.guessing`."""
        own = None if draft is None else draft.decode
        return replace(
            self, decode=self.decode.guessing(own, guesses=guesses, acceptance=acceptance)
        )

    def cost(self, seconds: float, rates: Rates, tokens: int = 0) -> Cost:
        """What a call of so many seconds and drawn tokens takes of every resource that has a price.

        Joules are those of `rates.watts`, which a budget is charged, or of what the device drew while it was measured.
        """
        watts = self.watts if rates.watts is None else rates.watts
        timed = replace(rates, watts=watts).of_time(seconds * self.busy)
        return timed + Cost.of(usd=tokens * rates.usd_per_token) + Cost(tokens=tokens, calls=1)

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> CostModel:
        """Raises SettingError for what is no cost model."""
        hint = "Measure the device again with `pareto calibrate device`."
        try:
            found = _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its text"
            msg = f"this is no cost model: {place}: {first['msg']}"
            raise SettingError(msg, hint=hint) from None
        if found.batch_seconds([1], 2) <= 0:
            raise SettingError("this is no cost model: by it a token takes no time", hint=hint)
        return found

    def _opening(self, lengths: Sequence[int], prompt: int, cached: int) -> float:
        """Seconds until the first step that draws."""
        draws = len(lengths) - lengths.count(0)
        # the last token of the prompt is computed by the first step
        return self.call + self.draw * draws + self.prefill.seconds(prompt - 1 - cached, cached)


_ADAPTER = TypeAdapter(CostModel)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a call: on average, in nine of ten calls at most by their lengths, and at most by lengths and the model's error."""

    mean: float
    p90: float
    worst: float

    @classmethod
    def of(cls, seconds: Sequence[float], *, margin: float, drift: float = 1.0) -> Prediction:
        """From predictions for lengths as they may come out, the longest among them; raises SettingError when there is none."""
        if not seconds:
            raise SettingError("a prediction needs the seconds of at least one outcome")
        ordered = sorted(seconds)
        at = 0.9 * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        p90 = ordered[low] + (at - low) * (ordered[high] - ordered[low])
        mean = sum(ordered) / len(ordered)
        return cls(drift * mean, drift * p90, drift * ordered[-1] * max(margin, _LEAST_MARGIN))


@dataclass(slots=True)
class Drift:
    """How much longer calls take now than was predicted, by kind: what throttling and neighbours do.

    An exponential average of log(actual / predicted), plain at first, with a half-life of 20 calls; at most a factor of 2 either way.
    """

    _logs: dict[str, tuple[float, int]] = field(default_factory=dict)

    def observe(self, kind: str, predicted: float, actual: float) -> None:
        """Adds one call; what took no time says nothing."""
        if predicted <= 0 or actual <= 0:
            return
        known, count = self._logs.get(kind, (0.0, 1))  # one call as predicted goes before all
        weight = max(1 - 0.5 ** (1 / _HALF_LIFE), 1 / (count + 1))
        low, high = map(math.log, _DRIFT)
        new = min(max(math.log(actual / predicted), 2 * low), 2 * high)  # an interruption is none
        self._logs[kind] = (known + weight * (new - known), count + 1)

    def factor(self, kind: str) -> float:
        """What a prediction is to be multiplied by."""
        low, high = _DRIFT
        return min(max(math.exp(self._logs.get(kind, (0.0, 1))[0]), low), high)


# --- fitting


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run: forks of one prompt that drew so many tokens."""

    lengths: tuple[int, ...]
    prompt: int
    seconds: float

    def off(self, step: StepCost) -> float:
        """log(measured / predicted)."""
        return math.log(self.seconds / step.drawing(self.lengths, self.prompt))


def fit(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Non-negative coefficients, one a feature, whose products with them miss `seconds` least, each error relative to what was measured.

    Least squares for every set of features that might count; raises SettingError where nothing was measured.
    """
    if not features or min(seconds) <= 0:
        raise SettingError("a fit needs measured runs, each longer than no time at all")
    rows: Floats = np.asarray(features, np.float64) / np.asarray(seconds, np.float64)[:, None]
    scale = np.maximum(rows.max(0), 1e-300)  # so that no feature is lost beside a large one
    rows = rows / scale
    best, least = np.zeros(rows.shape[1]), math.inf
    for active in _subsets(rows.shape[1]):
        found = np.linalg.lstsq(rows[:, active], np.ones(len(rows)), rcond=None)[0]
        missed = float(((rows[:, active] @ found - 1) ** 2).sum())
        if found.min() >= 0 and missed < least - 1e-12:
            best, least = np.zeros(rows.shape[1]), missed
            best[active] = found
    return [float(x) for x in best / scale]


def _subsets(n: int) -> Iterator[list[int]]:
    for size in range(1, n + 1):
        yield from map(list, combinations(range(n), size))


def fit_decode(runs: Sequence[Run], held_out: Sequence[Run], sharing: Sharing) -> StepCost:
    """The simplest curve of widths by which every run, those that are not fitted too, is within a tenth, or nearly as near as by any."""
    widest = max(len(run.lengths) for run in runs)
    steps = [_fit_bent(runs, bends, sharing) for bends in _BENDS if widest > max(bends, default=0)]
    worst = [max(abs(run.off(step)) for run in (*runs, *held_out)) for step in steps]
    enough = max(_STRAIGHT, 1.25 * min(worst))
    return next(step for step, off in zip(steps, worst, strict=True) if off <= enough)


def _fit_bent(runs: Sequence[Run], bends: tuple[int, ...], sharing: Sharing) -> StepCost:
    """The curve through one row that bends at these widths."""
    zero = StepCost(0.0, 0.0, 0.0, sharing=sharing)
    edges = (1, *bends)
    units = [replace(zero, a=1.0)]
    for i, edge in enumerate(edges):  # a slope of 1 between two edges, from which on it is counted
        rise = ((edges[i + 1], 0.0),) if i + 1 < len(edges) else ()
        units.append(replace(zero, bends=((edge, 1.0), *rise)))
    units += [replace(zero, c=1.0), replace(zero, d=1.0), replace(zero, e=1.0)]
    features = [[unit.drawing(r.lengths, r.prompt) for unit in units] for r in runs]
    one, *slopes, c, d, e = fit(features, [run.seconds for run in runs])
    after = tuple(zip(bends, slopes[1:], strict=True))
    return StepCost(one - slopes[0], slopes[0], c, d, e, after, sharing)


def fit_prefill(points: Sequence[tuple[int, int, float]]) -> PrefillCost:
    """From (tokens, tokens before them, seconds)."""
    units = [PrefillCost(1.0, 0.0, 0.0), PrefillCost(0.0, 1.0, 0.0), PrefillCost(0.0, 0.0, 1.0)]
    features = [[unit.seconds(n, cached) for unit in units] for n, cached, _ in points]
    return PrefillCost(*fit(features, [seconds for *_, seconds in points]))


def spread(off: Sequence[float]) -> tuple[float, float]:
    """(sigma, median error) of log ratios: sigma by the size that 95 % of them stay below."""
    sizes = np.abs(np.asarray(off, np.float64))
    return max(LEAST_SIGMA, float(np.quantile(sizes, 0.95)) / _Z95), float(np.median(sizes))


# --- before anything is measured


@dataclass(frozen=True, slots=True)
class Speed:
    """What a device reads and computes a second at best."""

    bytes: float
    flops: float


def prior(
    spec: ModelSpec, speed: Speed, *, key: Key | None = None, sharing: Sharing = "none"
) -> CostModel:
    """What a model should take: weights at 0.7 of the device's bandwidth and 1 ms, contexts at 0.75 of it, rows at its peak.

    These shares are those of measured kernels of models of 8B and more. Its sigma is 0.35.
    """
    a = spec.weight_bytes / (0.7 * speed.bytes) + 1e-3
    c = spec.kv_bytes_per_token / (0.75 * speed.bytes)
    row = 2 * (spec.matmul_parameters + spec.hidden * spec.vocabulary) / speed.flops
    attention = 4 * spec.layers * spec.heads * spec.head_dim / speed.flops
    read = PrefillCost(a, 2 * spec.matmul_parameters / speed.flops, attention)
    return CostModel(key or Key(model=spec.name), StepCost(a, row, c, sharing=sharing), read)
