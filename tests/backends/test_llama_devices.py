"""Where llama.cpp computes, and with how many threads."""

import os

import pytest

from langchain_pareto.backends import llama_devices
from langchain_pareto.backends.llama_devices import Gpu, find_gpu, usable_threads
from langchain_pareto.errors import SettingError

TWO = [Gpu(0, "A", 8 << 30), Gpu(1, "B", 4 << 30)]


@pytest.mark.parametrize(
    ("name", "layers", "found"),
    [
        (None, -1, TWO[0]),
        (None, 12, TWO[0]),
        (None, 0, None),
        ("cpu", -1, None),
        ("cuda", -1, TWO[0]),
        ("gpu", 3, TWO[0]),
        ("cuda:1", -1, TWO[1]),
    ],
)
def test_a_device_is_found_by_its_name(name, layers, found, monkeypatch):
    """The first GPU by default, the one of the number where one is named, and none for no layers."""
    monkeypatch.setattr(llama_devices, "gpus", lambda: TWO)
    assert find_gpu(name, layers) == found


@pytest.mark.parametrize(
    ("name", "layers", "there", "said"),
    [
        ("cuda:2", -1, TWO, "no device 'cuda:2': there is cpu, cuda:0 (A), cuda:1 (B)"),
        ("cuda:one", -1, TWO, "no device 'cuda:one'"),
        ("mps", -1, [], "no device 'mps': there is cpu"),
        (None, 5, [], "no device 'cuda'"),
        ("cpu", 5, TWO, 'device="cpu" leaves no place for n_gpu_layers=5'),
        ("cuda", 0, TWO, "n_gpu_layers=0 leaves nothing to do for device='cuda'"),
    ],
)
def test_a_device_that_cannot_be_had_is_named(name, layers, there, said, monkeypatch):
    """What is not there, and what contradicts itself, is a SettingError that says what there is."""
    monkeypatch.setattr(llama_devices, "gpus", lambda: there)
    with pytest.raises(SettingError) as caught:
        find_gpu(name, layers)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("group", "wanted", "threads"),
    [
        ("max 100000", None, 12),
        ("800000 100000", None, 8),
        ("50000 100000", None, 1),  # half a core
        ("800000 100000", "3", 3),
        ("800000 100000", "0", 8),
        ("800000 100000", "many", 8),
        (None, None, 12),
    ],
)
def test_threads_are_the_cores_that_may_be_used(group, wanted, threads, monkeypatch, tmp_path):
    """The least of affinity, the control group's quota and OMP_NUM_THREADS, and at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    if group is not None:
        (tmp_path / "cpu.max").write_text(group)
    monkeypatch.setattr(llama_devices, "_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert usable_threads() == threads
