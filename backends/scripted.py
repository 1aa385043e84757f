"""
A Backend that says what it is told: exact tokens without a model, for tests and examples.

Knows lines and the order in which they are said. Everything else is the real thing: the programs that end a draw, the sequences that
charge a prefix once, and the cost model. It loads no torch. A token is a character, and the end of the text is one more.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, cast

import numpy as np

from langchain_pareto.backends import cost, programs
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
from langchain_pareto.backends.sequences import Sequence as TokenSequence
from langchain_pareto.backends.templates import NO_KWARGS, render_plain
from langchain_pareto.errors import (
    CapabilityError,
    ContextLengthError,
    EngineClosedError,
    SequenceError,
    SettingError,
)

if TYPE_CHECKING:
    from langchain_pareto.backends.base import Runner

END = 0x110000  # the end of the text: one past the last code point
LOGPROB = -1.0  # nats, of every token whose line does not say


@dataclass(frozen=True, slots=True)
class Line:
    """What one draw says: `logprob` (nats) is of each of its tokens; with `ends` False it starts over until it is cut off."""

    text: str
    logprob: float = LOGPROB
    ends: bool = True


Say = str | Line | Exception  # an exception fails the draw in its first step


class CharacterTokenizer:
    """One token a character, with the code point as its id."""

    vocabulary = END + 1
    fingerprint = "characters"
    end_tokens = frozenset({END})
    special_tokens = frozenset({END})
    has_template = False

    def encode(self, text: str) -> list[int]:
        """The code points of `text`."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SettingError(f"the text is not Unicode: {error}") from error
        return list(map(ord, text))

    def encode_prompt(self, text: str) -> list[int]:
        """The same: no token comes first."""
        return self.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The characters of `tokens`."""
        return b"".join(map(self.piece, tokens)).decode()

    def piece(self, token: int) -> bytes:
        """UTF-8 of one character; nothing for the end and for half characters."""
        return b"" if token >= END else chr(token).encode(errors="ignore")

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] = NO_KWARGS,  # noqa: ARG002 - there is no template
        add_generation_prompt: bool = True,  # noqa: ARG002
    ) -> str:
        """The messages' contents, a line each."""
        if tools:
            raise SettingError("tools need a chat template, and this model has none")
        return render_plain(messages)


class ScriptedBranch:
    """A handle on a growing text, and on how many were drawn below its root."""

    def __init__(
        self, backend: ScriptedBackend, sequence: TokenSequence, key: int, drawn: Iterator[int]
    ) -> None:
        self.backend = backend
        self.sequence = sequence
        self.key = key
        self.drawn = drawn  # numbers of the draws below one root
        self._children = itertools.count()
        self._lock = threading.Lock()
        self._busy = False
        self._freed = False

    @property
    def tokens(self) -> Sequence[int]:
        """Every token from the root."""
        return self.sequence.tokens

    def fork(self, n: int = 1) -> list[Branch]:
        """`n` children that continue from here, each with a key of its own."""
        with self._lock:
            self._check("fork")
            return [self._child() for _ in range(n)]

    def append(self, tokens: Sequence[int]) -> None:
        """Adds tokens that nobody sampled."""
        with self._lock:
            self._check("append to")
            self.sequence.tokens.extend(self.backend.checked(tokens, len(self.tokens)))

    def truncate(self, length: int) -> None:
        """Cuts back to the first `length` tokens, 0 < length."""
        with self._lock:
            self._check("truncate")
            self.sequence.truncate(length)

    def free(self) -> None:
        """Gives the branch back; twice is once. A branch that is being extended is freed when that ends."""
        with self._lock:
            freed, self._freed = self._freed, True
            if not freed and not self._busy:
                self.backend.count(-1)

    def begin(self, action: str) -> None:
        """Marks the branch busy."""
        with self._lock:
            self._check(action)
            self._busy = True

    def end(self) -> None:
        """The request on the branch has ended."""
        with self._lock:
            self._busy = False
            if self._freed:
                self.backend.count(-1)

    def _child(self) -> ScriptedBranch:
        key = _hash(self.key, next(self._children))
        self.backend.count(1)
        return ScriptedBranch(self.backend, self.sequence.fork(), key, self.drawn)

    def _check(self, action: str) -> None:
        if self._freed:
            msg = f"cannot {action} a branch that was freed"
            raise SequenceError(msg)
        if self._busy:
            msg = f"cannot {action} a branch while it is being extended"
            raise SequenceError(msg, hint="Wait for the extension, or fork before it starts.")


