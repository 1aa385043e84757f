"""
A model on this machine: a runner, its tokenizer and its engine, as the Backend that strategies use.

Knows branches (`local_branch.py`) and requests; knows no strategy and no device library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, Self, TypeAlias

from langchain_pareto.backends import cost, programs, speculation
from langchain_pareto.backends.base import (
    Branch,
    Capabilities,
    ModelSpec,
    Request,
    Runner,
    Sampling,
    Stop,
)
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.forced import Forces
from langchain_pareto.backends.keys import root_key
from langchain_pareto.backends.local_branch import LocalBranch
from langchain_pareto.backends.running import Running
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
        draw = programs.Draw(branch.key, sampling, branch.prompt_length, stats, constraint)

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
            if branch.bound:
                try:
                    branch.free_followers()
                finally:
                    self.engine.untrack(branch.sequence)
                    self.runner.free(branch.sequence)

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
        return self._submit(_lazy(make, self.runner, deadline, draws=False))

    def _submit(self, running: Running) -> Running:
        self.check_open()
        return self.engine.submit(running)


def _lazy(
    make: _Make,
    runner: Runner,
    deadline: float | None,
    drafter: Runner | None = None,
    *,
    draws: bool = True,
) -> Running:
    """A program made on the engine's thread, where the branch's sequence is known."""

    def program() -> programs.Program:
        return (yield from make(running))

    running = Running(program(), runner, deadline, drafter=drafter, draws=draws)
    return running
