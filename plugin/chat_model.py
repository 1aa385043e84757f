"""
ChatPareto: the chat model for chains and graphs.

Knows what LangChain asks of a chat model; knows no tokens and no device. Its settings, its models and what its calls are planned with are
those of its bases. Models load on first use and are shared in the process; a pickle carries settings only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from typing_extensions import override

from langchain_pareto.backends.base import Backend
from langchain_pareto.backends.thinking import opens_thinking
from langchain_pareto.bound import Bound
from langchain_pareto.call import Call, respond
from langchain_pareto.chat_planning import ChatPlanning, form_of
from langchain_pareto.chat_players import profile_of
from langchain_pareto.doors import Doors
from langchain_pareto.events import SILENT, Events, aprogress, progress
from langchain_pareto.forms.structured import Method, structured
from langchain_pareto.forms.tool_formats import format_of
from langchain_pareto.forms.tool_stream import ToolSplitter
from langchain_pareto.forms.tools import read_tools
from langchain_pareto.ledger import current_account
from langchain_pareto.loop import iterate_sync, run_sync
from langchain_pareto.messages import prompt_text, prompt_tokens
from langchain_pareto.planning.drift import paces
from langchain_pareto.reply import Reply
from langchain_pareto.shares import limited, seat
from langchain_pareto.streaming import chunks

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool


class ChatPareto(Doors, ChatPlanning):
    """The best answer that a compute budget can buy, from a model on this machine.

    `model` is a path (of a folder, or of a GGUF file) or hub id (the bundled nano model without it), or an already loaded
    transformers model; `backend` is "torch", "llama-cpp", by default whichever runs the model's files, or a Backend. `budget` and
    `strategy` are defaults that every call can override: as a keyword, by `.bind`, through `config={"configurable": {...}}`, or from
    around it with `run_budget`.
    """

    # written out, for a type checker would allow the fields' own types only
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See the fields; raises BudgetError, SettingError or pydantic's ValidationError for what cannot be honoured."""
        super().__init__(*args, **kwargs)

    # --- what LangChain asks of a chat model

    @property
    def _llm_type(self) -> str:
        return "pareto-chat"

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
        return profile_of(self.backend)

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
        form = form_of({"tools": tools})
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
            if parallel_tool_calls is not None:
                settings["parallel_tool_calls"] = parallel_tool_calls
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
        async with seat() as one:
            call, backend = await self._ready(stop, kwargs, one)
            tokenizer = backend.tokenizer
            prompt = prompt_text(tokenizer, messages, call.template_kwargs, call.form)
            calls = None
            if call.form is not None and call.form.tools is not None:
                written_as = format_of(tokenizer.template, tokenizer)
                calls = ToolSplitter(written_as, call.form.tools)

            async def respond_(on_text: Callable[[str], None]) -> Reply:
                with limited(call.effective, one):
                    return await _respond(call, backend, messages, events, on_text, prompt)

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
        async with seat() as one:
            call, backend = await self._ready(stop, kwargs, one)
            with limited(call.effective, one):
                return await _respond(call, backend, messages, events)


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
    prompt: str | None = None,
) -> Reply:
    events.plan(call)
    with paces.watched() as watched:
        reply = await respond(
            call, backend, messages, prompt=prompt, on_text=on_text, on_thought=events.thought
        )
    events.spend(reply)
    out = reply.outcome
    if call.plan is not None and watched.alone and current_account() is None:  # it never waited
        paces.learn(
            call.plan, tokens=out.spent.tokens, prompt=out.prompt_tokens, seconds=out.seconds
        )
    return reply
