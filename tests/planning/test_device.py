"""Calibration: on a device that is computed, whose cost is known, and on real engines."""

import asyncio
import math
import random
import sys
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest

from langchain_pareto.backends import hardware
from langchain_pareto.backends.base import Extension, Sampling
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import CapacityError, SettingError
from langchain_pareto.planning import device
from langchain_pareto.planning.cost_model import CostModel, Key, Speed
from langchain_pareto.planning.step_cost import PrefillCost, StepCost

READ = PrefillCost(4e-3, 1e-4, 2e-8)
STEP = StepCost(1e-2, 4e-3, 2e-6, 1e-4, 1e-6, ((2, 1e-3), (8, 5e-4)), "union")
SIZES = [1, 2, 3, 5, 8, 13, 21, 30]


class Branch:
    """Tokens, and how many of them are read."""

    def __init__(self, backend, tokens, read=0) -> None:
        self.backend, self.tokens, self.read = backend, tokens, read
        backend.open_branches += 1

    def fork(self, n=1):
        return [Branch(self.backend, self.tokens.copy(), self.read) for _ in range(n)]

    def append(self, tokens) -> None:
        self.tokens += tokens

    def free(self) -> None:
        self.backend.open_branches -= 1


class Result:
    """A future that is there when somebody asks; until then nothing takes time."""

    def __init__(self, compute) -> None:
        self.compute = compute

    @property
    def future(self):
        done = Future()
        done.set_result(self.compute())
        return done


class Device:
    """A backend whose time is computed by a cost model, on a clock of its own; `noise` is the sigma of each run."""

    name = "computed"
    sampling = Sampling()

    def __init__(self, step=STEP, *, context=4096, pool=1 << 17, noise=0.0) -> None:
        scripted = ScriptedBackend(["x"])
        self.spec = scripted.spec
        self.capabilities = replace(scripted.capabilities, context_length=context, pool_tokens=pool)
        self.runner = {"union": SimpleNamespace(), "scan": None}.get(step.sharing)
        self.step, self.noise = step, noise
        self.now, self.longest = 100.0, 0.0
        self.open_branches = 0
        self.pending = []
        self._random = random.Random(3)

    def clock(self):
        return self.now

    def open(self, prompt, *, seed=0):
        return Branch(self, list(prompt))

    def prefill(self, branch):
        def compute() -> None:
            new = len(branch.tokens) - 1 - branch.read
            self._pass(READ.seconds(new, branch.read))
            branch.read += new

        return Result(compute)

    def extend(self, branch, sampling, stop, *, stats=False):
        assert len(branch.tokens) + stop.max_tokens <= self.capabilities.context_length
        assert branch.read == len(branch.tokens) - 1, "a prompt is read before it is drawn from"
        assert not stop.eos
        self.pending.append((branch, stop.max_tokens))
        return Result(self._draw)

    def _draw(self):
        if self.pending:
            lengths, prompt = [n for _, n in self.pending], len(self.pending[0][0].tokens)
            assert prompt + sum(lengths) <= self.capabilities.pool_tokens
            self._pass(self.step.drawing(lengths, prompt))
            self.pending.clear()
        return Extension([], "", "length")

    def _pass(self, seconds) -> None:
        seconds *= math.exp(self._random.gauss(0, self.noise))
        self.longest = max(self.longest, seconds)
        self.now += seconds


def calibrated(computed: Device, seconds=60.0, **options) -> CostModel:
    return device.calibrate(computed, seconds=seconds, clock=computed.clock, **options)


def off(costs: CostModel, step: StepCost) -> float:
    """The largest relative error for batches of any kind."""
    worst = 0.0
    for width in SIZES:
        for prompt in (10, 200, 900):
            lengths = [20 + 7 * i % 150 for i in range(width)]
            true = READ.seconds(prompt - 1) + step.drawing(lengths, prompt)
            worst = max(worst, abs(costs.batch_seconds(lengths, prompt) / true - 1))
    return worst


def test_a_device_is_found_out():
    """From its grid calibration predicts batches that it never ran, and says so by what it held out."""
    computed = Device()
    costs = calibrated(computed)
    assert off(costs, STEP) < 0.1
    assert costs.error < 0.05
    assert not costs.rough
    assert costs.decode.sharing == "union"
    assert computed.open_branches == 0


def test_noise_is_told_as_sigma():
    """Single runs that scatter by a fifth are said to; their medians are still near."""
    computed = Device(noise=0.2)
    costs = calibrated(computed, seconds=600.0)
    assert 0.1 < costs.sigma < 0.4
    assert off(costs, STEP) < 0.35
    assert costs.margin > 1.2


