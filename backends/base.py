"""
The nouns of the backend layer: what a request says, what it gives back, and what a device must do for one model.

Knows token ids, lengths and counts. Knows no device library, no strategy and no LangChain: strategies and planning import this
module without loading torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from langchain_pareto.backends.constraint import Constraint

if TYPE_CHECKING:
    import torch

    from langchain_pareto.backends.kv_pool import SlotPool
    from langchain_pareto.backends.sequences import Chunk, Sequence as TokenSequence
    from langchain_pareto.backends.tokens import Tokenizer

BACKENDS = ("auto", "torch", "llama-cpp")  # what runs a model; "auto" goes by its files
Finish = Literal["eos", "stop", "step", "length", "cancelled", "deadline"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; the defaults draw from the model's own distribution.

    Penalties follow the usual definitions: `repetition_penalty` divides positive and multiplies negative logits of every token
    in prompt and output (Keskar et al. 2019), `presence_penalty` and `frequency_penalty` are subtracted for tokens of the output
    only. `temperature=0` takes the most probable token. `top_k=0`, `top_p=1`, `min_p=0` switch a warper off; they apply in the
    order logit bias, penalties, temperature, top-k, top-p, min-p.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def penalised(self) -> bool:
        """Whether a draw depends on the tokens before it by more than the model."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """When one extension ends: at `max_tokens` drawn, at a string, at a token, at the model's end of text, or at a step's end.

    A step ends with the token in which `step`, a regular expression that matches no empty text, first matches what this extension has
    drawn, blanks before it aside. `keep` is for a branch that goes on afterwards: the text of the stop stays, and half a character
    waits for its other half, so that the texts of consecutive extensions join to the text of their tokens. `before` is the end of the
    text that the branch has before this extension: a stop string or a step may begin in it.
    """

    max_tokens: int
    strings: tuple[str, ...] = ()
    tokens: frozenset[int] = frozenset()
    eos: bool = True
    step: str | None = None
    keep: bool = False
    before: str = ""


@dataclass(slots=True)
class Usage:
    """What a request cost, counted by the engine as it ran; the sum over requests equals the engine's meter."""

    prompt_tokens: int = 0  # tokens forwarded that nobody sampled in this request
    cached_tokens: int = 0  # tokens of the prefix that were found in the cache
    new_tokens: int = 0  # tokens sampled into a branch; an accepted guess counts once
    drafted: int = 0  # guesses that were verified
    accepted: int = 0  # of these, those that stayed
    rounds: int = 0  # steps that verified guesses
    forwards: int = 0  # steps that this request took part in
    forward_tokens: int = 0
    replayed_tokens: int = (
        0  # forwarded again after a preemption; in no other field, charged to nobody
    )
    flops: int = 0
    bytes: int = 0  # weights and KV read, this request's share
    device_seconds: float = 0.0  # this request's share of each step's time, by forward tokens
    wall_seconds: float = 0.0  # from admission to the end

    def __add__(self, other: Usage) -> Usage:
        out = replace(self)
        out.add(other)
        return out

    def add(self, other: Usage) -> None:
        """Adds `other` in place."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_COUNTS = tuple(f.name for f in fields(Usage))


@dataclass(slots=True)
class Extension:
    """What one extension of a branch gave.

    `text` is cut before a stop string and before the end-of-text token; `tokens` holds every token drawn, the one that ended it
    included. `logprobs`, `entropies` and `top_logprobs` are of the raw model (temperature 1, no warper), in nats, one a token,
    and empty unless asked for; `top_logprobs` is the mean over the 20 most probable tokens (DeepConf, arXiv 2508.15260).
    """

    tokens: list[int]
    text: str
    finish: Finish
    stop: str | None = None
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; strategies and the planner read it instead of asking which backend it is."""

    fork: Literal["share", "resend"]
    rollback: Literal["free", "replay", "resend"]
    step: bool  # one engine step at a time: speculation and constraints are possible
    score: Literal["exact", "prefill", "none"]
    max_sequences: int
    context_length: int  # of one sequence, in tokens
    pool_tokens: int  # of all sequences together


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a model, as far as its cost depends on it.

    `windows` has one entry a layer: the attention window in tokens, or None for full attention. `matmul_parameters` counts
    all weights but embeddings and output head: an upper bound for a mixture of experts, whose idle experts count too.
    Recurrent layers have no entry in `windows` and no part in `kv_bytes_per_token`: they carry `state_bytes_per_sequence`,
    and `state_flops_per_token` is what updating and reading that takes beside the weights.
    """

    name: str
    dtype: str
    device: str
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    matmul_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    context_length: int
    state_bytes_per_sequence: int = 0
    state_flops_per_token: int = 0

    @property
    def layers(self) -> int:
        """The number of attention layers."""
        return len(self.windows)


@dataclass(frozen=True, slots=True)
class Request:
    """A request as far as its cost is known beforehand: what `Backend.estimate` prices.

    `prefill` tokens are forwarded once on top of `context` cached ones, then `n` branches draw up to `max_tokens` each.
    """

    context: int
    prefill: int
    n: int = 0
    max_tokens: int = 0


class Branch(Protocol):
    """A handle on a growing token sequence whose prefix is shared with its relatives.

    None of these runs a model: the last token is always pending. All may be called from any thread; a branch that is being
    extended is busy, and refuses them with SequenceError until the extension is done.
    """

    @property
    def tokens(self) -> Sequence[int]:
        """Every token from the root."""
        ...

    @property
    def key(self) -> int:
        """The 64-bit key of this branch's draws."""
        ...

    def fork(self, n: int = 1) -> list[Branch]:
        """`n` children that continue from here, each with a key of its own."""
        ...

    def append(self, tokens: Sequence[int]) -> None:
        """Adds tokens that nobody sampled."""
        ...

    def truncate(self, length: int) -> None:
        """Cuts back to the first `length` tokens, 0 < length."""
        ...

    def free(self) -> None:
        """Gives the branch back; twice is once."""
        ...


