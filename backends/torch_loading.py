"""
A path, a hub id or a loaded model of transformers, turned into a LocalBackend that shares weights and engine with its other users.

Knows transformers' loading, and which of its settings the engine honours; `checkpoints.py` knows files, `architectures.py` what the
engine can run, `devices.py` where. A model object is used as it is, and given back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from langchain_pareto.backends import nano
from langchain_pareto.backends.architectures import (
    check_config,
    check_model,
    needs_long_rope,
    pin_long_rope,
    unwrap,
)
from langchain_pareto.backends.checkpoints import check_weights, find_folder
from langchain_pareto.backends.devices import find_device, find_dtype, pool_sizes
from langchain_pareto.backends.engine import engine_for
from langchain_pareto.backends.fused_forward import separate
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.pretrained import (
    quiet,
    read_config,
    read_model,
    read_tokenizer,
    sampling_of,
    wrap_tokenizer,
)
from langchain_pareto.backends.self_check import LANES, SLOTS, check_runner
from langchain_pareto.backends.sharing import Shared, Undo, share
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.backends.torch_states import torch_runner
from langchain_pareto.errors import (
    CapabilityError,
    CapacityError,
    ParetoError,
    SettingError,
)

AnyTokenizer = Tokenizer | PreTrainedTokenizerBase | str | Path

_OURS = {"attn_implementation", "config", "local_files_only", "output_loading_info"}
_NAMED = {"dtype", "torch_dtype", "revision", "device"}


def load_pretrained(
    model: str | Path | PreTrainedModel | None,
    *,
    tokenizer: AnyTokenizer | None,
    device: str | None,
    dtype: str | None,
    revision: str | None,
    model_kwargs: Mapping[str, object],
    memory: float | str | None,
    max_context: int | None,
    self_check: bool,
) -> LocalBackend:
    """A backend for a model of transformers; what the options mean, and what is raised, is told by `loading.load`."""
    if model is None or isinstance(model, str | Path):
        source: _Files | _Object = _Files.find(
            model, device, dtype, revision, model_kwargs, memory, max_context
        )
        if tokenizer is None and nano.bundled(model) is not None:
            tokenizer = nano.tokenizer_path()
    else:
        for name, value in {"device": device, "dtype": dtype, "revision": revision}.items():
            _refuse_for_object(name, value)
        _refuse_for_object("model_kwargs", model_kwargs or None)
        source = _Object(unwrap(model), memory, max_context)
    read = _read_tokenizer(source if tokenizer is None else tokenizer)  # before the weights
    return share(
        source,
        lambda shared: wrap_tokenizer(read, shared.eos),
        max_context=max_context,
        check=self_check,
    )


# --- from files


@dataclass(frozen=True, slots=True)
class _Files:
    """A model that is loaded from a folder."""

    settings: ClassVar[object] = None  # all of them are in the key

    name: str
    folder: Path
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    kwargs: Mapping[str, object]
    memory: float | str | None
    long_rope: bool

    @classmethod
    def find(
        cls,
        model: str | Path | None,
        device: str | None,
        dtype: str | None,
        revision: str | None,
        kwargs: Mapping[str, object],
        memory: float | str | None,
        max_context: int | None,
    ) -> _Files:
        """Looks at everything that can be known without the weights."""
        for name in sorted(kwargs.keys() & (_OURS | _NAMED)):
            own = f"give {name.removeprefix('torch_')}= itself"
            why = own if name in _NAMED else "it is ours to set"
            raise SettingError(f"model_kwargs must not have {name!r}: {why}")
        spread = kwargs.get("device_map")
        if isinstance(spread, Mapping) and len(set(map(str, spread.values()))) > 1:
            raise _spread(set(map(str, spread.values())))
        # what is not said, transformers would ask on the terminal
        kwargs = {"trust_remote_code": False, **kwargs}
        on = find_device(device)
        ours = nano.bundled(model)
        folder = find_folder(ours or str(model), revision)
        config = read_config(folder, bool(kwargs["trust_remote_code"]))
        name = str(model or nano.POLICY) if ours else str(model)
        check_config(config, name)
        check_weights(folder)
        return cls(
            name=name,
            folder=folder,
            config=config,
            device=on,
            dtype=find_dtype(dtype, on),
            kwargs=kwargs,
            memory=memory,
            long_rope=needs_long_rope(config, max_context),
        )

    @property
    def key(self) -> object:
        """What users who share it agree on; the folder of a hub model names its revision."""
        kwargs = repr(sorted(self.kwargs.items()))
        memory = repr(self.memory)
        return (str(self.folder), str(self.device), self.dtype, kwargs, memory, self.long_rope)

    def build(self, *, check: bool) -> Shared:
        """Reads the weights and takes the model over."""
        with quiet():
            model = read_model(self.folder, self.name, self.device, self.dtype, self.kwargs)
            for config in (model.config, model.config.get_text_config()):
                config.name_or_path = self.name
        return _take_over(model, self.name, self.memory, self.long_rope, check, None)


# --- from an object


@dataclass(frozen=True, slots=True)
class _Object:
    """A model that somebody else loaded."""

    model: PreTrainedModel
    memory: float | str | None
    max_context: int | None

    @property
    def key(self) -> object:
        """The object itself, which lives as long as it is used."""
        return id(self.model)

    @property
    def settings(self) -> object:
        """One object has one runner, hence one pool."""
        return {"memory": self.memory, "max_context": self.max_context}

    def build(self, *, check: bool) -> Shared:
        """Takes the model over."""
        model = self.model
        name = str(model.config.name_or_path or type(model).__name__)
        check_config(model.config, name)
        long_rope = needs_long_rope(model.config, self.max_context)
        try:
            shared = _take_over(model, name, self.memory, long_rope, check, self.settings)
        except BaseException:
            separate(model)
            raise
        shared.undo.append(partial(separate, model))
        return shared


def _refuse_for_object(name: str, value: object) -> None:
    if value is not None:
        msg = (
            f"{name}={value!r} is for a model that is loaded here; a model object is used as it is"
        )
        raise SettingError(msg, hint=f"Leave {name} out, or give the model's path.")


# --- the runner


def _take_over(
    model: PreTrainedModel,
    name: str,
    memory: float | str | None,
    long_rope: bool,
    check: bool,
    settings: object,
) -> Shared:
    check_model(model, name)
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1 or torch.device("meta") in devices:
        raise _spread({"disk" if d.type == "meta" else str(d) for d in devices})
    generation = model.generation_config
    chosen = {} if generation is None else generation.to_diff_dict()
    sampling = sampling_of(chosen, name)
    undo = [_evaluate(model)]
    try:
        if long_rope:
            undo.extend(pin_long_rope(model, name))
        # tells the bytes of a token and of a state, and is checked
        probe = _runner(model, name, SLOTS, LANES)
        try:
            if check:
                with quiet():
                    check_runner(probe)
        finally:
            probe.close()
        sizes = probe.spec.kv_bytes_per_token, probe.spec.state_bytes_per_sequence
        runner = _runner(model, name, *pool_sizes(memory, *sizes, probe.device))
    except BaseException:
        for back in reversed(undo):
            back()
        raise
    engine = engine_for(str(runner.device))

    def run_check() -> None:
        with quiet():
            engine.call(partial(check_runner, runner)).result()

    return Shared(
        runner=runner,
        engine=engine,
        name=name,
        sampling=sampling,
        eos=chosen.get("eos_token_id"),
        settings=settings,
        check=run_check,
        checked=check,
        undo=undo,
    )


def _runner(model: PreTrainedModel, name: str, slots: int, lanes: int) -> TorchRunner:
    try:
        return torch_runner(model, slots=slots, lanes=lanes)
    except ParetoError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        states = f" and {lanes:,} states" if lanes else ""
        msg = f"a pool of {slots:,} token slots{states} for {name} does not fit on {model.device}"
        hint = "Give it less (memory=...), or free memory there."
        raise CapacityError(msg, needed=slots, free=0, kind="slots", hint=hint) from error
    except Exception as error:
        msg = f"{name} ({type(model).__name__}) does not run on the engine: {error}"
        raise CapabilityError(msg, hint="Use another model, and please report this one.") from error


def _evaluate(model: PreTrainedModel) -> Undo:
    """Switches dropout and the like off; the undo restores each module's mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()  # type: ignore[no-untyped-call]

    def undo() -> None:
        for module in training:
            module.training = True

    return undo


def _spread(devices: set[str]) -> CapabilityError:
    msg = f"the model is spread over several devices ({', '.join(sorted(devices))}), and the engine runs a model on one"
    hint = "Leave device_map out, or use a smaller or quantised model."
    return CapabilityError(msg, hint=hint)


def _read_tokenizer(
    source: AnyTokenizer | _Files | _Object,
) -> Tokenizer | PreTrainedTokenizerBase:
    """The tokenizer that was given, or the one in the folder that was given, or the model's own."""
    if isinstance(source, _Files):
        return read_tokenizer(source.folder, bool(source.kwargs["trust_remote_code"]))
    if isinstance(source, _Object):
        name = source.model.config.name_or_path
        if not name:
            msg = "a model object that came from no path needs its tokenizer"
            raise SettingError(msg, hint="Give tokenizer=, an object or a folder.")
        return read_tokenizer(find_folder(name, weights=False), trust=False)
    if isinstance(source, str | Path):
        return read_tokenizer(find_folder(source, weights=False), trust=False)
    return source
