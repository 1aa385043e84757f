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
from typing import TYPE_CHECKING, cast

from langchain_pareto.backends import programs
from langchain_pareto.backends.base import Branch, ModelSpec, Sampling, Stop
from langchain_pareto.backends.characters import END, CharacterTokenizer
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.backends.deviceless import Deviceless
from langchain_pareto.backends.handle import Handle
from langchain_pareto.backends.keys import root_key
from langchain_pareto.backends.script import LOGPROB, Say, Script
from langchain_pareto.backends.scripted_task import ScriptedTask
from langchain_pareto.backends.sequences import Sequence as TokenSequence
from langchain_pareto.errors import CapabilityError, EngineClosedError, SettingError

if TYPE_CHECKING:
    from langchain_pareto.backends.base import Runner


class ScriptedBranch(Handle):
    """A handle on a growing text, and on how many were drawn below its root."""

    def __init__(
        self, backend: ScriptedBackend, sequence: TokenSequence, key: int, drawn: Iterator[int]
    ) -> None:
        super().__init__(key, backend.count)
        self.backend = backend
        self.sequence = sequence
        self.drawn = drawn  # numbers of the draws below one root

    @property
    def tokens(self) -> Sequence[int]:
        """Every token from the root."""
        return self.sequence.tokens

    def fork(self, n: int = 1) -> list[Branch]:
        """`n` children that continue from here, each with a key of its own."""
        with self.idle("fork"):
            return [self._child(key) for key in self.child_keys(n)]

    def append(self, tokens: Sequence[int]) -> None:
        """Adds tokens that nobody sampled."""
        with self.idle("append to"):
            self.sequence.tokens.extend(self.backend.checked(tokens, len(self.tokens)))

    def truncate(self, length: int) -> None:
        """Cuts back to the first `length` tokens, 0 < length."""
        with self.idle("truncate"):
            self.sequence.truncate(length)

    def beside(self, action: str) -> ScriptedBranch:
        """A fork for a request that leaves the branch free for others."""
        with self.idle(action):
            return self._child(self.key)

    def _child(self, key: int) -> ScriptedBranch:
        return ScriptedBranch(self.backend, self.sequence.fork(), key, self.drawn)


class ScriptedBackend(Deviceless):
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
        spec = _spec(name, context_length)
        super().__init__(name, spec, sequences=context_length, score="exact", sampling=sampling)
        self.manual = manual
        self.tokenizer = CharacterTokenizer()
        self.draws = list[ScriptedTask]()
        self._likely = likely
        self._delay = delay
        self._live = list[ScriptedTask]()
        self._changed = threading.Condition(self._books)
        self._thread: threading.Thread | None = None

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root; raises ContextLengthError, or SettingError when the prompt is empty."""
        tokens = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        self.check_prompt(tokens)
        tokens = self.checked(tokens, 0)
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
        branch = self.own(branch, ScriptedBranch)
        if constraint is not None:
            raise CapabilityError("a scripted backend says its lines whatever a constraint allows")
        stop = replace(stop, max_tokens=self.most(branch, stop))
        sequence, draw = branch.sequence, programs.Draw(branch.key, sampling, 0, stats)
        out = programs.Continuation(sequence, draw, stop, self.tokenizer, on_text)
        program = programs.extend(_RUNNER, sequence, draw, out)
        return self._start(branch, program, deadline, asked=(sampling, stop))

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> ScriptedTask:
        """Computes all but the last token, for the children to share; the future gives whether it got there."""
        fork = self.own(branch, ScriptedBranch).beside("prefill")
        return self._start_beside(fork, programs.prefill(_RUNNER, fork.sequence), deadline)

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> ScriptedTask:
        """What `likely` says of every token (list of lists, nats); `branch` stays as it is."""
        branch = self.own(branch, ScriptedBranch)
        checked = [self.checked(c, len(branch.tokens)) for c in continuations]
        if not all(checked):
            raise SettingError("a continuation to score must not be empty")
        fork = branch.beside("score")
        return self._start_beside(fork, programs.score(_RUNNER, fork.sequence, checked), deadline)

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
            super().close()
            self._changed.notify_all()
        for task in self.live:
            task.fail(EngineClosedError(f"the backend of {self.name} was closed"))

    # --- for branches and tasks

    def named(self, tokens: Sequence[int], named: Sequence[int], rows: int) -> list[float]:
        """Log-probabilities of named tokens after the last `rows` of `tokens`, or of all of them after the last one."""
        first, decode = len(tokens) - rows + 1, self.tokenizer.decode
        ends = [first + (i if rows > 1 else 0) for i in range(len(named))]
        pairs = zip(ends, named, strict=True)
        return [self._likely(decode(tokens[:end]), decode([token])) for end, token in pairs]

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
        self.check_length(before + len(out))
        return out

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
                self.check_open()
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
