"""
A GGUF file, turned into a LocalBackend that shares weights and engine with its other users in this process.

Knows files and sizes; `llama_model.py` and `llama_context.py` know the C API. Everything above the runner is what a model of
transformers has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from langchain_pareto.backends import nano
from langchain_pareto.backends.base import ModelSpec, Sampling
from langchain_pareto.backends.devices import pool_bytes, slots_in, state_lanes
from langchain_pareto.backends.engine import engine_for
from langchain_pareto.backends.gguf_tokenizer import GGUFTokenizer
from langchain_pareto.backends.llama_cells import CellRunner
from langchain_pareto.backends.llama_context import MOST_LANES, ContextSettings, LlamaContext
from langchain_pareto.backends.llama_devices import Gpu, find_gpu, free_on, usable_threads
from langchain_pareto.backends.llama_model import LlamaModel
from langchain_pareto.backends.llama_settings import LlamaSettings
from langchain_pareto.backends.llama_spec import check_metadata, spec_of
from langchain_pareto.backends.llama_states import LlamaStateRunner
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano.gguf import nano_gguf
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.sharing import Shared, share
from langchain_pareto.backends.states import STATE_FLOPS
from langchain_pareto.errors import CapabilityError, ModelLoadError, NumericalError

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_CELLS = 1 << 17  # by default: every fork and rollback looks at all of them
_FEWEST_CELLS = 1 << 14
_STATE_ELEMENT = 4  # bytes: llama.cpp keeps states in float32
# Unrelated prompts at once on a processor, where every query looks at the cells of all: of 128 prompts to the bundled model 16 or 32 at
# once are a quarter faster than all of them. Not measured on a GPU.
_ROOTS_ON_CPU = 32
_MOST_OFF = 0.5  # of the logits' spread: coarse caches move them by up to a tenth, a state that is lost by about one


def load_gguf(
    model: str | Path | None,
    *,
    device: str | None,
    model_kwargs: Mapping[str, object],
    memory: float | str | None,
    max_context: int | None,
    self_check: bool,
) -> LocalBackend:
    """A backend for a GGUF file, or for the bundled model; split files are named by their first part.

    `memory` is that of the cache, as in `load`; by default what is free once the weights are loaded, up to 131,072 tokens.
    Raises ModelLoadError, CapabilityError, CapacityError and SettingError.
    """
    own = str(model or nano.POLICY) if nano.bundled(model) else None
    parts = _find(str(model) if own is None else nano_gguf(own))
    options = LlamaSettings.read(model_kwargs)
    adapters = {str(_find(path)[0].resolve()): scale for path, scale in options.lora.items()}
    options = options.model_copy(update={"lora": adapters})
    tokenizer = GGUFTokenizer(parts[0])
    check_metadata(parts[0], tokenizer.metadata)
    source = _Source(
        name=str(model) if own is None else own,
        parts=tuple(parts),
        gpu=find_gpu(device, options.n_gpu_layers),
        options=options,
        memory=memory,
    )
    return share(source, lambda _: tokenizer, max_context=max_context, check=self_check)


def _find(path: str | Path) -> list[Path]:
    """The file, or all parts of it in order."""
    try:
        path = Path(path).expanduser()
        if path.is_dir():
            raise ModelLoadError(f"{path} is a folder", hint="Name the GGUF file in it.")
        if not path.is_file():
            raise ModelLoadError(f"there is no file {path}", hint="Check the path.")
        with path.open("rb") as file:
            start = file.read(4)
    except (OSError, RuntimeError) as error:  # not to be read, or of a user whom nobody knows
        raise ModelLoadError(f"{path} cannot be read: {error}", hint="Check the path.") from error
    if start != b"GGUF":
        hint = "Copy or download it again."
        if start == b"vers":
            hint = "It is a pointer of git-lfs: run `git lfs pull` in its folder."
        raise ModelLoadError(f"{path} is no GGUF file", hint=hint)
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    stem, number, count = part.groups()
    if not 1 <= int(number) <= int(count):
        msg = f"{path.name} is no part of a split file: its numbers contradict each other"
        raise ModelLoadError(msg, hint="Give the parts the names that they were made with.")
    parts = [path.with_name(f"{stem}-{i:05}-of-{count}.gguf") for i in range(1, int(count) + 1)]
    for one in parts:
        if not one.is_file():
            msg = f"{path.parent} lacks {one.name}, a part of {path.name}"
            raise ModelLoadError(msg, hint="Download all parts into one folder.")
    return parts


@dataclass(frozen=True, slots=True)
class _Source:
    """A GGUF file that may be loaded."""

    settings: ClassVar[object] = None  # all of them are in the key

    name: str
    parts: tuple[Path, ...]
    gpu: Gpu | None
    options: LlamaSettings
    memory: float | str | None

    @property
    def device(self) -> str:
        """What the model's device is called."""
        return "cpu" if self.gpu is None else self.gpu.name

    @property
    def key(self) -> object:
        """What users who share it agree on."""
        return (str(self.parts[0].resolve()), self.device, repr(self.options), repr(self.memory))

    def build(self, *, check: bool) -> Shared:  # noqa: ARG002 - whoever shares it runs the check
        """Reads the weights and makes the context."""
        if self.gpu is None:
            model = LlamaModel(self.parts[0])
        else:
            layers = self.options.n_gpu_layers
            model = LlamaModel(self.parts[0], gpu_layers=layers, gpu=self.gpu.index)
        try:
            for path, scale in self.options.lora.items():
                model.add_adapter(Path(path), scale)
            runner = self._runner(model)
        except BaseException:
            model.close()
            raise
        engine = engine_for(self.device)

        def run_check() -> None:
            engine.call(lambda: check_steps(runner)).result()

        return Shared(
            runner=runner,
            engine=engine,
            name=self.name,
            sampling=_sampling(model.metadata),
            eos=None,
            settings=self.settings,
            check=run_check,
            checked=False,
            undo=[],
        )

    def _runner(self, model: LlamaModel) -> CellRunner | LlamaStateRunner:
        """The runner over a context of the size that the memory allows."""
        if not model.generates:
            msg = f"{self.parts[0].name} is no causal language model"
            raise CapabilityError(msg, hint="Use another model.")
        spec = spec_of(model, self.options.kv_type, self.device, self.parts)
        threads = self.options.n_threads or usable_threads()
        if model.has_state:
            state = _state_bytes(model, threads)
            flops = STATE_FLOPS * state // _STATE_ELEMENT
            spec = replace(spec, state_bytes_per_sequence=state, state_flops_per_token=flops)
        settings = self._sized(spec, threads)
        context = LlamaContext(model, settings)
        make = LlamaStateRunner if model.has_state else CellRunner
        roots = self.options.max_roots or (_ROOTS_ON_CPU if self.gpu is None else None)
        try:
            return make(model, context, spec, slots=settings.cells, max_roots=roots)
        except BaseException:
            context.close()
            raise

    def _sized(self, spec: ModelSpec, threads: int) -> ContextSettings:
        """Cells and lanes for the memory: of a model with states, half of it is for those."""
        room = pool_bytes(self.memory, free_on(self.gpu), gpu=self.gpu is not None)
        lanes = MOST_LANES
        if state := spec.state_bytes_per_sequence:
            lanes = state_lanes(room, state, MOST_LANES)
            room -= lanes * state
        cells = slots_in(room, max(1, spec.kv_bytes_per_token), self.device)
        if self.memory is None:
            # eight full sequences are much for a search, and every fork looks at all cells
            cells = min(cells, max(_FEWEST_CELLS, min(_MOST_CELLS, 8 * spec.context_length)))
        kv, flash = self.options.kv_type, self.options.flash_attn
        return ContextSettings(cells=cells, lanes=lanes, threads=threads, kv=kv, flash=flash)


