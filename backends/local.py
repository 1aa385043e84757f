"""
A model on this machine: a runner, its tokenizer and its engine, as the Backend that strategies use.

Knows branches and requests; knows no strategy and no device library. A branch is what the caller sees of a sequence: its tokens change
at once, and what that means for the cache is posted to the engine in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol, Self, TypeAlias

from langchain_pareto.backends import cost, programs, speculation
from langchain_pareto.backends.base import (
    Branch,
    Capabilities,
    Constraint,
    ModelSpec,
    Request,
    Runner,
    Sampling,
    Stop,
)
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.forced import Forces
from langchain_pareto.backends.keys import child_key, root_key
from langchain_pareto.backends.running import Running
from langchain_pareto.backends.sequences import Sequence as TokenSequence
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.errors import (
    CapacityError,
    ContextLengthError,
    EngineClosedError,
    EngineFailedError,
    SequenceError,
    SettingError,
)

_Make: TypeAlias = Callable[[Running], programs.Program]


class Decoding(Protocol):
    """How tokens are drawn into a branch, where not one a step."""

    @property
    def drafter(self) -> Runner | None:
        """The runner of the model that guesses, if there is one."""
        ...

    def program(
        self,
        running: Running,
        branch: LocalBranch,
        draw: programs.Draw,
        out: programs.Continuation,
    ) -> programs.Program:
        """What draws, on the engine's thread."""
        ...


class LocalBranch:
    """A handle on a growing token sequence of one LocalBackend."""

    __slots__ = (
        "__weakref__",
        "_backend",
        "_busy",
        "_children",
        "_followers",
        "_freed",
        "_key",
        "_lock",
        "_prompt",
        "_sequence",
        "_tokens",
        "_tree",
    )

    def __init__(
        self,
        backend: LocalBackend,
        tokens: list[int],
        key: int,
        prompt: int,
        tree: dict[object, object],
    ) -> None:
        self._backend = backend
        self._tokens = tokens
        self._key = key
        self._prompt = prompt  # tokens that nobody sampled, for the penalties
        self._children = 0
        self._busy = False
        self._freed = False
        self._lock = threading.Lock()
        # the engine's thread alone looks at these
        self._sequence: TokenSequence | None = None
        self._followers = dict[Runner, TokenSequence]()  # on other models
        self._tree = tree  # what all branches of a root share

    @property
    def backend(self) -> LocalBackend:
        """Whose tokens these are."""
        return self._backend

    @property
    def tokens(self) -> Sequence[int]:
        """Every token from the root."""
        return self._tokens

    @property
    def key(self) -> int:
        """The 64-bit key of this branch's draws."""
        return self._key

    def fork(self, n: int = 1) -> list[Branch]:
        """`n` children that continue from here, each with a key of its own."""
        with self._lock:
            self._check("fork")
            first, self._children = self._children, self._children + n
            keys = [child_key(self._key, first + i) for i in range(n)]
            children = [
                LocalBranch(self._backend, self._tokens.copy(), k, self._prompt, self._tree)
                for k in keys
            ]
            self._backend.post(partial(self._backend.fork_sequences, self, children))
        return list(children)

    def append(self, tokens: Sequence[int]) -> None:
        """Adds tokens that nobody sampled."""
        with self._lock:
            self._check("append to")
            new = self._backend.checked(tokens, len(self._tokens))
            self._tokens.extend(new)
            self._backend.post(lambda: self._backend.runner.append(self.sequence, new))

    def truncate(self, length: int) -> None:
        """Cuts back to the first `length` tokens, 0 < length."""
        with self._lock:
            self._check("truncate")
            if not 0 < length <= len(self._tokens):
                msg = f"cannot truncate a branch of {len(self._tokens)} tokens to {length}: 1 to {len(self._tokens)} are possible"
                raise SequenceError(msg)
            del self._tokens[length:]
            self._prompt = min(self._prompt, length)
            self._backend.post(partial(self._backend.truncate_sequence, self, length))

    def free(self) -> None:
        """Gives the branch back; twice is once. A branch that is being extended is freed when that ends."""
        with self._lock:
            if self._freed:
                return
            self._freed = True
            if not self._busy:
                self._backend.discard(self)

    def __del__(self) -> None:
        if not self._freed and self._sequence is not None:
            self.free()

    @property
    def sequence(self) -> TokenSequence:
        """The engine's side of the branch."""
        assert self._sequence is not None, (
            "a branch is opened before anything else reaches the engine"
        )
        return self._sequence

    def follow(self, other: LocalBackend) -> TokenSequence:
        """The branch's own sequence on another model of this engine, made on first use; its tokens may be of before."""
        found = self._followers.get(other.runner)
        if found is None:
            opened = other.runner.open(self.sequence.tokens)
            found = self._followers[other.runner] = other.engine.track(other.runner, opened)
        return found

    def fork_followers(self, child: LocalBranch) -> None:
        """The child's sequences on other models begin as this branch's."""
        for runner, sequence in self._followers.items():
            if runner.closed:
                continue
            forked = self._backend.engine.track(runner, runner.fork(sequence))
            child._followers[runner] = forked

    def free_followers(self) -> None:
        """Gives the sequences on other models back."""
        for runner, sequence in self._followers.items():
            self._backend.engine.untrack(sequence)
            runner.free(sequence)
        self._followers.clear()

    def shared(self, name: object, make: Callable[[], object]) -> object:
        """What all branches of this root share under a name, made on first use."""
        if name not in self._tree:
            self._tree[name] = make()
        return self._tree[name]

    def check(self, action: str) -> None:
        """Raises SequenceError when the branch is freed or busy."""
        with self._lock:
            self._check(action)

    def begin(self, action: str) -> None:
        """Marks the branch busy."""
        with self._lock:
            self._check(action)
            self._busy = True

    def end(self) -> None:
        """The request on the branch has ended; what it drew is in the sequence."""
        with self._lock:
            self._busy = False
            if self._sequence is not None:
                self._tokens[:] = self._sequence.tokens
            if self._freed:
                self._backend.discard(self)

    def give_up(self) -> None:
        """The request never started."""
        self._busy = False

    def bind(self, sequence: TokenSequence) -> None:
        """Gives the branch its sequence."""
        self._sequence = sequence

    def _check(self, action: str) -> None:
        if self._freed:
            msg = f"cannot {action} a branch that was freed"
            raise SequenceError(msg)
        if self._busy:
            msg = f"cannot {action} a branch while it is being extended"
            raise SequenceError(msg, hint="Wait for the extension, or fork before it starts.")