@pytest.mark.parametrize("seconds", [2.0, 10.0, 60.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_calibration_keeps_its_time(seconds, scale):
    """No run begins that will not end in time, as far as can be known; the first steps of all are taken in any case."""
    step = replace(STEP, a=scale * STEP.a, b=scale * STEP.b, c=scale * STEP.c)
    computed = Device(step)
    costs = calibrated(computed, seconds)
    first = 2 * (step.drawing([4], 4) + READ.seconds(3))
    assert computed.now - 100 <= max(seconds, 1.1 * first)
    assert costs.batch_seconds([10], 10) == pytest.approx(
        READ.seconds(9) + step.drawing([10], 10), rel=0.5
    )


def test_what_there_was_no_time_for_is_rough():
    """With nothing held out nothing is known of the error."""
    costs = calibrated(Device(replace(STEP, a=1.0)), seconds=5.0)
    assert costs.error is None
    assert costs.rough
    assert costs.sigma == 0.35


@pytest.mark.parametrize(("context", "pool"), [(8, 10_000), (40, 10_000), (4096, 60), (300, 300)])
def test_what_does_not_fit_is_left_out(context, pool):
    """A short context or a small pool gives a model of what fits: the device asserts that nothing else is asked for."""
    costs = calibrated(Device(context=context, pool=pool))
    true = STEP.drawing([3], 4)
    assert costs.decode.drawing([3], 4) == pytest.approx(true, rel=0.1)


def test_a_device_without_room_is_refused():
    """Not even the shortest run fits."""
    for small in (Device(context=7), Device(pool=8)):
        with pytest.raises(CapacityError, match="too short to measure"):
            calibrated(small)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_calibration_takes_some_time(seconds):
    """No time, and time without end, are refused."""
    with pytest.raises(SettingError, match="some seconds"):
        calibrated(Device(), seconds)


def test_progress_is_told():
    """Shares of the time grow from nothing to all of it, with what is measured."""
    told = []
    calibrated(Device(), seconds=20.0, progress=lambda share, what: told.append((share, what)))
    shares = [share for share, _ in told]
    assert all(0 <= a <= b <= 1 for a, b in pairwise(shares))
    assert shares[0] < 0.1
    assert shares[-1] > 0.5
    assert {"reading 64 tokens", "32 draws after 4 tokens"} <= {what for _, what in told}


async def test_calibration_inside_an_event_loop():
    """A notebook has one running."""
    assert asyncio.get_running_loop().is_running()
    assert calibrated(Device(), seconds=5.0).measured


# --- real engines


@pytest.mark.parametrize("engine", ["torch", "llama-cpp"])
def test_a_real_engine_is_measured(engine):
    """The bundled draft: the key says what it is, wider and longer take longer, and nothing is left in flight."""
    if engine == "llama-cpp":
        pytest.importorskip("llama_cpp")
        pytest.importorskip("gguf")
    with load("nano-draft", backend=engine, device="cpu") as backend:
        costs = device.calibrate(backend, seconds=1.0)
        key = device.key_of(backend)
        assert backend.engine.live == 0
        assert backend.runner.pool.live == 0
    assert costs.key == key
    assert (key.backend, key.model) == (engine, "nano-draft")
    assert key.threads >= 1
    assert costs.decode.sharing == {"torch": "union", "llama-cpp": "scan"}[engine]
    times = [costs.batch_seconds([n] * w, 30) for n, w in ((5, 1), (50, 1), (50, 8), (200, 8))]
    assert times[0] > 0
    assert all(a < b for a, b in pairwise(times))
    assert CostModel.from_json(costs.to_json()) == costs


def test_keys_tell_models_apart():
    """Other weights, another key; the same model opened again, the same one."""
    keys = []
    for name in ("nano-draft", "nano", "nano-draft"):
        with load(name, backend="torch", device="cpu") as backend:
            keys.append(device.key_of(backend))
    assert keys[0] == keys[2]
    assert keys[0].weights != keys[1].weights
    assert replace(keys[0], weights="", model="") != Key()


def test_a_device_tells_its_speed():
    """Copying and multiplying, in orders of magnitude that any machine has; a cold start goes by them."""
    speed = Speed(*hardware.probe("cpu"))
    assert 1e8 < speed.bytes < 1e13
    assert 1e8 < speed.flops < 1e15
    with load("nano-draft", backend="torch", device="cpu") as backend:
        costs = device.reckoned(backend)
        assert costs.key == device.key_of(backend)
    assert costs.decode.sharing == "union"
    assert 1e-3 < costs.decode.width(1) < 1


# --- energy


@pytest.fixture
def nvml(monkeypatch):
    """A driver with one GPU, whose counter goes up by 30 joules a look."""
    module = ModuleType("pynvml")
    module.reading = 0

    def energy(handle) -> int:
        assert handle == "handle of GPU-1234"
        module.reading += 30_000
        return module.reading

    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: f"handle of {uuid.decode()}"
    module.nvmlDeviceGetTotalEnergyConsumption = energy
    module.nvmlDeviceGetName = lambda _: b"A GPU"
    module.nvmlDeviceGetUUID = lambda _: "GPU-1234"
    module.nvmlSystemGetDriverVersion = lambda: "570.1"
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
    hardware.called.cache_clear()
    yield module
    hardware.called.cache_clear()


def test_energy_is_read_where_the_driver_tells(nvml):
    """In joules, of the GPU that CUDA means; a processor has no counter, and a driver without one says nothing."""
    meter = hardware.energy_meter("cuda:0")
    first = meter()
    assert meter() - first == 30.0
    assert hardware.energy_meter("cpu") is None
    del nvml.nvmlDeviceGetTotalEnergyConsumption
    assert hardware.energy_meter("cuda:0") is None


def test_no_energy_without_the_library(monkeypatch):
    """Its absence is no error."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert hardware.energy_meter("cuda:0") is None


def test_watts_of_a_calibration(nvml):
    """Energy over the time of the calibration, which belongs to the GPU by its own name."""
    computed = Device()
    computed.spec = replace(computed.spec, device="cuda:0")
    costs = calibrated(computed)
    # the counter is looked at once before, to see whether it is there
    assert costs.watts == pytest.approx(30.0 / (computed.now - 100))
    assert (costs.key.device, costs.key.driver) == ("A GPU GPU-1234", "570.1")
