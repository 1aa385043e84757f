"""
A Backend that gives recorded answers again, so that a real run can be made over them without a model.

Knows recorded samples as arrays, the shape of the model that drew them, and the order in which the samples of a question are met. It
has lengths, classes of answers and likelihoods, but no texts: whatever is not a whole answer to a recorded question raises NotRecorded.
Usage is what an engine would count. Its thread is its caller's.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol, Self

from langchain_pareto.backends import cost
from langchain_pareto.backends.base import (
    Branch,
    Capabilities,
    Constraint,
    Extension,
    Finish,
    ModelSpec,
    Request,
    Sampling,
    Stop,
    Usage,
)
from langchain_pareto.backends.keys import child_key, root_key
from langchain_pareto.backends.templates import NO_KWARGS
from langchain_pareto.errors import (
    ContextLengthError,
    EngineClosedError,
    NotRecorded,
    SequenceError,
    SettingError,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CUT = "(cut off)"  # the text of a sample that did not come to its end
NONE = "(no answer)"  # the text of one that did, and says nothing that counts
_HINT = "Measure it live: only strategies that draw whole answers to the question can be replayed."


class Recorded(Protocol):
    """Samples of one model as arrays of (questions, samples)."""

    @property
    def model(self) -> str: ...
    @property
    def questions(self) -> tuple[str, ...]: ...
    @property
    def answers(self) -> npt.NDArray[np.int64]: ...  # classes; below 0 is none
    @property
    def tokens(self) -> npt.NDArray[np.int64]: ...
    @property
    def prompts(self) -> npt.NDArray[np.int64]: ...  # (questions,)
    @property
    def logprobs(self) -> npt.NDArray[np.float64] | None: ...  # means, nats


def order(question: str, seed: int, samples: int) -> list[int]:
    """The order in which the samples of a question are met: a permutation that depends on question and seed alone."""
    name = f"{seed}:{question}".encode(errors="surrogatepass")
    words = struct.unpack(f"<{samples}Q", hashlib.shake_128(name).digest(8 * samples))
    return sorted(range(samples), key=words.__getitem__)


def text_of(answer: int) -> str:
    """The text of a sample that came to its end with this class of answers; AnswerFormat reads the class in it."""
    return f"Answer: {answer}" if answer >= 0 else NONE


def length_of(tokens: int) -> int:
    """Tokens of a sample: one at least, which ends it."""
    return max(1, tokens)


def prompt_of(tokens: int) -> int:
    """Tokens of a prompt: one at least, which the first draw continues."""
    return max(1, tokens)


def likelihood(mean: float) -> float:
    """A mean log-probability to 20 binary places: so many tokens of it have exactly this mean again."""
    if not math.isfinite(mean):
        msg = f"a recorded log-probability is {mean}"
        raise SettingError(msg, hint="Record finite ones, in nats per token, or leave them out.")
    return round(mean * 2**20) / 2**20


class RecordedTokenizer:
    """Tokens without a text: sample i is written in tokens i, and question q in tokens `samples` + q."""

    fingerprint = "recorded"
    end_tokens: frozenset[int] = frozenset()
    special_tokens: frozenset[int] = frozenset()
    has_template = False

    def __init__(self, recorded: Recorded) -> None:
        self._samples = int(recorded.tokens.shape[1])
        self._rows = {question: row for row, question in enumerate(recorded.questions)}
        self._prompts = [prompt_of(int(tokens)) for tokens in recorded.prompts]
        self.vocabulary = self._samples + len(self._prompts)
        if len(self._rows) < len(self._prompts):
            msg = f"the samples of {recorded.model} name a question twice"
            raise SettingError(msg, hint="Join its samples in one row.")

    def row(self, prompt: Sequence[int]) -> int:
        """The question that a prompt asks; raises NotRecorded."""
        row = int(prompt[0]) - self._samples
        if not 0 <= row < len(self._prompts) or list(prompt) != self.prompt(row):
            msg = (
                f"this prompt of {len(prompt)} tokens is none of {len(self._prompts)} recorded ones"
            )
            raise NotRecorded(msg, hint=_HINT)
        return row

    def prompt(self, row: int) -> list[int]:
        """The prompt that asks a question."""
        return [self._samples + row] * self._prompts[row]

    def encode_prompt(self, text: str) -> list[int]:
        """The prompt of a question by its id; raises NotRecorded."""
        if text not in self._rows:
            msg = f"{text!r:.80} is none of {len(self._prompts)} recorded questions"
            raise NotRecorded(msg, hint=_HINT)
        return self.prompt(self._rows[text])

    def encode(self, text: str) -> list[int]:
        """Raises NotRecorded: no text but that of a prompt has tokens."""
        msg = f"the text {text!r:.80} has no recorded tokens"
        raise NotRecorded(msg, hint=_HINT)

    def decode(self, tokens: Sequence[int]) -> str:
        """Raises NotRecorded: there is no text."""
        msg = f"{len(tokens)} recorded tokens have no text"
        raise NotRecorded(msg, hint=_HINT)

    def piece(self, token: int) -> bytes:
        """Raises NotRecorded: there is no text."""
        msg = f"the recorded token {token} has no text"
        raise NotRecorded(msg, hint=_HINT)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,  # noqa: ARG002 - nothing is rendered
        template_kwargs: Mapping[str, object] = NO_KWARGS,  # noqa: ARG002
        add_generation_prompt: bool = True,  # noqa: ARG002
    ) -> str:
        """Raises NotRecorded: a question is asked by its id."""
        msg = f"a chat of {len(messages)} messages was not recorded"
        raise NotRecorded(msg, hint="Ask a question by its id.")


class _Root:
    """What the branches of one prompt share: the order of samples, how many were drawn, and whether the prompt is computed."""

    def __init__(self, row: int, samples: Sequence[int], prompt: int) -> None:
        self.row = row
        self.samples = samples
        self.prompt = prompt
        self.drawn = itertools.count()
        self.computed = False

    def charge(self, positions: int) -> int:
        """How many of the prompt's first `positions` are on the bill of whoever computes what comes after them: all of them, once."""
        computed, self.computed = self.computed, True
        return 0 if computed else positions