class LocalBackend:
    """One model on one engine."""

    def __init__(
        self,
        name: str,
        runner: Runner,
        tokenizer: Tokenizer,
        engine: Engine,
        *,
        sampling: Sampling | None = None,
        max_context: int | None = None,
    ) -> None:
        """`max_context` limits one sequence, in tokens; by default what the model was trained for, or the pool holds."""
        self.name = name
        self.runner = runner
        self.tokenizer = tokenizer
        self.engine = engine
        self.sampling = sampling if sampling is not None else Sampling()
        self.spec: ModelSpec = runner.spec
        context = min(max_context or runner.spec.context_length, runner.pool.capacity)
        self.capabilities = Capabilities(
            fork="share",
            rollback="replay" if runner.recurrent else "free",
            step=True,
            score="exact",
            max_sequences=runner.pool.capacity,
            context_length=context,
            pool_tokens=runner.pool.capacity,
        )
        self._closed = False

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root; raises ContextLengthError, CapacityError, or SettingError when the prompt is empty."""
        tokens = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            msg = "the prompt is empty: a model needs at least one token to continue"
            raise SettingError(msg, hint="Ask something, or give a system message.")
        tokens = self.checked(tokens, 0)
        branch = LocalBranch(self, tokens, root_key(seed, tokens), len(tokens), {})
        copy = tokens.copy()
        self.post(lambda: branch.bind(self.engine.track(self.runner, self.runner.open(copy))))
        return branch

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
        decoding: Decoding | None = None,
    ) -> Running:
        """Draws into `branch` until `stop`, its context or its pool is full; the task's future gives an Extension.

        `decoding` draws in another way than token by token.
        """
        branch = self._own(branch)
        if stop.max_tokens < 1:
            msg = f"max_tokens must be at least 1, got {stop.max_tokens}"
            raise SettingError(msg)
        room = self.capabilities.context_length - len(branch.tokens)
        if room < 1:
            raise self._too_long(len(branch.tokens) + 1)
        stop = replace(stop, max_tokens=min(stop.max_tokens, room))
        draw = programs.Draw(branch.key, sampling, branch._prompt, stats, constraint)  # noqa: SLF001 - same module

        def extend(running: Running) -> programs.Program:
            out = programs.Continuation(branch.sequence, draw, stop, self.tokenizer, on_text)
            if decoding is not None:
                return decoding.program(running, branch, draw, out)
            if isinstance(constraint, Forces):
                target = speculation.Target(
                    self.runner,
                    branch.sequence,
                    running.count,
                    lambda: self.engine.sharing(self.runner),
                )
                return speculation.extend(target, draw, out)
            return programs.extend(self.runner, branch.sequence, draw, out)

        drafter = None if decoding is None else decoding.drafter
        return self._start(branch, extend, deadline, drafter)

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> Running:
        """Raw log-probabilities of each continuation's tokens (list of lists, nats); `branch` stays as it is."""
        branch = self._own(branch)
        checked = [self.checked(c, len(branch.tokens)) for c in continuations]
        if not all(checked):
            msg = "a continuation to score must not be empty"
            raise SettingError(msg)
        return self._start_beside(
            branch,
            "score",
            lambda _: programs.score(self.runner, branch.sequence, checked),
            deadline,
        )

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> Running:
        """Computes all but the last token, for the children to share; the future gives whether it got there."""
        branch = self._own(branch)
        return self._start_beside(
            branch, "prefill", lambda _: programs.prefill(self.runner, branch.sequence), deadline
        )

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs of a request, and the bytes of KV cache that it adds."""
        return cost.worst_flops(self.spec, request), cost.kv_bytes(self.spec, request)

    def close(self) -> None:
        """Gives the model back; the engine goes on for its other backends. Twice is once."""
        if self._closed:
            return
        self._closed = True
        self.engine.dispose(self.runner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- for branches

    def post(self, change: Callable[[], None]) -> None:
        """A metadata change on the engine's thread."""
        self.check_open()
        self.engine.post(change)

    def check_open(self) -> None:
        """Raises EngineClosedError when the backend was closed."""
        if self._closed:
            msg = f"the backend of {self.name} was closed"
            raise EngineClosedError(msg, hint="Make a new backend or chat model.")

    def fork_sequences(self, parent: LocalBranch, children: Sequence[LocalBranch]) -> None:
        """The engine's side of a fork."""
        for child in children:
            child.bind(self.engine.track(self.runner, self.runner.fork(parent.sequence)))
            parent.fork_followers(child)

    def truncate_sequence(self, branch: LocalBranch, length: int) -> None:
        """The engine's side of a truncation; whoever has read what was cut off reads what comes in its place."""
        self.runner.truncate(branch.sequence, length)
        branch.sequence.part()

    def discard(self, branch: LocalBranch) -> None:
        """The engine's side of freeing; silent when the engine is gone, and everything with it."""

        def free() -> None:
            sequence = branch._sequence  # noqa: SLF001 - same module
            if sequence is not None:
                try:
                    branch.free_followers()
                finally:
                    self.engine.untrack(sequence)
                    self.runner.free(sequence)

        with suppress(EngineClosedError, EngineFailedError):
            self.engine.post(free)

    def checked(self, tokens: Sequence[int], before: int) -> list[int]:
        """The tokens as a list, in range and not too long."""
        out = [int(t) for t in tokens]
        if out and not (min(out) >= 0 and max(out) < self.spec.vocabulary):
            bad = min(out) if min(out) < 0 else max(out)
            msg = f"token {bad} is outside the vocabulary of {self.name} (0 to {self.spec.vocabulary - 1})"
            raise SettingError(msg)
        if before + len(out) > self.capabilities.context_length:
            raise self._too_long(before + len(out))
        return out

    def _too_long(self, length: int) -> ContextLengthError | CapacityError:
        limit, pool = self.capabilities.context_length, self.capabilities.pool_tokens
        if limit == pool < self.spec.context_length:
            msg = f"{length} tokens do not fit into the pool of {pool} token slots of {self.name}"
            hint = "Give the pool more memory (memory=...), or shorten the prompt."
            return CapacityError(msg, needed=length, free=pool, kind="slots", hint=hint)
        msg = f"{length} tokens are more than the context of {self.name} holds ({limit})"
        hint = "Shorten the prompt, or use a model with a longer context."
        return ContextLengthError(msg, length=length, limit=limit, hint=hint)

    def _own(self, branch: Branch) -> LocalBranch:
        if not isinstance(branch, LocalBranch) or branch.backend is not self:
            msg = f"this branch does not belong to the backend of {self.name}"
            raise SequenceError(msg)
        return branch

    def _start(
        self, branch: LocalBranch, make: _Make, deadline: float | None, drafter: Runner | None
    ) -> Running:
        """Starts a program that continues `branch`, which is busy until it ends."""
        branch.begin("extend")
        running = _lazy(make, self.runner, deadline, drafter)
        running.on_end = branch.end
        try:
            return self._submit(running)
        except BaseException:
            branch.give_up()
            raise

    def _start_beside(
        self,
        branch: LocalBranch,
        action: str,
        make: _Make,
        deadline: float | None,
    ) -> Running:
        """Starts a program that forks `branch` at once, and leaves it free for others."""
        branch.check(action)
        return self._submit(_lazy(make, self.runner, deadline))

    def _submit(self, running: Running) -> Running:
        self.check_open()
        return self.engine.submit(running)


def _lazy(
    make: _Make, runner: Runner, deadline: float | None, drafter: Runner | None = None
) -> Running:
    """A program made on the engine's thread, where the branch's sequence is known."""

    def program() -> programs.Program:
        return (yield from make(running))

    running = Running(program(), runner, deadline, drafter=drafter)
    return running
