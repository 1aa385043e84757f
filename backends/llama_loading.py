"""
A GGUF file, turned into a LocalBackend that shares weights and engine with its other users in this process.

Knows files, settings and sizes; `llama_context.py` knows the C API. Everything above the runner is what a model of transformers has.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

from langchain_pareto.backends import nano
from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.devices import check_memory, pool_bytes, slots_in
from langchain_pareto.backends.engine import engine_for
from langchain_pareto.backends.gguf_tokenizer import GGUFTokenizer
from langchain_pareto.backends.llama_cells import CellRunner
from langchain_pareto.backends.llama_context import (
    KV_BYTES,
    MOST_LANES,
    ContextSettings,
    KvType,
    LlamaContext,
    LlamaModel,
)
from langchain_pareto.backends.llama_devices import Device, find_gpu, free_on, usable_threads
from langchain_pareto.backends.llama_spec import spec_of
from langchain_pareto.backends.llama_states import StateRunner
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.sharing import Shared, share
from langchain_pareto.errors import CapabilityError, ModelLoadError, NumericalError, SettingError

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_CELLS = 1 << 17  # by default: every fork and rollback looks at all of them
_FEWEST_CELLS = 1 << 14
_FEWEST_LANES = 8
_STATE_SHARE = 0.5  # of the pool's memory, where sequences have states


@dataclass(frozen=True, slots=True)
class Settings:
    """`model_kwargs` of a GGUF model; the names are llama.cpp's.

    `n_gpu_layers`: layers on the GPU, -1 for all. `kv_type`: type of the cache (f32, f16, q8_0, q4_0). `flash_attn`: True, False,
    or None for what llama.cpp finds faster. `lora`: paths of adapters in GGUF, with their scales. `n_threads`: by default what the
    process may use of the machine.
    """

    n_gpu_layers: int = -1
    kv_type: KvType = "f16"
    flash_attn: bool | None = None
    lora: Mapping[str, float] = field(default_factory=dict)
    n_threads: int | None = None

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Settings:
        """Checks every name and value; raises SettingError."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(given.keys() - known):
            msg = f"model_kwargs of a GGUF model has no {unknown[0]!r}: it has {', '.join(sorted(known))}"
            raise SettingError(msg)
        settings = cls(**given)  # type: ignore[arg-type]  # looked at below
        if settings.kv_type not in KV_BYTES:
            raise SettingError(
                f"kv_type must be one of {', '.join(KV_BYTES)}, got {settings.kv_type!r}"
            )
        if settings.kv_type.startswith("q") and settings.flash_attn is False:
            raise SettingError(f"a cache of type {settings.kv_type} needs flash attention")
        if settings.flash_attn not in (None, True, False):
            raise SettingError(
                f"flash_attn must be True, False or None, got {settings.flash_attn!r}"
            )
        for name, least in (("n_gpu_layers", -1), ("n_threads", 1)):
            value = getattr(settings, name)
            if value is None and name == "n_threads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SettingError(f"{name} must be an integer of at least {least}, got {value!r}")
        if not isinstance(settings.lora, Mapping) or not all(
            isinstance(scale, int | float) for scale in settings.lora.values()
        ):
            raise SettingError(f"lora must map paths to scales, got {settings.lora!r}")
        return settings


def load_gguf(
    model: str | Path | None = None,
    *,
    device: str | None = None,
    model_kwargs: Mapping[str, object] | None = None,
    memory: float | str | None = None,
    max_context: int | None = None,
    self_check: bool = True,
) -> LocalBackend:
    """A backend for a GGUF file, or for the bundled model; split files are named by their first part.

    `memory` is that of the cache, as in `load`; by default what is free once the weights are loaded, up to 131,072 tokens.
    Raises ModelLoadError, CapabilityError, CapacityError and SettingError.
    """
    check_memory(memory)
    bundled = model is None or model == "nano"
    path = nano_gguf() if bundled else _find(Path(str(model)).expanduser())
    settings = Settings.read(model_kwargs or {})
    gpu = find_gpu(device)
    if gpu is None and device is None and settings.n_gpu_layers > 0:
        find_gpu("cuda")  # raises, and says why
    source = _Source(
        name="nano" if bundled else str(model),
        path=path,
        gpu=gpu if settings.n_gpu_layers else None,
        chosen=settings,
        memory=memory,
    )
    tokenizer = GGUFTokenizer(path)
    return share(source, lambda _: tokenizer, max_context=max_context, check=self_check)


def nano_gguf() -> Path:
    """The bundled policy as a GGUF file in float16, written on first use to the user's cache."""
    from langchain_pareto.backends.nano.gguf import write_gguf

    weights = (nano.policy_path() / "model.safetensors").read_bytes()
    tokenizer = (nano.tokenizer_path() / "tokenizer.json").read_bytes()
    name = f"nano-{hashlib.sha256(weights + tokenizer).hexdigest()[:16]}.gguf"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for folder in (Path(cache) / "langchain-pareto", Path(tempfile.gettempdir())):
        path = folder / name
        with _writing:
            try:
                if not path.exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    write_gguf(nano.policy_path(), nano.tokenizer_path(), path)
            except OSError:  # a home that cannot be written to
                continue
        return path
    raise ModelLoadError(
        "the bundled model cannot be written as GGUF: neither the cache folder nor the temporary one can be written to",
        hint="Set XDG_CACHE_HOME to a folder of yours.",
    )


_writing = threading.Lock()


