"""
The recurrent layers ("mixers") of a model of transformers, and how one computes the branches of a step.

Knows a module, and transformers' cache of what it carries from token to token; knows no sequence, and not how a module is found
(`torch_recorder.py`). The rest of a model sees the new tokens of all branches packed into one row. A mixer must see each branch
apart, from its own state on, and padding would spoil that state. So a mixer's forward is replaced: branches with equally many new
tokens go through its own code together, with a cache that holds their states, and what comes of it is packed again. Some mixers
(Mamba 1, FalconMamba, Jamba) forget their state when they get several tokens at once; `probe` finds that out, and they continue
token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, LinearAttentionLayer

_PROBED = 4  # tokens
_SMALL = 0.1  # inputs that make a layer forget little,
_LARGE = 100.0  # and a state that shows beside what they add
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
        # a module looks for its own layer by number
        return self._original(x, **{self.cache_name: Cache(layers=[layer] * (self.layer + 1))})

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
