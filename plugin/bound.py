"""
A chat model with settings bound to it, which keeps them when tools or a schema are bound as well.

Knows Runnables; knows no setting in particular.
"""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableBinding
from typing_extensions import override

from langchain_pareto.forms.structured import structured


class Bound(RunnableBinding[LanguageModelInput, AIMessage]):
    """What `ChatPareto.bind` and `.with_config` give.

    LangChain's own binding hands `bind_tools` to the model inside, and forgets what was bound.
    """

    @classmethod
    @override
    def lc_id(cls) -> list[str]:
        """That of the class that it extends."""
        return [*cls.get_lc_namespace(), "RunnableBinding"]

    def bind_tools(self, tools: Any, **settings: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """The same model with tools, see ChatPareto.bind_tools; what was bound before stays."""
        with_tools: RunnableBinding[LanguageModelInput, AIMessage]
        with_tools = self.bound.bind_tools(tools, **settings)  # type: ignore[attr-defined]
        return self.bind(**with_tools.kwargs)

    def with_structured_output(
        self, schema: Any = None, **settings: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """A chain that gives objects of `schema`, see ChatPareto.with_structured_output; what was bound before stays."""
        return structured(self, schema, **settings)
