"""
One call of a chat model before it runs: its settings, its plan, and the models that it needs.

Knows which settings a call may bring, and that its own come before the model's; knows no message, and nothing of what an answer becomes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import PrivateAttr

from langchain_pareto.backends.base import Backend
from langchain_pareto.budget import Budget
from langchain_pareto.call import WARM, Call, Draws, read_stops
from langchain_pareto.chat_players import ChatPlayers
from langchain_pareto.doors import TRAVEL
from langchain_pareto.errors import SettingError
from langchain_pareto.footprint import Footprint
from langchain_pareto.forms.form import Form, read_response_format
from langchain_pareto.forms.tools import read_tools
from langchain_pareto.ledger import current_account
from langchain_pareto.models import model_name, one_of
from langchain_pareto.placement import place_of
from langchain_pareto.plan_settings import checked_task, named
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.identity import (
    described,
    fingerprint,
    given_tokenizer,
    own_draws,
    use_of,
)
from langchain_pareto.plans import Plans
from langchain_pareto.rates import Rates
from langchain_pareto.shares import in_turns, left
from langchain_pareto.sharing import Seat
from langchain_pareto.strategies import Auto, parse_strategy
from langchain_pareto.strategies.scoring import parse_scorer
from langchain_pareto.strategies.thoughts import POLICY

_FORM = ("tools", "tool_choice", "parallel_tool_calls", "strict", "response_format")
_PER_CALL = frozenset({*TRAVEL, *_FORM, "model", *Draws.model_fields})
# LangChain hands these down for its own ends
_IGNORED = frozenset(
    {"ls_structured_output_format", "structured_output_format", "stream", "stream_usage"}
)


class ChatPlanning(ChatPlayers):
    """Models, and what calls of them are planned with."""

    _warned: bool = PrivateAttr(default=False)

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
            form=form_of(asked),
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
            "scorer": described(call.scorer),
        }
        if others := self._players.in_roles(call.scorer):
            settings["roles"] = {name: fingerprint(model) for name, model in others.items()}
        loading = self._players.loading
        return Plans(
            models=models,
            keys={
                name: use_of(model, **settings, **self._unusual(model, call))
                for name, model in models.items()
            },
            task=checked_task(task) if task is not None else self.task,
            rates=call.rates,
            unlike=None
            if call.form is None
            else "no profile measures calls with tools or a schema",
            footprint=Footprint(models, loading, self._models, self._beside),
            here=lambda: {place_of(model, loading) for model in models.values()},
        )

    def _unusual(self, model: object, call: Call) -> dict[str, object]:
        """What else the answers of a model depend on, where it is not as usual: so keys of usual calls stay as they are."""
        draws = call.draws.model_dump(exclude_none=True)
        found: dict[str, object] = {
            "model_kwargs": self.model_kwargs,
            "revision": self.revision,
            "model_draws": {n: v for n, v in own_draws(model).items() if n not in draws},
        }
        if self.tokenizer is not None:
            found["tokenizer"] = given_tokenizer(self.tokenizer)
        if not call.decoder.lossless:
            draft = self._players.draft_for(model) if self.draft is None else self.draft
            found["decoder"] = call.decoder
            found["draft"] = None if draft is None else fingerprint(draft)
        return {name: value for name, value in found.items() if value not in (None, {})}

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


def form_of(asked: Mapping[str, Any]) -> Form | None:
    """What the answer of a call must look like, None where it may be any text."""
    tools = read_tools(*(asked.get(name) for name in _FORM[:4]))
    schema = None
    if "response_format" in asked:
        schema = read_response_format(asked["response_format"])
    return None if tools is None and schema is None else Form(tools, schema)
