"""
The cache of one llama.cpp model and its steps, through the C API of llama-cpp-python.

Knows the API's return codes and sequence numbers ("lanes"); knows no sequence of ours. Everything that would abort the process is
checked before it is called. One thread at a time.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from langchain_pareto.backends.llama_library import complaint
from langchain_pareto.backends.llama_model import LlamaModel
from langchain_pareto.errors import (
    CapabilityError,
    CapacityError,
    EngineClosedError,
    EngineFailedError,
    SequenceError,
)

MOST_LANES = 256  # LLAMA_MAX_SEQ
_UBATCH = 512  # tokens that are computed at once
_BATCH = 2048  # tokens of one call
_CELLS = 256  # llama.cpp aborts on fewer, and rounds to multiples

KvType = Literal["f32", "f16", "q8_0", "q4_0"]
KV_BYTES: dict[KvType, float] = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}
_READ_FLAG = getattr(ctypes.CDLL(None), "atoi", None) if os.name == "posix" else None
_KV_NUMBERS: dict[KvType, int] = {"f32": 0, "f16": 1, "q8_0": 8, "q4_0": 2}  # enum ggml_type


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """How a context computes: `cells` is the pool in tokens, `lanes` how many sequences it tells apart."""

    cells: int
    lanes: int = MOST_LANES
    threads: int = 1
    kv: KvType = "f16"
    flash: bool | None = None  # None: where llama.cpp finds it faster


class LlamaContext:
    """The cache of one model and the buffers of its steps."""

    def __init__(self, model: LlamaModel, settings: ContextSettings) -> None:
        """Allocates everything; raises CapacityError when there is no room."""
        assert 1 <= settings.lanes <= MOST_LANES
        self.api, self.model, self.lanes = model.api, model, settings.lanes
        # In layers with a window llama.cpp takes a cell that has left its lane's window for another token, if one lane alone has
        # it, though a truncation or another branch may need it again. So every cell gets a second lane, which nothing reads.
        self._doubled = int(self.api.llama_model_n_swa(model.handle)) > 0
        if self._doubled:
            self.lanes = min(settings.lanes, MOST_LANES // 2)
        # the second mark must be there before the next cells are looked for
        self._at_once = _UBATCH if self._doubled else _BATCH
        self.vocabulary = int(self.api.llama_vocab_n_tokens(model.vocab))
        params = self.api.llama_context_default_params()
        params.n_ctx = -(-settings.cells // _CELLS) * _CELLS
        params.n_batch, params.n_ubatch = _BATCH, _UBATCH
        params.n_seq_max = self.lanes * (1 + self._doubled)
        params.kv_unified = True  # a fork is a mark on cells, not a copy
        params.swa_full = True  # a cell for every token, whether or not it has left the window
        params.n_threads = params.n_threads_batch = settings.threads
        params.type_k = params.type_v = _KV_NUMBERS[settings.kv]
        params.flash_attn_type = -1 if settings.flash is None else int(settings.flash)
        params.no_perf = True
        # ggml asks before each node of a graph, without the GIL: libc's atoi reads what abort() writes
        self._aborted = ctypes.create_string_buffer(b"0")
        if _READ_FLAG is not None:
            params.abort_callback = ctypes.cast(_READ_FLAG, type(params.abort_callback))
            params.abort_callback_data = ctypes.cast(self._aborted, ctypes.c_void_p)
        complaint()
        self._context = self.api.llama_init_from_model(model.handle, params)
        if not self._context:
            msg = f"a context of {settings.cells:,} tokens for {model.path.name} does not fit: {complaint()}"
            hint = "Give it less (memory=...), or another KV type: that of blocks (q8_0, q4_0) needs heads of a multiple of 32."
            raise CapacityError(msg, needed=settings.cells, free=0, kind="slots", hint=hint)
        self._memory = self.api.llama_get_memory(self._context)
        self._batch = _Batch(self.api, _BATCH)
        try:
            if not self._memory:
                msg = f"{model.path.name} keeps no cache, so it does not continue texts"
                raise CapabilityError(msg, hint="Use a language model.")  # noqa: TRY301 - what is below is for all errors
            self._set_adapters()
        except BaseException:
            self.close()
            raise

    def decode(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        lanes: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        """Computes every token, each at its position in its lane, all (tokens,); logits (wanted tokens, vocabulary), in order.

        Raises CapacityError (no cells), MemoryError (no memory to compute in), SequenceError (positions do not follow on) and
        EngineFailedError. Whoever calls takes back what was written before the error.
        """
        assert tokens.size == 0 or (tokens.min() >= 0 and tokens.max() < self.vocabulary)
        assert lanes.size == 0 or (lanes.min() >= 0 and lanes.max() < self.lanes)
        self._check_open()
        complaint()  # what was said before has nothing to do with this step
        logits = np.empty((int(wanted.sum()), self.vocabulary), np.float32)
        row = 0
        for start in range(0, len(tokens), self._at_once):
            part = slice(start, start + self._at_once)
            code = self._batch.decode(
                self._context, tokens[part], positions[part], lanes[part], wanted[part]
            )
            if code:
                raise _failure(code, len(tokens))
            if self._doubled:
                self._mark_again(positions[part], lanes[part])
            if n := int(wanted[part].sum()):
                shape = (n, self.vocabulary)
                view = np.ctypeslib.as_array(self.api.llama_get_logits(self._context), shape)
                logits[row : row + n] = view  # llama.cpp's own buffer is gone with the next call
                row += n
        return logits

    def copy(self, source: int, to: int, start: int, stop: int) -> None:
        """Marks the cells of lane `source` at positions start to stop as those of lane `to`, too; nothing once it is closed."""
        assert 0 <= source < self.lanes
        assert 0 <= to < self.lanes
        if not self._context:  # branches outlive their model, and change nothing any more
            return
        for lane in self._both(to):
            self.api.llama_memory_seq_cp(self._memory, source, lane, start, stop)

    def remove(self, lane: int, start: int = -1, stop: int = -1) -> None:
        """Takes cells from a lane: all of them, or those at positions start to stop; nothing once it is closed."""
        assert 0 <= lane < self.lanes
        if not self._context:
            return
        for marked in self._both(lane):
            removed = self.api.llama_memory_seq_rm(self._memory, marked, start, stop)
            assert removed, "a memory that has no parts was to be cut"

    def state_bytes(self, lane: int) -> int:
        """Bytes of a lane's state, without the cells of attention."""
        self._check_open()
        partial_only = 1
        return int(self.api.llama_state_seq_get_size_ext(self._context, lane, partial_only))

    def abort(self) -> None:
        """Makes the decode in progress fail, and every later one; from any thread."""
        self._aborted.value = b"1"

    def synchronize(self) -> None:
        """Waits for the device."""
        self._check_open()
        self.api.llama_synchronize(self._context)

    def close(self) -> None:
        """Frees the cache; twice is once."""
        if self._context:
            self.api.llama_free(self._context)
            self._context = None

    def _both(self, lane: int) -> list[int]:
        """The lane and, where cells have two, the second one."""
        return [lane, self.lanes + lane] if self._doubled else [lane]

    def _mark_again(self, positions: npt.NDArray[np.int32], lanes: npt.NDArray[np.int32]) -> None:
        """Puts the cells of a decode on their second lanes."""
        edges = np.flatnonzero((np.diff(lanes) != 0) | (np.diff(positions) != 1)) + 1
        for run in np.split(np.arange(len(lanes)), edges):
            lane, start = int(lanes[run[0]]), int(positions[run[0]])
            stop = int(positions[run[-1]]) + 1
            self.api.llama_memory_seq_cp(self._memory, lane, self.lanes + lane, start, stop)

    def _check_open(self) -> None:
        if not self._context:  # what is freed must never reach C
            raise EngineClosedError(f"the context of {self.model.path.name} was closed")

    def _set_adapters(self) -> None:
        adapters = self.model.adapters
        if not adapters:
            return
        handles = (self.api.llama_adapter_lora_p_ctypes * len(adapters))(*[a for a, _ in adapters])
        scales = (ctypes.c_float * len(adapters))(*[s for _, s in adapters])
        if self.api.llama_set_adapters_lora(self._context, handles, len(adapters), scales):
            raise CapabilityError(f"llama.cpp cannot apply the adapters: {complaint()}")