class RecordedBranch:
    """A handle on a question, or on what was drawn below it."""

    def __init__(self, backend: RecordedBackend, root: _Root, tokens: list[int], key: int) -> None:
        self.backend = backend
        self.root = root
        self.tokens: Sequence[int] = tokens
        self.key = key
        self.busy = False
        self._children = itertools.count()
        self._freed = False
        backend.branches += 1

    @property
    def fresh(self) -> bool:
        """Whether nothing has been drawn into it."""
        return len(self.tokens) == self.root.prompt

    def fork(self, n: int = 1) -> list[Branch]:
        """`n` children that continue from here."""
        self.check("fork")
        return [
            RecordedBranch(
                self.backend,
                self.root,
                list(self.tokens),
                child_key(self.key, next(self._children)),
            )
            for _ in range(n)
        ]

    def append(self, tokens: Sequence[int]) -> None:
        """Raises NotRecorded: nobody knows what would have been drawn after that."""
        msg = f"what a model says after {len(tokens)} tokens of the host's was not recorded"
        raise NotRecorded(msg, hint=_HINT)

    def truncate(self, length: int) -> None:
        """Raises NotRecorded: nobody knows what else would have been drawn there."""
        msg = f"what a model says after the first {length} tokens of an answer was not recorded"
        raise NotRecorded(msg, hint=_HINT)

    def free(self) -> None:
        """Gives the branch back; twice is once."""
        freed, self._freed = self._freed, True
        if not freed:
            self.backend.branches -= 1

    def put(self, tokens: Sequence[int]) -> None:
        """What was drawn."""
        self.tokens = [*self.tokens, *tokens]
        self.busy = False

    def check(self, action: str) -> None:
        """Raises SequenceError where the branch can take no request."""
        if self._freed or self.busy:
            state = "was freed" if self._freed else "is being extended"
            msg = f"cannot {action} a branch that {state}"
            raise SequenceError(msg)


class _Request:
    """A request that is done: a prefill."""

    def __init__(self, usage: Usage, result: object) -> None:
        self.future: Future[object] = Future()
        self.usage = usage
        self.future.set_result(result)

    def cancel(self) -> None:
        """Changes nothing: it is done."""


