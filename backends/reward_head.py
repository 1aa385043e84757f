"""
Reward models that have a head of one value or two classes in place of words.

Knows heads and how they are loaded; those that are published with code of their own are built here, and no code of a model's is run. A
head on a causal body is computed over the slot pool like any other model: branches share what they have in common, and what may come
next is a class. A body that looks ahead, such as BERT's, reads every text from its beginning. Knows no format of a text, no strategy.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, perf_counter
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, Self, cast

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model, Qwen2PreTrainedModel

from langchain_pareto.backends import cost
from langchain_pareto.backends.architectures import check_config, has_states
from langchain_pareto.backends.base import (
    Branch,
    Capabilities,
    Logits,
    ModelSpec,
    Request,
    Sampling,
    Task,
    Usage,
)
from langchain_pareto.backends.checkpoints import check_weights, find_folder
from langchain_pareto.backends.devices import find_device, find_dtype, free_bytes, pool_sizes
from langchain_pareto.backends.engine import Engine, engine_for
from langchain_pareto.backends.local import LocalBranch
from langchain_pareto.backends.pretrained import quiet, read_config, read_tokenizer, wrap_tokenizer
from langchain_pareto.backends.self_check import SLOTS, check_runner
from langchain_pareto.backends.sequences import Chunk, Sequence as TokenSequence
from langchain_pareto.backends.sharing import Shared, SharedBackend, share
from langchain_pareto.backends.slot_runner import SlotRunner
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.errors import (
    CapabilityError,
    CapacityError,
    EngineClosedError,
    EngineFailedError,
    ModelLoadError,
    NumericalError,
    SettingError,
)

Judges = Literal["steps", "answers"]

_BATCH = 4096  # tokens of one batch of whole texts, padding included
_logger = logging.getLogger(__name__)


# --- which models have one


class _Qwen2Reward(Qwen2PreTrainedModel):  # type: ignore[no-untyped-call]
    """Qwen2.5-Math-PRM and Qwen2.5-Math-RM, as their published code lays them out: an MLP over every token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        wide = config.hidden_size
        self.score = nn.Sequential(
            nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, config.num_labels)
        )
        self.post_init()  # type: ignore[no-untyped-call]


class _Qwen2Value(Qwen2PreTrainedModel):  # type: ignore[no-untyped-call]
    """Skywork-o1-Open-PRM, which keeps the value head of trl over every token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.v_head = nn.ModuleDict({"summary": nn.Linear(config.hidden_size, 1)})
        self.post_init()  # type: ignore[no-untyped-call]


_PUBLISHED: dict[str, tuple[type[Qwen2PreTrainedModel], Judges, int]] = {
    "Qwen2ForProcessRewardModel": (_Qwen2Reward, "steps", 2),
    "Qwen2ForRewardModel": (_Qwen2Reward, "answers", 1),
    "Qwen2ForPrmModel": (_Qwen2Value, "steps", 1),
}
_OURS = re.compile(r"For(Token|Sequence)Classification$")
_FOREIGN = re.compile(r"^(?!.*ForCausalLM).*(Reward|P[Rr][Mm])")


def find_head(folder: Path, name: str) -> str | None:
    """The architecture of a reward model with a head, None for any other model; CapabilityError for a head that is not known."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # whoever loads it says what is wrong
    if not isinstance(found, str):
        return None
    if found in _PUBLISHED or _OURS.search(found):
        return found
    if _FOREIGN.search(found):
        msg = (
            f"{name} is a reward model with a head of its own ({found}), whose code is not run here"
        )
        hint = f"Known are models of transformers for token or sequence classification, and {', '.join(_PUBLISHED)}."
        raise CapabilityError(msg, hint=hint)
    return None


