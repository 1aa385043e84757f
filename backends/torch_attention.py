"""
Attention over the slot pool, registered with transformers as one more attention implementation.

Knows tensors, a StepPlan and the pool; knows no sequence and no model. Each layer writes the new tokens' keys and values into its
pool. A long chunk of one sequence attends in order, causally, over its past and itself; everything else goes call by call: one gather
of the union and one masked scaled-dot-product attention, with the query heads that share a key head folded into the rows. On a GPU all
calls go at once and without a gather (`gpu_layers.py`). Soft-capped scores (Gemma 2) and sinks (GPT-OSS) take the plain route.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from langchain_pareto.backends import gpu_layers
from langchain_pareto.backends.step_plan import Call, InOrder, StepPlan
from langchain_pareto.errors import CapabilityError

IMPLEMENTATION = "pareto"
# bytes of gathered keys of all layers, and as many of values, kept between decode steps
_KEPT = 256 << 20

# what models hand to their attention function, and is either honoured below or has no effect on a packed, causal forward
_HONOURED = {"sliding_window", "softcap", "s_aux", "pareto"}
_HARMLESS = {
    "position_ids",
    "use_cache",
    "cache_position",
    "position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "is_causal",
}


@dataclass(slots=True)
class LayerPool:
    """One layer's keys and values, each (kv heads, slots, width): a head's gathered columns lie side by side."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class Observed:
    """What a layer showed of itself in the probe forward."""

    kv_heads: int
    key_width: int
    value_width: int
    heads: int
    window: int | None


