"""
BudgetMiddleware: what an agent of langchain may spend per call, per run and per thread.

Knows the hooks of create_agent and the state that a checkpoint keeps. What a run may still spend is its purse's business, and what one
model call does within that is its paid call's.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from threading import Lock
from typing import Annotated, Any, Literal, NotRequired, cast
from uuid import uuid4

from langchain_core.messages import AIMessage, ToolMessage
from typing_extensions import override

from langchain_pareto.agents.paid_call import PaidCall
from langchain_pareto.agents.run_purse import SHARED, Purse, lacking
from langchain_pareto.agents.run_record import Record, Update, add_up
from langchain_pareto.budget import Budget, BudgetLike
from langchain_pareto.errors import BudgetExceeded, CapabilityError, SettingError

try:
    from langchain.agents.middleware import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        hook_config,
    )
    from langchain.agents.middleware.types import OmitFromInput, ToolCallRequest
    from langgraph.runtime import Runtime, get_runtime
    from langgraph.types import Command
except ImportError as error:
    msg = "BudgetMiddleware is for agents of langchain, which is not installed"
    raise CapabilityError(msg, hint="pip install 'langchain-pareto[agents]'") from error

Exit = Literal["end", "error"]
_REMEMBERED = (
    10_000  # runs that stopped in the middle, and may go on or have spent what no state has
)


class BudgetState(AgentState[Any]):
    """The state of an agent, and what it has spent: also among the keys of its output."""

    budget_spent: NotRequired[Annotated[dict[str, Any], OmitFromInput, add_up]]


class BudgetMiddleware(AgentMiddleware[BudgetState, Any, Any]):
    """Keeps an agent within budgets; put it last in the list, so that each retry and fallback is charged.

    Every limit holds for ChatPareto, also inside tools. Other models are counted in tokens, calls and seconds, by their
    `usage_metadata`: they are not called unless their own `max_tokens` fits, and one that has none may end above the limit. The
    output's `budget_spent` has the sums of the run and its thread.
    """

    state_schema = BudgetState

    def __init__(
        self,
        per_run: BudgetLike | None = None,
        *,
        per_call: BudgetLike | None = None,
        per_thread: BudgetLike | None = None,
        reserve: float | BudgetLike = 0.1,
        warn: float = 0.25,
        exit: Exit = "end",  # noqa: A002 - what it is called in a sentence
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_run` is for one `agent.invoke`, tightened by a `budget` in its runtime context; `per_thread` is for all of a thread.

        `reserve` is kept for the last answer, for which tools are withdrawn: a share of what the run begins with, or a budget; 0
        keeps nothing, and a run may then end without an answer. The model is told when at most the share `warn` is left; 0 tells it
        nothing. When nothing is left a run ends with a message that says so, or with exit="error" raises BudgetExceeded.
        """
        super().__init__()
        self.tools = []
        self.per_run = Budget() if per_run is None else Budget.parse(per_run)
        self.per_call = None if per_call is None else Budget.parse(per_call)
        self.per_thread = Budget() if per_thread is None else Budget.parse(per_thread)
        self.reserve = _reserve(reserve, self.per_run.tightest(self.per_thread))
        if not isinstance(warn, int | float) or not 0 <= warn < 1:
            msg = f"warn is a share of the budget, from 0 to below 1, not {warn!r:.40}"
            raise SettingError(msg)
        if exit not in ("end", "error"):
            msg = f'exit is "end" or "error", not {exit!r:.40}'
            raise SettingError(msg)
        self.warn = warn
        self.exit = exit
        self._clock = clock
        self._lock = Lock()
        self._purses = OrderedDict[str, Purse]()  # of runs that have not ended

    # --- the hooks

    @override
    def before_agent(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Opens the purse of a new run."""
        record = _record(state)
        earlier: dict[str, int] = {}
        with self._lock:
            if (stopped := self._purses.pop(record["run"], None)) is not None:  # it failed
                behind = stopped.left_behind()
                earlier = {k: n - record["thread"].get(k, 0) for k, n in behind["thread"].items()}
        update = Update(run=uuid4().hex, spent={}, earlier=earlier)
        self._purse(add_up(record, update), runtime)
        return {"budget_spent": update}

    @hook_config(can_jump_to=["end"])
    @override
    def before_model(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Ends a run that has nothing left."""
        purse = self._purse(_record(state), runtime)
        short = lacking(purse.room(last=True))
        if short is None:
            return None
        return {"jump_to": "end", "messages": [self._end(purse, short)]}

    @override
    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ExtendedModelResponse[Any]:
        """Pays for a call; where it was cut short, the last answer follows at once."""
        call = self._call(request)
        for attempt in call.attempts():
            with attempt.paid():
                attempt.response = handler(attempt.request)
        return self._response(call, request)

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ExtendedModelResponse[Any]:
        """Pays for a call; where it was cut short, the last answer follows at once."""
        call = self._call(request)
        for attempt in call.attempts():
            with attempt.paid():
                attempt.response = await handler(attempt.request)
        return self._response(call, request)

    @override
    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Pays for the models that a tool calls; one that finds no room tells the agent so."""
        purse = self._purse(_record(request.state), request.runtime)
        try:
            with purse.paying():
                return handler(request)
        except BudgetExceeded as error:
            return self._told(purse, request, error)

    @override
    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Pays for the models that a tool calls; one that finds no room tells the agent so."""
        purse = self._purse(_record(request.state), request.runtime)
        try:
            with purse.paying():
                return await handler(request)
        except BudgetExceeded as error:
            return self._told(purse, request, error)

    @override
    def after_agent(self, state: BudgetState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Closes the purse, and writes down what attempts have spent whose results nobody kept."""
        record = _record(state)
        update = self._purse(record, runtime).update(record)
        with self._lock:
            self._purses.pop(record["run"], None)
        return {"budget_spent": update}

    @override
    async def abefore_agent(
        self, state: BudgetState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """Opens the purse of a new run."""
        return self.before_agent(state, runtime)

    @hook_config(can_jump_to=["end"])
    @override
    async def abefore_model(
        self, state: BudgetState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """Ends a run that has nothing left."""
        return self.before_model(state, runtime)

    @override
    async def aafter_agent(
        self, state: BudgetState, runtime: Runtime[Any]
    ) -> dict[str, Any] | None:
        """Closes the purse, and writes down what attempts have spent whose results nobody kept."""
        return self.after_agent(state, runtime)

    # --- what they share

    def _call(self, request: ModelRequest[Any]) -> PaidCall:
        purse = self._purse(_record(request.state), request.runtime)
        return PaidCall(request, purse, per_call=self.per_call, warn=self.warn)

    def _response(self, call: PaidCall, request: ModelRequest[Any]) -> ExtendedModelResponse[Any]:
        response = call.response
        if call.short is not None and (self._raises(call.purse) or not _says_something(response)):
            response = ModelResponse(result=[self._end(call.purse, call.short)])
        assert response is not None
        update = call.purse.update(_record(request.state))
        return ExtendedModelResponse(response, Command(update={"budget_spent": update}))

    def _raises(self, purse: Purse) -> bool:
        return self.exit == "error" or purse.raises

    def _end(self, purse: Purse, resource: str) -> AIMessage:
        """The message that ends a run; raises BudgetExceeded if that is how it shall end."""
        error = purse.exceeded(resource)
        if self._raises(purse):
            raise error
        found = {"finish_reason": "budget", "stopped_by": resource}
        return AIMessage(str(error), response_metadata=found)

    def _told(self, purse: Purse, request: ToolCallRequest, error: BudgetExceeded) -> ToolMessage:
        if self._raises(purse):
            raise error
        short = lacking(purse.room(last=False))
        told = str(error) if short is None else f"No {short} are left for tools: answer without."
        name, id_ = request.tool_call["name"], request.tool_call["id"]
        return ToolMessage(told, name=name, tool_call_id=id_, status="error")

    def _purse(self, record: Record, runtime: object) -> Purse:
        """The purse of a run; a new one, which goes on where the record ends, when another call of the agent resumes it."""
        control = _control()
        run = record["run"] or f"unrecorded {id(control)}"
        with self._lock:
            purse = self._purses.pop(run, None)
            if purse is None or purse.control is not control:
                purse = Purse(
                    Record({**record, "run": run}) if purse is None else purse.left_behind(),
                    per_run=self.per_run.tightest(_asked(runtime)),
                    per_thread=self.per_thread,
                    reserve=self.reserve,
                    clock=self._clock,
                    control=control,
                )
            self._purses[purse.run] = purse
            while len(self._purses) > _REMEMBERED:
                self._purses.popitem(last=False)
        return purse


def _record(state: object) -> Record:
    """What the state has of it; a thread from before the middleware was added has nothing."""
    kept = state.get("budget_spent") if isinstance(state, Mapping) else None
    if kept:
        return cast("Record", kept)
    return Record(run="", spent={}, thread={})


def _asked(runtime: object) -> Budget:
    """The budget in the runtime context of a run."""
    context = getattr(runtime, "context", None)
    found = (
        context.get("budget") if isinstance(context, Mapping) else getattr(context, "budget", None)
    )
    return Budget() if found is None else Budget.parse(found)


def _control() -> object:
    """An object that all nodes of one call of an agent share; None outside of one."""
    try:
        return get_runtime().control
    except (RuntimeError, KeyError, AttributeError):
        return None


def _reserve(reserve: float | BudgetLike, budget: Budget) -> float | Budget:
    """A share below 1, or a budget that leaves something of the limits."""
    if isinstance(reserve, float) or reserve == 0:
        share = float(cast("float", reserve))
        if not 0 <= share < 1:
            msg = f"a reserve is a share from 0 to below 1, or a budget; not {reserve!r:.40}"
            raise SettingError(
                msg, hint='For example reserve=0.1, or reserve="300 tokens, 1 call".'
            )
        return share
    kept = Budget.parse(reserve)
    for name in SHARED:
        part, limit = getattr(kept, name), getattr(budget, name)
        if part is not None and limit is not None and part >= limit:
            msg = f"a reserve of {part:g} {name} leaves nothing of {limit:g}"
            raise SettingError(msg, hint="Keep a part of the budget, for example reserve=0.1.")
    return kept


def _says_something(response: ModelResponse[Any] | None) -> bool:
    return response is not None and any(message.text.strip() for message in response.result)
