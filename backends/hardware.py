"""
What a device tells of itself: its name and driver, the energy that it has drawn, and how fast it copies and multiplies.

Knows devices; knows no model.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch


def threads() -> int:
    """How many threads torch computes with on the processor."""
    return int(torch.get_num_threads())


@cache
def called(name: str) -> tuple[str, str]:
    """What a device calls itself, and its driver."""
    found = _handle(name)
    if found is not None:
        nvml, handle = found
        called = f"{_text(nvml.nvmlDeviceGetName(handle))} {_text(nvml.nvmlDeviceGetUUID(handle))}"
        return called, _text(nvml.nvmlSystemGetDriverVersion())
    if name != "cpu":
        there = name.startswith("cuda") and torch.cuda.is_available()
        return (
            (torch.cuda.get_device_name(name), f"CUDA {torch.version.cuda}")
            if there
            else (name, "")
        )
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (models[0] if models else platform.processor() or platform.machine()), ""


def energy_meter(device: str) -> Callable[[], float] | None:
    """Reads the joules that a GPU has drawn since its driver was loaded; None where NVML does not tell."""
    found = _handle(device)
    if found is None:
        return None
    nvml, handle = found
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # noqa: BLE001 - NVML's errors have no class that is there without it
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # from mJ


def _handle(device: str) -> tuple[ModuleType, object] | None:
    """NVML and its handle of a CUDA device; None without the one or the other."""
    if not device.startswith("cuda"):
        return None
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
        # CUDA counts only the devices that this process sees, NVML all
        uuid = torch.cuda.get_device_properties(device).uuid
        return nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
    except Exception:  # noqa: BLE001 - no library, no driver, no such device: nothing is known
        return None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@cache
def probe(device: str) -> tuple[float, float]:
    """Bytes and FLOPs a second that a device copies and multiplies: the best of a few tries, half a second together."""
    gpu = device.startswith("cuda") and torch.cuda.is_available()
    where, dtype = (device, torch.float16) if gpu else ("cpu", torch.float32)
    size, side = (1 << 28, 4096) if gpu else (1 << 26, 768)  # bytes, rows
    data = torch.ones(size // 4, dtype=torch.float32, device=where)
    to, matrix = torch.empty_like(data), torch.ones(side, side, dtype=dtype, device=where)

    def best(work: Callable[[], object]) -> float:
        least = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            work()
            if gpu:
                torch.cuda.synchronize(where)
            least = min(least, time.perf_counter() - began)
        return least

    copied = best(lambda: to.copy_(data))
    multiplied = best(lambda: matrix @ matrix)
    return 2 * size / copied, 2 * side**3 / multiplied  # a copy reads and writes
