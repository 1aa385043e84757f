"""
One model call of an agent, paid from the purse of its run: an attempt, and if that is cut short, the last answer.

Knows requests of langchain's agents, whose models keep books, and when the model is told of its budget (notes). Knows no hook and no
state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import RunnableBinding, RunnableWithFallbacks, ensure_config

from langchain_pareto.agents.notes import Note, answered, noted
from langchain_pareto.agents.run_purse import Bill, Purse, lacking
from langchain_pareto.budget import Budget
from langchain_pareto.chat_model import ChatPareto
from langchain_pareto.errors import BudgetError, BudgetExceeded

if TYPE_CHECKING:
    from langchain.agents.middleware import ModelRequest, ModelResponse

T = TypeVar("T")

_UNCOUNTED = ("flops", "joules", "usd")  # of which a foreign model tells nothing


class Attempt:
    """A request with the room that it may take, and what came of it."""

    def __init__(
        self,
        call: PaidCall,
        request: ModelRequest[Any],
        room: Budget,
        bill: Bill | None,
        *,
        note: Note | None,
        last: bool,
    ) -> None:
        self.request = request
        self.response: ModelResponse[Any] | None = None
        self.cut: str | None = None  # the resource for want of which it ended early
        self._call = call
        self._own = call.own.tightest(_timeouts(request.model))
        self._room = room
        self._bill = bill
        self._note = note
        self._last = last

    @contextmanager
    def paid(self) -> Iterator[None]:
        """Charges what happens inside; that the room ended it is no error, but `cut`."""
        call, purse = self._call, self._call.purse
        try:
            if self._bill is None:
                with purse.paying(call.per_call, last=self._last):
                    yield
            else:
                with purse.paying_foreign(self._bill):
                    yield
                    assert self.response is not None
                    self._bill.tokens = sum(map(_tokens, _answers(self.response)))
        except BudgetExceeded as error:
            if not self._binds(error.resource):
                raise
            self.cut = error.resource
        else:
            assert self.response is not None
            if self._last:
                self.response.result = [*_closed(self.response.result)]
            if self._note is not None:
                self.response.result = _told(self.response.result, self._note)
            self.cut = next(filter(None, map(self._cut_off, _answers(self.response))), None)

    def _cut_off(self, message: AIMessage) -> str | None:
        """The resource for want of which one of our models stopped in the middle of an answer."""
        report = message.response_metadata.get("pareto", {})
        cut = message.response_metadata.get("finish_reason") == "length" and not message.tool_calls
        return (
            report.get("stopped_by") if cut and self._binds(report.get("stopped_by", "")) else None
        )

    def _binds(self, resource: str) -> bool:
        """Whether the room, and not the call's own budget, is the limit of it."""
        room, own = getattr(self._room, resource, None), getattr(self._own, resource, None)
        return room is not None and (own is None or room <= own)


class PaidCall:
    """The attempts at one call; `response` is what they came to, None if nothing could be paid."""

    def __init__(
        self, request: ModelRequest[Any], purse: Purse, *, per_call: Budget | None, warn: float
    ) -> None:
        self.purse = purse
        self.per_call = per_call
        self.response: ModelResponse[Any] | None = None
        self.short: str | None = None  # the resource of which there was too little
        self.keeps_books = any(isinstance(model, ChatPareto) for model in _players(request.model))
        self.most = None if self.keeps_books else _most_tokens(request)
        self.own = _own_budget(request).tightest(per_call or Budget())
        self._request = request
        self._warn = warn

    def attempts(self) -> Iterator[Attempt]:
        """The call, and the last answer where there is no room for it or it was cut short; run each inside its `paid`."""
        self._check()
        for last in (False, True) if self.purse.keeps else (False,):
            room = self.purse.room(last=last)
            self.short = self._lacking(room, last=last)
            if self.short is not None:
                continue
            note = self._note(room, last=last)
            request = self._asked(room, note, last=last)
            bill = None if self.keeps_books else self.purse.admit(self.most, last=last)
            if bill is None and not self.keeps_books:
                # meanwhile its time was up, or others were faster
                late = lacking(self.purse.room(last=last), self.most or 1)
                self.short = late or ("tokens" if room.calls is None else "calls")
                continue
            attempt = Attempt(self, request, room, bill, note=note, last=last)
            yield attempt
            self.response = attempt.response or self.response
            self.short = attempt.cut
            if attempt.cut is None:
                return

    def _lacking(self, room: Budget, *, last: bool) -> str | None:
        """What the room lacks for a call; a foreign model's last answer may take as much as any of its calls."""
        if (short := lacking(room, self.most or 1)) is not None or last or not self.purse.keeps:
            return short
        return None if self.most is None else lacking(self.purse.room(last=True), 2 * self.most)

    def _check(self) -> None:
        """Raises BudgetError for a limit that cannot be kept."""
        room = self.purse.room(last=True)
        limited = [name for name in _UNCOUNTED if getattr(room, name) is not None]
        if limited and not self.keeps_books:
            msg = f"nobody knows what {type(self._request.model).__name__} takes of {limited[0]}"
            raise BudgetError(msg, hint="Limit its tokens, seconds or calls, or call ChatPareto.")

    def _note(self, room: Budget, *, last: bool) -> Note | None:
        """What the model is told, where the budget is low."""
        if last:
            return Note.last(self.purse.run, room)
        low = self._warn and self.purse.is_low(self._warn)
        return Note.low(self.purse.run, room) if low else None

    def _asked(self, room: Budget, note: Note | None, *, last: bool) -> ModelRequest[Any]:
        """The request as it is made: with the notes of the run, and without tools at the end."""
        request = self._request
        request = request.override(messages=noted(request.messages, self.purse.run, note))
        if _all_ours(request.model):
            budget = self.own.tightest(room)
            request = request.override(model_settings={**request.model_settings, "budget": budget})
        return _without_tools(request) if last else request