def _state_bytes(model: LlamaModel, threads: int) -> int:
    """Bytes of one sequence's state, beside its cells."""
    context = LlamaContext(model, ContextSettings(cells=256, lanes=1, threads=threads))
    try:
        zero = np.zeros(1, np.int32)
        context.decode(zero, zero, zero, np.zeros(1, np.bool_))
        return max(1, context.state_bytes(0))
    finally:
        context.close()


def _sampling(metadata: Mapping[str, str]) -> Sampling:
    """What the file recommends."""

    def number(key: str, default: float, least: float, most: float) -> float:
        """What the file says, if it can be meant."""
        try:
            value = float(metadata.get(f"general.sampling.{key}", default))
        except ValueError:
            return default
        return value if least <= value <= most else default

    return Sampling(
        temperature=number("temp", 1.0, 0, 100),
        top_k=int(number("top_k", 0, 0, 1 << 30)),
        top_p=number("top_p", 1.0, 1e-6, 1),
        min_p=number("min_p", 0.0, 0, 1),
        repetition_penalty=number("penalty_repeat", 1.0, 0.01, 100),
    )


def check_steps(runner: CellRunner | LlamaStateRunner) -> None:
    """Computes a text in one step and in two.

    Raises NumericalError when logits are not finite, and CapabilityError when they are not the same.
    """
    tokens = [(17 * i + 3) % runner.spec.vocabulary for i in range(1, 9)]
    if not runner.can_step(2 * len(tokens), 2):
        return  # others use it, and would notice
    one, two = runner.open(tokens), runner.open(tokens[:4])
    try:
        whole = runner.step([Chunk(one, 8, 1)]).rows
        runner.step([Chunk(two, 4, 0)])
        runner.append(two, tokens[4:])
        pieces = runner.step([Chunk(two, 4, 1)]).rows
    finally:
        for sequence in (one, two):
            runner.drop(sequence)  # nothing of it stays cached
            runner.free(sequence)
    if not bool(whole.isfinite().all() and pieces.isfinite().all()):
        msg = f"{runner.spec.name} gives NaN or infinite logits on {runner.spec.device}"
        hint = "The file is damaged, or this build of llama.cpp cannot compute it."
        raise NumericalError(msg, hint=hint)
    spread = float(whole.std())
    if spread == 0:
        msg = f"{runner.spec.name} gives every token the same probability"
        raise CapabilityError(msg, hint="Use another model: this one does not continue texts.")
    off = float((whole - pieces).abs().max()) / spread
    if off > _MOST_OFF:
        msg = f"{runner.spec.name} computes a prompt in two steps otherwise than in one: logits differ by {off:.2g} of their spread"
        raise CapabilityError(msg, hint="Use another model, and please report this one.")
