"""
A Backend that says what it is told: exact tokens without a model, for tests and examples.

Knows branches, requests and when their steps are taken. Everything but what is said is the real thing: the programs that end a draw,
the sequences that charge a prefix once, and the cost model. It loads no torch.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self, cast

from langchain_pareto.backends import cost, programs
from langchain_pareto.backends.base import (
    Branch,
    Capabilities,
    Constraint,
    ModelSpec,
    Request,
    Sampling,
    Stop,
    Usage,
)
from langchain_pareto.backends.characters import END, CharacterTokenizer
from langchain_pareto.backends.keys import child_key, root_key
from langchain_pareto.backends.script import LOGPROB, Say, Script
from langchain_pareto.backends.scripted_task import ScriptedTask
from langchain_pareto.backends.sequences import Sequence as TokenSequence
from langchain_pareto.errors import (
    CapabilityError,
    ContextLengthError,
    EngineClosedError,
    SequenceError,
    SettingError,
)

if TYPE_CHECKING:
    from langchain_pareto.backends.base import Runner


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

    def beside(self, action: str) -> ScriptedBranch:
        """A fork for a request that leaves the branch free for others."""
        with self._lock:
            self._check(action)
            self.backend.count(1)
            return ScriptedBranch(self.backend, self.sequence.fork(), self.key, self.drawn)

    def begin(self) -> None:
        """Marks the branch busy."""
        with self._lock:
            self._check("extend")
            self._busy = True

    def end(self) -> None:
        """The request on the branch has ended."""
        with self._lock:
            self._busy = False
            if self._freed:
                self.backend.count(-1)

    def _child(self) -> ScriptedBranch:
        key = child_key(self.key, next(self._children))
        self.backend.count(1)
        return ScriptedBranch(self.backend, self.sequence.fork(), key, self.drawn)

    def _check(self, action: str) -> None:
        if self._freed:
            msg = f"cannot {action} a branch that was freed"
            raise SequenceError(msg)
        if self._busy:
            msg = f"cannot {action} a branch while it is being extended"
            raise SequenceError(msg, hint="Wait for the extension, or fork before it starts.")


class ScriptedBackend:
    """One model that says what it is told: draw number i below a root says `answers[i % len(answers)]`, or `answers(text, i)`.

    By default a request is done before its call returns. With `delay`, a thread of its own draws one token for every live draw
    each `delay` seconds. With `manual`, draws wait for `step` and `finish`, and only a cancelled one ends by itself; prefills and
    scores do not wait. `draws` has every draw in the order of starting, `branches` counts those not given back. What is scored has the
    log-probability `likely(text before, text of the token)`, in nats.
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
        likely: Callable[[str, str], float] = lambda _before, _token: LOGPROB,
    ) -> None:
        self._script = Script(answers)
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
        self._likely = likely
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
        key = root_key(seed, tokens)
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
        out = programs.Continuation(sequence, draw, stop, self.tokenizer, on_text)
        program = programs.extend(_RUNNER, sequence, draw, out)
        return self._start(branch, program, deadline, asked=(sampling, stop))

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> ScriptedTask:
        """Computes all but the last token, for the children to share; the future gives whether it got there."""
        fork = self._own(branch).beside("prefill")
        return self._start_beside(fork, programs.prefill(_RUNNER, fork.sequence), deadline)

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> ScriptedTask:
        """What `likely` says of every token (list of lists, nats); `branch` stays as it is."""
        branch = self._own(branch)
        checked = [self.checked(c, len(branch.tokens)) for c in continuations]
        if not all(checked):
            raise SettingError("a continuation to score must not be empty")
        fork = branch.beside("score")
        return self._start_beside(fork, programs.score(_RUNNER, fork.sequence, checked), deadline)

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

    def named(self, tokens: Sequence[int], named: Sequence[int], rows: int) -> list[float]:
        """Log-probabilities of named tokens after the last `rows` of `tokens`, or of all of them after the last one."""
        first, decode = len(tokens) - rows + 1, self.tokenizer.decode
        ends = [first + (i if rows > 1 else 0) for i in range(len(named))]
        pairs = zip(ends, named, strict=True)
        return [self._likely(decode(tokens[:end]), decode([token])) for end, token in pairs]

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

    def _start_beside(
        self, fork: ScriptedBranch, program: programs.Program, deadline: float | None
    ) -> ScriptedTask:
        """Starts a program on a fork that nobody else has, which ends with it."""
        try:
            return self._start(fork, program, deadline)
        finally:
            fork.free()

    def _start(
        self,
        branch: ScriptedBranch,
        program: programs.Program,
        deadline: float | None,
        *,
        asked: tuple[Sampling, Stop] | None = None,
    ) -> ScriptedTask:
        branch.begin()
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
        return self._script.draw(next(branch.drawn), branch.tokens, self.tokenizer)

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