def check_writes(model: str | Path, revision: str | None = None) -> None:
    """Raises CapabilityError for a reward model with a head, which writes nothing; looks only at what is on this machine."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            config = try_to_load_from_cache(str(model), "config.json", revision=revision)
        except ValueError:  # no id of the hub either
            return
        if not isinstance(config, str):
            return
        folder = Path(config).parent
    if (found := find_head(folder, str(model))) is not None:
        raise _writes_nothing(str(model), found)


def _writes_nothing(name: str, what: str) -> CapabilityError:
    msg = f"{name} is a reward model ({what}): it scores texts, and writes none"
    hint = 'Name it in a role, ChatPareto(roles={"scorer": ...}), and take scorer=OutcomeReward() or ProcessReward(format=...).'
    return CapabilityError(msg, hint=hint)


# --- the model


class HeadModel(PreTrainedModel):
    """A body under its head: logits are (1, rows, 2), of class 0 and class 1; those of one value are 0 and the value.

    Without a head it gives the body's last hidden states, which is what the self-check compares.
    """

    config: PreTrainedConfig
    base_model_prefix = "model"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self, config: PreTrainedConfig, body: PreTrainedModel | None = None, head: Any = None
    ) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config) if body is None else body  # type: ignore[no-untyped-call]
        self.head = None if head is None else copy.deepcopy(head).float()  # theirs stays as it is

    def forward(
        self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor | None = None, **options: object
    ) -> SimpleNamespace:
        """What the head says at each token, or at those to keep."""
        hidden = self.model(input_ids=input_ids, **options).last_hidden_state
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        if self.head is None:
            return SimpleNamespace(logits=hidden)
        # in float32: in fewer bits answers that are nearly as good would be equal
        return SimpleNamespace(logits=_two_classes(self.head(hidden.float())))

    def get_input_embeddings(self) -> nn.Module:
        """The body's."""
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> None:
        """It has no words to say."""

    def set_attn_implementation(
        self, attn_implementation: str | dict[Any, Any], allow_all_kernels: bool = False
    ) -> None:
        """The body's."""
        self.model.set_attn_implementation(attn_implementation, allow_all_kernels)


def _body(model: PreTrainedModel) -> PreTrainedModel:
    return cast("PreTrainedModel", model.base_model)


def _two_classes(logits: torch.Tensor) -> torch.Tensor:
    """(..., labels) -> (..., 2)."""
    return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits


@torch.inference_mode()
def _looks_back(headed: HeadModel, whole: PreTrainedModel | None) -> bool:
    """Whether what is said at a token depends on no later one, and is what transformers' own model says at the last."""
    last = 9 if headed.config.get_text_config().pad_token_id != 9 else 10
    one, other = [3, 5, 2, 8, 6, 4, 7, last], [3, 5, 2, 8, 6, 7, last, last]
    ids = torch.tensor([one, other], device=headed.device)
    head, headed.head = headed.head, None
    try:
        states = headed(input_ids=ids).logits[:, :5].float()
    finally:
        headed.head = head
    rounding = 1e-4 if headed.dtype == torch.float32 else 1e-2
    if float((states[0] - states[1]).abs().max()) > rounding * float(states.abs().max()):
        return False
    if whole is None:
        return True
    ours = headed(input_ids=ids[:1]).logits[0]  # (8, 2)
    theirs = _two_classes(whole(input_ids=ids[:1]).logits.float()).view(-1, 2)[-1]
    return bool((ours[-1] - theirs).abs().max() <= 0.05 * ours.abs().max())


# --- texts that are read from their beginning, every time


@dataclass(slots=True, eq=False)
class _Reading:
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
        self._waiting = deque[_Reading]()

    def submit(
        self, tokens: Sequence[int], classes: Sequence[int], deadline: float | None
    ) -> _Reading:
        """Reads `tokens`; the future gives the log-probability of each class, or None where time was up before."""
        reading = _Reading(list(tokens), list(classes), deadline)
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
        for reading in self._waiting:
            reading.end(EngineClosedError(f"the backend of {self.spec.name} was closed"))
        self._waiting.clear()
        del self.model

    def _read_some(self) -> None:
        """One batch of those that wait; nothing that goes wrong in it is anybody else's."""
        batch = self._take()
        if not batch:
            return
        try:
            self._read(batch)
        except Exception as error:  # noqa: BLE001 - any model code may fail in any way
            spec = self.spec
            failure: Exception = error
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
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

    def _take(self) -> list[_Reading]:
        """As many of the first that wait as one batch holds, those that are late or not wanted aside."""
        batch, longest = list[_Reading](), 0
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

    def _read(self, batch: Sequence[_Reading]) -> None:
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
        return _two_classes(logits.float())


# --- loading


@dataclass(frozen=True, slots=True)
class _Source:
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
        score: Any = getattr(model, "score", None) or getattr(model, "classifier", None)
        score = model.v_head["summary"] if isinstance(model, _Qwen2Value) else score
        theirs = None if self.architecture in _PUBLISHED else model
        headed = HeadModel(model.config, _body(model), score).eval()  # type: ignore[no-untyped-call]
        back = score is not None and _looks_back(headed, theirs)
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
        kind = _PUBLISHED[self.architecture][0] if self.architecture in _PUBLISHED else None
        kind = kind or getattr(transformers, self.architecture, None)
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
    head, headed.head = headed.head, None
    try:
        with quiet():
            check_runner(runner)
    finally:
        headed.head = head


