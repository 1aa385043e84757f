"""
The runner of reward models whose texts are read from their beginning every time: what looks ahead, such as BERT, and what no pool can hold.

Knows padded batches and what they cost; of branches it keeps the tokens only, for they have nothing in common here.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic, perf_counter

import torch
from transformers import PreTrainedModel

from langchain_pareto.backends import cost
from langchain_pareto.backends.base import Logits, ModelSpec, Usage
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.gpu_support import out_of_memory
from langchain_pareto.backends.head_model import two_classes
from langchain_pareto.backends.sequences import Chunk, Sequence as TokenSequence
from langchain_pareto.backends.slot_runner import SlotRunner
from langchain_pareto.errors import (
    CapacityError,
    EngineClosedError,
    EngineFailedError,
    NumericalError,
)

_BATCH = 4096  # tokens of one batch, padding included


@dataclass(slots=True, eq=False)
class Reading:
    """One text to be read, as the Task that its caller sees."""

    tokens: list[int]
    classes: list[int]
    deadline: float | None
    future: Future[object] = field(default_factory=Future)
    usage: Usage = field(default_factory=Usage)
    asked: float = field(default_factory=monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """Not read, if it is not being read already."""
        self.cancelled = True

    def end(self, result: list[list[float]] | Exception | None) -> None:
        """Tells the caller."""
        self.usage.wall_seconds = monotonic() - self.asked
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class WholeRunner(SlotRunner):
    """A model whose texts are read whole, in padded batches between the engine's steps; of branches it keeps the tokens only."""

    def __init__(
        self, model: PreTrainedModel, spec: ModelSpec, engine: Engine, *, pad: int, sep: int | None
    ) -> None:
        """`pad` fills rows up; after `sep` comes the second of two texts, where the model tells them apart."""
        super().__init__(spec.context_length)
        self.model, self.spec = model, spec
        self._engine, self._pad = engine, pad
        types = int(getattr(model.config, "type_vocab_size", 0) or 0)
        told = types > 1 and "token_type_ids" in inspect.signature(model.forward).parameters
        self._sep = sep if told else None
        self._waiting = deque[Reading]()

    def submit(
        self, tokens: Sequence[int], classes: Sequence[int], deadline: float | None
    ) -> Reading:
        """Reads `tokens`; the future gives the log-probability of each class, or None where time was up before."""
        reading = Reading(list(tokens), list(classes), deadline)
        self._waiting.append(reading)
        try:
            self._engine.post(self._read_some)
        except BaseException:
            self._waiting.remove(reading)
            raise
        return reading

    def step(self, chunks: Sequence[Chunk]) -> Logits:
        """Never asked for: there is nothing to compute in part."""
        raise AssertionError(chunks)

    def synchronize(self) -> None:
        """A batch is done when it is read."""

    def trim(self) -> None:
        """Keeps nothing."""

    def share(self, sequence: TokenSequence) -> None:
        """Has nothing that another could use."""

    def close(self) -> None:
        """Gives the model back; what waits is told so."""
        if self.closed:
            return
        self.closed = True
        self._end_all()
        del self.model

    def _end_all(self) -> None:
        while self._waiting:  # another thread may still add to them
            error = EngineClosedError(f"the backend of {self.spec.name} was closed")
            self._waiting.popleft().end(error)

    def _read_some(self) -> None:
        """One batch of those that wait; nothing that goes wrong in it is anybody else's."""
        if self.closed:
            self._end_all()
            return
        batch = self._take()
        if not batch:
            return
        try:
            self._read(batch)
        except Exception as error:  # noqa: BLE001 - any model code may fail in any way
            spec = self.spec
            failure: Exception = error
            if out_of_memory(error):
                needed = sum(len(reading.tokens) for reading in batch)
                msg = f"the device ran out of memory reading {needed} tokens with {spec.name}"
                hint = "Leave more memory beside the pools (memory=...), or use a smaller model."
                failure = CapacityError(msg, needed=needed, free=0, kind="memory", hint=hint)
            elif not isinstance(error, NumericalError):
                failure = EngineFailedError(f"{spec.name} failed on {spec.device}: {error}")
            failure.__cause__ = None if failure is error else error
            for reading in batch:
                if not reading.future.done():
                    reading.end(failure)

    def _take(self) -> list[Reading]:
        """As many of the first that wait as one batch holds, those that are late or not wanted aside."""
        batch, longest = list[Reading](), 0
        while self._waiting:
            reading = self._waiting[0]
            late = reading.deadline is not None and monotonic() >= reading.deadline
            if late or reading.cancelled or reading.future.cancelled():
                self._waiting.popleft().end(None)
                continue
            longest = max(longest, len(reading.tokens))
            if batch and longest * (len(batch) + 1) > _BATCH:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _read(self, batch: Sequence[Reading]) -> None:
        """One forward over padded rows, split over them by their own tokens."""
        began = perf_counter()
        rows = self._rows([reading.tokens for reading in batch]).log_softmax(-1).tolist()
        seconds = perf_counter() - began
        total = sum(len(reading.tokens) for reading in batch)
        moved = cost.forward_bytes(self.spec, 0, total, len(batch))
        for reading, row in zip(batch, rows, strict=True):
            n = len(reading.tokens)
            usage = Usage(
                prompt_tokens=n,
                forwards=1,
                forward_tokens=n,
                flops=cost.forward_flops(self.spec, 0, n, 0),
                bytes=moved * n // total,
                device_seconds=seconds * n / total,
            )
            reading.usage.add(usage)
            self._engine.meter.add(usage)
            bad = row[0] != row[0]  # NaN, as it is after an infinite logit
            reading.end(
                NumericalError(f"{self.spec.name} gave NaN or infinite logits")
                if bad
                else [[row[c]] for c in reading.classes]
            )

    @torch.inference_mode()
    def _rows(self, texts: Sequence[list[int]]) -> torch.Tensor:
        """The logits of both classes at the end of each text: (texts, 2), float32."""
        lengths = torch.tensor([len(tokens) for tokens in texts])
        longest = int(lengths.max())
        filled = [tokens + [self._pad] * (longest - len(tokens)) for tokens in texts]
        ids = torch.tensor(filled, device=self.model.device)
        mask = (torch.arange(longest) < lengths[:, None]).long().to(ids.device)
        options = {"attention_mask": mask}
        if self._sep is not None:
            ends = (ids == self._sep).long() * mask
            options["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=1)
        logits = self.model(input_ids=ids, **options).logits
        if logits.ndim == 3:
            logits = logits[torch.arange(len(texts)), lengths - 1]
        return two_classes(logits.float())
