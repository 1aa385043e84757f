"""
The models of one chat model: loaded on first use, shared in the process, given back together.

Knows names and backends; knows no call. A copy of a chat model has a Models of its own, so that each closes its own part.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from langchain_pareto.backends.base import Backend
from langchain_pareto.backends.nano import DRAFT, PRM, bundled, policy_path
from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.head_reward import StepHead
from langchain_pareto.strategies.process_reward import ProcessReward
from langchain_pareto.strategies.scorers import RunScorer
from langchain_pareto.strategies.thoughts import POLICY

_DRAFT_MEMORY = 0.1  # of what is free: the target's pool comes after it
_OURS = "langchain_pareto."
_warned = set[str]()  # roles that were said to be unused
_logger = logging.getLogger("langchain_pareto")


class Models:
    """Backends by what was asked for; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded = dict[str, Backend]()

    def get(self, model: Any, settings: Mapping[str, Any], *, role: bool = False) -> Backend:
        """The backend of a path, hub id or loaded model, None for the bundled one; `settings` are those of `load`.

        That of a role may be a reward model with a head of classes.
        """
        key = _key(model)
        with self._lock:
            if key not in self._loaded:
                from langchain_pareto.backends import loading  # torch comes with the first model

                if model is None:
                    _say_nano()
                load = loading.load_role if role else loading.load
                self._loaded[key] = load(model, **settings)
            return self._loaded[key]

    def has(self, model: object) -> bool:
        """Whether it is loaded."""
        with self._lock:
            return _key(model) in self._loaded

    def close(self) -> None:
        """Gives all back; the next `get` loads again."""
        with self._lock:
            loaded, self._loaded = self._loaded, {}
        for one in loaded.values():
            one.close()


def same(one: object, other: object) -> bool:
    """Whether both name one model in the same way, or are one."""
    return _key(one) == _key(other)


def _key(model: object) -> str:
    return str(model) if isinstance(model, str | Path | None) else f"{id(model)}"


def model_name(model: object) -> str:
    """What a model is called in a report: a hub id, the last part of a path, "nano", or a backend's own name."""
    if model is None:
        return "nano"
    if not isinstance(model, str | Path):
        model = (
            getattr(model, "name", "") or getattr(model, "name_or_path", "") or type(model).__name__
        )
    path = Path(str(model))
    return path.name if path.is_absolute() else str(model)


def is_backend(value: object) -> bool:
    """Whether somebody opened it already."""
    return hasattr(value, "estimate")


def can_be_model(value: object) -> bool:
    """Whether it names a model, or is one: a path, a hub id, None for the bundled one, a model of transformers, or a Backend."""
    if isinstance(value, str | Path):
        return bool(str(value).strip()) and value != Path()
    return value is None or is_backend(value) or hasattr(value, "config")


def one_of(models: Mapping[str, object], model: object) -> object:
    """A model of several, by its name or as it was given; SettingError for any other."""
    if isinstance(model, str) and model in models:
        return models[model]
    for known in models.values():
        if known is model or (isinstance(known, str | Path) and known == model):
            return known
    msg = f"there is no {identity(model)!r} among models="
    raise SettingError(msg, hint=f"Take one of {', '.join(models)}, or another ChatPareto.")


def check_draft(draft: object, model: object) -> None:
    """Raises SettingError for what cannot guess ahead of `model`, as far as that shows without loading either."""
    if isinstance(draft, str | Path):
        if not str(draft).strip() or draft == Path():
            msg = "the draft's name is empty"
            raise SettingError(msg, hint="Give a path or hub id, or leave the draft out.")
    elif not (is_backend(draft) or hasattr(draft, "config")):
        msg = f"a draft is a path, a hub id, a model of transformers or a Backend, not {type(draft).__name__}"
        raise SettingError(msg)
    if _place(draft) == _place(model):
        msg = f"{model_name(model)} cannot draft for itself"
        raise SettingError(msg, hint='Name a smaller model, or take the decoder "lookup".')


