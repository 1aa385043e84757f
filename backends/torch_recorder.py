"""
Which modules of a model of transformers keep a state, and where: what one forward of two tokens shows.

Knows modules, and that they keep their states in transformers' cache; knows no sequence and no step.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from langchain_pareto.backends.torch_mixers import Mixer, Round, StateForm
from langchain_pareto.errors import CapabilityError

_CACHE = ("cache_params", "past_key_values")  # what a module calls the cache that it is given


def find_mixers(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[list[Mixer], set[int]]:
    """The mixers of a model in order, and the layers that cache keys and values: what a forward of two tokens shows.

    Raises CapabilityError where a state is kept by what is no mixer.
    """
    recorder = _Recorder(config)
    named = inspect.signature(model.forward).parameters
    cache = {next((name for name in _CACHE if name in named), _CACHE[-1]): recorder}
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    with torch.inference_mode(), _watched(model, recorder):
        model(input_ids=tokens, position_ids=positions, use_cache=True, **cache)
    # before transformers 5.23 layers without any state (Nemotron-H's MLPs) had such an entry, too
    stateful = {
        i
        for i, layer in enumerate(recorder.layers)
        if isinstance(layer, LinearAttentionCacheLayerMixin)
        and any(
            state is not None
            for states in (layer.conv_states, layer.recurrent_states)
            for state in states.values()
        )
    }
    if not stateful or stateful != set(recorder.owners):
        msg = f"{type(model).__name__} has {len(stateful)} recurrent layers, and {len(recorder.owners)} of them keep their state where it can be found"
        raise CapabilityError(msg)
    shared = Round()
    return [
        _mixer(recorder.owners[i], i, recorder, shared) for i in sorted(stateful)
    ], recorder.attending


def _mixer(module: torch.nn.Module, layer: int, recorder: _Recorder, shared: Round) -> Mixer:
    kept = recorder.layers[layer]
    assert isinstance(kept, LinearAttentionCacheLayerMixin)
    forms = [
        StateForm(kind, i, tuple(state.shape[1:]), state.dtype)
        for kind, states in (("conv", kept.conv_states), ("recurrent", kept.recurrent_states))
        for i, state in states.items()
        if state is not None
    ]
    named = list(inspect.signature(module.forward).parameters)
    cache_name = next((name for name in _CACHE if name in named), None)
    if cache_name is None or named[0] != "hidden_states":
        raise _no_mixer(module)
    return Mixer(module, layer, recorder.widths[layer], tuple(forms), cache_name, shared)


def _no_mixer(module: torch.nn.Module) -> CapabilityError:
    msg = f"{type(module).__name__} keeps a state, and is no layer that maps hidden states to hidden states"
    return CapabilityError(msg)


class _Recorder(DynamicCache):
    """A cache that notes which module keeps its state in which layer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.entered = list[tuple[torch.nn.Module, int]]()  # innermost last; widths of their inputs
        self.owners = dict[int, torch.nn.Module]()
        self.widths = dict[int, int]()
        self.attending = set[int]()

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kw: Any
    ) -> Any:
        self.attending.add(layer_idx)
        return super().update(key_states, value_states, layer_idx, *args, **kw)

    def update_conv_state(self, conv_states: Any, layer_idx: int, *args: Any, **kw: Any) -> Any:
        self._note(layer_idx)
        return super().update_conv_state(conv_states, layer_idx, *args, **kw)

    def update_recurrent_state(
        self, recurrent_states: Any, layer_idx: int, *args: Any, **kw: Any
    ) -> Any:
        self._note(layer_idx)
        return super().update_recurrent_state(recurrent_states, layer_idx, *args, **kw)

    def _note(self, layer: int) -> None:
        module, width = self.entered[-1] if self.entered else (None, 0)
        if module is None or getattr(module, "layer_idx", None) != layer:
            msg = f"layer {layer} keeps a state that belongs to no layer's own module"
            raise CapabilityError(msg)
        if self.owners.setdefault(layer, module) is not module:
            kinds = f"{type(self.owners[layer]).__name__} and {type(module).__name__}"
            raise CapabilityError(f"layer {layer} keeps states of two modules, {kinds}")
        self.widths[layer] = width


@contextmanager
def _watched(model: PreTrainedModel, recorder: _Recorder) -> Iterator[None]:
    """Inside, the recorder knows which of the model's layers is computing."""

    def enter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        width = hidden.shape[-1] if isinstance(hidden, torch.Tensor) else 0
        recorder.entered.append((module, width))

    def leave(module: torch.nn.Module, _: object, out: object) -> None:
        recorder.entered.pop()
        if module in recorder.owners.values() and not isinstance(out, torch.Tensor):
            raise _no_mixer(module)

    hooks = []
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
