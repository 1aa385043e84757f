"""
Where a model runs, or would once it is loaded, by the name that its device gives itself.

Knows how a device is chosen; loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from langchain_pareto.errors import ParetoError
from langchain_pareto.models import is_backend


def place_of(model: object, loading: Mapping[str, Any]) -> str:
    """What the device of a model calls itself; `loading` are the keywords of `load`. Imports torch.

    One that is not there is called as it was named: the call will say what is wrong.
    """
    from langchain_pareto.backends import hardware

    try:
        return hardware.called(_device(model, loading))[0]
    except ParetoError:
        return str(loading["device"])


def _device(model: object, loading: Mapping[str, Any]) -> str:
    """The device of a model that is there, or the one that is found for it; raises what loading would."""
    if not isinstance(model, str | Path | None):
        return str(getattr(model.spec if is_backend(model) else model, "device", "cpu"))  # type: ignore[attr-defined]  # a Backend has a spec
    asked: str | None = loading["device"]
    if loading["backend"] == "llama-cpp" or str(model).lower().endswith(".gguf"):
        layers = loading["model_kwargs"].get("n_gpu_layers")
        return _llama_device(asked, layers if isinstance(layers, int) else -1)
    from langchain_pareto.backends.devices import find_device

    return str(find_device(asked))


@cache
def _llama_device(asked: str | None, layers: int) -> str:
    """Where llama.cpp computes; GPUs that torch does not know are called by their number alone."""
    from langchain_pareto.backends.llama_devices import find_gpu

    gpu = find_gpu(asked, layers)
    return "cpu" if gpu is None else gpu.name
