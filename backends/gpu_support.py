"""
Whether our own kernels run on a device, and where they are.

Knows devices and Triton's presence. PyTorch brings Triton along where it brings CUDA; elsewhere everything is done in PyTorch's own
operations, to the same result.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch

_logger = logging.getLogger(__name__)


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
    except Exception as error:  # noqa: BLE001 - a missing compiler, driver or package, each in its own way
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