def _players(model: object) -> Iterator[object]:
    """The models that a bound one, or one with fallbacks, may call."""
    if isinstance(model, RunnableBinding):
        yield from _players(model.bound)
    elif isinstance(model, RunnableWithFallbacks):
        for one in (model.runnable, *model.fallbacks):
            yield from _players(one)
    else:
        yield model


def _all_ours(model: object) -> bool:
    return all(isinstance(one, ChatPareto) for one in _players(model))


def _own_budget(request: ModelRequest[Any]) -> Budget:
    """What the call may take by itself: settings come before what is bound, then the config, then the model's own."""
    if not _all_ours(request.model):
        return Budget()
    model: Any = request.model
    bound = (model.kwargs, model.config) if isinstance(model, RunnableBinding) else ({}, {})
    configured = [config.get("configurable", {}) for config in (bound[1], ensure_config())]
    places = (request.model_settings, bound[0], *configured)
    asked = next((place["budget"] for place in places if place.get("budget") is not None), None)
    if asked is None:
        asked = next(iter(_players(model))).budget  # type: ignore[attr-defined]  # one of ours
    return Budget() if asked is None else Budget.parse(asked)


def _timeouts(model: object) -> Budget:
    """The time that ours take by themselves at most; of several, whoever answers, the least."""
    ours = [one for one in _players(model) if isinstance(one, ChatPareto)]
    return Budget(seconds=min((one.timeout for one in ours if one.timeout), default=None))


def _most_tokens(request: ModelRequest[Any]) -> int | None:
    """The most tokens that a foreign model may draw in one call, if its settings say so."""
    params = getattr(request.model, "_get_ls_params", None)
    most = None if params is None else params(**request.model_settings).get("ls_max_tokens")
    return most if isinstance(most, int) and most > 0 else None


def _answers(response: ModelResponse[Any]) -> list[AIMessage]:
    return [message for message in response.result if isinstance(message, AIMessage)]


def _tokens(message: AIMessage) -> int:
    """What a foreign model drew; an estimate where it does not say."""
    if "pareto" in message.response_metadata:
        return 0  # one of ours inside it, on the books already
    if message.usage_metadata is None:
        return count_tokens_approximately([message])
    return message.usage_metadata["output_tokens"]


def _told(messages: list[BaseMessage], note: Note) -> list[BaseMessage]:
    """The answer with the note that it was given after."""
    at = next((i for i, message in enumerate(messages) if isinstance(message, AIMessage)), None)
    if at is None:
        return messages
    message = messages[at]
    assert isinstance(message, AIMessage)
    return [*messages[:at], answered(message, note), *messages[at + 1 :]]


def _closed(messages: list[BaseMessage]) -> Iterator[BaseMessage]:
    """The last answer: calls that no tool has answered are dropped, or the agent would go on."""
    answered = {message.tool_call_id for message in messages if isinstance(message, ToolMessage)}
    for message in messages:
        if isinstance(message, AIMessage) and any(
            call["id"] not in answered for call in message.tool_calls
        ):
            yield AIMessage(
                message.text,
                id=message.id,
                name=message.name,
                response_metadata=message.response_metadata,
                usage_metadata=message.usage_metadata,
            )
        else:
            yield message


def _without_tools(request: ModelRequest[Any]) -> ModelRequest[Any]:
    """Ours keep the tools in sight, so that the prompt stays the one in the cache, and may not call them."""
    if _all_ours(request.model) and request.response_format is None and request.tools:
        return request.override(tool_choice="none")
    return request.override(tools=[], tool_choice=None)
