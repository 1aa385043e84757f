"""
The forward of a plain dense decoder, written out: the same weights and the same results in a third of the operations.

Knows the modules of Llama, Mistral, Qwen 2 and Qwen 3 as transformers builds them, and the attention over the slot pool; knows no
sequence. A small model's step, and on a GPU that of any model at few branches, is bound by the number of operations and by the Python
between them. Here projections of one input are one product, residuals are added within a product, and rotations come from a table. On a
GPU whatever lies between two products is one kernel or two (`gpu_layers.py`), and whole steps are captured (`step_graphs.py`).
Every other model, and one whose modules somebody has changed, keeps its own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence as Sequence_
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.activations import ACT2FN

from langchain_pareto.backends import gpu_layers
from langchain_pareto.backends.gpu_support import power
from langchain_pareto.backends.torch_attention import Form, Stage, attend

_PLAIN = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_BRICKS = {nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, type(ACT2FN["silu"])}
_JOINED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # those of `_together`
_STEADY = {"default", "linear", "llama3", "yarn"}  # rotations that do not change with the length
_FIRST_ROTATIONS = 1024  # positions of a new table


def fits(model: torch.nn.Module) -> bool:
    """Whether the model is one of those, with plain weights and the modules of its class: not quantised, adapted, cut, hooked or spread."""
    if type(model) not in _PLAIN:
        return False
    assert isinstance(model, PreTrainedModel)
    layers = model.model.layers
    return (
        getattr(model.config, "hidden_act", None) == "silu"
        and not any(_changed(module, type(model)) for module in model.modules())
        and all(type(p) is nn.Parameter and p.is_contiguous() for p in model.parameters())
        and len({(p.device, p.dtype) for p in model.parameters()}) == 1
        and [layer.self_attn.layer_idx for layer in layers]
        == list(range(model.config.num_hidden_layers))
        and all(
            len({linear.bias is None for linear in group}) == 1
            for layer in layers
            for group in _together(layer)
        )
    )


def separate(model: torch.nn.Module) -> None:
    """Gives weights that a FusedForward joined memory of their own again."""
    if type(model) not in _PLAIN:
        return
    joined = (
        p
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.endswith(_JOINED)
        for p in module.parameters()
    )
    with _ordinary():
        for p in joined:
            if p.untyped_storage().nbytes() > p.nbytes:
                p.data = p.data.clone()


class FusedForward:
    """One model's forward over the slot pool."""

    def __init__(self, model: torch.nn.Module, windows: Mapping[int, int | None]) -> None:
        """`model` fits; `windows` are those of its layers' attention. Weights that are multiplied at once get common memory, and stay the model's."""
        body: Any = model.model
        self._embeddings, self._norm = body.embed_tokens, _Norm.of(body.norm)
        self._head: Any = model.lm_head
        self._rotations = _Rotations(body.rotary_emb, model.config)
        with _ordinary():
            self._layers = [_Layer.of(layer, i, windows[i]) for i, layer in enumerate(body.layers)]

    @property
    def steady(self) -> bool:
        """Whether a forward of one shape always runs the same kernels over the same addresses, once `reach` is called."""
        return self._rotations.steady

    def reach(self, positions: int) -> Tensor:
        """The table of rotations, long enough for so many positions; only of a steady forward."""
        return self._rotations.reach(self._norm.weight[None], positions)

    def __call__(self, tokens: Tensor, positions: Tensor, keep: Tensor, stage: Stage) -> Tensor:
        """Logits of the rows `keep`: (rows,) ids and positions -> (kept, vocabulary)."""
        assert stage.plan is not None
        x = F.embedding(tokens, self._embeddings.weight)
        table, at = self._rotations.at(x, positions, stage.plan.reach)
        if stage.on_gpu and self._layers[0].turns_on_gpu:
            for layer in self._layers:
                x = layer.forward_on_gpu(x, table, at, stage)
        else:
            cos, sin = table.index_select(0, at).unsqueeze(2).unbind(1)  # (rows, 1, width)
            for layer in self._layers:
                x = layer.forward(x, cos, sin, stage)
        x = self._norm.of_rows(x.index_select(0, keep), on_gpu=stage.on_gpu)
        return F.linear(x, self._head.weight, self._head.bias)


