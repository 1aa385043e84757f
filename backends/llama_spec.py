"""
The shape of a GGUF model, read off its metadata.

Knows the keys of the format; knows no context and no sequence.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from langchain_pareto.backends.base import ModelSpec
from langchain_pareto.backends.llama_context import KV_BYTES, KvType, LlamaModel

_HEADER = 1 << 28  # bytes in which the names of all tensors stand
_PATTERNS = {"gemma2": 2, "gemma3": 6, "cohere2": 4}  # of so many layers the last one has no window


def spec_of(model: LlamaModel, kv: KvType, device: str) -> ModelSpec:
    """The spec of a loaded model whose cache is of type `kv`."""
    api, handle = model.api, model.handle
    told = model.metadata()
    architecture = told["general.architecture"]
    layers = int(api.llama_model_n_layer(handle))
    hidden = int(api.llama_model_n_embd(handle))
    heads = max(1, int(api.llama_model_n_head(handle)))
    vocabulary = int(api.llama_vocab_n_tokens(model.vocab))

    def number(key: str, otherwise: int) -> int:
        return int(told.get(f"{architecture}.{key}", otherwise))

    key_width = number("attention.key_length", hidden // heads)
    value_width = number("attention.value_length", key_width)
    kv_heads = _each_layer(told.get(f"{architecture}.attention.head_count_kv"), layers, heads)
    attending = [n for n in kv_heads if n] if int(api.llama_model_n_head(handle)) else []
    windows = _windows(told, architecture, int(api.llama_model_n_swa(handle)), layers)
    embeddings = vocabulary * hidden * (2 if _has_head(model.path) else 1)
    return ModelSpec(
        name=told.get("general.name", model.path.name),
        dtype=_type_name(int(api.llama_model_ftype(handle)), api),
        device=device,
        vocabulary=vocabulary,
        hidden=hidden,
        heads=heads,
        kv_heads=max(attending, default=0),
        head_dim=key_width,
        windows=tuple(w for w, n in zip(windows, kv_heads, strict=True) if n and attending),
        matmul_parameters=int(api.llama_model_n_params(handle)) - embeddings,
        weight_bytes=int(api.llama_model_size(handle)),
        kv_bytes_per_token=int(sum(attending) * (key_width + value_width) * KV_BYTES[kv]),
        context_length=int(api.llama_model_n_ctx_train(handle)),
    )


def _each_layer(told: str | None, layers: int, otherwise: int) -> list[int]:
    """A number for all layers, or an array with one for each."""
    if told is None:
        return [otherwise] * layers
    values = [int(part) for part in told.strip("[]").split(",")]
    return values * layers if len(values) == 1 else values[:layers]


def _windows(
    told: Mapping[str, str], architecture: str, window: int, layers: int
) -> list[int | None]:
    """Each layer's window; where the pattern is not told and not known, full attention: an upper bound."""
    if window <= 0:
        return [None] * layers
    pattern = told.get(f"{architecture}.attention.sliding_window_pattern")
    if pattern is not None and pattern.startswith("["):
        flags = [part.strip() in {"true", "1"} for part in pattern.strip("[]").split(",")]
        return [window if flag else None for flag in flags]
    period = int(pattern) if pattern is not None else _PATTERNS.get(architecture, 0)
    if period == 0:
        return [None] * layers
    return [None if i % period == period - 1 else window for i in range(layers)]


def _has_head(path: Path) -> bool:
    """Whether the output matrix is another than the embeddings: a tensor of its own, named in the header."""
    name = b"output.weight"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(len(name).to_bytes(8, "little") + name, 0, _HEADER) >= 0


def _type_name(ftype: int, api: ModuleType) -> str:
    """`Q8_0`, `Q4_K - Medium`, `F32`."""
    name = api.llama_ftype_name(ftype)
    return str(ftype) if name is None else name.decode().removeprefix("all ")