# --- the backend


class RewardHead:
    """A reward model as strategies see it: a Backend whose branches are texts, and whose only continuations are its classes.

    `judges` is what it was made to score: each of the "steps" of a text, at the token that ends it, or whole "answers", at their last
    token. Of two classes the second is the good one; one value is the log-odds of the second (`classes` is 1), which for answers is
    the reward itself. `whole` says that it reads every text from its beginning.
    """

    def __init__(self, inner: SharedBackend, *, judges: Judges, classes: int) -> None:
        self._inner, self._runner = inner, inner.runner
        self.judges: Judges = judges
        self.classes = classes
        self.whole = isinstance(self._runner, WholeRunner)

    @property
    def name(self) -> str:
        """The model's name or path."""
        return self._inner.name

    @property
    def spec(self) -> ModelSpec:
        """The model's shape; no words come out of it."""
        return self._inner.spec

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do."""
        return replace(self._inner.capabilities, step=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back, and the chat template."""
        return self._inner.tokenizer

    @property
    def sampling(self) -> Sampling:
        """Of no use here."""
        return self._inner.sampling

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root."""
        return self._inner.open(prompt, seed=seed)

    def extend(self, branch: Branch, *_: object, **__: object) -> Task:  # noqa: ARG002 - the protocol's names
        """Raises CapabilityError: it writes nothing."""
        raise _writes_nothing(self.name, f"for {self.judges}")

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> Task:  # noqa: ARG002 - the protocol's names
        """Raises CapabilityError: only what goes on to write is prefilled."""
        raise _writes_nothing(self.name, f"for {self.judges}")

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> Task:
        """Log-probabilities of its classes after the branch, which `[[1], [0]]` names: [[good], [bad]], nats; None past the deadline."""
        if not continuations or any(list(c) not in ([0], [1]) for c in continuations):
            msg = f"{self.name} says how likely its classes are, [0] and [1], and nothing else; asked for {list(continuations)!r:.80}"
            raise SettingError(msg)
        if not isinstance(self._runner, WholeRunner):
            return self._inner.score(branch, continuations, deadline=deadline)
        if isinstance(branch, LocalBranch):
            branch.check("score")
        return self._runner.submit(branch.tokens, [c[0] for c in continuations], deadline)

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs of a request, and the bytes of KV cache that it adds; where texts are read whole, what is known is read again."""
        if self.whole:
            request = replace(request, context=0, prefill=request.context + request.prefill)
        return self._inner.estimate(request)

    def close(self) -> None:
        """Gives the model back; twice is once."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_head(
    model: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    memory: float | str | None = None,
    max_context: int | None = None,
    self_check: bool = True,
) -> RewardHead | None:
    """A reward model with a head, from a folder or hub id; None where it is a model of words. What the options mean is told by `loading.load`."""
    name = str(model)
    folder = find_folder(model, revision)
    architecture = find_head(folder, name)
    if architecture is None:
        return None
    config = read_config(folder, trust=False)
    if getattr(config, "is_encoder_decoder", False):
        msg = f"{name} is an encoder-decoder model ({config.model_type}), whose head is not read"
        raise CapabilityError(msg, hint="Use a reward model on a decoder or an encoder.")
    judges: Judges = "steps" if architecture.endswith("ForTokenClassification") else "answers"
    labels = config.num_labels
    if architecture in _PUBLISHED:
        _, judges, labels = _PUBLISHED[architecture]
        if config.model_type != "qwen2":
            msg = f"{name} says that it is {architecture}, and has the configuration of {config.model_type!r}"
            raise CapabilityError(msg, hint="Check its config.json.")
        config.num_labels = labels
    if labels not in (1, 2):
        msg = f"{name} ({architecture}) has {labels} labels: a reward is one value, or two classes of which the second is good"
        raise CapabilityError(msg, hint="Use a reward model.")
    config.name_or_path = name
    read = read_tokenizer(folder, trust=False)
    on = find_device(device)
    pad = config.get_text_config().pad_token_id
    source = _Source(
        name=name,
        folder=folder,
        architecture=architecture,
        config=config,
        device=on,
        dtype=find_dtype(dtype, on),
        memory=memory,
        pad=int((read.pad_token_id or 0) if pad is None else pad),
        sep=read.sep_token_id,
    )
    inner = share(
        source, lambda _: wrap_tokenizer(read, None), max_context=max_context, check=self_check
    )
    return RewardHead(inner, judges=judges, classes=labels)
