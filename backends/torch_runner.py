"""
Any causal language model of transformers over the slot pool, on CUDA or CPU.

Knows one model and its tensors; knows no text, no sampling and no strategy. `step` runs the model once over everything that is asked
for; the rest of a runner only moves integers (`slot_runner.py`). All of it belongs to the engine's thread.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence as Sequence_
from contextlib import contextmanager

import numpy as np
import torch

from langchain_pareto.backends.base import Logits, ModelSpec
from langchain_pareto.backends.fused_forward import FusedForward, fits
from langchain_pareto.backends.gpu_support import give_memory_back, usable
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.slot_runner import SlotRunner
from langchain_pareto.backends.step_graphs import StepGraphs
from langchain_pareto.backends.step_plan import Planner
from langchain_pareto.backends.torch_attention import IMPLEMENTATION, LayerPool, Observed, Stage
from langchain_pareto.errors import CapabilityError


class TorchRunner(SlotRunner):
    """One model over one pool of token slots."""

    def __init__(self, model: torch.nn.Module, *, slots: int, fused: bool = True) -> None:
        """Takes `model` over until `close`, its weights where they are; the pool has `slots` token slots.

        `fused` writes the forward out where that is known to be the same (`fused_forward.py`).
        """
        super().__init__(slots)
        self.model = model
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]
        self._previous = config._attn_implementation  # noqa: SLF001 - the only place where it is kept
        self.device = next(model.parameters()).device
        dtype = model.dtype
        assert isinstance(dtype, torch.dtype)
        self.dtype = dtype  # of a quantised model, what it computes in
        self._fused: FusedForward | None = None
        self._stream: torch.cuda.Stream | None = None  # None is the device's current one
        self._keeps_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        on_gpu = usable(self.device)
        model.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]
        try:
            observed = self._probe()
        except BaseException:
            self._restore()
            raise
        self.spec = _spec(model, config, observed, self.device, self.dtype)
        first = next(iter(observed.values()), None)
        per_kv_head = 0 if first is None else first.heads // first.kv_heads
        # the kernels of a GPU read one line of the mask for all heads; where they are not taken, the lines are repeated
        self._planner = Planner(
            self.device, self.dtype, min(per_kv_head, 1) if on_gpu else per_kv_head
        )
        pools = {i: self._layer(o) for i, o in observed.items()}
        self._stage = Stage(pools=pools, on_gpu=on_gpu)
        self._graphs: StepGraphs | None = None
        if fused and fits(model):
            self._fused = FusedForward(model, {i: o.window for i, o in observed.items()})
            if self.device.type == "cuda" and self._fused.steady:
                self._graphs = StepGraphs(self.device)

    def step(self, chunks: Sequence_[Chunk]) -> Logits:
        """Computes every chunk in one forward; raises CapacityError, or the model's own error, and changes nothing then."""
        try:
            with self._slots_for(chunks), torch.inference_mode(), self._beside():
                plan = self._planner.plan(chunks)
                self._stage.plan = plan
                if self._graphs is not None and self._fused is not None:
                    table = self._fused.reach(plan.reach)
                    rows = self._graphs.run(self._stage, self._forward, (table,))
                else:
                    rows = self._forward(plan.tokens, plan.positions, plan.keep)
        except BaseException:
            self._planner.forget()
            raise
        finally:
            self._stage.plan = None
        if (
            self._stream is not None
        ):  # its memory is not given to the next step while the draws read it
            rows.record_stream(torch.cuda.current_stream(self.device))
        return Logits(rows[: plan.kept], plan.union)

    def run_beside(self) -> None:
        """On CUDA its steps have a stream of their own: a draft's small kernels run while the target's do."""
        if self.device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
            # weights and pools were written on the stream of now; after that only steps touch them
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def join(self) -> None:
        """The current stream waits for that of the steps."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """What is launched inside goes to the stream of the steps, on their device."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def trim(self) -> None:
        """Gives scratch memory back, after the device ran out of it."""
        if self._graphs is not None:
            self._graphs.clear()
        self._stage.workspace.clear()
        self._planner.forget()
        if self.device.type == "cuda":
            give_memory_back()

    def close(self) -> None:
        """Gives the model back as it was found, and the pool's memory."""
        if self.closed:
            return
        self.closed = True
        self._planner.forget()
        self._stage, self._fused, self._graphs = Stage(), None, None
        self._restore()
        del self.model
        if self.device.type == "cuda":
            give_memory_back()

    def _forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        if self._fused is not None:
            return self._fused(tokens[0], positions[0], keep, self._stage)
        self._stage.unnumbered = 0
        extra = {"logits_to_keep": keep} if self._keeps_rows else {}
        out = self.model(
            input_ids=tokens, position_ids=positions, use_cache=False, pareto=self._stage, **extra
        )
        logits: torch.Tensor = out.logits[0]  # (rows, vocabulary)
        return logits if self._keeps_rows else logits.index_select(0, keep)

    def _probe(self) -> dict[int, Observed]:
        """One forward of two tokens that only looks at what each layer hands to its attention."""
        self._stage = Stage(observed={})
        tokens = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        with torch.inference_mode():
            self._forward(tokens, torch.arange(2, device=self.device)[None], tokens[0, :1])
        observed = self._stage.observed or {}
        if not observed and not self.recurrent:
            msg = (
                f"{type(self.model).__name__} does not call the attention function of transformers"
            )
            raise CapabilityError(msg)
        return observed

    def _layer(self, seen: Observed) -> LayerPool:
        keys, values = (
            reserve((seen.kv_heads, self.pool.size, width), self.dtype, self.device)
            for width in (seen.key_width, seen.value_width)
        )
        return LayerPool(keys, values)

    def _restore(self) -> None:
        self.model.set_attn_implementation(self._previous)  # type: ignore[operator]


def reserve(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed memory; on the CPU its pages are committed as they are first written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))  # calloc
    return raw.view(dtype).view(shape)


def _spec(
    model: torch.nn.Module,
    config: object,
    observed: dict[int, Observed],
    device: torch.device,
    dtype: torch.dtype,
) -> ModelSpec:
    first = next(iter(observed.values()), Observed(0, 0, 0, heads=1, window=None))
    parameters = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()  # type: ignore[operator]
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    tied = head is not None and head.weight is embeddings.weight
    vocabulary = int(head.weight.shape[0]) if head is not None else int(config.vocab_size)  # type: ignore[attr-defined]
    outside = embeddings.weight.numel() + (0 if tied or head is None else head.weight.numel())
    kv = sum(o.kv_heads * (o.key_width + o.value_width) for o in observed.values()) * dtype.itemsize
    return ModelSpec(
        name=str(getattr(config, "name_or_path", "") or type(model).__name__),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        vocabulary=vocabulary,
        hidden=int(embeddings.weight.shape[1]),
        heads=first.heads,
        kv_heads=first.kv_heads,
        head_dim=first.key_width,
        windows=tuple(observed[i].window for i in sorted(observed)),
        matmul_parameters=parameters - outside,
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        kv_bytes_per_token=kv,
        context_length=int(getattr(config, "max_position_embeddings", 0) or 1 << 20),
    )