def check_roles(roles: Collection[str]) -> None:
    """Raises SettingError for a role that nobody else can play."""
    if POLICY in roles:
        msg = f"the role {POLICY!r} is the model's own"
        raise SettingError(msg, hint="Give the model that answers as model=.")


def warn_unused(roles: Collection[str], strategy: Strategy, scorer: object) -> None:
    """Says once of each role that neither the strategy nor the scorer names it: a name that is misspelt is played by nobody.

    What the user has written may name roles in its code, and is not asked.
    """
    used = _strings(strategy) | (_strings(scorer) if isinstance(scorer, RunScorer) else set())
    unused = set(roles) - used - _warned
    if not unused or None in used:
        return
    _warned.update(unused)
    for name in sorted(unused):
        near = get_close_matches(name, [used_ for used_ in used if used_], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        _logger.warning(
            "roles= names %r, which neither %s nor its scorer uses%s", name, strategy.kind, hint
        )


def _strings(settings: object) -> set[str | None]:
    """Every text in the settings of a strategy or scorer, among them the roles that it names; None for what is not ours to know."""
    if isinstance(settings, str):
        return {settings}
    if isinstance(settings, BaseModel) and type(settings).__module__.startswith(_OURS):
        return set[str | None]().union(*(_strings(value) for _, value in settings))
    return {None} if isinstance(settings, Strategy | RunScorer) else set()


def _place(model: object) -> object:
    """What is the same for a model that is named in two ways."""
    folder = bundled(model)
    if folder is None and isinstance(model, str | Path):
        folder = Path(model)
    return id(model) if folder is None else folder.resolve()


def draft_for(model: object) -> str | None:
    """The bundled draft of the bundled policy; None for any other model."""
    return DRAFT if bundled(model) == policy_path() else None


def reward_role(scorer: object, model: object) -> dict[str, str]:
    """The bundled reward model in its role, where a process reward scores the bundled policy; nothing for any other."""
    if not isinstance(scorer, ProcessReward) or scorer.role == POLICY:
        return {}
    if isinstance(scorer.format, StepHead):  # the bundled one judges in words
        return {}
    return {scorer.role: PRM} if bundled(model) == policy_path() else {}


def role_settings(loading: Mapping[str, Any]) -> dict[str, Any]:
    """How a model that answers other calls is loaded beside one that is loaded so: as that one is, in less memory."""
    return {**loading, "memory": _DRAFT_MEMORY}


def draft_settings(
    draft: object, *, backend: str, device: str | None, dtype: str | None
) -> dict[str, Any]:
    """How a small model is loaded beside one that is loaded so: a bundled one by the same backend, any other by its files."""
    own = backend if bundled(draft) is not None else "auto"
    return {"backend": own, "device": device, "dtype": dtype, "memory": _DRAFT_MEMORY}


def identity(model: object) -> str:
    """What tells this model from any other in the process: a name or path as given, and which object it is."""
    if model is None or isinstance(model, str | Path):
        return str(model)
    return f"{model_name(model)} at {id(model):#x}"


def only(backend: Backend, model: object) -> Backend:
    """A backend that was handed in, unless another model is asked for."""
    if model is not None and model != backend.name:
        msg = f"this ChatPareto has one backend, {backend.name!r}; it cannot switch to {model!r}"
        raise SettingError(
            msg, hint="Make another ChatPareto, or give model= instead of a Backend."
        )
    return backend


_nano_lock = threading.Lock()
_nano_said = False


def _say_nano() -> None:
    """Says once that the bundled model answers."""
    global _nano_said
    with _nano_lock:
        said, _nano_said = _nano_said, True
    if not said:
        _logger.warning(
            "no model was named: the bundled nano model answers, which knows word problems and Countdown puzzles only; "
            "name yours with model="
        )
