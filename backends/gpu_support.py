"""
Whether our own kernels run on a device, and where they are.

Knows devices and Triton's presence. PyTorch brings Triton along where it brings CUDA; elsewhere everything is done in PyTorch's own
operations, to the same result.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch

_logger = logging.getLogger(__name__)
_memory = threading.Lock()  # held by who captures, and by who gives memory back


@cache
def usable(device: torch.device) -> bool:
    """Whether these kernels run on the device: it is NVIDIA's, of compute capability 8.0 or later, and Triton compiles for it."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        pair = torch.zeros(1, 2, device=device)
        with torch.cuda.device(device):
            programs().gate_piece[1, 1](pair, torch.empty_like(pair), 1, N=16)
        torch.cuda.synchronize(device)
    except Exception as error:
        if out_of_memory(error):
            raise
        _logger.warning(
            "Triton does not run on %s (%s): steps take longer there. It needs the package triton and a C compiler.",
            device,
            error,
        )
        return False
    return True


def programs() -> ModuleType:
    """The programs; raises ImportError without Triton."""
    from langchain_pareto.backends import gpu_programs

    return gpu_programs


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has; those of a usual GPU where there is none, in tests."""
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def power(n: int) -> int:
    """The next power of two at or above `n`."""
    return 1 << (n - 1).bit_length()


@contextmanager
def capturing() -> Iterator[None]:
    """While a graph is captured nobody in this project gives memory back to a device: the allocator would raise."""
    with _memory:
        yield


def give_memory_back() -> None:
    """Returns what PyTorch keeps of its devices' memory and does not use."""
    with _memory:
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left: the driver says so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("out of memory", "can't allocate memory"))
    )
