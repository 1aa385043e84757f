"""Whether our own kernels are taken, and who may give memory back meanwhile; without a GPU."""

import threading
import types

import pytest
import torch

from langchain_pareto.backends import gpu_layers, gpu_support
from langchain_pareto.backends.gpu_support import capturing, give_memory_back, out_of_memory, usable

CUDA = torch.device("cuda", 0)


@pytest.fixture
def nvidia(monkeypatch):
    """A device of NVIDIA's, on which nothing is launched but counted."""
    device = types.SimpleNamespace(capability=(9, 0), launched=0, error=None)

    def launch(*args, **kwargs):
        device.launched += 1
        if device.error is not None:
            raise device.error

    programs = types.SimpleNamespace(gate_piece={(1, 1): launch})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: device.capability)
    monkeypatch.setattr(torch.cuda, "device", lambda _: capturing())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    pair = torch.zeros(1, 2)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: pair)
    monkeypatch.setattr(gpu_support, "programs", lambda: programs)
    usable.cache_clear()
    yield device
    usable.cache_clear()


def test_a_processor_and_old_devices_have_their_own_ways(nvidia):
    """Nothing is tried there."""
    assert not usable(torch.device("cpu"))
    nvidia.capability = (7, 5)
    assert not usable(CUDA)
    assert not nvidia.launched


def test_one_program_is_tried_once(nvidia):
    """And never again."""
    assert usable(CUDA)
    assert usable(CUDA)
    assert nvidia.launched == 1


def test_without_triton_or_a_compiler_a_warning_says_what_is_missing(nvidia, caplog):
    """Steps go on by torch's own operations."""
    nvidia.error = RuntimeError("Failed to find C compiler")
    assert not usable(CUDA)
    assert not usable(CUDA)
    assert caplog.text.count("Triton does not run on cuda:0") == 1
    assert "C compiler" in caplog.text


def test_a_full_device_is_no_missing_compiler(nvidia):
    """Whoever loads there is told; when there is room again, kernels are."""
    nvidia.error = RuntimeError("Triton Error [CUDA]: out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        usable(CUDA)
    nvidia.error = None
    assert usable(CUDA)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_is_short_is_known_by_its_words(error, expected):
    """The driver's own error has no class."""
    assert out_of_memory(error) is expected


def test_nobody_gives_memory_back_during_a_capture(monkeypatch):
    """They wait for its end."""
    order = list[str]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("given back"))
    with capturing():
        other = threading.Thread(target=give_memory_back)
        other.start()
        other.join(0.1)
        order.append("captured")
    other.join()
    assert order == ["captured", "given back"]


@pytest.mark.parametrize(
    ("width", "itemsize", "expected"),
    [
        (128, 2, True),
        (256, 2, True),
        (256, 4, False),
        (96, 2, False),
        (8, 2, False),
        (64, 8, False),
    ],
)
def test_heads_that_the_kernels_take(width, itemsize, expected):
    """Powers of two that fit into shared memory."""
    assert gpu_layers.fits(width, itemsize) is expected