class _Batch:
    """llama_batch over arrays of ours: filled by numpy, not token by token."""

    def __init__(self, api: ModuleType, size: int) -> None:
        self._api = api
        self._tokens, self._positions, self._lanes = (np.zeros(size, np.int32) for _ in range(3))
        self._counts = np.ones(size, np.int32)  # lanes of a token
        self._wanted = np.zeros(size, np.int8)
        places = self._lanes.ctypes.data + 4 * np.arange(size, dtype=np.uint64)
        self._addresses = places.astype(np.uint64)  # where each token's lanes begin
        kind: Any = ctypes.POINTER(ctypes.c_int32) * size
        self._pointers = kind.from_buffer(self._addresses)
        self._batch = api.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=self._pointers,
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    def decode(
        self,
        context: Any,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        lanes: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.bool_],
    ) -> int:
        """llama.cpp's own return code."""
        n = len(tokens)
        self._tokens[:n], self._positions[:n], self._lanes[:n] = tokens, positions, lanes
        self._wanted[:n] = wanted
        self._batch.n_tokens = n
        return int(self._api.llama_decode(context, self._batch))


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def _failure(code: int, tokens: int) -> Exception:
    if code == 1:
        msg = f"llama.cpp found no room in its cache for a step of {tokens} tokens"
        hint = "Give the pool more memory (memory=...), or ask for fewer or shorter branches."
        return CapacityError(msg, needed=tokens, free=0, kind="slots", hint=hint)
    if code == -1:
        return SequenceError(f"llama.cpp refused a batch as invalid: {complaint()}")
    if code == -2:
        return MemoryError(f"llama.cpp had no memory for a step of {tokens} tokens: {complaint()}")
    what = "was aborted" if code == 2 else "failed"
    return EngineFailedError(f"llama.cpp {what} in a step (code {code}): {complaint()}")
