"""
Recurrent and hybrid models of transformers over the slot pool, with one row of every state tensor for each lane.

Knows a step's sequences, their lanes and how many tokens each gets; knows no module (`torch_mixers.py`), and leaves to `states.py` who
has a lane. Keys and values of a hybrid's attention layers lie in the slot pool as those of any other model.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from langchain_pareto.backends.architectures import has_states
from langchain_pareto.backends.base import Logits
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.states import STATE_FLOPS, StateLanes, StateRunner
from langchain_pareto.backends.torch_mixers import Group, Mixer, Round
from langchain_pareto.backends.torch_recorder import find_mixers
from langchain_pareto.backends.torch_runner import TorchRunner, reserve
from langchain_pareto.errors import CapabilityError


def torch_runner(model: PreTrainedModel, *, slots: int, lanes: int) -> TorchRunner:
    """The runner for a model; `lanes` is how many states it has room for, if it has any."""
    if has_states(model.config):
        return TorchStateRunner(model, slots=slots, lanes=lanes)
    return TorchRunner(model, slots=slots)


class StatePool:
    """The states of all lanes; a copy is noted, and made with the next step."""

    def __init__(self, mixers: Sequence_[Mixer], lanes: int, device: torch.device) -> None:
        self._tensors = list[torch.Tensor]()
        self._copies = dict[int, int]()  # lane: whose state it has, as that was when it was copied
        for mixer in mixers:
            mixer.pool = [reserve((lanes, *f.shape), f.dtype, device) for f in mixer.forms]
            self._tensors += mixer.pool
        self._device = device

    def copy(self, source: int, to: int, start: int, stop: int) -> None:  # noqa: ARG002 - the protocol's names
        """Gives lane `to` the state of lane `source`, which has no parts."""
        self._copies[to] = self._copies.get(source, source)

    def remove(self, lane: int, start: int = -1, stop: int = -1) -> None:  # noqa: ARG002 - the protocol's names
        """Nobody has the lane any more."""
        self._copies.pop(lane, None)

    def settle(self) -> None:
        """Makes the copies that were noted, before any lane is written."""
        if not self._copies:
            return
        to, source = (
            torch.tensor(list(lanes), device=self._device)
            for lanes in (self._copies.keys(), self._copies.values())
        )
        for tensor in self._tensors:
            tensor.index_copy_(0, to, tensor.index_select(0, source))
        self._copies.clear()


class TorchStateRunner(StateRunner, TorchRunner):
    """One recurrent or hybrid model over one pool of token slots and one of states."""

    def __init__(self, model: PreTrainedModel, *, slots: int, lanes: int) -> None:
        """Takes `model` over until `close`; there are `slots` token slots and `lanes` states."""
        self._mixers, attending = find_mixers(model, model.config.get_text_config())
        for mixer in self._mixers:
            mixer.install()
        try:
            super().__init__(model, slots=slots)
            if len(attending) != len(self._stage.pools):
                msg = f"{type(model).__name__} has attention in {len(attending)} layers, and that of {len(self._stage.pools)} can be replaced"
                raise CapabilityError(msg)  # noqa: TRY301 - what is below is for all errors
            with torch.inference_mode():
                self._round.multi_token = all(
                    mixer.probe(self.device, self.dtype) for mixer in self._mixers
                )
            self._states = StatePool(self._mixers, lanes, self.device)
        except BaseException:
            self._restore()
            raise
        self.lanes = StateLanes(self._states, self.pool, lanes)
        self.spec = replace(
            self.spec,
            state_bytes_per_sequence=sum(mixer.bytes for mixer in self._mixers),
            state_flops_per_token=STATE_FLOPS * sum(mixer.elements for mixer in self._mixers),
        )

    @property
    def multi_token(self) -> bool:
        """Whether the model's layers continue a state by several tokens at once, or one by one."""
        return self._round.multi_token

    def step(self, chunks: Sequence_[Chunk]) -> Logits:
        """Computes every chunk in one forward; whatever it raises, the chunks' sequences are computed again later."""
        lanes = self._lanes_for(chunks)
        shared = self._round
        with self._beside():
            shared.groups = self._groups(chunks, lanes)
        try:
            with torch.inference_mode(), self._beside():
                self._states.settle()
            return super().step(chunks)
        finally:
            shared.groups = None

    @property
    def _round(self) -> Round:
        return self._mixers[0].round

    def _groups(self, chunks: Sequence_[Chunk], lanes: Sequence_[int]) -> list[Group]:
        """The chunks by length, and by whether they have a state; in order of first appearance."""
        members = dict[tuple[int, bool], list[tuple[int, int]]]()  # (first row, lane)
        row = 0
        for chunk, lane in zip(chunks, lanes, strict=True):
            key = (chunk.n, chunk.sequence.cached == 0)
            members.setdefault(key, []).append((row, lane))
            row += chunk.n
        out = list[Group]()
        for (n, fresh), places in members.items():
            host = torch.tensor(places)
            rows = None
            if len(members) > 1:
                rows = (host[:, :1] + torch.arange(n)).view(-1).to(self.device)
            out.append(Group(rows, host[:, 1].to(self.device), len(places), n, fresh))
        return out

    def close(self) -> None:
        """Gives the model back as it was found, and the memory of both pools."""
        super().close()
        self._mixers = []
        self._states = StatePool([], 0, self.device)

    def _restore(self) -> None:
        for mixer in self._mixers:
            mixer.restore()
        if hasattr(self, "_previous"):  # the constructor got as far as the attention
            super()._restore()
