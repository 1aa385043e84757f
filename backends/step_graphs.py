"""
Forwards captured as CUDA graphs, one for each shape of step: the host launches one graph where it would launch hundreds of kernels.

Knows step plans and their tensors; knows no model and no sequence. A decode step of a small model, and of any model at few branches, takes
the GPU less time than the host takes to launch its kernels one by one. The plan of a step is copied into the tensors that its graph was
captured with; while the same sequences decode, the plan grows in those tensors themselves, and only the new tokens are copied.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from langchain_pareto.backends.gpu_support import capturing, out_of_memory, power
from langchain_pareto.backends.step_plan import Call, StepPlan
from langchain_pareto.backends.torch_attention import Stage

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]

_EAGER = 2  # steps of a shape that are launched kernel by kernel before it is captured: many shapes never come again
_WIDEST = 256  # tokens: wider steps are bound by arithmetic, not by launches
_MOST = 64  # graphs of one runner
_REMEMBERED = 1024  # shapes whose steps are counted
_FAILURES = 3  # captures that may fail: another thread that waits for the whole device breaks one

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Graph:
    """One captured forward, and what it reads by address besides weights and pools."""

    graph: torch.cuda.CUDAGraph
    plan: StepPlan
    logits: Tensor  # (logit rows, vocabulary), overwritten by each replay of any graph
    held: list[Tensor]  # scratch memory and tables


class StepGraphs:
    """The graphs of one runner. Its stage's pools, scratch memory and model stay where they are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs = OrderedDict[tuple[object, ...], _Graph]()
        self._seen = OrderedDict[tuple[object, ...], int]()
        # a handle, whose type torch keeps to itself; shared by all graphs, of which one runs at a time
        self._memory: Any = None
        self._stream: torch.cuda.Stream | None = None  # of captures
        self._failures = 0
        self._full = False  # no memory was left for one more

    def run(self, stage: Stage, forward: Forward, held: Sequence[Tensor]) -> Tensor:
        """The logits of the stage's plan: (logit rows, vocabulary), the caller's own.

        `forward` takes tokens, positions and the rows to keep, reads the rest from the stage, and is the same from step to step, as are
        the tensors `held` that it reads besides.
        """
        plan = stage.plan
        assert plan is not None
        if plan.in_order is not None or plan.tokens.shape[1] > _WIDEST:
            return forward(plan.tokens, plan.positions, plan.keep)
        key = (*plan.shape, *(t.data_ptr() for t in held))
        known = self._graphs.get(key)
        if known is not None:
            self._graphs.move_to_end(key)
            return _replay(known, plan)
        if not self._is_due(key):
            return forward(plan.tokens, plan.positions, plan.keep)
        return self._capture(key, stage, forward, held)

    def clear(self) -> None:
        """Gives all of it back."""
        self._graphs.clear()
        self._seen.clear()
        self._memory, self._full = None, False

    def _is_due(self, key: tuple[object, ...]) -> bool:
        """Whether steps of this shape have come often enough to be captured; counts this one."""
        if self._full or self._failures >= _FAILURES:
            return False
        seen = self._seen.pop(key, 0)
        if seen >= _EAGER:
            return True
        self._seen[key] = seen + 1
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _capture(
        self,
        key: tuple[object, ...],
        stage: Stage,
        forward: Forward,
        held: Sequence[Tensor],
    ) -> Tensor:
        """Runs the step kernel by kernel, then captures what it does for the steps to come."""
        given = stage.plan
        assert given is not None
        while len(self._graphs) >= _MOST:
            self._graphs.popitem(last=False)
        own = stage.plan = _copied(given)
        try:
            with self._aside():
                # libraries set themselves up for the stream, and scratch memory gets its size
                out = forward(own.tokens, own.positions, own.keep)
                rows, vocabulary = out.shape
                # in few sizes: each that grows stays for the graphs that write there
                logits = stage.buffer("logits", (power(max(1, rows)), vocabulary), out)[:rows]
                _forget_derived(own)
                graph = self._recorded(
                    lambda: logits.copy_(forward(own.tokens, own.positions, own.keep)), logits
                )
                logits.copy_(out)
        finally:
            stage.plan = given
            _forget_derived(own)
        if graph is not None:
            given.calls = own.calls  # the plan grows in the graph's tensors from here on
            read = [*stage.workspace.values(), *held]
            self._graphs[key] = _Graph(graph, own, logits, read)
        return logits.clone()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """A stream for captures, which waits for what was launched before, and for which waits what comes after."""
        now = torch.cuda.current_stream(self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        beside = self._stream
        beside.wait_stream(now)
        try:
            with torch.cuda.stream(beside):
                yield
        finally:
            now.wait_stream(beside)

    def _recorded(self, work: Callable[[], object], scratch: Tensor) -> torch.cuda.CUDAGraph | None:
        """What `work` launches; None where that could not be captured, and then `scratch` is overwritten."""
        graph, failure = torch.cuda.CUDAGraph(), None
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        with capturing():
            try:
                # other threads may allocate meanwhile
                graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
            except RuntimeError as error:
                failure = error
                self._end_failed(scratch)
        if failure is None:
            return graph
        self._note_failure(failure)
        return None

    def _end_failed(self, scratch: Tensor) -> None:
        """Tells torch that a capture which failed at its end has ended: neither its allocator nor its random numbers know."""
        own = torch.cuda.graph_pool_handle()
        small = torch.cuda.CUDAGraph()  # one that succeeds leaves the random numbers in order
        self._end_pool(self._memory)
        self._memory = None  # what else of the old one is open cannot be known
        try:
            small.capture_begin(pool=own, capture_error_mode="thread_local")
            scratch.zero_()
            small.capture_end()
        except RuntimeError:
            self._end_pool(own)

    def _end_pool(self, handle: Any) -> None:
        """No more of what is allocated on the device goes to that pool."""
        with suppress(Exception):  # torch has no public name for it
            torch._C._cuda_endAllocateToPool(self._device.index or 0, handle)  # noqa: SLF001

    def _note_failure(self, error: RuntimeError) -> None:
        """No more captures where memory is short, until some was given back, or where too many failed."""
        self._full = any(out_of_memory(e) for e in (error, error.__context__) if e is not None)
        self._failures += not self._full
        if not self._full:
            _logger.warning("a step on %s was not captured: %s", self._device, error)


def _replay(one: _Graph, plan: StepPlan) -> Tensor:
    """Computes the plan with its graph."""
    _fill(one.plan, plan)
    one.graph.replay()
    return one.logits.clone()  # whoever draws from it may do so beside the next step


def _copied(plan: StepPlan) -> StepPlan:
    """The same plan in tensors of its own."""
    calls = [
        Call(
            call.rows.clone(),
            call.columns.clone(),
            call.mask.clone(),
            call.row_positions.clone(),
            call.column_positions.clone(),
            call.heads,
            call.whole,
        )
        for call in plan.calls
    ]
    return replace(
        plan,
        tokens=plan.tokens.clone(),
        positions=plan.positions.clone(),
        write=plan.write.clone(),
        keep=plan.keep.clone(),
        gather=None if plan.gather is None else plan.gather.clone(),
        calls=calls,
    )


def _fill(own: StepPlan, plan: StepPlan) -> None:
    """Gives the graph's plan what this step's says; a plan that has grown in it brings its new tokens only."""
    own.tokens.copy_(plan.tokens)
    own.positions.copy_(plan.positions)
    own.write.copy_(plan.write)
    if plan.calls is own.calls:
        return
    own.keep.copy_(plan.keep)
    if own.gather is not None and plan.gather is not None:
        own.gather.copy_(plan.gather)
    for mine, call in zip(own.calls, plan.calls, strict=True):
        mine.rows.copy_(call.rows)
        mine.columns.copy_(call.columns)
        mine.mask.copy_(call.mask)
        mine.row_positions.copy_(call.row_positions)
        mine.column_positions.copy_(call.column_positions)
    plan.calls = own.calls


def _forget_derived(plan: StepPlan) -> None:
    """No mask that was derived outside a capture is used inside, or the other way round."""
    for call in plan.calls:
        call.forget_derived()
