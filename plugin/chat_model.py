"""
ChatPareto: the chat model for chains and graphs.

Knows LangChain's chat model interface and how its many doors carry settings; knows no tokens and no device. Models load on first use
and are shared in the process; a pickle carries settings only.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import (
    LangSmithParams,
    LanguageModelInput,
    ModelProfile,
)
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import override

from langchain_pareto.backends.base import BACKENDS, Backend
from langchain_pareto.backends.decoders import Lookup, parse_decoder
from langchain_pareto.backends.grammar import has_grammars
from langchain_pareto.bound import Bound
from langchain_pareto.budget import Budget
from langchain_pareto.call import WARM, Call, Draws, Reply, read_stops, respond
from langchain_pareto.doors import TRAVEL, Doors
from langchain_pareto.errors import ParetoError, SettingError
from langchain_pareto.events import SILENT, Events, aprogress, progress
from langchain_pareto.footprint import Footprint
from langchain_pareto.forms.form import Form, read_response_format
from langchain_pareto.forms.structured import Method, structured
from langchain_pareto.forms.tool_formats import format_of
from langchain_pareto.forms.tool_stream import ToolSplitter
from langchain_pareto.forms.tools import read_tools
from langchain_pareto.ledger import current_account
from langchain_pareto.loop import iterate_sync, run_sync
from langchain_pareto.messages import opens_thinking, prompt_text, prompt_tokens
from langchain_pareto.models import (
    Models,
    check_draft,
    check_roles,
    identity,
    is_backend,
    model_name,
    one_of,
)
from langchain_pareto.plan_settings import TOGETHER, check_together, checked_task, named
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.identity import use_of
from langchain_pareto.plans import Plans
from langchain_pareto.players import Players
from langchain_pareto.rates import Rates
from langchain_pareto.shares import in_turns, left, limited, seat
from langchain_pareto.sharing import Seat
from langchain_pareto.strategies import Auto, Strategy, parse_strategy
from langchain_pareto.strategies.aggregation import Aggregation
from langchain_pareto.strategies.answers import AnswerFormat
from langchain_pareto.strategies.scorers import MeanLogprob
from langchain_pareto.strategies.scoring import parse_scorer
from langchain_pareto.strategies.steps import Steps
from langchain_pareto.strategies.thoughts import POLICY
from langchain_pareto.streaming import chunks

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

_FORM = ("tools", "tool_choice", "parallel_tool_calls", "strict", "response_format")
_PER_CALL = frozenset({*TRAVEL, *_FORM, "model", *Draws.model_fields})
# LangChain hands these down for its own ends
_IGNORED = frozenset(
    {"ls_structured_output_format", "structured_output_format", "stream", "stream_usage"}
)


class ChatPareto(Doors):
    """The best answer that a compute budget can buy, from a model on this machine.

    `model` is a path (of a folder, or of a GGUF file) or hub id (the bundled nano model without it), or an already loaded
    transformers model; `backend` is "torch", "llama-cpp", by default whichever runs the model's files, or a Backend. `budget` and
    `strategy` are defaults that every call can override: as a keyword, by `.bind`, through `config={"configurable": {...}}`, or from
    around it with `run_budget`.
    """

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

    _models: Models = PrivateAttr(default_factory=Models)
    _beside: Models = PrivateAttr(default_factory=Models)
    _warned: bool = PrivateAttr(default=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See the fields; raises BudgetError, SettingError or pydantic's ValidationError for what cannot be honoured."""
        try:
            super().__init__(*args, **kwargs)
        except ValidationError as error:
            raise _own_words(error) from None
        if self.draft is not None and isinstance(self.decoder, Lookup):
            msg = 'the decoder "lookup" takes no draft model: draft= waits for calls with another decoder'
            warnings.warn(msg, stacklevel=2)

    def __setattr__(self, name: str, value: Any) -> None:
        """A field of ours is read as the constructor reads it."""
        if name in ChatPareto.__annotations__ and name in ChatPareto.model_fields:
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

    # --- what LangChain asks of a chat model

    @property
    def _llm_type(self) -> str:
        return "pareto-chat"

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

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "pareto"
        params["ls_model_name"] = self._players.name(kwargs.get("model", self.model))
        return params

    @override
    def _resolve_model_profile(self) -> ModelProfile | None:
        """Known once the model is: at once for a Backend, else from the first call on."""
        if isinstance(self.backend, str):
            return None
        return _profile(self.backend)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of `text` by the model's own tokenizer; loads the model."""
        return self._backend().tokenizer.encode(text)

    @override
    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Tokens of the rendered prompt, with the tools that it shows; loads the model."""
        tokenizer = self._backend().tokenizer
        form = _form({"tools": tools})
        text = prompt_text(tokenizer, messages, self.chat_template_kwargs, form)
        return len(prompt_tokens(tokenizer, text))

    # --- tools and schemas

    @override
    def bind_tools(
        self,
        tools: Sequence[Any],
        *,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **settings: Any,
    ) -> Bound:
        """The model with tools that it may call: `AIMessage.tool_calls`; what it wrote and nobody can read, `invalid_tool_calls`.

        Tools are functions, LangChain tools, pydantic classes, TypedDicts, or dicts. `tool_choice` is "auto" (or None), "any"
        ("required", True), "none" (False), or a tool's name; what must be called is held to its schema by a grammar. `settings` are
        those of a call, `response_format` among them: the answer, when it is no call, then follows that schema. Raises SettingError.
        """
        form = read_tools(tools, tool_choice, parallel_tool_calls, strict)
        if form is not None:
            settings = {"tools": list(form.specs), "tool_choice": form.choice, **settings}
            if not form.parallel:
                settings["parallel_tool_calls"] = False
        return self.bind(**settings)

    @override
    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **settings: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A chain that gives objects of `schema`, see `structured`; `settings` are those of a call."""
        return structured(
            self, schema, method=method, include_raw=include_raw, strict=strict, **settings
        )

    @override
    def bind(self, **kwargs: Any) -> Bound:  # type: ignore[override]  # the base's type is private
        """The model with settings of a call, which stay when tools or a schema are bound as well."""
        return Bound(bound=self, kwargs=kwargs, config={})

    @override
    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> Bound:
        """The model with a config, which stays when tools or a schema are bound as well."""
        return Bound(bound=self, kwargs={}, config={**(config or {}), **kwargs})  # type: ignore[typeddict-item]

    # --- generation

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        events = progress(run_manager)
        return _result(run_sync(lambda: self._reply(messages, stop, kwargs, events)))

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with aprogress(run_manager) as events:
            return _result(await self._reply(messages, stop, kwargs, events))

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        async def produce(emit: Callable[[AIMessageChunk], None]) -> None:
            async for chunk in self._chunks(messages, stop, kwargs, progress(run_manager)):
                emit(chunk)

        for chunk in iterate_sync(produce):
            yield ChatGenerationChunk(message=chunk)

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aprogress(run_manager) as events:
            async for chunk in self._chunks(messages, stop, kwargs, events):
                yield ChatGenerationChunk(message=chunk)

    async def _chunks(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        events: Events,
    ) -> AsyncIterator[AIMessageChunk]:
        """A single sample as it grows; any other strategy's winner in one piece, after the decision."""
        with seat() as one:
            call, backend = await self._ready(stop, kwargs, one)
            tokenizer = backend.tokenizer
            prompt = prompt_text(tokenizer, messages, call.template_kwargs, call.form)
            calls = None
            if call.form is not None and call.form.tools is not None:
                written_as = format_of(tokenizer.template, tokenizer)
                calls = ToolSplitter(written_as, call.form.tools)

            async def respond_(on_text: Callable[[str], None]) -> Reply:
                with limited(call.effective, one):
                    return await _respond(call, backend, messages, events, on_text)

            thinking = opens_thinking(prompt)
            async for chunk in chunks(respond_, thinking=thinking, calls=calls):
                yield chunk

    async def reply(self, messages: list[BaseMessage], **settings: Any) -> Reply:
        """One answer with everything that was drawn for it; `settings` are those of a call."""
        return await self._reply(messages, None, settings, SILENT)

    async def _reply(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        events: Events,
    ) -> Reply:
        with seat() as one:
            call, backend = await self._ready(stop, kwargs, one)
            with limited(call.effective, one):
                return await _respond(call, backend, messages, events)

    async def _ready(
        self, stop: list[str] | None, kwargs: dict[str, Any], one: Seat | None
    ) -> tuple[Call, Backend]:
        """The call with its plan, and the model that answers it; what the plan does not need is not loaded."""
        call = self._planned(self._call(stop, kwargs), kwargs, one)
        players = self._players
        # before the model, whose pool takes what memory is left
        call = replace(call, roles=await players.load_roles(call.scorer, self._others(call)))
        backend = await self._abackend(self._chosen(call, kwargs), call.decoder)
        return call, await players.decoding(backend, call.decoder)

    def _call(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> Call:
        """This call's settings: its own keywords before the model's fields."""
        unknown = {k for k, v in kwargs.items() if v is not None} - _PER_CALL - _IGNORED
        if unknown:
            msg = f"unknown settings of a call: {', '.join(sorted(unknown))}"
            raise SettingError(msg, hint=f"A call takes: stop, {', '.join(sorted(_PER_CALL))}.")
        asked = {k: v for k, v in kwargs.items() if v is not None and k in _PER_CALL}
        self._check_together()
        own = {name: getattr(self, name) for name in Draws.model_fields}
        draws = Draws.read({**own, **{k: v for k, v in asked.items() if k in own}})
        budget = Budget.parse(asked["budget"]) if "budget" in asked else self.budget
        if self.timeout is not None:
            budget = (budget or Budget()).tightest(Budget(seconds=self.timeout))
        strategy = parse_strategy(asked["strategy"]) if "strategy" in asked else self.strategy
        call = Call(
            strategy=strategy,
            budget=budget,
            draws=draws,
            stop=read_stops(stop if stop is not None else self.stop or ()),
            answers=self.answers,
            scorer=parse_scorer(asked.get("scorer", self.scorer)),
            steps=self.steps,
            aggregation=self.aggregation,
            template_kwargs=self.chat_template_kwargs,
            rates=Rates(
                usd_per_million_tokens=self.usd_per_million_tokens,
                usd_per_hour=self.usd_per_hour,
                watts=self.watts,
            ),
            decoder=self._players.decoder_for(
                asked.get("decoder", self.decoder), self._named(asked.get("model"))
            ),
            form=_form(asked),
        )
        self._warn_if_cold(call)
        return call

    def _planned(self, call: Call, kwargs: Mapping[str, Any], one: Seat | None = None) -> Call:
        """The call with its plan, where it leaves the strategy and the model to us."""

        def asked(name: str) -> Any:
            own = kwargs.get(name)
            return getattr(self, name) if own is None else own

        task, need, guarantee = (asked(name) for name in ("task", "need", "guarantee"))
        if need is not None and (isinstance(need, bool) or not isinstance(need, int | float)):
            msg = f"need is a share of right answers between 0 and 1, got {need!r:.40}"
            raise SettingError(msg, hint="For example need=0.8.")
        guarantee = None if guarantee is None else Guarantee.parse(guarantee)
        if not isinstance(call.effective, Auto) or kwargs.get("model") is not None:
            if guarantee is not None:
                msg = "a guarantee is kept by a plan, and this call names its strategy, its model, or temperature 0"
                raise SettingError(msg, hint="Leave them out, or the guarantee.")
            return call
        if all(value is None for value in (task, self.models, need, guarantee)):
            return call
        budget = left(call.budget, current_account(), one)
        plan = self.plans(task, call).plan(budget, need=need, guarantee=guarantee)
        plan = replace(plan, decoder=call.decoder.kind)
        return replace(call, strategy=in_turns(plan, one), plan=plan)

    def plans(self, task: object = None, call: Call | None = None) -> Plans:
        """What calls are planned with, or this one; loads no model."""
        call = self._call(None, {}) if call is None else call
        alone = self.model if isinstance(self.backend, str) else self.backend
        models = {model_name(alone): alone} if self.models is None else named(self.models)
        settings = {
            "dtype": self.dtype,
            **call.draws.model_dump(exclude={"seed"}),
            "answers": call.answers,
            "template": call.template_kwargs,
            "aggregation": call.aggregation,
            "steps": call.steps,
            "stop": call.stop,
            "scorer": repr(call.scorer),
        }
        return Plans(
            models=models,
            keys={name: use_of(model, **settings) for name, model in models.items()},
            task=checked_task(task) if task is not None else self.task,
            rates=call.rates,
            unlike=None
            if call.form is None
            else "no profile measures calls with tools or a schema",
            footprint=Footprint(models, self._players.loading, self._models, self._beside),
        )

    def _chosen(self, call: Call, kwargs: Mapping[str, Any]) -> object:
        """The model of a call, None for the one there is."""
        if call.plan is None or call.plan.model is None or self.models is None:
            return self._named(kwargs.get("model"))
        return self.models[call.plan.model]

    def _named(self, model: object) -> object:
        """The model that a call asks for: one of several by its name."""
        several = model is not None and self.models is not None
        return one_of(self.models, model) if several else model

    def _others(self, call: Call) -> dict[str, object]:
        """The models of a plan's other roles."""
        if call.plan is None or self.models is None:
            return {}
        roles = call.plan.roles.items()
        return {role: self.models[name] for role, name in roles if role != POLICY}

    def _warn_if_cold(self, call: Call) -> None:
        if call.greedy and call.effective.varied and not self._warned:
            self._warned = True
            msg = (
                f"temperature=0 draws the same sample every time: {call.strategy.kind} keeps its own sampling "
                f"temperature ({call.strategy.temperature or WARM})"
            )
            warnings.warn(msg, stacklevel=2)

    # --- models

    @property
    def _players(self) -> Players:
        """The models that it names, as its fields stand."""
        names = "backend tokenizer device dtype revision model_kwargs memory max_context".split()
        return Players(
            model=self.model if self.models is None else next(iter(self.models.values())),
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
            self.profile = _profile(backend)
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


def _own_words(error: ValidationError) -> Exception:
    """Our own error, which has a hint, where pydantic reports one."""
    cause = error.errors()[0].get("ctx", {}).get("error")
    return cause if isinstance(cause, ParetoError) else error


def _profile(backend: Backend) -> ModelProfile:
    return ModelProfile(
        max_input_tokens=backend.capabilities.context_length,
        tool_calling=True,
        tool_choice=has_grammars(),
        structured_output=has_grammars(),
    )


def _result(reply: Reply) -> ChatResult:
    message = reply.message()
    info = {"finish_reason": message.response_metadata["finish_reason"]}
    return ChatResult(generations=[ChatGeneration(message=message, generation_info=info)])


async def _respond(
    call: Call,
    backend: Backend,
    messages: list[BaseMessage],
    events: Events,
    on_text: Callable[[str], None] | None = None,
) -> Reply:
    events.plan(call)
    reply = await respond(call, backend, messages, on_text=on_text, on_thought=events.thought)
    events.spend(reply)
    return reply


def _form(asked: Mapping[str, Any]) -> Form | None:
    """What the answer of a call must look like, None where it may be any text."""
    tools = read_tools(*(asked.get(name) for name in _FORM[:4]))
    schema = None
    if "response_format" in asked:
        schema = read_response_format(asked["response_format"])
    return None if tools is None and schema is None else Form(tools, schema)