class Task(Protocol):
    """One running request."""

    @property
    def future(self) -> Future[Any]:
        """Resolves to the result, or to the request's own error."""
        ...

    @property
    def usage(self) -> Usage:
        """What it has cost so far; final once the future is done, also when it failed."""
        ...

    def cancel(self) -> None:
        """Ends the request within one step; its future resolves to what it has so far."""
        ...


class Backend(Protocol):
    """One model: what strategies use."""

    @property
    def name(self) -> str:
        """The model's name or path."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back, and the chat template."""
        ...

    @property
    def sampling(self) -> Sampling:
        """The model's own sampling defaults, from its generation config."""
        ...

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root; raises ContextLengthError, CapacityError, or SettingError when the prompt is empty."""
        ...

    def extend(
        self,
        branch: Branch,
        sampling: Sampling,
        stop: Stop,
        *,
        stats: bool = False,
        deadline: float | None = None,
        constraint: Constraint | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Task:
        """Draws into `branch` until `stop`; the task's future gives an Extension.

        `stats` asks for log-probabilities, entropies and mean top-20. `deadline` is a `time.monotonic` time. `on_text` is
        called on the engine's thread with each piece of finished text.
        """
        ...

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> Task:
        """Computes all but the last token, for the children to share; the future gives whether it got there."""
        ...

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> Task:
        """Raw log-probabilities of each continuation's tokens (list of lists, nats); `branch` stays as it is."""
        ...

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs of a request, and the bytes of KV cache that it adds."""
        ...

    def close(self) -> None:
        """Gives everything back; twice is once."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Logits:
    """What a step gives: one row a wanted position, in the order of the chunks; on a GPU they may still be computing."""

    rows: torch.Tensor  # (wanted rows, vocabulary)
    union: int  # slots read, for metering


class Runner(Protocol):
    """What a device does for one model; all of it on the engine's thread."""

    spec: ModelSpec
    pool: SlotPool
    closed: bool
    recurrent: bool  # what is computed of a sequence is of no use to one with fewer tokens
    max_roots: int | None  # trees that share a step at most

    def open(self, tokens: Sequence[int]) -> TokenSequence:
        """A new root."""
        ...

    def fork(self, sequence: TokenSequence) -> TokenSequence:
        """A child that continues from here."""
        ...

    def append(self, sequence: TokenSequence, tokens: Sequence[int]) -> None:
        """Adds pending tokens."""
        ...

    def truncate(self, sequence: TokenSequence, length: int) -> None:
        """Cuts back."""
        ...

    def checkpoint(self, sequence: TokenSequence) -> None:
        """Makes the next truncation to here, or to a little after it, cheap."""
        ...

    def free(self, sequence: TokenSequence) -> None:
        """Gives everything back."""
        ...

    def reuse(self, sequence: TokenSequence, rows: int = 1) -> int:
        """Takes over what is cached of the pending tokens but the last `rows`; returns how many that is."""
        ...

    def share(self, sequence: TokenSequence) -> None:
        """Lets others reuse what is computed."""
        ...

    def drop(self, sequence: TokenSequence) -> None:
        """Forgets what is computed, keeps the tokens."""
        ...

    def placed(self, sequence: TokenSequence) -> bool:
        """Whether the device knows the sequence; where it tells only so many apart, others may have to wait for a place."""
        ...

    def can_step(self, tokens: int, new: int = 0) -> bool:
        """Whether there is room for so many more tokens, and places for so many new sequences, evicting what is only cached."""
        ...

    def step(self, chunks: Sequence[Chunk]) -> Logits:
        """One forward over all chunks; changes nothing when it raises."""
        ...

    def run_beside(self) -> None:
        """Lets its steps run beside those of other runners from now on, where the device can."""
        ...

    def join(self) -> None:
        """What is asked of the device from now on comes after its last step; it waits for nothing here."""
        ...

    def synchronize(self) -> None:
        """Waits for the device."""
        ...

    def trim(self) -> None:
        """Gives scratch memory back."""
        ...

    def interrupt(self) -> None:
        """Makes a step in progress fail soon, if the device can; from any thread, before closing."""
        ...

    def close(self) -> None:
        """Gives the model back."""
        ...
