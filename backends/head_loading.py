"""
Loads reward models with a head: over the slot pool like any other model where that is possible, else to be read whole.

Knows files, devices and what a body can do; knows neither requests nor what a head's values are for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from langchain_pareto.backends.architectures import check_config, has_states
from langchain_pareto.backends.base import ModelSpec, Sampling
from langchain_pareto.backends.checkpoints import check_weights
from langchain_pareto.backends.devices import free_bytes, pool_sizes
from langchain_pareto.backends.engine import Engine, engine_for
from langchain_pareto.backends.head_model import LAYOUTS, HeadModel, looks_back
from langchain_pareto.backends.heads import PUBLISHED
from langchain_pareto.backends.pretrained import quiet
from langchain_pareto.backends.self_check import SLOTS, check_runner
from langchain_pareto.backends.sharing import Shared
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.backends.whole_runner import WholeRunner
from langchain_pareto.errors import CapabilityError, CapacityError, ModelLoadError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeadSource:
    """A reward model that is loaded from a folder."""

    settings: ClassVar[object] = None  # all of them are in the key

    name: str
    folder: Path
    architecture: str
    config: PreTrainedConfig
    device: torch.device
    dtype: torch.dtype
    memory: float | str | None
    pad: int
    sep: int | None

    @property
    def key(self) -> object:
        """What users who share it agree on."""
        return "head", str(self.folder), str(self.device), self.dtype, repr(self.memory)

    def build(self, *, check: bool) -> Shared:
        """Reads the weights, and finds out whether the slot pool can hold what is computed of a text."""
        with quiet():
            model = self._read()
        theirs = None if self.architecture in PUBLISHED else model
        headed = HeadModel.of(model)
        back = headed.head is not None and looks_back(headed, theirs)
        why = (
            self._not_in_parts() if back else "looks ahead, or is read by more than its last token"
        )
        if why is None:
            return self._in_parts(headed, check=check)
        if not back and theirs is None:
            msg = f"{self.name} looks ahead, which {self.architecture} does not as it was published"
            raise CapabilityError(msg, hint="Check its config.json.")
        _logger.warning(
            "%s %s: every text is read from its beginning, and charged so", self.name, why
        )
        engine = engine_for(str(self.device))
        spec = self._whole_spec(model, ahead=not back)
        runner = WholeRunner(headed if back else model, spec, engine, pad=self.pad, sep=self.sep)
        return self._shared(runner, engine, lambda: None)

    def _read(self) -> PreTrainedModel:
        needed = check_weights(self.folder)
        published = PUBLISHED.get(self.architecture)
        kind: Any = (
            getattr(transformers, self.architecture, None)
            if published is None
            else LAYOUTS[published.weights]
        )
        if kind is None:
            msg = f"transformers {transformers.__version__} has no {self.architecture}, which {self.name} is"
            raise CapabilityError(msg, hint="A new kind of model needs a newer transformers.")
        gpu = self.device.type != "cpu" and find_spec("accelerate") is not None
        placed: dict[str, Any] = {"device_map": {"": self.device}} if gpu else {}
        try:
            loaded: Any = kind.from_pretrained(
                self.folder,
                config=self.config,
                dtype=self.dtype,
                local_files_only=True,
                output_loading_info=True,
                **placed,
            )
            model, info = loaded
            model = model.to(self.device).eval()
        except (torch.OutOfMemoryError, MemoryError) as error:
            msg = f"the weights of {self.name} ({needed:,} bytes in files) do not fit on {self.device}"
            hint = "Use a smaller model, or free memory there."
            free = free_bytes(self.device)
            raise CapacityError(msg, needed=needed, free=free, kind="bytes", hint=hint) from error
        except Exception as error:
            msg = f"{self.name} cannot be loaded from {self.folder}: {error}"
            raise ModelLoadError(msg, hint="Check that its files are whole.") from error
        lacks = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
        if lacks:
            msg = f"the weights in {self.folder} are not those of {self.architecture}: {len(lacks)} are missing or of another shape, {lacks[0]} first"
            raise ModelLoadError(msg, hint="Download the model again; random weights would score.")
        return cast("PreTrainedModel", model)

    def _not_in_parts(self) -> str | None:
        """Why the engine cannot run the body over its pool, as far as the configuration tells."""
        try:
            check_config(self.config, self.name)
        except (CapabilityError, ModelLoadError) as error:
            return f"cannot be computed in parts ({error})"
        return "is recurrent" if has_states(self.config) else None

    def _in_parts(self, headed: HeadModel, *, check: bool) -> Shared:
        """The model over a slot pool, which is sized by what a probe tells."""
        probe = TorchRunner(headed, slots=SLOTS)
        try:
            if check:
                _check(probe, headed)
            per_token = probe.spec.kv_bytes_per_token
        finally:
            probe.close()
        slots, _ = pool_sizes(self.memory, per_token, 0, self.device)
        try:
            runner = TorchRunner(headed, slots=slots)
        except (torch.OutOfMemoryError, MemoryError) as error:
            msg = f"a pool of {slots:,} token slots for {self.name} does not fit on {self.device}"
            hint = "Give it less (memory=...), or free memory there."
            raise CapacityError(msg, needed=slots, free=0, kind="slots", hint=hint) from error
        # no row of words is computed; the head counts among the layers
        runner.spec = replace(runner.spec, name=self.name, hidden=0)
        engine = engine_for(str(self.device))

        def check_again() -> None:
            engine.call(partial(_check, runner, headed)).result()

        return self._shared(runner, engine, check_again, checked=check)

    def _shared(
        self,
        runner: TorchRunner | WholeRunner,
        engine: Engine,
        check: Callable[[], None],
        *,
        checked: bool = True,
    ) -> Shared:
        return Shared(
            runner=runner,
            engine=engine,
            name=self.name,
            sampling=Sampling(),
            eos=None,
            settings=self.settings,
            check=check,
            checked=checked,
            undo=[],
        )

    def _whole_spec(self, model: PreTrainedModel, *, ahead: bool) -> ModelSpec:
        """What reading costs; a layer that looks ahead counts twice, for each token sees all of them."""
        config = self.config.get_text_config()
        heads, layers = int(config.num_attention_heads), int(config.num_hidden_layers)
        embeddings: Any = model.get_input_embeddings()
        parameters = list(model.parameters())
        return ModelSpec(
            name=self.name,
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            vocabulary=int(embeddings.weight.shape[0]),
            hidden=0,
            heads=heads,
            kv_heads=heads,
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            windows=(None,) * (layers + layers * ahead),
            matmul_parameters=sum(p.numel() for p in parameters) - embeddings.weight.numel(),
            weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
            kv_bytes_per_token=0,
            context_length=_positions(model, int(getattr(config, "max_position_embeddings", 0))),
        )


def _positions(model: PreTrainedModel, most: int) -> int:
    """Tokens that fit into its position embeddings, of which RoBERTa's begin after the padding."""
    tables = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    padding = [m.padding_idx for m in tables if isinstance(m, nn.Embedding) and m.padding_idx]
    return most - 1 - padding[0] if padding else most or 1 << 16


def _check(runner: TorchRunner, headed: HeadModel) -> None:
    """Whether the engine computes the hidden states that the body's own attention does."""
    with headed.bare(), quiet():
        check_runner(runner)