@dataclass(slots=True)
class Stage:
    """What one forward hands to every layer: the plan and the pools, or a notebook for the probe."""

    plan: StepPlan | None = None
    pools: dict[int, LayerPool] = field(default_factory=dict)
    observed: dict[int, Observed] | None = None
    workspace: dict[str, torch.Tensor] = field(default_factory=dict)
    unnumbered: int = 0  # calls of modules that several layers share, in this forward
    on_gpu: bool = False  # whether `gpu_layers` runs here

    def layer(self, module: torch.nn.Module) -> int:
        """Which layer's attention this is; modules that several layers share (Zamba 2) are told apart by the order of the calls."""
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int):
            msg = f"{type(module).__name__} does not tell which layer it is"
            raise CapabilityError(msg)
        if layer < 0:
            self.unnumbered += 1
            return -self.unnumbered
        return layer

    def buffer(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Scratch memory that lives as long as the runner: fresh pages every step cost more than the gather."""
        size = math.prod(shape)
        held = self.workspace.get(name)
        if held is None or held.numel() < size or held.dtype != like.dtype:
            held = self.workspace[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return held[:size].view(shape)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, heads, rows, width)
    key: torch.Tensor,  # (1, kv heads, rows, width)
    value: torch.Tensor,  # (1, kv heads, rows, value width)
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in every layer."""
    stage = kwargs.get("pareto")
    if not isinstance(stage, Stage):
        msg = f"the model around {type(module).__name__} does not hand on what its attention needs"
        raise CapabilityError(msg)
    layer = stage.layer(module)
    window = kwargs.get("sliding_window")
    assert window is None or isinstance(window, int)
    if stage.observed is not None:
        _refuse_unknown(kwargs, attention_mask, dropout)
        stage.observed[layer] = Observed(
            key.shape[1], key.shape[3], value.shape[3], query.shape[1], window
        )
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
        return out, None
    form = Form.of(query.shape[-1] ** -0.5 if scaling is None else scaling, kwargs)
    rows = query[0].transpose(0, 1)
    return attend(stage, layer, rows, key[0], value[0], form)[None], None


def attend(
    stage: Stage,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    form: Form,
    *,
    written: bool = False,
) -> torch.Tensor:
    """Writes one layer's new keys and values, unless that is done, and attends as the plan says: (rows, heads, value width).

    `query` is (rows, heads, width), `key` and `value` are (kv heads, rows, width).
    """
    plan, pool = stage.plan, stage.pools[layer]
    assert plan is not None
    if not written:
        pool.keys.index_copy_(1, plan.write, key)
        pool.values.index_copy_(1, plan.write, value)
    if (
        stage.on_gpu
        and plan.in_order is None
        and not form.plain
        and query.dtype == pool.keys.dtype
        and all(gpu_layers.fits(x.shape[2], x.itemsize) for x in (query, pool.keys, pool.values))
    ):
        return gpu_layers.attend(
            query,
            pool.keys,
            pool.values,
            plan.calls,
            places=plan.gather,
            scale=form.scale,
            window=form.window,
        )
    outs = list[torch.Tensor]()
    if plan.in_order is not None:
        outs.append(_in_order(plan.in_order, pool, query, (key, value), form))
    for i, call in enumerate(plan.calls):
        k = _columns(stage, i, layer, "keys", pool.keys, key)
        v = _columns(stage, i, layer, "values", pool.values, value)
        outs.append(_call(call, query, k, v, form))
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out if plan.gather is None else out.index_select(0, plan.gather)


@dataclass(frozen=True, slots=True)
class Form:
    """How one layer's scores become weights."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    @classmethod
    def of(cls, scale: float, kwargs: dict[str, object]) -> Form:
        window, softcap, sinks = (kwargs.get(k) for k in ("sliding_window", "softcap", "s_aux"))
        assert window is None or isinstance(window, int)
        assert softcap is None or isinstance(softcap, float)
        assert sinks is None or isinstance(sinks, torch.Tensor)
        return cls(scale, window, softcap, sinks)

    @property
    def plain(self) -> bool:
        """Whether the fused kernels cannot do it."""
        return self.softcap is not None or self.sinks is not None


def _call(
    call: Call, rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor, form: Form
) -> torch.Tensor:
    """One masked attention of padded groups: k and v are (groups, kv heads, columns, width)."""
    groups, r = call.rows.shape
    kv_heads = k.shape[1]
    per_kv = rows.shape[1] // kv_heads
    q = rows if call.whole else rows.index_select(0, call.rows.view(-1))
    q = q.reshape(groups, r, kv_heads, per_kv, -1)
    q = q.transpose(1, 2).reshape(groups, kv_heads, r * per_kv, -1)
    mask = call.masked(form.window, per_kv)  # (groups, 1, r * per_kv, columns)
    if not form.plain:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=form.scale)
    else:
        sinks = form.sinks
        if sinks is not None:  # one a head, in the order of the folded rows
            sinks = sinks.view(1, kv_heads, 1, per_kv).expand(groups, -1, r, -1)
            sinks = sinks.reshape(groups, kv_heads, r * per_kv, 1)
        out = _plain(q, k, v, mask, form, sinks)
    out = out.view(groups, kv_heads, r, per_kv, -1).transpose(1, 2)
    return out.reshape(groups * r, kv_heads * per_kv, -1)


def _columns(
    stage: Stage, number: int, layer: int, name: str, data: torch.Tensor, new: torch.Tensor
) -> torch.Tensor:
    """What one call of the plan attends to in a layer's keys or values, gathered: (groups, kv heads, columns, width).

    On the CPU each layer keeps its own for all calls while the same sequences decode, unless that is too much: then only the new columns
    are written. On a GPU the gather is cheap beside the launch, and memory is not.
    """
    assert stage.plan is not None
    call = stage.plan.calls[number]
    if call.fresh is not None and (known := call.gathered.get((layer, name))) is not None:
        buffer, seen = known
        at, rows = call.fresh
        buffer.index_copy_(1, at, new if call.whole else new.index_select(1, rows))
        return seen
    heads, _, width = data.shape
    sizes = [heads * width * one.columns.numel() for one in stage.plan.calls]
    shape = (heads, call.columns.numel(), width)
    kept = data.device.type == "cpu" and (
        len(stage.pools) * sum(sizes) * data.element_size() <= _KEPT
    )
    if kept:
        arena = stage.buffer(f"{name} of layer {layer}", (sum(sizes),), data)
        start = sum(sizes[:number])
        buffer = arena[start : start + sizes[number]].view(shape)
    else:
        buffer = stage.buffer(name, shape, data)
    torch.index_select(data, 1, call.columns.view(-1), out=buffer)
    seen = buffer.view(heads, *call.columns.shape, width).transpose(0, 1)
    if kept:
        call.gathered[layer, name] = buffer, seen
    return seen


def _in_order(
    span: InOrder,
    pool: LayerPool,
    rows: torch.Tensor,
    new: tuple[torch.Tensor, torch.Tensor],
    form: Form,
) -> torch.Tensor:
    """Consecutive rows of one sequence over its whole past and, causally, over themselves."""
    window = form.window
    past = span.past if window is None else span.past[max(0, len(span.past) - window + 1) :]
    k, v = (x[None, :, span.start : span.stop] for x in new)
    if len(past):  # (1, kv heads, past + n, width)
        k = torch.cat([pool.keys.index_select(1, past)[None], k], dim=2)
        v = torch.cat([pool.values.index_select(1, past)[None], v], dim=2)
    q = rows[span.start : span.stop].transpose(0, 1)[None]  # (1, heads, n, width)
    n, columns = q.shape[2], k.shape[2]
    alike = k.shape[-1] == v.shape[-1]  # what the kernels without a mask need
    if alike and not form.plain and (window is None or columns <= window):
        return _causal(q, k, v, form.scale)[0].transpose(0, 1)
    at = torch.arange(columns - n, columns, device=q.device)[:, None]
    column = torch.arange(columns, device=q.device)
    hidden = column > at if window is None else (column > at) | (column <= at - window)
    mask = torch.zeros(n, columns, dtype=q.dtype, device=q.device)
    mask = mask.masked_fill_(hidden, float("-inf"))
    per_kv = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(per_kv, 1), v.repeat_interleave(per_kv, 1)
    if form.plain:
        sinks = form.sinks
        sinks = None if sinks is None else sinks.view(1, -1, 1, 1).expand(-1, -1, n, -1)
        out = _plain(q, k, v, mask, form, sinks)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=form.scale)
    return out[0].transpose(0, 1)


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of the last rows of a sequence, with no mask tensor."""
    n, past = q.shape[2], k.shape[2] - q.shape[2]
    if past == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    if q.device.type != "cpu":
        bias = causal_lower_right(n, n + past)
        per_kv = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(per_kv, 1), v.repeat_interleave(per_kv, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    # the past is seen whole and the chunk causally: two attentions without a mask, merged by their log-sum-exp
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - the only one that gives the log-sum-exp
    per_kv = q.shape[1] // k.shape[1]
    folded = q.reshape(1, k.shape[1], per_kv * n, -1)
    before, lse = flash(folded, k[:, :, :past], v[:, :, :past], 0.0, False, scale=scale)
    before, lse = before.reshape(*q.shape[:3], -1), lse.reshape(q.shape[:3])
    own_k, own_v = (x[:, :, past:].repeat_interleave(per_kv, 1) for x in (k, v))
    own, own_lse = flash(q, own_k, own_v, 0.0, True, scale=scale)
    share = torch.sigmoid(lse - own_lse)[..., None].to(q.dtype)  # of the past
    merged: torch.Tensor = own + share * (before - own)
    return merged


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    form: Form,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention written out: scores soft-capped before the mask (Gemma 2), sinks joining the softmax (GPT-OSS)."""
    scores = q @ k.transpose(-1, -2) * form.scale
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    return (weights if sinks is None else weights[..., :-1]) @ v


def _refuse_unknown(kwargs: dict[str, object], mask: torch.Tensor | None, dropout: float) -> None:
    asked = {name for name, value in kwargs.items() if value is not None and value is not False}
    unknown = asked - _HONOURED - _HARMLESS
    if kwargs.get("is_causal") is False:
        unknown.add("is_causal=False")
    if mask is not None:
        unknown.add("attention_mask")
    if dropout:
        unknown.add("dropout")
    if unknown:
        msg = f"this model's attention asks for {', '.join(sorted(unknown))}, which the engine cannot honour"
        raise CapabilityError(msg)


AttentionInterface.register(IMPLEMENTATION, attention)
