"""
A branch of a model on this machine: a growing token sequence, as its caller sees it.

Knows tokens, keys and who may change a branch when; knows no request, no strategy and no device library. Its tokens change at once,
and what that means for the cache is posted to the engine in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from langchain_pareto.backends.base import Branch, Runner
from langchain_pareto.backends.keys import child_key
from langchain_pareto.backends.sequences import Sequence as TokenSequence
from langchain_pareto.errors import SequenceError

if TYPE_CHECKING:
    from langchain_pareto.backends.local import LocalBackend


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

    @property
    def prompt_length(self) -> int:
        """How many tokens from the root on nobody sampled, for the penalties."""
        return self._prompt

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
    def bound(self) -> bool:
        """Whether the branch has its sequence."""
        return self._sequence is not None

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