class RecordedTask:
    """One draw: a recorded sample, or as much of it as there is room and time for."""

    def __init__(
        self,
        branch: RecordedBranch,
        sample: int,
        most: int,
        deadline: float | None,
        on_text: Callable[[str], None] | None,
    ) -> None:
        self.future: Future[object] = Future()
        self.usage = Usage()
        self.sample = sample
        self._branch, self._backend = branch, branch.backend
        self._length = self._backend.length(branch.root.row, sample)
        self._most = min(self._length, most)
        self._deadline, self._on_text = deadline, on_text
        self._charged: int | None = None  # positions of the prompt that are on its bill
        self._drawn = 0
        branch.busy = True

    def cancel(self) -> None:
        """Ends the draw where it is."""
        self._end("cancelled")

    def step(self, n: int = 1) -> None:
        """Draws up to `n` more tokens; ends with the sample, at the most tokens, or once the time is up."""
        if self.future.done():
            return
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self._end("deadline")
            return
        if self._charged is None:
            self._charged = self._branch.root.charge(self._branch.root.prompt - 1)
        self._drawn = min(self._most, self._drawn + n)
        self._count()
        if self._drawn == self._most:
            self._end("eos" if self._most == self._length else "length")

    def _count(self) -> None:
        """What an engine counts: the prompt once in a tree, then a token a step."""
        spec, drawn, prompt = self._backend.spec, self._drawn, self._branch.root.prompt
        charged = self._charged or 0
        start, read = prompt - 1 - charged, charged + 1
        slots = drawn * prompt + drawn * (drawn - 1) // 2  # read or written, over all steps
        self.usage = Usage(
            prompt_tokens=read,
            new_tokens=drawn,
            forwards=drawn,
            forward_tokens=read + drawn - 1,
            flops=cost.forward_flops(spec, start, prompt - 1 + drawn, drawn),
            bytes=cost.forward_bytes(spec, 0, 0) * drawn + spec.kv_bytes_per_token * slots,
        )

    def _end(self, finish: Finish) -> None:
        if self.future.done():
            return
        row, n = self._branch.root.row, self._drawn
        text = self._backend.text(row, self.sample) if finish == "eos" else CUT
        logprob = self._backend.logprob(row, self.sample)
        stats = [] if logprob is None else [logprob] * n
        tokens = [self.sample] * n
        self._branch.put(tokens)
        self._backend.end(self)
        if self._on_text is not None:
            self._on_text(text)
        self.future.set_result(Extension(tokens, text, finish, logprobs=stats, usage=self.usage))


