"""
The doors of a chat model, by which settings in a config reach the call as keywords.

Knows Runnables and their configs; knows no setting but by name. LangChain hands a chat model the callbacks, tags and metadata of a
config, and nothing else of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig, ensure_config
from typing_extensions import override

from langchain_pareto.errors import SettingError
from langchain_pareto.loop import run_sync
from langchain_pareto.sharing import asked, batch_of

# also through config["configurable"]
TRAVEL = ("budget", "strategy", "scorer", "decoder", "task", "need", "guarantee")


class Doors(BaseChatModel):
    """A chat model that reads `config["configurable"]`; a keyword of the call comes first."""

    @override
    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """One answer."""
        return super().invoke(input, config, stop=stop, **_with_config(config, kwargs))

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """One answer; cancelling it stops the engine within a step. In a batch, one that is cached leaves its share to the others."""
        with asked():
            return await super().ainvoke(input, config, stop=stop, **_with_config(config, kwargs))

    @override
    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """The answer as it grows, or once it is chosen; leaving the iterator stops the engine."""
        yield from super().stream(input, config, stop=stop, **_with_config(config, kwargs))

    @override
    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """The answer as it grows, or once it is chosen; leaving the iterator stops the engine."""
        async for chunk in super().astream(
            input, config, stop=stop, **_with_config(config, kwargs)
        ):
            yield chunk

    @override
    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See the base class; settings in the config reach the model."""
        return super().stream_events(input, config, **_with_config(config, kwargs))

    @override
    def astream_events(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """See the base class; settings in the config reach the model."""
        return super().astream_events(input, config, **_with_config(config, kwargs))

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
        """As `batch`; under a `run_budget` the calls share it."""
        with batch_of(len(inputs), together(config)):
            return await super().abatch(inputs, config, **kwargs)


def together(config: RunnableConfig | list[RunnableConfig] | None) -> int | None:
    """How many inputs of a batch may run at a time, None for all; raises SettingError for none."""
    first = (config[0] if config else None) if isinstance(config, list) else config
    most = ensure_config(first).get("max_concurrency")
    if most is not None and (not isinstance(most, int) or most < 1):
        msg = f"max_concurrency must be a whole number, at least 1, got {most!r:.40}"
        raise SettingError(msg, hint="Leave it out to run all inputs at once.")
    return most


def _with_config(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Adds what travels in `config["configurable"]`; a keyword of the call comes first."""
    configurable = ensure_config(config).get("configurable", {})
    settings = {k: configurable[k] for k in TRAVEL if configurable.get(k) is not None}
    return {**settings, **kwargs}
