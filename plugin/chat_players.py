"""
The models of a chat model: loaded on first use, given back together, and shared or left behind by copies and pickles.

Knows which settings name a model, and how it is loaded; knows no call.
"""

from __future__ import annotations

import asyncio
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

from langchain_core.language_models import ModelProfile
from pydantic import PrivateAttr

from langchain_pareto.backends.base import Backend
from langchain_pareto.backends.grammar import has_grammars
from langchain_pareto.chat_settings import ChatSettings
from langchain_pareto.errors import SettingError
from langchain_pareto.models import Models
from langchain_pareto.players import Players


class ChatPlayers(ChatSettings):
    """Settings, and the models that they name."""

    _models: Models = PrivateAttr(default_factory=Models)
    _beside: Models = PrivateAttr(default_factory=Models)

    @property
    def _players(self) -> Players:
        """The models that it names, as its fields stand."""
        names = "backend tokenizer device dtype revision model_kwargs memory max_context".split()
        return Players(
            model=self.model if self.models is None else next(iter(self.models.values())),
            several=() if self.models is None else self.models.values(),
            backend=self.backend,
            draft=self.draft,
            decoder=self.decoder,
            roles=self.roles,
            loading={name: getattr(self, name) for name in names},
            models=self._models,
            beside=self._beside,
        )

    def _backend(self, model: object = None, decoder: object = None) -> Backend:
        """The loaded model; `decoder` is that of the call, if it names one."""
        backend = self._players.load(model, decoder)
        if isinstance(self.backend, str) and model is None and self.profile is None:
            self.profile = profile_of(backend)
        return backend

    async def _abackend(self, model: object, decoder: object) -> Backend:
        """As `_backend`, without holding up the loop while it loads."""
        if not isinstance(self.backend, str):
            return self._backend(model, decoder)
        return await asyncio.to_thread(self._backend, model, decoder)

    def close(self) -> None:
        """Gives its models back; the next call loads them again. A Backend that was handed in stays open."""
        self._models.close()
        self._beside.close()

    def __copy__(self) -> Self:
        """The same settings; a copy has its own part in the models, to close by itself."""
        copied = super().__copy__()
        copied._models, copied._beside = Models(), Models()  # noqa: SLF001 - one of us
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Settings of its own; a Backend or model that was handed in is shared."""
        memo = {} if memo is None else memo
        others = (*self.roles.values(), *(self.models or {}).values())
        shared = (self.backend, self.model, self.draft, self.tokenizer, *others)
        memo.update({id(one): one for one in shared})
        copied = self.__copy__()
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        """Settings only."""
        models = (self.model, self.draft, *self.roles.values(), *(self.models or {}).values())
        loaded = [m for m in models if not isinstance(m, str | Path | None)]
        if not isinstance(self.backend, str) or loaded:
            msg = "a ChatPareto around a loaded model cannot be pickled"
            raise SettingError(
                msg, hint="Give the model's path or id, and load it where it is used."
            )
        state = super().__getstate__()
        return {**state, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Settings, and nothing loaded yet."""
        super().__setstate__(state)
        self.model_post_init(None)


def profile_of(backend: Backend) -> ModelProfile:
    """What LangChain wants to know of a model."""
    return ModelProfile(
        max_input_tokens=backend.capabilities.context_length,
        tool_calling=True,
        tool_choice=has_grammars(),
        structured_output=has_grammars(),
    )
