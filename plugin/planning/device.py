"""
Measures what one model takes on this device: a grid of runs through the backend, as calls would run, fitted to a cost model.

Knows backends and what devices tell of themselves; single runs are `timed_runs.py`'s, the form of the costs is `step_cost.py`'s. Forks
of one prompt are what strategies draw, so forks are what it measures: short prompts, after which they soon attend apart, and long ones,
which they share.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from math import log
from pathlib import Path

from langchain_pareto.backends import hardware
from langchain_pareto.backends.base import Backend, Branch
from langchain_pareto.backends.devices import find_device
from langchain_pareto.backends.nano import bundled
from langchain_pareto.errors import CapacityError, SettingError
from langchain_pareto.planning.cost_model import CostModel, Key, Speed, prior
from langchain_pareto.planning.fitting import Run, fit_decode, fit_prefill, spread
from langchain_pareto.planning.identity import fingerprint
from langchain_pareto.planning.step_cost import Sharing
from langchain_pareto.planning.timed_runs import Clock, TimedRuns
from langchain_pareto.strategies import BestOfN, Single

Progress = Callable[[float, str], None]

_WIDTHS: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
_GPU_WIDTHS = (*_WIDTHS, 64)
_SHARED = (1, 4, 16, 32)  # widths over a long prompt
_RAGGED = (8, 16)  # widths of draws that end one after another, over a long prompt and a short one
_SHORT = 4  # tokens of a prompt after which forks soon attend apart
_LONG, _GPU_LONG = 1024, 4096  # tokens of a long prompt at most
_READ = (16, 64, 256)  # tokens of prompts that are only read
_FEWEST, _MOST = 4, 64  # steps of a run, as time permits
_LONGER = 2  # times as many where draws end one after another, and in what is held out
_DEEPER = 3  # times as many in one of the widest runs
_ROUNDS = 5
_GRID_SHARE = 0.95  # of the time; the rest is for the run that has begun, and for the fit
_RUN_SHARE, _READ_SHARE = 0.02, 0.05  # of the time, for one run and for reading the long prompt
_POOL_SHARE = 0.9  # of the pool, for one run
_ENERGY_WINDOW = 3.0  # seconds: the counter moves every tenth of one
_MANY = 8  # draws of a call whose overhead is measured


def calibrate(
    backend: Backend,
    *,
    seconds: float = 60.0,
    progress: Progress = lambda _done, _what: None,
    clock: Clock = time.perf_counter,
) -> CostModel:
    """The cost model of a backend that nobody else uses meanwhile, measured within so many seconds.

    `progress` is told which share of the time has passed, and what is measured next. What does not fit into the time, the context or the
    pool is left out; a run that has begun is ended. Raises SettingError, and CapacityError where not even the shortest run fits.
    """
    if not 0 < seconds < float("inf"):
        raise SettingError(f"a calibration takes some seconds, not {seconds}")
    began, meter = clock(), hardware.energy_meter(backend.spec.device)
    before = meter() if meter else 0.0
    bench = TimedRuns(backend, clock)
    grid = _Grid(bench, began, _GRID_SHARE * seconds, progress)
    grid.measure()
    took = clock() - began
    watts = (meter() - before) / took if meter and took >= _ENERGY_WINDOW else None
    one, many = bench.overhead(Single()), bench.overhead(BestOfN(n=_MANY))
    draw = max(0.0, (many - one) / (_MANY - 1))
    return replace(
        grid.fitted(),
        call=max(0.0, one - draw),
        draw=draw,
        busy=min(1.0, statistics.median(bench.busy)) if bench.busy else 1.0,
        watts=watts,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True, slots=True)
class _Point:
    """One cell of the grid: the same work in every round."""

    prompt: int
    lengths: tuple[int, ...] = ()  # none: the prompt is only read
    before: int = 0  # tokens that are read before the prompt
    held_out: bool = False  # read and drawn, and not fitted

    @property
    def reads(self) -> tuple[int, int]:
        """Tokens that reading it computes, and those before them: the last one of all is left to the first step."""
        return (self.prompt, self.before - 1) if self.before else (self.prompt - 1, 0)

    def __str__(self) -> str:
        if not self.lengths:
            return f"reading {self.prompt} tokens"
        return f"{len(self.lengths)} draws after {self.prompt} tokens"


class _Grid:
    """All points, as far as there is time for them."""

    def __init__(self, bench: TimedRuns, began: float, seconds: float, progress: Progress) -> None:
        self._bench = bench
        self._began, self._seconds, self._progress = began, seconds, progress
        self._times = dict[_Point, list[float]]()
        self._first = dict[_Point, float]()  # a prompt and a run, whatever the time
        self._sharing = sharing_of(bench.backend)
        can = bench.backend.capabilities
        self._context, self._pool = can.context_length, int(_POOL_SHARE * can.pool_tokens)
        self._step, self._token = (
            {1: 0.0},
            0.0,
        )  # seconds of a step by its width, and of a token read
        gpu = bench.backend.spec.device != "cpu"
        self._widths, self._longest = (_GPU_WIDTHS, _GPU_LONG) if gpu else (_WIDTHS, _LONG)
        if not self._holds(first := _Point(_SHORT, (_FEWEST,))):
            msg = f"a context of {self._context} tokens in a pool of {can.pool_tokens} is too short to measure a draw"
            hint = "Give the model more memory, or a longer context."
            needed = first.prompt + _FEWEST
            raise CapacityError(msg, needed=needed, free=self._pool, kind="slots", hint=hint)

    def measure(self) -> None:
        """Every point, and again, until the time is over."""
        steps = self._widen()
        widest = max(steps)
        for n in _READ:
            self._token = self._time(_Point(n), self._once) / n or self._token
        afforded = int(_READ_SHARE * self._seconds / max(1e-9, self._token))
        long = min(self._context // 2, self._pool // 4, self._longest, max(_SHORT, afforded))
        over_long, over_short = (_ragged(_LONGER * steps[widest], min(n, widest)) for n in _RAGGED)
        for draws in (over_short, (_DEEPER * steps[widest],) * widest):
            self._time(_Point(_SHORT, draws), self._once)
        for point in self._held_out(steps, long):
            self._time(point, self._once)
        alone = list(self._times)
        shared = [_Point(long, (steps[n],) * n) for n in _SHARED if n in steps]
        shared.append(_Point(long, over_long))
        self._measure_long(long, shared)
        for _ in range(1, _ROUNDS):
            for point in alone:
                self._time(point, self._once)
            self._measure_long(long, shared)

    def fitted(self) -> CostModel:
        """The coefficients, and by what is held out how far they are off."""
        backend = self._bench.backend
        medians = {point: statistics.median(times) for point, times in self._times.items()}
        for point, seconds in self._first.items():  # there may have been time for no other
            if not any(bool(p.lengths) == bool(point.lengths) for p in medians):
                medians[point] = seconds
        prefill = fit_prefill([(*p.reads, t) for p, t in medians.items() if not p.lengths])
        draws = {p: t for p, t in medians.items() if p.lengths}
        runs = [Run(p.lengths, p.prompt, t) for p, t in draws.items() if not p.held_out]
        held = {
            p: Run(p.lengths, p.prompt, max(1e-9, t - prefill.seconds(p.prompt - 1)))
            for p, t in draws.items()
            if p.held_out
        }
        decode = fit_decode(runs, list(held.values()), self._sharing, padded=pads(backend))
        model = CostModel(key_of(backend), decode, prefill)
        if not held:
            return model
        sigma, error = spread(
            [
                log(seconds / model.batch_seconds(p.lengths, p.prompt))
                for p in held
                for seconds in self._times[p]
            ]
        )
        return replace(model, sigma=sigma, error=error)

    def _widen(self) -> dict[int, int]:
        """Draws of ever more forks, as long as the time allows; how many steps a run of each width has."""
        first = _Point(_SHORT, (_FEWEST,))
        self._once(first)  # what comes first allocates
        with self._bench.prompt(_SHORT) as (root, read):
            drawn = self._bench.draw(root, first.lengths)
        self._first = {_Point(_SHORT): read, first: drawn}
        self._step = {1: drawn / _FEWEST}
        steps = dict[int, int]()
        for width in self._widths:
            expected = self._step_of(width)
            room = min(self._context - _SHORT, (self._pool - _SHORT) // width)
            afforded = int(_RUN_SHARE * self._seconds / max(1e-9, expected))
            n = min(_MOST, room, max(_FEWEST, afforded))
            if steps and (n < _FEWEST or n * expected > self._left / 2):
                break
            self._step[width] = self._time(_Point(_SHORT, (n,) * width), self._once) / n or expected
            steps[width] = n
        return steps

    def _step_of(self, width: int) -> float:
        """Seconds of a step, by the widest one known that is no wider: at most in proportion."""
        known = max(w for w in self._step if w <= width)
        return self._step[known] * width / known

    def _held_out(self, steps: dict[int, int], long: int) -> list[_Point]:
        """Calls unlike the fitted runs: of other widths, and of draws that end one after another."""
        widest, few = max(steps), min(4, max(steps))
        even = (_LONGER * steps[few],) * min(3, widest)
        uneven = (_ragged(_LONGER * steps[widest], min(n, widest)) for n in (12, 6))
        prompts = (min(n, long) for n in (64, 32, 256))
        draws = (even, *uneven)
        return [_Point(n, d, held_out=True) for n, d in zip(prompts, draws, strict=True)]

    def _measure_long(self, long: int, shared: Sequence[_Point]) -> None:
        """What needs the long prompt, which is read once a round."""
        read, bench = _Point(long), self._bench
        if not self._affords(read):
            return
        with bench.prompt(long) as (root, seconds):
            self._times.setdefault(read, []).append(seconds)
            self._time(_Point(_READ[1], before=long), lambda p: self._read_on(root, p))
            for point in shared:
                self._time(point, lambda p: bench.draw(root, p.lengths))
        if (
            self._sharing == "scan"
        ):  # the path that is freed last stays, and every run would look at it
            self._once(_Point(_SHORT, (1,)))

    def _read_on(self, root: Branch, point: _Point) -> float:
        [child] = root.fork()
        try:
            child.append(self._bench.tokens(point.prompt))
            return self._bench.read(child)
        finally:
            child.free()

    def _once(self, point: _Point) -> float:
        """Seconds of a point that needs no other prompt."""
        with self._bench.prompt(point.prompt) as (root, read):
            if not point.lengths:
                return read
            drawn = self._bench.draw(root, point.lengths)
        return read + drawn if point.held_out else drawn

    def _time(self, point: _Point, how: Callable[[_Point], float]) -> float:
        """One measurement of a point, if it fits; its last one otherwise."""
        known = self._times.get(point, [])
        if self._affords(point):
            share = min(1.0, max(0.0, 1 - self._left / self._seconds))
            self._progress(share, str(point))
            known = self._times.setdefault(point, [])
            known.append(how(point))
        return known[-1] if known else 0.0

    def _affords(self, point: _Point) -> bool:
        """Whether there is room for a point, and time, as far as it is known."""
        if point in self._times:
            expected = self._times[point][-1]
        else:
            expected = self._token * point.prompt + self._step_of(max(1, len(point.lengths))) * max(
                point.lengths, default=0
            )
        return self._holds(point) and expected < self._left

    def _holds(self, point: _Point) -> bool:
        longest = point.before + point.prompt + max(point.lengths, default=0)
        total = point.before + point.prompt + sum(point.lengths)
        return longest <= self._context and total <= self._pool

    @property
    def _left(self) -> float:
        return self._began + self._seconds - self._bench.clock()


def _ragged(longest: int, n: int) -> tuple[int, ...]:
    """Lengths from a quarter of the longest on."""
    return tuple(max(1, longest * (n + 3 * i) // (4 * n)) for i in range(1, n + 1))


# --- what a device and a model are called


def pads(backend: Backend) -> bool:
    """Whether an engine computes rows in few numbers only: the torch runner off the CPU."""
    return sharing_of(backend) == "union" and backend.spec.device != "cpu"


def sharing_of(backend: Backend) -> Sharing:
    """How a backend's engine lets forks attend."""
    runner = getattr(backend, "runner", None)
    if runner is None or backend.spec.layers == 0:
        return "none"
    return "scan" if hasattr(runner, "context") else "union"


