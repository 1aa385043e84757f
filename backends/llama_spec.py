"""
The shape of a GGUF model, read off its metadata.

Knows the keys of the format; knows no context and no sequence. What llama.cpp does not tell, arrays and names of tensors, is looked
for in the header of the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from langchain_pareto.backends.base import ModelSpec
from langchain_pareto.backends.llama_context import KV_BYTES, KvType
from langchain_pareto.backends.llama_model import LlamaModel
from langchain_pareto.errors import ModelLoadError

_MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
_HEADER = 1 << 28  # bytes in which the names of all tensors stand
# The layout of an array: key, type 9, type of its elements, count, elements (ggml's docs/gguf.md).
_ARRAY = 9  # of enum gguf_metadata_value_type
_ELEMENTS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 7: "?", 10: "Q", 11: "q"}
# Of so many layers the last one has no window: llama.cpp knows it by the architecture (set_swa_pattern in its llama-model.cpp).
_PATTERNS = {"gemma2": 2, "gemma3": 6, "cohere2": 4}
# Of so many layers the last one has attention, the others have a state (full_attention_interval, where the file does not say).
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}


@dataclass(frozen=True, slots=True)
class _Header:
    """What llama.cpp does not tell; None where the file has no such array."""

    kv_heads: list[int] | None  # of each layer
    windowed: list[int] | None  # whether each layer has a window
    untied: bool  # whether the output has weights of its own


def spec_of(
    model: LlamaModel, kv: KvType, device: str, parts: Sequence[Path] | None = None
) -> ModelSpec:
    """The spec of a loaded model whose cache is of type `kv`; `parts` are its files if it has several."""
    api, handle = model.api, model.handle
    metadata = model.metadata
    architecture = metadata["general.architecture"]
    layers = int(api.llama_model_n_layer(handle))
    hidden = int(api.llama_model_n_embd(handle))
    heads = int(api.llama_model_n_head(handle))  # 0: no attention
    vocabulary = int(api.llama_vocab_n_tokens(model.vocab))

    def number(key: str, otherwise: int) -> int:
        return int(metadata.get(f"{architecture}.{key}", otherwise))

    key_width = number("attention.key_length", hidden // max(1, heads))
    value_width = number("attention.value_length", key_width)
    header = _read_header(parts or [model.path], architecture)
    kv_heads = header.kv_heads
    if kv_heads is None:
        every = number("full_attention_interval", _INTERVALS.get(architecture, 1)) or 1
        n = number("attention.head_count_kv", heads)
        kv_heads = [n if (i + 1) % every == 0 else 0 for i in range(layers)]
    attending = [n for n in kv_heads if n] if heads else []
    period = number("attention.sliding_window_pattern", _PATTERNS.get(architecture, 0))
    windowed = header.windowed or _period(period, layers)
    window = int(api.llama_model_n_swa(handle))
    embeddings = vocabulary * hidden * (2 if header.untied else 1)
    return ModelSpec(
        name=metadata.get("general.name", model.path.name),
        dtype=_type_name(int(api.llama_model_ftype(handle)), api),
        device=device,
        vocabulary=vocabulary,
        hidden=hidden,
        heads=max(1, heads),
        kv_heads=max(attending, default=0),
        head_dim=key_width,
        windows=tuple(
            window if slides and window > 0 else None
            for slides, n in zip(windowed, kv_heads, strict=True)
            if n and attending
        ),
        matmul_parameters=int(api.llama_model_n_params(handle)) - embeddings,
        weight_bytes=int(api.llama_model_size(handle)),
        kv_bytes_per_token=int(sum(attending) * (key_width + value_width) * KV_BYTES[kv]),
        context_length=int(api.llama_model_n_ctx_train(handle)),
    )


def check_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Raises ModelLoadError for values of a damaged file on which llama.cpp would end the process."""
    architecture = metadata.get("general.architecture", "")

    def number(key: str) -> float | None:
        try:
            return float(metadata[f"{architecture}.{key}"])
        except (KeyError, ValueError):  # not there, or one for each layer
            return None

    hidden = number("embedding_length") or math.inf
    width = number("attention.key_length") or hidden / (number("attention.head_count") or 1)
    fine: dict[str, Callable[[float], bool]] = {
        "block_count": lambda n: 1 <= n <= _MOST_LAYERS,
        "attention.layer_norm_rms_epsilon": lambda x: 0 <= x < 1,
        "attention.layer_norm_epsilon": lambda x: 0 <= x < 1,
        "rope.dimension_count": lambda n: n % 2 == 0 and n <= width,
    }
    for key, is_fine in fine.items():
        value = number(key)
        if value is not None and not is_fine(value):
            msg = f"{path.name} cannot be right: its {key} is {value:g}"
            raise ModelLoadError(msg, hint="Copy or download it again.")


def _read_header(parts: Sequence[Path], architecture: str) -> _Header:
    """The first part has the metadata; any may have the output's weights."""
    untied = [_find_tensor(path, "output.weight") for path in parts]
    with (
        parts[0].open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return _Header(
            kv_heads=_numbers(data, f"{architecture}.attention.head_count_kv"),
            windowed=_numbers(data, f"{architecture}.attention.sliding_window_pattern"),
            untied=any(untied),
        )


def _find_tensor(path: Path, name: str) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(_string(name), 0, _HEADER) >= 0


def _period(period: int, layers: int) -> list[int]:
    """Which layers have a window, of `period` all but the last; where nothing is known, none: an upper bound of the cost."""
    return [int(period > 0 and i % period != period - 1) for i in range(layers)]


def _numbers(data: mmap.mmap, key: str) -> list[int] | None:
    """An array of the metadata, of small integers or truth values; None where the file has none of that name."""
    name = _string(key)
    at = data.find(name, 0, _HEADER)
    if at < 0:
        return None
    kind, element, count = struct.unpack_from("<IIQ", data, at + len(name))
    if kind != _ARRAY or element not in _ELEMENTS:
        return None
    return [
        int(v)
        for v in struct.unpack_from(f"<{count}{_ELEMENTS[element]}", data, at + len(name) + 16)
    ]


def _string(text: str) -> bytes:
    """As it stands in the file: length and bytes."""
    return len(text).to_bytes(8, "little") + text.encode()


def _type_name(ftype: int, api: ModuleType) -> str:
    """`Q8_0`, `Q4_K - Medium`, `F32`."""
    name = api.llama_ftype_name(ftype)
    return str(ftype) if name is None else name.decode().removeprefix("all ")
