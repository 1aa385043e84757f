"""
What a chat model may be told about planning, and what of it excludes the rest.

Knows names and values; plans nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from langchain_pareto.errors import SettingError
from langchain_pareto.models import can_be_model, model_name
from langchain_pareto.planning.profile import Profile
from langchain_pareto.planning.store import profile_path

TOGETHER = ("models", "model", "backend", "need", "guarantee")  # settings that exclude each other
_MODELS_HINT = 'For example models=["./small", "./large"], the cheapest first.'


def named(models: object) -> dict[str, object]:
    """Models by name, in the order given: from a mapping, or a list; SettingError for what holds none."""
    if isinstance(models, Mapping):
        found = dict(models)
    else:
        given = list(models) if isinstance(models, list | tuple) else [models]
        for model in given:
            _check_model(model)
        found = {model_name(model): model for model in given}
        if len(found) < len(given):
            msg = "two of the models have one name"
            raise SettingError(msg, hint='Name them: models={"small": ..., "large": ...}.')
    if not found or not all(isinstance(name, str) and name for name in found):
        msg = f"models are a list of models, or a mapping from their names, got {models!r:.80}"
        raise SettingError(msg, hint=_MODELS_HINT)
    for model in found.values():
        _check_model(model)
    return found


def _check_model(model: object) -> None:
    if not can_be_model(model):
        msg = f"{model!r:.80} in models= is no model"
        raise SettingError(msg, hint=f"A model is a path, a hub id or a loaded one. {_MODELS_HINT}")


def check_together(
    *, models: object, model: object, backend: object, need: object, guarantee: object
) -> None:
    """Raises SettingError for settings of a chat model that exclude each other."""
    if models is not None and (model is not None or not isinstance(backend, str)):
        msg = "a ChatPareto has either one model or several to plan with"
        raise SettingError(msg, hint="Leave model= and a Backend out, and name all in models=.")
    if need is not None and guarantee is not None:
        raise both()


def both() -> SettingError:
    """That two answers were given to what is enough."""
    msg = "need= and guarantee= are two answers to what is enough: a share of right answers, or a plan with a certificate"
    return SettingError(msg, hint="Leave one of them out.")


def checked_task(task: object) -> Profile | Path | str:
    """A profile, its file, or its name; SettingError for what is none of them."""
    if isinstance(task, str):
        profile_path(task)  # raises for what is no name
        return task
    if isinstance(task, Profile | Path):
        return task
    msg = f"task is the name of a profile, its file, or a Profile, not {type(task).__name__}"
    raise SettingError(msg)
