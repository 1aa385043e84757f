"""
The weights and the vocabulary of one GGUF file, through the C API of llama-cpp-python.

Knows the file's metadata and who owns which memory; knows no context and no sequence.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from langchain_pareto.backends.llama_library import complaint, library
from langchain_pareto.errors import ModelLoadError

_VALUE_BYTES = 1 << 16  # of a metadata value, at first


class LlamaModel:
    """One GGUF file, or its parts; `handle` and `vocab` are C pointers."""

    def __init__(
        self, path: Path, *, gpu_layers: int = 0, gpu: int = 0, vocab_only: bool = False
    ) -> None:
        """Puts so many layers (-1: all) on one GPU; raises ModelLoadError when llama.cpp cannot read the file."""
        self.api = library()
        self.path = path
        params = self.api.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        # all of it on one; on a processor none, or prompts would be computed on a GPU that nobody counts with
        params.split_mode, params.main_gpu = 0, gpu if gpu_layers else -1
        complaint()
        self.handle: Any = self.api.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            msg = f"llama.cpp cannot load {path}: {complaint()}"
            hint = "The file may be cut short, no GGUF, or of an architecture newer than the installed llama.cpp."
            raise ModelLoadError(msg, hint=hint)
        self.vocab: Any = self.api.llama_model_get_vocab(self.handle)
        self.adapters = list[tuple[Any, float]]()  # C pointers, and their scales

    @property
    def generates(self) -> bool:
        """Whether it continues a text, token by token: no encoder, no diffusion, no embedding model."""
        api, handle, metadata = self.api, self.handle, self.metadata
        architecture = metadata.get("general.architecture")
        return bool(
            api.llama_model_has_decoder(handle)
            and not api.llama_model_has_encoder(handle)
            and not api.llama_model_is_diffusion(handle)
            and metadata.get(f"{architecture}.attention.causal") != "false"
            and metadata.get(f"{architecture}.pooling_type", "0") == "0"
        )

    @property
    def has_state(self) -> bool:
        """Whether layers carry a recurrent state, some or all."""
        api, handle = self.api, self.handle
        return bool(api.llama_model_is_recurrent(handle) or api.llama_model_is_hybrid(handle))

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Every key of the file's metadata that has a plain value, as text."""
        assert self.handle, "the model was closed"
        api, pairs = self.api, {}
        for i in range(api.llama_model_meta_count(self.handle)):
            key = self._text(api.llama_model_meta_key_by_index, i)
            pairs[key] = self._text(api.llama_model_meta_val_str_by_index, i)
        return pairs

    def add_adapter(self, path: Path, scale: float) -> None:
        """Reads a LoRA adapter in GGUF; contexts made afterwards use it. Raises ModelLoadError."""
        adapter = self.api.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not adapter:
            msg = f"llama.cpp cannot load the adapter {path}: {complaint()}"
            hint = "It must be a GGUF adapter that was made for this model."
            raise ModelLoadError(msg, hint=hint)
        self.adapters.append((adapter, scale))

    def close(self) -> None:
        """Frees the weights and their adapters; twice is once."""
        if self.handle:
            self.api.llama_model_free(self.handle)
            self.handle = None

    def _text(self, read: Callable[..., int], i: int) -> str:
        size = _VALUE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = read(self.handle, i, buffer, size)
            if length < size:
                return buffer.value.decode("utf-8", "replace")
            size = length + 1
