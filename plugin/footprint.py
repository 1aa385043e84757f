"""
What models take of a device's memory, and what is free there.

Knows files, configs and devices; loads no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_pareto.backends.nano import bundled
from langchain_pareto.models import Models
from langchain_pareto.strategies.thoughts import POLICY

LARGE_FILES = 1 << 28  # bytes of files: what is smaller fits anywhere, however wide
_WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}


class Footprint:
    """What models take of their device's memory, as far as that shows without loading them.

    Files are read as they are stored, or as wide as the `dtype` that they will be loaded in. What cannot be known so, such as a model
    that is still to be downloaded, or is quantised while it is loaded, counts nothing.
    """

    def __init__(
        self,
        models: Mapping[str, object],
        loading: Mapping[str, Any],
        answering: Models,
        beside: Models,
    ) -> None:
        """`loading` are the keywords of `load`; `answering` and `beside` hold what is loaded to answer, and to play other roles."""
        self._models = models
        self._loading = loading
        self._answering = answering
        self._beside = beside

    def missing(self, roles: Mapping[str, str]) -> int:
        """Bytes of weights that these roles still have to load."""
        wanted = {(role == POLICY, name) for role, name in roles.items()}
        return sum(
            self._stored(self._models[name])
            for answers, name in wanted
            if not (self._answering if answers else self._beside).has(self._models[name])
        )

    def free(self) -> int:
        """Bytes that are free on the device now; imports torch."""
        from langchain_pareto.backends import devices

        device = devices.find_device(self._loading.get("device"))
        if device.type != "cuda":
            return devices.free_bytes(device)
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + kept

    def token(self, name: str) -> int:
        """Bytes of keys and values that one token of a model takes, 0 where that does not show."""
        model = self._models[name]
        spec = getattr(model, "spec", None)
        if spec is not None:
            return int(spec.kv_bytes_per_token)
        config = _config(model)
        layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
        kv_heads = config.get("num_key_value_heads", heads)
        width, wide = config.get("head_dim"), config.get("hidden_size")
        if width is None and isinstance(wide, int) and isinstance(heads, int) and heads:
            width = wide // heads
        if not (isinstance(layers, int) and isinstance(kv_heads, int) and isinstance(width, int)):
            return 0
        return 2 * layers * kv_heads * width * (self._width(config) or 2)

    def _stored(self, model: object) -> int:
        folder = _folder(model)
        if folder is None or self._loading.get("model_kwargs"):
            return 0
        for pattern in ("*.safetensors", "*.bin"):
            if found := list(folder.glob(pattern)):
                stored = sum(path.stat().st_size for path in found)
                config = _config(model)
                own, wide = _WIDTHS.get(_dtype(config), 0), self._width(config)
                return stored * wide // own if own and wide and stored > LARGE_FILES else stored
        return 0

    def _width(self, config: Mapping[str, object]) -> int:
        """Bytes of one number as it will be loaded, 0 for those of an unknown dtype."""
        asked = self._loading.get("dtype")
        if asked == "auto":
            return _WIDTHS.get(_dtype(config), 0)
        from langchain_pareto.backends import devices

        device = devices.find_device(self._loading.get("device"))
        return int(devices.find_dtype(asked, device).itemsize)


def _folder(model: object) -> Path | None:
    """Where a model's files are, None for one that has none on this machine."""
    folder = bundled(model)
    if folder is None and isinstance(model, str | Path):
        folder = Path(model)
    return folder if folder is not None and folder.is_dir() else None


def _config(model: object) -> Mapping[str, object]:
    """A model's config, empty where it has none to read."""
    own = getattr(model, "config", None)
    if own is not None:
        return dict(vars(own))
    folder = _folder(model)
    try:
        found = json.loads((folder / "config.json").read_text()) if folder is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _dtype(config: Mapping[str, object]) -> str:
    return str(config.get("dtype", config.get("torch_dtype"))).removeprefix("torch.")
