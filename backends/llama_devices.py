"""
Where llama.cpp can compute, and with how many threads.

Knows ggml's list of devices and what this process may use of the machine; knows no model.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from langchain_pareto.backends.devices import free_bytes
from langchain_pareto.backends.llama_library import library
from langchain_pareto.errors import SettingError

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_GPUS = {1, 2}  # GPU and integrated GPU, of enum ggml_backend_dev_type


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of ggml: its place in llama.cpp's order, what it is called, and bytes free when it was looked at."""

    index: int
    description: str
    free: int

    @property
    def name(self) -> str:
        """`cuda:0`, as torch calls it; what ggml drives by Metal or Vulkan has the same names here."""
        return f"cuda:{self.index}"


def gpus() -> list[Gpu]:
    """The GPUs that the installed build of llama.cpp can use, in its order."""
    if not library().llama_supports_gpu_offload():
        return []
    from llama_cpp._ggml import libggml

    def bind(name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(libggml, name)
        function.restype, function.argtypes = result, arguments
        return function

    count = bind("ggml_backend_dev_count", ctypes.c_size_t)
    get = bind("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind = bind("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    description = bind("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = bind("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    found = list[Gpu]()
    for device in map(get, range(count())):
        if kind(device) in _GPUS:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            found.append(Gpu(len(found), description(device).decode(), free.value))
    return found


def find_gpu(name: str | None, layers: int) -> Gpu | None:
    """The GPU on which so many layers (-1: all) go; None for the CPU. By default the first GPU there is.

    Raises SettingError where there is none of that name, or where device and layers contradict each other.
    """
    if name == "cpu":
        if layers > 0:
            raise SettingError(f'device="cpu" leaves no place for n_gpu_layers={layers}')
        return None
    if layers == 0:
        if name is not None:
            raise SettingError(f"n_gpu_layers=0 leaves nothing to do for device={name!r}")
        return None
    there = gpus()
    if name is None and (there or layers < 0):
        return there[0] if there else None
    kind, _, number = (name or "cuda").partition(":")
    index = int(number) if number.isdecimal() else 0
    if kind in {"cuda", "gpu"} and (not number or number.isdecimal()) and index < len(there):
        return there[index]
    known = ", ".join(["cpu", *(f"{gpu.name} ({gpu.description})" for gpu in there)])
    hint = (
        None
        if there
        else "This build of llama-cpp-python knows no GPU: the README says how to build it for one."
    )
    raise SettingError(f"llama.cpp has no device {name or 'cuda'!r}: there is {known}", hint=hint)


def free_on(gpu: Gpu | None) -> int:
    """Bytes that this process may still take on a device now, None being the CPU."""
    return free_bytes(torch.device("cpu")) if gpu is None else gpus()[gpu.index].free


def usable_threads() -> int:
    """Cores that this process may use: its affinity, its control group's quota, and OMP_NUM_THREADS.

    ggml's threads spin while they wait for each other, so one more than there are cores costs many times what it brings.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have none
        cores = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    limits = [_quota(), int(wanted) if wanted.isdecimal() else None]
    return min([cores, *(limit for limit in limits if limit)])


def _quota() -> int | None:
    """Whole cores that the control group gives, at least one; None for no limit."""
    try:
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return None
