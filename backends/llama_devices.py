"""
Where llama.cpp can compute, and with how many threads.

Knows ggml's list of devices and what this process may use of the machine; knows no model.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from langchain_pareto.backends.devices import free_bytes
from langchain_pareto.backends.llama_context import library
from langchain_pareto.errors import SettingError

_KINDS: dict[int, Literal["cpu", "gpu"]] = {
    0: "cpu",
    1: "gpu",
    2: "gpu",
}  # enum ggml_backend_dev_type


@dataclass(frozen=True, slots=True)
class Device:
    """One of ggml's devices: `CUDA0`, with what it is called, and its bytes."""

    name: str
    description: str
    free: int
    total: int


def gpus() -> list[Device]:
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
    name = bind("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    description = bind("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = bind("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    found = []
    for device in map(get, range(count())):
        if _KINDS.get(kind(device)) == "gpu":
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            told = (name(device).decode(), description(device).decode())
            found.append(Device(*told, free.value, total.value))
    return found


def find_gpu(name: str | None) -> tuple[int, Device] | None:
    """The GPU that `device=name` asks for, with its number; None for the CPU. By default the first GPU there is.

    Raises SettingError where there is none of that name.
    """
    if name == "cpu":
        return None
    there = gpus()
    if name is None:
        return (0, there[0]) if there else None
    kind, _, number = name.partition(":")
    index = int(number) if number.isdecimal() else 0
    if kind in {"cuda", "gpu"} and (not number or number.isdecimal()) and index < len(there):
        return index, there[index]
    known = ", ".join(["cpu", *(f"cuda:{i} ({d.description})" for i, d in enumerate(there))])
    hint = (
        None
        if there
        else "This build of llama-cpp-python knows no GPU: the README says how to build it for one."
    )
    raise SettingError(f"llama.cpp has no device {name!r}: there is {known}", hint=hint)


def free_on(gpu: tuple[int, Device] | None) -> int:
    """Bytes that this process may still take on a device now, None being the CPU."""
    return free_bytes(torch.device("cpu")) if gpu is None else gpus()[gpu[0]].free


def usable_threads() -> int:
    """Cores that this process may use: its affinity, its control group's quota, and OMP_NUM_THREADS.

    ggml's threads spin while they wait for each other, so one more than there are cores costs many times what it brings.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have none
        cores = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    limits = [cores, _quota(), int(wanted) if wanted.isdecimal() and int(wanted) else cores]
    return max(1, min(limits))


def _quota() -> int:
    """Whole cores that the control group gives."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return 1 << 16
