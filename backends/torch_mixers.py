"""
The recurrent layers ("mixers") of a model of transformers: which modules they are, and how one computes the branches of a step.

Knows modules, and transformers' cache of what they carry from token to token; knows no sequence. The rest of a model sees the new
tokens of all branches packed into one row. A mixer must see each branch apart, from its own state on, and padding would spoil that
state. So a mixer's forward is replaced: branches with equally many new tokens go through its own code together, with a cache that
holds their states, and what comes of it is packed again. Some (Mamba 1, FalconMamba, Jamba) forget their state when they get several
tokens at once; `probe` finds that out, and those continue token by token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from langchain_pareto.errors import CapabilityError

_CACHE = ("cache_params", "past_key_values")  # what a module calls the cache that it is given
_PROBED = 4  # tokens
_SMALL, _LARGE = (
    0.1,
    100.0,
)  # inputs that make a layer forget little, and a state that shows beside what they add
# The difference between four tokens at once and one by one, over the deviation of the outputs: a state that is lost makes 3 to 7
# (Mamba 1, Jamba), a time step that is clamped in one of the two alone 0.006 (Zamba 2), rounding 3e-6, and 0.02 in bfloat16.
_LOST = 0.3


@dataclass(frozen=True, slots=True)
class Group:
    """Branches of a step with equally many new tokens, all of which have a state or none of which has."""

    rows: torch.Tensor | None  # (branches * n,) into the packed tokens; None: the first ones
    lanes: torch.Tensor  # (branches,) rows of the state pool
    branches: int
    n: int
    fresh: bool


@dataclass(slots=True)
class Round:
    """What one forward hands to every mixer; without groups they compute as their authors wrote them."""

    groups: Sequence[Group] | None = None
    multi_token: bool = True  # whether a state can be continued by several tokens at once


@dataclass(frozen=True, slots=True)
class StateForm:
    """One tensor that a mixer carries, without the dimension of the branches."""

    kind: str  # "conv" or "recurrent"
    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(slots=True)
class Mixer:
    """One recurrent layer: its module, what it carries, and where the states of all lanes are."""

    module: torch.nn.Module
    layer: int
    width: int  # of its hidden states
    forms: tuple[StateForm, ...]
    cache_name: str
    round: Round
    pool: list[torch.Tensor] = field(default_factory=list)  # (lanes, ...), one a form
    _original: Callable[..., torch.Tensor] | None = None
    _shadowed: bool = False

    @property
    def elements(self) -> int:
        """Numbers in the recurrent states of one sequence."""
        shapes = [form.shape for form in self.forms if form.kind == "recurrent"]
        return sum(torch.Size(shape).numel() for shape in shapes)

    @property
    def bytes(self) -> int:
        """Bytes of the states of one sequence."""
        return sum(torch.Size(f.shape).numel() * f.dtype.itemsize for f in self.forms)

    def install(self) -> None:
        """Puts this before the module's own forward."""
        self._shadowed = "forward" in vars(self.module)
        self._original = self.module.forward
        self.module.forward = self._forward

    def restore(self) -> None:
        """Gives the module its forward back."""
        if self._original is None:
            return
        if self._shadowed:
            self.module.forward = self._original
        else:
            del self.module.forward
        self._original = None

    def probe(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether a state is continued by several tokens at once as it is by each of them."""
        generator = torch.Generator().manual_seed(self.layer)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device)

        x = _SMALL * draw(1, _PROBED, self.width).to(dtype)
        states = [
            (_LARGE if form.kind == "recurrent" else _SMALL) * draw(1, *form.shape).to(form.dtype)
            for form in self.forms
        ]
        together = self._carrier([state.clone() for state in states])
        apart = self._carrier([state.clone() for state in states])
        pairs = [
            (self._call(x, together), self._one_by_one(x, apart)),
            *zip(self._states(together), self._states(apart), strict=True),
        ]
        errors = [
            (got - expected).abs().max() / expected.float().std().clamp_min(1e-6)
            for got, expected in pairs
        ]
        return all(bool(error <= _LOST) for error in errors)  # NaN fails too

    def _forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs.pop("pareto", None)
        if self.round.groups is None:
            assert self._original is not None
            return self._original(hidden_states, *args, **kwargs)
        out: torch.Tensor | None = None
        for group in self.round.groups:
            size = group.branches * group.n
            x = hidden_states[0, :size]
            if group.rows is not None:
                x = hidden_states[0].index_select(0, group.rows)
            y = self._continue(x.view(group.branches, group.n, -1), group).reshape(size, -1)
            if out is None:
                out = y.new_zeros(hidden_states.shape[1], y.shape[1])
            if group.rows is None:
                out[:size] = y
            else:
                out.index_copy_(0, group.rows, y)
        assert out is not None, "a step has a chunk"
        return out[None]

    def _continue(self, x: torch.Tensor, group: Group) -> torch.Tensor:
        """Outputs (branches, n, width) from each branch's state on, which moves on with it."""
        if group.fresh:
            shape = (group.branches,)
            states = [x.new_zeros(shape + form.shape, dtype=form.dtype) for form in self.forms]
        else:
            states = [states.index_select(0, group.lanes) for states in self.pool]
        layer = self._carrier(states, fresh=group.fresh)
        whole = self.round.multi_token or group.fresh or group.n == 1
        y = self._call(x, layer) if whole else self._one_by_one(x, layer)
        for pool, states_after in zip(self.pool, self._states(layer), strict=True):
            pool.index_copy_(0, group.lanes, states_after)
        return y

    def _one_by_one(self, x: torch.Tensor, layer: LinearAttentionLayer) -> torch.Tensor:
        return torch.cat([self._call(token.contiguous(), layer) for token in x.split(1, 1)], 1)

    def _call(self, x: torch.Tensor, layer: LinearAttentionLayer) -> torch.Tensor:
        """The module's own code."""
        assert self._original is not None
        before = [DummyLayer() for _ in range(self.layer)]  # type: ignore[no-untyped-call]
        return self._original(x, **{self.cache_name: Cache(layers=[*before, layer])})

    def _carrier(self, states: list[torch.Tensor], *, fresh: bool = False) -> LinearAttentionLayer:
        """A layer of transformers' cache that holds these states."""
        count = 1 + max(form.index for form in self.forms)
        layer = LinearAttentionLayer(number_of_states=count)
        for form, state in zip(self.forms, states, strict=True):
            if form.kind == "conv":
                layer.conv_states[form.index] = state
                layer.conv_kernel_size[form.index] = state.shape[-1]
                layer.is_conv_states_initialized[form.index] = True
            else:
                layer.recurrent_states[form.index] = state
                layer.is_recurrent_states_initialized[form.index] = True
            layer.has_previous_state[form.index] = not fresh
        return layer

    def _states(self, layer: LinearAttentionLayer) -> list[torch.Tensor]:
        """What the layer holds now, in the order of the forms."""
        kept = {"conv": layer.conv_states, "recurrent": layer.recurrent_states}
        out = list[torch.Tensor]()
        for form in self.forms:
            state = kept[form.kind][form.index]
            assert state is not None
            out.append(state)
        return out


# --- finding them


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
    stateful = {
        i
        for i, layer in enumerate(recorder.layers)
        if isinstance(layer, LinearAttentionCacheLayerMixin)
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
