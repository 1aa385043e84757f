"""
Who plays in the calls of a chat model: the model itself, the draft that guesses ahead of it, and the models of other roles.

Knows what was named, and what is loaded before what; knows no call and no message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_pareto.backends.base import Backend
from langchain_pareto.backends.decoders import Decoder, Plain, Speculative, parse_decoder
from langchain_pareto.errors import CapabilityError
from langchain_pareto.models import (
    Models,
    check_draft,
    draft_for,
    draft_settings,
    is_backend,
    model_name,
    only,
    reward_role,
    role_settings,
    same,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Players:
    """The models that a chat model names, as its fields stand; each is loaded on first use.

    A small one is loaded before the model, whose pool takes what memory is left.
    """

    model: object
    several: Collection[object]  # that plans choose from, for any role
    backend: str | Backend
    draft: object
    decoder: object  # of calls that name none
    roles: Mapping[str, object]
    loading: Mapping[str, Any]  # the keywords of `load`
    models: Models
    beside: Models  # drafts, and the models of roles

    def name(self, model: object = None) -> str:
        """What the model of a call that asks for `model` is called."""
        return model_name(self._wanted(model) if isinstance(self.backend, str) else self.backend)

    def decoder_for(self, asked: object, model: object) -> Decoder:
        """The decoder of a call that asked for this one, to `model` if it named one."""
        if asked is None:
            asked = "plain" if self.draft is None else "auto"
        decoder = parse_decoder(asked)  # type: ignore[arg-type]
        if decoder is not None:
            return decoder
        return Speculative() if self.draft_for(model) is not None else Plain()

    def draft_for(self, model: object = None) -> object:
        """The draft model for `model`: the one that was given, else what is bundled for the bundled policy."""
        if self.draft is not None:
            check_draft(self.draft, self._wanted(model))
            return self.draft
        return draft_for(self._wanted(model)) if isinstance(self.backend, str) else None

    def load(self, model: object = None, decoder: object = None) -> Backend:
        """The loaded model, shared with everybody who asks for the same; `decoder` is that of the call, if it names one."""
        if not isinstance(self.backend, str):
            return only(self.backend, model)
        asked = self.decoder if decoder is None else decoder
        if self.decoder_for(asked, model).drafts and (draft := self.draft_for(model)) is not None:
            self.load_beside(draft)
        wanted = self._wanted(model)
        if is_backend(wanted):
            backend: Backend = wanted  # type: ignore[assignment]  # as `is_backend` says
            return backend
        return self.models.get(wanted, self.loading)

    def load_beside(self, model: object, *, role: bool = False) -> Backend:
        """The backend of a draft or of another role, on the model's device; that of a role may have a head in place of words.

        One of several that plans choose from is what it was measured as: it is loaded as if it answered.
        """
        if is_backend(model):
            backend: Backend = model  # type: ignore[assignment]  # as `is_backend` says
            return backend
        if any(same(model, one) for one in self.several):
            return self.beside.get(model, role_settings(self.loading))
        own = self.backend if isinstance(self.backend, str) else "auto"
        device, dtype = self.loading["device"], self.loading["dtype"]
        settings = draft_settings(model, backend=own, device=device, dtype=dtype)
        return self.beside.get(model, settings, role=role)

    def in_roles(self, scorer: object) -> dict[str, object]:
        """Who plays other roles, the bundled reward model where this scorer takes it among them; loads nothing."""
        bundled = reward_role(scorer, self.model) if isinstance(self.backend, str) else {}
        return {**bundled, **self.roles}

    async def load_roles(
        self, scorer: object, more: Mapping[str, object] | None = None
    ) -> dict[str, Backend]:
        """The models of other roles, those of a plan (`more`) among them."""
        wanted = {**self.in_roles(scorer), **(more or {})}
        return {
            name: await asyncio.to_thread(self.load_beside, model, role=True)
            for name, model in wanted.items()
        }

    async def decoding(self, target: Backend, decoder: Decoder) -> Backend:
        """The target under a decoder; CapabilityError where it cannot be decoded step by step."""
        if isinstance(decoder, Plain):
            return target
        from langchain_pareto.backends.decoding import DecodingBackend
        from langchain_pareto.backends.local import LocalBackend

        draft: object = None
        if decoder.drafts and (draft := self.draft_for(target.name)) is not None:
            draft = await asyncio.to_thread(self.load_beside, draft)
        for backend in (target, draft):
            if backend is not None and not isinstance(backend, LocalBackend):
                msg = f"only a model on this machine can be decoded step by step, and {type(backend).__name__} is none"
                raise CapabilityError(msg, hint='Take decoder="plain".')
        return DecodingBackend(target, decoder, draft)  # type: ignore[arg-type]  # checked above

    def _wanted(self, model: object) -> object:
        return self.model if model is None else model
