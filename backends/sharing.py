"""
One model in the process, however many use it: who asks for the same key shares weights, pool and engine.

Knows keys, counts and locks. Knows neither transformers nor files: a source tells its key, and builds the model when nobody has it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from langchain_pareto.backends.base import Runner, Sampling
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.errors import BackendError, SettingError

Undo = Callable[[], None]


@dataclass(slots=True)
class Shared:
    """One loaded model. `check` asks whether it is computed rightly, `undo` gives it back as it was found."""

    runner: Runner
    engine: Engine
    name: str
    sampling: Sampling
    eos: int | list[int] | None
    settings: object  # that all its users must agree on
    check: Callable[[], None]
    checked: bool
    undo: list[Undo]
    users: int = 0

    @property
    def alive(self) -> bool:
        """Whether its engine still takes work."""
        try:
            self.engine.post(lambda: None)
        except BackendError:
            return False
        return True

    def close(self) -> None:
        """Gives the model back."""
        try:
            self.engine.dispose(self.runner)
        finally:
            for undo in reversed(self.undo):
                undo()


class Source(Protocol):
    """A model that may be loaded: equal keys are one model."""

    @property
    def key(self) -> object:
        """Hashable."""
        ...

    @property
    def settings(self) -> object:
        """What is not in the key and yet must not differ."""
        ...

    def build(self, *, check: bool) -> Shared:
        """Loads it."""
        ...


@dataclass(slots=True)
class _Slot:
    """The place of one model in the process; the lock is held while it is loaded or closed."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    shared: Shared | None = None

    def drop(self, shared: Shared) -> None:
        """Closes `shared`, which nobody can use any more."""
        if self.shared is shared:
            self.shared = None
        shared.close()


class SharedBackend(LocalBackend):
    """One user's share of a loaded model; its branches are its own."""

    def __init__(
        self, slot: _Slot, shared: Shared, tokenizer: Tokenizer, max_context: int | None
    ) -> None:
        super().__init__(
            shared.name,
            shared.runner,
            tokenizer,
            shared.engine,
            sampling=shared.sampling,
            max_context=min(max_context or 1 << 62, shared.runner.spec.context_length),
        )
        self._slot = slot
        self._shared = shared
        self._pid = os.getpid()

    def close(self) -> None:
        """Gives the share back, and the model with the last one; twice is once."""
        if self._pid != os.getpid():  # a fork has neither the device nor the parent's locks
            self._closed = True
            return
        with self._slot.lock:
            if self._closed:
                return
            self._closed = True
            self._shared.users -= 1
            if self._shared.users == 0:
                self._slot.drop(self._shared)


def share(
    source: Source,
    tokenizer: Callable[[Shared], Tokenizer],
    *,
    max_context: int | None,
    check: bool,
) -> SharedBackend:
    """A backend of its own for whoever asks; threads that ask at the same time wait for the one that loads."""
    with _registry_lock:
        slot = _slots.setdefault(source.key, _Slot())
    with slot.lock:
        if slot.shared is not None and not slot.shared.alive:
            slot.drop(slot.shared)
        shared = slot.shared
        if shared is None:
            shared = slot.shared = source.build(check=check)
        try:
            if shared.settings != source.settings:
                msg = f"{shared.name} is in use with {shared.settings}, and now asked for with {source.settings}"
                raise SettingError(msg, hint="Close its other backends first.")  # noqa: TRY301 - what is below is for all errors
            if check and not shared.checked:
                shared.check()
                shared.checked = True
            backend = SharedBackend(slot, shared, tokenizer(shared), max_context)
        except BaseException:
            if shared.users == 0:
                slot.drop(shared)
            raise
        shared.users += 1
        return backend


_slots = dict[object, _Slot]()
_registry_lock = threading.Lock()


def _forget() -> None:
    """In a forked child: the parent's models are not ours, and its locks may be held for ever."""
    global _registry_lock  # noqa: PLW0603 - a fork is the one thing that makes it anew
    _slots.clear()
    _registry_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
