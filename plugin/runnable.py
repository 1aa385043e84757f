"""
StrategyRunnable: one strategy as a Runnable, for LCEL and LangGraph, with a child run per thought.

Knows Runnables and traces; the call itself is the chat model's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from pydantic import TypeAdapter, ValidationError
from typing_extensions import override

from langchain_pareto.backends.base import Backend
from langchain_pareto.budget import Budget, BudgetLike
from langchain_pareto.call import Call, Draws, read_stops, respond
from langchain_pareto.doors import together
from langchain_pareto.errors import SettingError
from langchain_pareto.events import describe
from langchain_pareto.loop import run_sync
from langchain_pareto.models import check_roles, is_backend
from langchain_pareto.rates import Rates
from langchain_pareto.strategies import Strategy, parse_strategy
from langchain_pareto.strategies.aggregation import Aggregation
from langchain_pareto.strategies.answers import AnswerFormat
from langchain_pareto.strategies.scorers import MeanLogprob, RunScorer, Scorer
from langchain_pareto.strategies.scoring import parse_scorer
from langchain_pareto.strategies.steps import Steps
from langchain_pareto.strategies.thoughts import Thought

_T = TypeVar("_T")


class StrategyRunnable(Runnable[LanguageModelInput, AIMessage]):
    """Runs `strategy` on `backend`: takes what a chat model takes, returns an AIMessage.

    In a trace every thought is a child run. The budget comes as the keyword of a call, from `config["configurable"]`, from the
    constructor, or from a `run_budget` around it.
    """

    def __init__(
        self,
        strategy: Strategy | str,
        backend: Backend,
        *,
        budget: BudgetLike | None = None,
        scorer: Scorer | RunScorer | str | None = None,
        answers: AnswerFormat | None = None,
        roles: Mapping[str, Backend] | None = None,
        steps: Steps | None = None,
        aggregation: Aggregation = "last",
        stop: Sequence[str] = (),
        rates: Rates | None = None,
        **draws: Any,
    ) -> None:
        """`roles` are the other models that the strategy and the scorer name; `rates` price budgets in usd and joules.

        `draws` are temperature, top_p, top_k, min_p, the penalties, seed and max_tokens.
        """
        self.strategy = parse_strategy(strategy)
        self.backend = _opened(backend, "the model")
        self.budget = None if budget is None else Budget.parse(budget)
        self.scorer = MeanLogprob() if scorer is None else parse_scorer(scorer)
        self.answers = _read(AnswerFormat, "answers", {} if answers is None else answers)
        self.roles = _read(dict[str, Any], "roles", {} if roles is None else roles)
        check_roles(self.roles)
        for name, player in self.roles.items():
            _opened(player, f"the role {name!r}")
        self.steps = _read(Steps, "steps", {} if steps is None else steps)
        self.aggregation: Aggregation = _read(Aggregation, "aggregation", aggregation)  # type: ignore[arg-type]
        self.stop = read_stops(stop)
        self.rates = _read(Rates, "rates", {} if rates is None else rates)
        self.draws = Draws.read(draws)
        self.name = f"{type(self.strategy).__name__}Runnable"

    @override
    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """One answer."""
        return self._call_with_config(self._invoke, input, config, run_type="chain", **kwargs)

    @override
    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """One answer; cancelling it stops the engine within a step."""
        return await self._acall_with_config(
            self._ainvoke, input, config, run_type="chain", **kwargs
        )

    @override
    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Submits all inputs at once, unless the config says `max_concurrency`: the engine merges them."""
        return run_sync(lambda: self.abatch(inputs, config, **kwargs))

    @override
    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As `batch`."""
        together(config)
        return await super().abatch(inputs, config, **kwargs)

    def _invoke(
        self,
        asked: LanguageModelInput,
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AIMessage:
        call, messages = self._call(config, kwargs), _messages(asked)

        def on_thought(thought: Thought) -> None:
            child = run_manager.get_child().on_chain_start(*_started(thought), name="thought")
            child.on_chain_end(describe(thought))

        return run_sync(lambda: self._respond(call, messages, on_thought))

    async def _ainvoke(
        self,
        asked: LanguageModelInput,
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AIMessage:
        traces = set[asyncio.Task[None]]()

        async def trace(thought: Thought) -> None:
            child = await run_manager.get_child().on_chain_start(*_started(thought), name="thought")
            await child.on_chain_end(describe(thought))

        def on_thought(thought: Thought) -> None:
            traces.add(asyncio.ensure_future(trace(thought)))

        try:
            return await self._respond(self._call(config, kwargs), _messages(asked), on_thought)
        finally:
            await asyncio.gather(*traces)

    async def _respond(
        self, call: Call, messages: list[BaseMessage], on_thought: Callable[[Thought], None]
    ) -> AIMessage:
        return (await respond(call, self.backend, messages, on_thought=on_thought)).message()

    def _call(self, config: RunnableConfig, kwargs: dict[str, Any]) -> Call:
        configurable = ensure_config(config).get("configurable", {})
        asked = kwargs.pop("budget", None)
        asked = configurable.get("budget") if asked is None else asked
        if kwargs:
            msg = f"unknown settings of a call: {', '.join(sorted(kwargs))}"
            raise SettingError(msg, hint="A call takes: budget.")
        return Call(
            strategy=self.strategy,
            budget=self.budget if asked is None else Budget.parse(asked),
            draws=self.draws,
            stop=self.stop,
            answers=self.answers,
            scorer=self.scorer,
            roles=self.roles,
            steps=self.steps,
            aggregation=self.aggregation,
            rates=self.rates,
        )


def _read(kind: type[_T], name: str, value: object) -> _T:
    """A setting as it is meant, or from a dict; raises SettingError."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        msg = f"{name} cannot be {value!r:.80}: {error.errors()[0]['msg']}"
        raise SettingError(msg) from None


def _opened(backend: Backend, who: str) -> Backend:
    """The Backend itself; raises SettingError for a model that nobody has opened."""
    if not is_backend(backend):
        msg = f"{who} must be a Backend, got {backend!r:.80}"
        hint = 'Open one with langchain_pareto.backends.loading.load("..."), or take ChatPareto.'
        raise SettingError(msg, hint=hint)
    return backend


def _messages(asked: LanguageModelInput) -> list[BaseMessage]:
    if isinstance(asked, PromptValue):
        return asked.to_messages()
    if not isinstance(asked, str | Sequence):
        msg = f"a question is a text, messages or a prompt, not {type(asked).__name__}"
        raise SettingError(msg)
    return convert_to_messages([asked] if isinstance(asked, str) else asked)


def _started(thought: Thought) -> tuple[dict[str, Any], dict[str, Any]]:
    parent = 0 if thought.parent is None else thought.parent.number
    return {}, {"id": thought.number, "parent": parent}
