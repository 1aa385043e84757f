"""
What a chat model may be told: its settings, each checked when it is set.

Knows names, values and what of them excludes what; loads nothing, plans nothing and answers nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from langchain_core.language_models import BaseChatModel
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from langchain_pareto.backends.base import BACKENDS
from langchain_pareto.backends.decoders import Lookup, parse_decoder
from langchain_pareto.budget import Budget
from langchain_pareto.call import Draws, read_stops
from langchain_pareto.errors import ParetoError, SettingError
from langchain_pareto.models import check_draft, check_roles, identity, is_backend
from langchain_pareto.plan_settings import TOGETHER, check_together, checked_task, named
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.strategies import Auto, Strategy, parse_strategy
from langchain_pareto.strategies.aggregation import Aggregation
from langchain_pareto.strategies.answers import AnswerFormat
from langchain_pareto.strategies.scorers import MeanLogprob
from langchain_pareto.strategies.scoring import parse_scorer
from langchain_pareto.strategies.steps import Steps


class ChatSettings(BaseChatModel):
    """The fields of ChatPareto; what they are set to by assignment is checked like what the constructor is given."""

    model: Any = Field(default=None, alias="model_name")
    """A path, a hub id, a loaded model, or None for the bundled nano model."""
    backend: Any = "auto"
    """The name of a backend, or a Backend."""
    strategy: Any = Field(default_factory=Auto, validate_default=True)
    """A Strategy, its name, or its JSON."""
    budget: Budget | None = None
    """The budget of each call, e.g. "2000 tokens, 5s"."""
    models: Any = None
    """Several models to plan with, the cheapest first: a list of what `model` may be, or a mapping from names; instead of `model`."""
    task: Any = None
    """The profile that calls with the strategy "auto" are planned by: the name that it was calibrated under, or its file."""
    need: float | None = Field(default=None, gt=0, lt=1)
    """The share of right answers that is enough: the cheapest plan that reaches it is taken."""
    guarantee: Any = None
    """What a plan must have a certificate of: "agree", "error", or a Guarantee."""
    draft: Any = None
    """A small model of the same vocabulary that guesses ahead: what `model` may be, or a Backend."""
    decoder: Any = None
    """How tokens are drawn: "plain", "auto" (speculative with a draft, which the bundled model has), a Decoder, its name, or its JSON.

    By default "auto" with `draft=`, else "plain".
    """
    seed: int | None = None
    """Draws are reproducible with one; without, each call takes its own."""
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, allow_inf_nan=False)
    frequency_penalty: float | None = Field(default=None, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1)
    """The most tokens of each sample."""
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds; the tighter one of this and the budget's counts."""
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    max_retries: int = Field(default=2, ge=0)
    """Accepted for interchange with hosted models; what can be tried again here, the engine tries again by itself."""
    streaming: bool = False
    api_key: Any = Field(default=None, exclude=True, repr=False)
    """Accepted for interchange with hosted models; a local model needs none."""
    answers: AnswerFormat = Field(default_factory=AnswerFormat)
    """How the answer is read out of a text."""
    scorer: Any = Field(default_factory=MeanLogprob)
    """What searches go by: anything with `async score(thoughts)`, such as a Verifier; or one that works with models, such as
    ProcessReward and JudgeScore; its name, or its JSON."""
    roles: dict[str, Any] = Field(default_factory=dict)
    """Other models, by the names that strategies and scorers give them ("scorer", "judge", "large"): what `model` may be, or Backends.

    Whoever is not named is played by the model itself, but "scorer", which the bundled reward model is for the bundled policy.
    """
    steps: Steps = Field(default_factory=Steps)
    """Where a step of a solution ends."""
    aggregation: Aggregation = "last"
    """How the scores of steps become one of the whole."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    usd_per_million_tokens: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The price of sampled tokens, for budgets in usd."""
    usd_per_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The price of the device, for budgets in usd."""
    watts: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The device's power limit, for budgets in joules."""
    tokenizer: Any = Field(default=None, exclude=True, repr=False)
    """Of an already loaded model."""
    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """For `from_pretrained`."""
    memory: int | float | str | None = None
    """Memory of the KV pool: bytes, a fraction of what is free, or "4 GB"."""
    max_context: int | None = Field(default=None, ge=1)

    model_config = ConfigDict(populate_by_name=True, extra="forbid")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises our own errors where pydantic would report them, and its ValidationError for all else."""
        try:
            super().__init__(*args, **kwargs)
        except ValidationError as error:
            raise _own_words(error) from None
        if self.draft is not None and isinstance(self.decoder, Lookup):
            msg = 'the decoder "lookup" takes no draft model: draft= waits for calls with another decoder'
            warnings.warn(msg, stacklevel=3)  # of whoever makes a ChatPareto

    def __setattr__(self, name: str, value: Any) -> None:
        """A field of ours is read as the constructor reads it."""
        if name in ChatSettings.__annotations__ and name in ChatSettings.model_fields:
            read = type(self).model_construct()
            try:
                self.__pydantic_validator__.validate_assignment(read, name, value)
            except ValidationError as error:
                raise _own_words(error) from None
            value = getattr(read, name)
        if name in TOGETHER:
            self._check_together(**{name: value})
        super().__setattr__(name, value)

    @field_validator("budget", mode="before")
    @classmethod
    def _parse_budget(cls, value: object) -> Budget | None:
        return None if value is None else Budget.parse(value)  # type: ignore[arg-type]

    @field_validator("strategy", mode="before")
    @classmethod
    def _parse_strategy(cls, value: object) -> Strategy:
        return parse_strategy(value)  # type: ignore[arg-type]

    @field_validator("scorer", mode="before")
    @classmethod
    def _parse_scorer(cls, value: object) -> object:
        return parse_scorer(value)

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: object) -> object:
        return None if value is None else named(value)

    @field_validator("task")
    @classmethod
    def _check_task(cls, value: object) -> object:
        return None if value is None else checked_task(value)

    @field_validator("guarantee", mode="before")
    @classmethod
    def _parse_guarantee(cls, value: object) -> Guarantee | None:
        return None if value is None else Guarantee.parse(value)  # type: ignore[arg-type]

    @field_validator("roles")
    @classmethod
    def _check_roles(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_roles(value)
        return value

    @field_validator("decoder", mode="before")
    @classmethod
    def _parse_decoder(cls, value: object) -> object:
        return value if value in (None, "auto") else parse_decoder(value)  # type: ignore[arg-type]

    @field_validator("stop", mode="before")
    @classmethod
    def _parse_stop(cls, value: object) -> list[str] | None:
        return None if value is None else list(read_stops(value))

    @field_validator("backend")
    @classmethod
    def _check_backend(cls, value: object) -> object:
        if value not in BACKENDS and not is_backend(value):
            msg = f"there is no backend {value!r}; known backends: {', '.join(BACKENDS)}, or a Backend object"
            raise SettingError(msg)
        return value

    @model_validator(mode="after")
    def _check_draft(self) -> Self:
        if self.draft is not None:
            check_draft(self.draft, self.model if isinstance(self.backend, str) else self.backend)
        return self

    @model_validator(mode="after")
    def _check_plans(self) -> Self:
        self._check_together()
        return self

    def _check_together(self, **changed: object) -> None:
        """Raises SettingError for settings, some of them about to change, that exclude each other."""
        check_together(**{name: getattr(self, name) for name in TOGETHER} | changed)

    @model_validator(mode="after")
    def _set_pareto_version(self) -> Self:
        try:
            self._add_version("langchain-pareto", version("langchain-pareto"))
        except PackageNotFoundError:  # run from a source tree
            self._add_version("langchain-pareto", "0")
        return self

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "model": identity(self.model),
            "backend": identity(self.backend),
            "strategy": self.strategy.model_dump_json(),
            "budget": None if self.budget is None else str(self.budget),
            "models": {name: identity(model) for name, model in (self.models or {}).items()},
            "task": repr(self.task)
            if isinstance(self.task, str | Path | None)
            else identity(self.task),
            "need": self.need,
            "guarantee": repr(self.guarantee),
            "draft": identity(self.draft),
            "decoder": repr(self.decoder),
            "stop": self.stop,
            "timeout": self.timeout,
            "answers": self.answers.model_dump(),
            "scorer": repr(self.scorer),
            "roles": {name: identity(model) for name, model in self.roles.items()},
            "steps": self.steps.model_dump(),
            "aggregation": self.aggregation,
            "chat_template_kwargs": self.chat_template_kwargs,
            "revision": self.revision,
            "dtype": self.dtype,
            "device": self.device,
            "model_kwargs": repr(self.model_kwargs),
            "max_context": self.max_context,
            **{name: getattr(self, name) for name in Draws.model_fields},
        }


def _own_words(error: ValidationError) -> Exception:
    """Our own error, which has a hint, where pydantic reports one."""
    cause = error.errors()[0].get("ctx", {}).get("error")
    return cause if isinstance(cause, ParetoError) else error