class ScriptedTask:
    """One request, a step at a time."""

    def __init__(
        self,
        backend: ScriptedBackend,
        branch: ScriptedBranch,
        program: programs.Program,
        line: Iterator[tuple[int, float]],
        deadline: float | None,
    ) -> None:
        self.branch = branch
        self.asked: tuple[Sampling, Stop] | None = None  # what a draw was asked for
        self.future: Future[object] = Future()
        self.usage = Usage()
        self._backend = backend
        self._program = program
        self._line = line
        self._deadline = deadline
        self._admitted = time.monotonic()
        self._cancelled = False
        self._ended = False
        self._lock = threading.RLock()  # `on_text` may cancel
        self._known = dict[
            int, int
        ]()  # per sequence id: tokens that were there before this request
        self._works: list[programs.Work] | None = None

    def cancel(self) -> None:
        """Ends the request within one step; its future resolves to what it has so far."""
        self._cancelled = True
        if self._backend.manual:
            self.step()

    def step(self) -> bool:
        """Draws one token, or ends; whether there is more to do."""
        with self._lock:
            if self._ended:
                return False
            try:
                self._advance()
            except StopIteration as stop:
                self._ended = True
                value, error = stop.value, None
            except Exception as failure:  # noqa: BLE001 - it belongs to this request alone
                self._ended = True
                value, error = None, failure
            else:
                return True
        self._end(value, error)
        return False

    def fail(self, error: Exception) -> None:
        """Ends the request with `error`."""
        with self._lock:
            ended, self._ended = self._ended, True
        if not ended:
            self._program.close()
            self._end(None, error)

    def _advance(self) -> None:
        if self._works is None:
            self._want(next(self._program))
        if (finish := self._overdue()) is not None:
            try:
                self._program.throw(programs.Interrupted(finish))
            except programs.Interrupted:
                raise StopIteration from None
        assert self._works is not None
        self._want(self._program.send([self._compute(work) for work in self._works]))

    def _want(self, works: list[programs.Work]) -> None:
        self._works = works
        for work in works:
            self._known.setdefault(id(work.sequence), len(work.sequence.tokens))

    def _overdue(self) -> Finish | None:
        if self._cancelled:
            return "cancelled"
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return "deadline" if late else None

    def _compute(self, work: programs.Work) -> programs.Result:
        """One forward over all that is pending, metered as the engine does, and what came of it."""
        sequence, spec, n = work.sequence, self._backend.spec, work.sequence.pending
        sequence.put(np.zeros(n, np.int32))
        stop = sequence.cached
        start = stop - sequence.charge(stop - n, stop, work.rows)
        self._charge(
            Usage(
                prompt_tokens=max(0, min(stop, self._known[id(sequence)]) - start),
                forwards=1,
                forward_tokens=stop - start,
                flops=cost.forward_flops(spec, start, stop, work.rows),
                bytes=cost.forward_bytes(spec, stop - n, n),
            )
        )
        if isinstance(work.want, programs.Named):
            return [LOGPROB] * work.rows
        token, logprob = next(self._line)
        self._charge(Usage(new_tokens=1))
        return [programs.Drawn(token, logprob, -logprob, logprob)]

    def _charge(self, share: Usage) -> None:
        self.usage.add(share)
        self._backend.charge(share)

    def _end(self, value: object, error: Exception | None) -> None:
        self.usage.wall_seconds = time.monotonic() - self._admitted
        self._backend.forget(self)
        self.branch.end()
        if isinstance(value, Extension):
            value.usage = self.usage
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class ScriptedBackend:
    """One model that says what it is told: draw number i below a root says `answers[i % len(answers)]`, or `answers(text, i)`.

    By default a request is done before its call returns. With `delay`, a thread of its own draws one token for every live draw
    each `delay` seconds. With `manual`, draws wait for `step` and `finish`, and only a cancelled one ends by itself; prefills and
    scores do not wait. `draws` has every draw in the order of starting, `branches` counts those not given back.
    """

    def __init__(
        self,
        answers: Sequence[Say] | Callable[[str, int], Say],
        *,
        name: str = "scripted",
        context_length: int = 4096,
        delay: float | None = None,
        manual: bool = False,
        sampling: Sampling | None = None,
    ) -> None:
        if not callable(answers) and (isinstance(answers, str) or not answers):
            msg = f"expected a list of answers with at least one, or a function; got {answers!r}"
            raise SettingError(msg)
        if manual and delay is not None:
            raise SettingError("a scripted backend is either manual or has a delay")
        self.name = name
        self.manual = manual
        self.tokenizer = CharacterTokenizer()
        self.sampling = Sampling() if sampling is None else sampling
        self.spec = _spec(name, context_length)
        self.capabilities = Capabilities(
            fork="share",
            rollback="free",
            step=False,
            score="exact",
            max_sequences=context_length,
            context_length=context_length,
            pool_tokens=context_length**2,
        )
        self.meter = Usage()  # the sum over all requests
        self.draws = list[ScriptedTask]()
        self.branches = 0
        self._answers = answers
        self._delay = delay
        self._live = list[ScriptedTask]()
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._closed = False

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root; raises ContextLengthError, or SettingError when the prompt is empty."""
        tokens = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise SettingError("the prompt is empty: a model needs at least one token to continue")
        tokens = self.checked(tokens, 0)
        self.count(1)
        key = _hash(seed, *tokens)
        return ScriptedBranch(self, TokenSequence.root(tokens), key, itertools.count())

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
    ) -> ScriptedTask:
        """Says the next line into `branch` until `stop`; the task's future gives an Extension."""
        branch = self._own(branch)
        if constraint is not None:
            raise CapabilityError("a scripted backend says its lines whatever a constraint allows")
        if stop.max_tokens < 1:
            msg = f"max_tokens must be at least 1, got {stop.max_tokens}"
            raise SettingError(msg)
        room = self.capabilities.context_length - len(branch.tokens)
        if room < 1:
            raise self._too_long(len(branch.tokens) + 1)
        stop = replace(stop, max_tokens=min(stop.max_tokens, room))
        sequence, draw = branch.sequence, programs.Draw(branch.key, sampling, 0, stats)
        program = programs.extend(_RUNNER, sequence, draw, stop, self.tokenizer, on_text)
        return self._start(branch, "extend", program, deadline, asked=(sampling, stop))

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> ScriptedTask:
        """Computes all but the last token, for the children to share; the future gives whether it got there."""
        branch = self._own(branch)
        return self._start(branch, "prefill", programs.prefill(_RUNNER, branch.sequence), deadline)

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> ScriptedTask:
        """The same log-probability for every token (list of lists, nats); `branch` stays as it is."""
        branch = self._own(branch)
        checked = [self.checked(c, len(branch.tokens)) for c in continuations]
        if not all(checked):
            raise SettingError("a continuation to score must not be empty")
        return self._start(
            branch, "score", programs.score(_RUNNER, branch.sequence, checked), deadline
        )

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs of a request, and the bytes of KV cache that it adds."""
        return cost.worst_flops(self.spec, request), cost.kv_bytes(self.spec, request)

    def step(self, n: int = 1) -> None:
        """Every live draw says `n` more tokens, or ends."""
        for _ in range(n):
            for task in self.live:
                task.step()

    def finish(self, i: int) -> None:
        """Draw number `i` of `draws` says the rest of its line."""
        while self.draws[i].step():
            pass

    @property
    def live(self) -> list[ScriptedTask]:
        """Requests in flight."""
        with self._changed:
            return self._live.copy()

    def close(self) -> None:
        """Ends every request with EngineClosedError; twice is once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for task in self.live:
            task.fail(EngineClosedError(f"the backend of {self.name} was closed"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- for branches and tasks

    def count(self, change: int) -> None:
        """Notes that branches were opened or given back."""
        with self._changed:
            self.branches += change

    def charge(self, share: Usage) -> None:
        """Adds what a step took to the meter."""
        with self._changed:
            self.meter.add(share)

    def forget(self, task: ScriptedTask) -> None:
        """The request has ended."""
        with self._changed:
            if task in self._live:
                self._live.remove(task)

    def checked(self, tokens: Sequence[int], before: int) -> list[int]:
        """The tokens as a list, in range and not too long."""
        out = [int(t) for t in tokens]
        if out and not (min(out) >= 0 and max(out) <= END):
            msg = f"a token is a code point, or {END} for the end; got {min(out)} to {max(out)}"
            raise SettingError(msg)
        if before + len(out) > self.capabilities.context_length:
            raise self._too_long(before + len(out))
        return out

    def _too_long(self, length: int) -> ContextLengthError:
        limit = self.capabilities.context_length
        msg = f"{length} tokens are more than the context of {self.name} holds ({limit})"
        return ContextLengthError(msg, length=length, limit=limit)

    def _own(self, branch: Branch) -> ScriptedBranch:
        if not isinstance(branch, ScriptedBranch) or branch.backend is not self:
            msg = f"this branch does not belong to the backend of {self.name}"
            raise SequenceError(msg)
        return branch

    def _start(
        self,
        branch: ScriptedBranch,
        action: str,
        program: programs.Program,
        deadline: float | None,
        *,
        asked: tuple[Sampling, Stop] | None = None,
    ) -> ScriptedTask:
        branch.begin(action)
        try:
            with self._changed:
                self._check_open()
                line = self._line(branch) if asked else iter(())
                task = ScriptedTask(self, branch, program, line, deadline)
                self._live.append(task)
                if asked:
                    task.asked = asked
                    self.draws.append(task)
                if self._delay is not None:
                    self._wake()
        except BaseException:
            branch.end()
            raise
        if self._delay is None and not (asked and self.manual):
            while task.step():
                pass
        return task

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError(f"the backend of {self.name} was closed")

    def _line(self, branch: ScriptedBranch) -> Iterator[tuple[int, float]]:
        i = next(branch.drawn)
        if callable(self._answers):
            say = self._answers(self.tokenizer.decode(branch.tokens), i)
        else:
            say = self._answers[i % len(self._answers)]
        return _tokens(self.tokenizer, Line(say) if isinstance(say, str) else say)

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._thread is None:
            name = f"pareto-{self.name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        assert self._delay is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._live or self._closed)
                if self._closed:
                    return
            time.sleep(self._delay)
            self.step()


class _Sequences:
    """What the programs ask of a runner, without a device."""

    def fork(self, sequence: TokenSequence) -> TokenSequence:
        return sequence.fork()

    def append(self, sequence: TokenSequence, tokens: Sequence[int]) -> None:
        sequence.tokens.extend(tokens)

    def truncate(self, sequence: TokenSequence, length: int) -> None:
        sequence.truncate(length)

    def free(self, sequence: TokenSequence) -> None:
        sequence.freed = True


_RUNNER = cast("Runner", _Sequences())


def _tokens(tokenizer: CharacterTokenizer, say: Line | Exception) -> Iterator[tuple[int, float]]:
    """The tokens of a line, each with its log-probability."""
    if isinstance(say, Exception):
        raise say
    tokens = tokenizer.encode(say.text)
    end = itertools.repeat(END) if say.ends else itertools.cycle(tokens or [ord(" ")])
    for token in itertools.chain(tokens, end):
        yield token, say.logprob


def _hash(*numbers: int) -> int:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _spec(name: str, context_length: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        dtype="float32",
        device="cpu",
        vocabulary=END + 1,
        hidden=2,
        heads=1,
        kv_heads=1,
        head_dim=2,
        windows=(None,),
        matmul_parameters=1000,
        weight_bytes=4000,
        kv_bytes_per_token=16,
        context_length=context_length,
    )