def is_here(device: str) -> bool:
    """Whether a device of this machine calls itself so.

    GPUs that only llama.cpp can use have no name but their number: where torch has none, any of those may be here.
    """
    gpus = list(_gpus())
    if device.startswith("cuda:") and not gpus:
        return True
    return any(hardware.called(name)[0] == device for name in ("cpu", *gpus))


def _gpus() -> Iterator[str]:
    for i in count():
        try:
            yield str(find_device(f"cuda:{i}"))
        except SettingError:  # there is none, or no more
            return


def key_of(backend: Backend) -> Key:
    """What a cost model of this backend is valid for."""
    runner, spec = getattr(backend, "runner", None), backend.spec
    context = getattr(runner, "context", None)
    kind, package, threads = type(backend).__name__, "", 0
    if context is not None:
        kind, package = "llama-cpp", "llama-cpp-python"
        threads = int(context.api.llama_n_threads(context._context))  # noqa: SLF001 - nobody else knows
    elif runner is not None:
        kind, package, threads = "torch", "torch", hardware.threads()
    name, driver = hardware.called(spec.device)
    files = bundled(backend.name) is not None or Path(backend.name).exists()
    return Key(
        device=name,
        driver=driver,
        backend=kind,
        version=" ".join(_version(p) for p in (package, "langchain-pareto") if p),
        model=Path(backend.name).name,
        weights=fingerprint(backend.name if files else backend),
        dtype=spec.dtype,
        threads=threads if spec.device == "cpu" else 0,
        flags=(sharing_of(backend), f"{spec.kv_bytes_per_token} bytes of cache a token"),
    )


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


# --- before anything is measured


def reckoned(backend: Backend) -> CostModel:
    """What a backend's model should take on its device, by that device's speed alone."""
    speed = Speed(*hardware.probe(backend.spec.device))
    return prior(
        backend.spec, speed, key=key_of(backend), sharing=sharing_of(backend), padded=pads(backend)
    )
