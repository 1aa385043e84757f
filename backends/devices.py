"""
What a device is called, what it computes in, and how much room it has.

Knows names, dtypes and bytes; knows no model. Settings that cannot be honoured are refused with what would be accepted.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from langchain_pareto.backends.gpu_support import give_memory_back
from langchain_pareto.errors import CapacityError, SettingError

MOST_SLOTS = 1 << 20
FEWEST_SLOTS = 64

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+) ?(?:(%)|([kmgt]?)(i?)b?)", re.ASCII | re.IGNORECASE)
_CUDA_SHARE = 0.85  # of what is free beside the weights; the rest is for activations and logits
_CPU_MOST = 4 << 30  # bytes
_STATE_SHARE = 0.5  # of the pool's memory, where sequences have states
_FEWEST_LANES = 8
_MOST_STATES = 256  # branches at once; others wait, or begin again from a snapshot
_CPU_SHARE = 0.25


def find_device(name: str | None) -> torch.device:
    """The device of that name, with its index; the current CUDA device, or else the CPU, when none is named."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _no_device(name) from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise _no_device(name)
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise _no_device(name)
    return torch.device("cuda", index)


def _no_device(name: str) -> SettingError:
    there = ["cpu"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        there += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(count)]
    hint = (
        None
        if len(there) > 1
        else "torch sees no CUDA device: check the driver, and that torch is a CUDA build."
    )
    return SettingError(f"there is no device {name!r}: there is {', '.join(there)}", hint=hint)


def find_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of that name; by default bfloat16 on CUDA (float16 before Ampere) and float32 on the CPU.

    "auto" is the default too, but measures once whether this CPU multiplies faster in bfloat16.
    """
    if name is not None and name != "auto":
        if name not in _DTYPES:
            msg = f"unknown dtype {name!r}: one of auto, {', '.join(_DTYPES)}"
            raise SettingError(msg)
        return _DTYPES[name]
    if device.type == "cuda":
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if ampere else torch.float16
    return torch.bfloat16 if name == "auto" and _bfloat16_pays() else torch.float32


@cache
def _bfloat16_pays() -> bool:
    return _seconds(torch.bfloat16) < 0.9 * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """A decode step of one branch and one of eight, as far as they are multiplications: the best of five."""
    weights = torch.ones(1024, 1024, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(5):
            start = perf_counter()
            for rows in (1, 8, 1, 8):
                torch.nn.functional.linear(torch.ones(rows, 1024, dtype=dtype), weights)
            best = min(best, perf_counter() - start)
    return best


def pool_sizes(
    memory: float | str | None, bytes_per_token: int, bytes_per_state: int, device: torch.device
) -> tuple[int, int]:
    """Token slots and states that `memory` holds: bytes, a fraction of what is free, "4 GB", "80%", or the default share.

    The default is 85 % of what is free on a CUDA device; on the CPU a quarter of it, and 4 GiB at most. Of a model with
    states, half of it at most is for those. Raises CapacityError below 64 slots and 8 states.
    """
    room = pool_bytes(memory, free_bytes(device), gpu=device.type == "cuda")
    lanes = state_lanes(room, bytes_per_state, _MOST_STATES) if bytes_per_state else 0
    return slots_in(room - lanes * bytes_per_state, bytes_per_token, str(device)), lanes


def slots_in(room: int, bytes_per_token: int, device: str) -> int:
    """Token slots that fit into `room` bytes; raises CapacityError below 64."""
    slots = min(MOST_SLOTS, room // max(1, bytes_per_token))
    if slots < FEWEST_SLOTS:
        needed = FEWEST_SLOTS * bytes_per_token
        there = max(0, room)
        msg = f"a pool of {FEWEST_SLOTS} token slots needs {needed:,} bytes on {device}, and {there:,} are there for it"
        hint = "Give it more (memory=...), free some, or use a smaller model."
        raise CapacityError(msg, needed=needed, free=room, kind="bytes", hint=hint)
    return slots


def state_lanes(room: int, bytes_per_state: int, most: int) -> int:
    """States that get memory: as many as half of `room` bytes holds, 8 at least."""
    return max(_FEWEST_LANES, min(most, int(room * _STATE_SHARE) // max(1, bytes_per_state)))


def pool_bytes(memory: float | str | None, free: int, *, gpu: bool) -> int:
    """Bytes that `memory` stands for on a device with `free` bytes; raises SettingError."""
    if memory is None:
        return int(free * _CUDA_SHARE) if gpu else min(_CPU_MOST, int(free * _CPU_SHARE))
    amount = _read_size(memory) if isinstance(memory, str) else memory
    if isinstance(amount, int) and not isinstance(amount, bool) and amount > 0:
        return amount
    if isinstance(amount, float) and 0 < amount <= 1:
        return int(free * amount)
    msg = f"memory must be bytes (an int), a fraction of what is free (a float up to 1), or a text like '4 GB'; got {memory!r}"
    raise SettingError(msg)


def check_memory(memory: float | str | None) -> None:
    """Raises SettingError for what `pool_sizes` would refuse, before anything is loaded."""
    if memory is not None:
        pool_bytes(memory, 0, gpu=False)


def _read_size(text: str) -> float | None:
    """Bytes as an int, a percentage as a float, or None."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    number, percent, prefix, binary = found.groups()
    if percent:
        return float(number) / 100
    power = " kmgt".index(prefix.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take on `device`."""
    if device.type == "cuda":
        give_memory_back()
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_free_of_machine(), _free_of_container())


def _free_of_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # no Linux: half of all there is, which may be free or not
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * _CPU_MOST


def _free_of_container() -> int:
    """What the control group leaves, of which /proc/meminfo knows nothing."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such files, or "max"
        return 1 << 62
    return max(0, limit - used)