class RecordedBackend:
    """One model whose draw number i below a question gives that question's recorded sample `order(question, seed, samples)[i]`.

    A prompt is a question's id, or the tokens that `tokenizer.encode_prompt` makes of it. A sample that is cut off says nothing. By
    default a draw is done before its call returns; with `manual`, draws wait for `step`, in which each has one token more: side by
    side, as an engine does it.
    """

    def __init__(self, recorded: Recorded, spec: ModelSpec, *, manual: bool = False) -> None:
        self.name = recorded.model
        self.spec = spec
        self.sampling = Sampling()
        self.tokenizer = RecordedTokenizer(recorded)
        self.capabilities = Capabilities(
            fork="share",
            rollback="free",
            step=False,
            score="none",
            max_sequences=recorded.tokens.shape[1],
            context_length=spec.context_length,
            pool_tokens=spec.context_length * recorded.tokens.shape[1],
        )
        self.meter = Usage()  # the sum over all requests
        self.branches = 0  # not given back
        self.live = list[RecordedTask]()
        self._recorded = recorded
        self._manual = manual
        self._closed = False

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root; raises NotRecorded for what is no recorded question."""
        self._check_open()
        tokens = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise SettingError("the prompt is empty: a model needs at least one token to continue")
        row = self.tokenizer.row(tokens)
        if len(tokens) > self.spec.context_length:
            raise self._too_long(len(tokens))
        samples = order(self._recorded.questions[row], seed, self._recorded.tokens.shape[1])
        return RecordedBranch(
            self, _Root(row, samples, len(tokens)), tokens, root_key(seed, tokens)
        )

    def extend(
        self,
        branch: Branch,
        sampling: Sampling,  # noqa: ARG002 - the samples were drawn before
        stop: Stop,
        *,
        stats: bool = False,  # noqa: ARG002 - they cost nothing
        deadline: float | None = None,
        constraint: Constraint | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> RecordedTask:
        """Gives the next recorded sample of the branch's question, up to `stop.max_tokens`."""
        branch = self._own(branch, "extend")
        if stop.max_tokens < 1:
            msg = f"max_tokens must be at least 1, got {stop.max_tokens}"
            raise SettingError(msg)
        self._check_whole(branch, stop, constraint)
        room = self.spec.context_length - len(branch.tokens)
        if room < 1:
            raise self._too_long(len(branch.tokens) + 1)
        root = branch.root
        number = next(root.drawn)
        if number >= len(root.samples):
            question = self._recorded.questions[root.row]
            msg = f"the question {question!r:.80} has {len(root.samples)} recorded samples, and one more is wanted"
            raise NotRecorded(msg, hint="Record more samples, or ask for fewer.")
        most = min(stop.max_tokens, room)
        task = RecordedTask(branch, root.samples[number], most, deadline, on_text)
        self.live.append(task)
        if not self._manual:
            task.step(most)
        return task

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> _Request:
        """Computes all but the last token of a prompt, for the children to share; the future gives whether it got there."""
        branch = self._own(branch, "prefill")
        if not branch.fresh:
            msg = "a text that was drawn before goes on in no recorded way"
            raise NotRecorded(msg, hint=_HINT)
        last = branch.root.prompt - 1  # pending, and in no prefill
        if deadline is not None and time.monotonic() >= deadline:
            return _Request(Usage(), result=False)
        usage = Usage()
        if last:
            read = branch.root.charge(last - 1) + 1
            usage = Usage(
                prompt_tokens=read,
                forwards=1,
                forward_tokens=read,
                flops=cost.forward_flops(self.spec, last - read, last, 1),
                bytes=cost.forward_bytes(self.spec, 0, last),
            )
            self.meter.add(usage)
        return _Request(usage, result=True)

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,  # noqa: ARG002 - it never starts
    ) -> _Request:
        """Raises NotRecorded: nobody knows how likely anything else was."""
        self._own(branch, "score")
        msg = f"the log-probabilities of {len(continuations)} continuations were not recorded"
        raise NotRecorded(msg, hint=_HINT)

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs of a request, and the bytes of KV cache that it adds."""
        return cost.worst_flops(self.spec, request), cost.kv_bytes(self.spec, request)

    def step(self, n: int = 1) -> None:
        """Every live draw has `n` more tokens, or ends."""
        for _ in range(n):
            for task in list(self.live):
                task.step()

    def close(self) -> None:
        """Draws nothing any more; twice is once."""
        self._closed = True
        for task in list(self.live):
            task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- for tasks

    def length(self, row: int, sample: int) -> int:
        """Tokens of a sample."""
        return length_of(int(self._recorded.tokens[row, sample]))

    def text(self, row: int, sample: int) -> str:
        """The text of a sample."""
        return text_of(int(self._recorded.answers[row, sample]))

    def logprob(self, row: int, sample: int) -> float | None:
        """The log-probability of each of its tokens, None where that is not recorded."""
        logprobs = self._recorded.logprobs
        return None if logprobs is None else likelihood(float(logprobs[row, sample]))

    def end(self, task: RecordedTask) -> None:
        """The draw has ended: it is on the meter."""
        self.meter.add(task.usage)
        self.live.remove(task)

    def _check_whole(
        self, branch: RecordedBranch, stop: Stop, constraint: Constraint | None
    ) -> None:
        """Raises NotRecorded unless a whole answer is asked for, from the prompt to its own end."""
        asked = {
            "a draw below a draw": not branch.fresh,
            "a step, or some tokens of a text": stop.keep or stop.step is not None,
            "a text that ends at a stop string or at a mark": bool(stop.strings or stop.tokens),
            "a text that goes on after its end": not stop.eos,
            "a text under a constraint": constraint is not None,
        }
        for what, wanted in asked.items():
            if wanted:
                msg = f"{what} was not recorded"
                raise NotRecorded(msg, hint=_HINT)

    def _check_open(self) -> None:
        if self._closed:
            msg = f"the backend of {self.name} was closed"
            raise EngineClosedError(msg)

    def _own(self, branch: Branch, action: str) -> RecordedBranch:
        self._check_open()
        if not isinstance(branch, RecordedBranch) or branch.backend is not self:
            msg = f"this branch does not belong to the backend of {self.name}"
            raise SequenceError(msg)
        branch.check(action)
        return branch

    def _too_long(self, length: int) -> ContextLengthError:
        limit = self.spec.context_length
        msg = f"{length} tokens are more than the context of {self.name} holds ({limit})"
        return ContextLengthError(msg, length=length, limit=limit)