def _find(path: Path) -> Path:
    """The file itself, all of whose parts are there."""
    if not path.is_file():
        raise ModelLoadError(f"there is no file {path}", hint="Check the path.")
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        hint = "Copy or download it again."
        if start == b"vers":
            hint = "It is a pointer of git-lfs: run `git lfs pull` in its folder."
        raise ModelLoadError(f"{path} is no GGUF file", hint=hint)
    if part := _PART.fullmatch(path.name):
        stem, _, count = part.groups()
        lacks = [
            name
            for i in range(1, int(count) + 1)
            if not (path.parent / (name := f"{stem}-{i:05}-of-{count}.gguf")).is_file()
        ]
        if lacks:
            msg = f"{path.parent} lacks {lacks[0]}, a part of {path.name}"
            raise ModelLoadError(msg, hint="Download all parts into one folder.")
        return path.with_name(f"{stem}-00001-of-{count}.gguf")
    return path


@dataclass(frozen=True, slots=True)
class _Source:
    """A GGUF file that may be loaded."""

    name: str
    path: Path
    gpu: tuple[int, Device] | None
    chosen: Settings
    memory: float | str | None
    settings: object = None  # all of them are in the key

    @property
    def key(self) -> object:
        """What users who share it agree on."""
        chosen = repr(self.chosen)
        place = "cpu" if self.gpu is None else self.gpu[0]
        return (str(self.path.resolve()), place, chosen, repr(self.memory))

    def build(self, *, check: bool) -> Shared:  # noqa: ARG002 - whoever shares it runs the check
        """Reads the weights and makes the context."""
        chosen = self.chosen
        if self.gpu is None:
            model = LlamaModel(self.path)
        else:
            model = LlamaModel(self.path, gpu_layers=chosen.n_gpu_layers, gpu=self.gpu[0])
        try:
            for path, scale in chosen.lora.items():
                model.add_adapter(_find(Path(path).expanduser()), float(scale))
            runner = self._runner(model)
        except BaseException:
            model.close()
            raise
        engine = engine_for("cpu" if self.gpu is None else f"cuda:{self.gpu[0]}")

        def run_check() -> None:
            engine.call(lambda: _check(runner)).result()

        return Shared(
            runner=runner,
            engine=engine,
            name=self.name,
            sampling=_sampling(model.metadata()),
            eos=None,
            settings=self.settings,
            check=run_check,
            checked=False,
            undo=[],
        )

    def _runner(self, model: LlamaModel) -> CellRunner | StateRunner:
        api, chosen = model.api, self.chosen
        if api.llama_model_has_encoder(model.handle) or not api.llama_model_has_decoder(
            model.handle
        ):
            raise CapabilityError(
                f"{self.path.name} is no decoder-only language model", hint="Use another model."
            )
        device = "cpu" if self.gpu is None else f"cuda:{self.gpu[0]}"
        spec = spec_of(model, chosen.kv_type, device)
        has_state = api.llama_model_is_recurrent(model.handle) or api.llama_model_is_hybrid(
            model.handle
        )
        kind = torch.device("cpu" if self.gpu is None else "cuda")  # torch may not know the GPU
        room = pool_bytes(self.memory, kind, free_on(self.gpu))
        threads = chosen.n_threads or usable_threads()
        lanes = MOST_LANES
        if has_state:
            state = _state_bytes(model, threads)
            lanes = max(_FEWEST_LANES, min(MOST_LANES, int(room * _STATE_SHARE) // state))
            room -= lanes * state
        slots = slots_in(room, max(1, spec.kv_bytes_per_token), device)
        if self.memory is None:
            slots = min(slots, max(_FEWEST_CELLS, min(_MOST_CELLS, 8 * spec.context_length)))
        settings = ContextSettings(
            cells=slots, lanes=lanes, threads=threads, kv=chosen.kv_type, flash=chosen.flash_attn
        )
        context = LlamaContext(model, settings)
        make = StateRunner if has_state else CellRunner
        return make(model, context, spec, slots=slots)


def _state_bytes(model: LlamaModel, threads: int) -> int:
    """Bytes of one sequence's state, beside its cells."""
    context = LlamaContext(model, ContextSettings(cells=256, lanes=1, threads=threads))
    try:
        zero = np.zeros(1, np.int32)
        context.decode(zero, zero, zero, np.zeros(1, np.bool_))
        return max(1, context.state_bytes(0))
    finally:
        context.close()


def _sampling(told: Mapping[str, str]) -> Sampling:
    """What the file recommends."""

    def number(key: str, default: float) -> float:
        return float(told.get(f"general.sampling.{key}", default))

    return Sampling(
        temperature=number("temp", 1.0),
        top_k=int(number("top_k", 0)),
        top_p=number("top_p", 1.0),
        min_p=number("min_p", 0.0),
        repetition_penalty=number("penalty_repeat", 1.0),
    )


def _check(runner: CellRunner | StateRunner) -> None:
    """Whether the model gives numbers at all, for a text in one piece and in two."""
    tokens = [(17 * i + 3) % runner.spec.vocabulary for i in range(1, 9)]
    one, two = runner.open(tokens), runner.open(tokens[:4])
    try:
        whole = runner.step([Chunk(one, 8, 1)]).rows
        runner.step([Chunk(two, 4, 0)])
        runner.append(two, tokens[4:])
        pieces = runner.step([Chunk(two, 4, 1)]).rows
    finally:
        runner.free(one)
        runner.free(two)
        runner.prefixes.clear()
    if not bool(whole.isfinite().all() and pieces.isfinite().all()):
        msg = f"{runner.spec.name} gives NaN or infinite logits on {runner.spec.device}"
        raise NumericalError(
            msg, hint="The file is damaged, or this build of llama.cpp cannot compute it."
        )