@dataclass(slots=True)
class _Norm:
    """One root mean square norm."""

    weight: Tensor
    shape: torch.Size
    epsilon: float

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        return cls(norm.weight, norm.weight.shape, norm.variance_epsilon)

    def of_rows(self, x: Tensor, *, on_gpu: bool = False) -> Tensor:
        if on_gpu:
            return gpu_layers.rms_norm(x, self.weight, self.epsilon)
        return F.rms_norm(x, self.shape, self.weight, self.epsilon)


@dataclass(slots=True)
class _Projection:
    """One linear map, turned for `addmm`."""

    turned: Tensor  # (in, out), a view of the weight
    bias: Tensor | None

    @classmethod
    def of(cls, linear: nn.Linear) -> _Projection:
        return cls(linear.weight.data.t(), linear.bias)

    def onto(self, x: Tensor, y: Tensor) -> Tensor:
        """`x` and the projection of `y`, added within the product."""
        out = torch.addmm(x, y, self.turned)
        return out if self.bias is None else out.add_(self.bias)

    def add_to(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds the projection of `y` to `x` in place: on a GPU that saves a copy."""
        x.addmm_(y, self.turned)
        return x if self.bias is None else x.add_(self.bias)


@dataclass(slots=True)
class _Layer:
    """One decoder layer's weights."""

    number: int
    form: Form
    before: _Norm  # attention
    qkv: Tensor
    qkv_bias: Tensor | None
    heads: int
    kv_heads: int
    width: int
    head_norm: tuple[Tensor, float] | None  # (heads + kv heads, width), and its epsilon
    out: _Projection
    after: _Norm  # attention
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: _Projection

    @classmethod
    def of(cls, layer: Any, number: int, window: int | None) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        (q, k, v), (gate, up) = _together(layer)
        width = int(attention.head_dim)
        heads, kv_heads = q.out_features // width, k.out_features // width
        head_norm = None
        if hasattr(attention, "q_norm"):
            weights = [
                norm.weight.expand(n, -1)
                for norm, n in ((attention.q_norm, heads), (attention.k_norm, kv_heads))
            ]
            head_norm = torch.cat(weights), float(attention.q_norm.variance_epsilon)
        return cls(
            number=number,
            form=Form(float(attention.scaling), window, None, None),
            before=_Norm.of(layer.input_layernorm),
            qkv=_joined([q.weight, k.weight, v.weight]),
            qkv_bias=None if q.bias is None else _joined([q.bias, k.bias, v.bias]),
            heads=heads,
            kv_heads=kv_heads,
            width=width,
            head_norm=head_norm,
            out=_Projection.of(attention.o_proj),
            after=_Norm.of(layer.post_attention_layernorm),
            gate_up=_joined([gate.weight, up.weight]),
            gate_up_bias=None if gate.bias is None else _joined([gate.bias, up.bias]),
            down=_Projection.of(mlp.down_proj),
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, stage: Stage) -> Tensor:
        """(rows, hidden) -> (rows, hidden)."""
        turned = self.heads + self.kv_heads
        qkv = self._projected(self.before.of_rows(x))
        qk, v = qkv[:, :turned], qkv[:, turned:]
        if self.head_norm is not None:
            weight, epsilon = self.head_norm
            qk = F.rms_norm(qk, (self.width,), None, epsilon) * weight
        qk = torch.addcmul(qk * cos, qk.roll(self.width // 2, -1), sin)
        q, k = qk[:, : self.heads], qk[:, self.heads :]
        seen = attend(stage, self.number, q, k.transpose(0, 1), v.transpose(0, 1), self.form)
        x = self.out.onto(x, seen.view(len(x), -1))
        gate, up = self._gated(self.after.of_rows(x)).chunk(2, -1)
        return self.down.onto(x, F.silu(gate).mul_(up))

    @property
    def turns_on_gpu(self) -> bool:
        """Whether its heads are of a width that `gpu_layers` rotates."""
        return power(self.width) == self.width

    def forward_on_gpu(self, x: Tensor, rotations: Tensor, at: Tensor, stage: Stage) -> Tensor:
        """`forward` in a third of the kernels, which changes `x`; each row's rotation is at `at` in the table."""
        assert stage.plan is not None
        pool, write = stage.pools[self.number], stage.plan.write
        qkv = self._projected(self.before.of_rows(x, on_gpu=True))
        gpu_layers.rotate_and_keep(
            qkv, rotations, at, write, pool.keys, pool.values, self.head_norm
        )
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        seen = attend(stage, self.number, q, k, v, self.form, written=True)
        x = self.out.add_to(x, seen.reshape(len(x), -1))
        gated = self._gated(self.after.of_rows(x, on_gpu=True))
        return self.down.add_to(x, gpu_layers.gate(gated))

    def _projected(self, x: Tensor) -> Tensor:
        """Queries, keys and values: (rows, heads + 2 kv heads, width)."""
        qkv = F.linear(x, self.qkv, self.qkv_bias)
        return qkv.view(len(x), self.heads + 2 * self.kv_heads, self.width)

    def _gated(self, x: Tensor) -> Tensor:
        """What goes through the gates, and what they let pass: (rows, 2 intermediate)."""
        return F.linear(x, self.gate_up, self.gate_up_bias)


class _Rotations:
    """Cosines and sines of positions, from a table where they are the same at every length."""

    def __init__(self, module: Any, config: Any) -> None:
        self._module = module
        parameters = getattr(config, "rope_parameters", None) or {}
        self.steady = parameters.get("rope_type", "default") in _STEADY
        self._table: Tensor | None = None  # (positions, 2, width)

    def at(self, x: Tensor, positions: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """A table (n, 2, width) and where in it each of the (rows,) positions is, which are below `reach`.

        Sines of the first half are negative.
        """
        if self.steady:
            return self.reach(x, reach), positions
        return self._compute(x, positions), torch.arange(len(positions), device=x.device)

    def reach(self, x: Tensor, positions: int) -> Tensor:
        """The table, of so many positions at least; as wide and exact as `x` (rows, hidden) asks for."""
        known = 0 if self._table is None else len(self._table)
        if self._table is None or known < positions:
            size = max(positions, 2 * known, _FIRST_ROTATIONS)
            self._table = self._compute(x, torch.arange(size, device=x.device))
        return self._table

    def _compute(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = (part[0] for part in self._module(x[None], positions[None]))
        half = sin.shape[-1] // 2
        return torch.stack([cos, torch.cat([-sin[:, :half], sin[:, half:]], -1)], 1)


def _joined(parts: Sequence_[Tensor]) -> Tensor:
    """The parameters in a row, in common memory, which they have from now on."""
    first = parts[0]
    ends = [p.data_ptr() + p.nbytes for p in parts[:-1]]
    shape = sum(len(p) for p in parts), *first.shape[1:]
    if all(end == p.data_ptr() for end, p in zip(ends, parts[1:], strict=True)) and (
        len({p.untyped_storage().data_ptr() for p in parts}) == 1
    ):
        return first.data.as_strided(shape, first.stride())
    joined = torch.cat([p.data for p in parts])
    for p, part in zip(parts, joined.split([len(p) for p in parts]), strict=True):
        p.data = part
    return joined


@contextmanager
def _ordinary() -> Iterator[None]:
    """Tensors made here can be trained on later, whatever mode the caller is in."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


def _together(layer: Any) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """The projections of a layer that are multiplied at once: of queries, keys and values, and of gates."""
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


def _changed(module: nn.Module, model: type[nn.Module]) -> bool:
    """Whether it has hooks, a forward of its own instance, or a class that is not of the model: then it does something else."""
    own, kind = vars(module), type(module)
    return bool(
        own.get("_forward_hooks")
        or own.get("_forward_pre_hooks")
        or "forward" in own
        or (kind not in _BRICKS and kind.__module__ != model.__module__)
    )
