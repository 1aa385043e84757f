"""
The format of a model whose tokenizer has a response template: that says to transformers' own parser how the model writes.

Knows where the template is, and when it can be used; what is read by it is its reader's knowledge.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from typing_extensions import override

from langchain_pareto.backends.tokens import HFTokenizer, Tokenizer
from langchain_pareto.forms.response_template import ResponseTemplate, flat
from langchain_pareto.forms.template_reader import TemplateReader
from langchain_pareto.forms.tool_calls import as_written
from langchain_pareto.forms.tool_format import ToolFormat
from langchain_pareto.forms.tool_grammar import CallLark
from langchain_pareto.forms.tool_reader import CallReader
from langchain_pareto.forms.tools import Tools

_logger = logging.getLogger(__name__)


def response_template(tokenizer: Tokenizer) -> ResponseTemplate | None:
    """The template that a tokenizer of transformers has, None where there is none, or none that can be used."""
    if not isinstance(tokenizer, HFTokenizer) or tokenizer.response_template is None:
        return None
    ends = tuple(filter(None, map(tokenizer.name, sorted(tokenizer.end_tokens))))
    try:
        text = json.dumps(tokenizer.response_template, sort_keys=True)
        found = ResponseTemplate(text, tokenizer.response_parser, ends)
        found.parser()
    except Exception as error:  # noqa: BLE001 - it is the model's own, and other formats are left
        _warn(str(error))
        return None
    return found


@lru_cache(maxsize=64)
def _warn(error: str) -> None:
    """Once for each."""
    _logger.warning("the tokenizer's response_template is not used: %s", error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Templated(ToolFormat):
    """Read by a response template; written as another format, which also reads what the template does not."""

    written_as: ToolFormat
    template: ResponseTemplate

    @override
    def reader(self, tools: Tools) -> CallReader | TemplateReader:
        if not tools.callable_names:
            return CallReader(self.written_as.marks, tools)
        return TemplateReader(self.template, self.written_as.marks, tools)

    @override
    def write(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
        return self.written_as.write(calls)

    @override
    def result(self, text: str) -> str:
        return self.written_as.result(text)

    @override
    def grammar(self, tools: Tools) -> str | None:
        """As it is written; where the template reads calls that are written otherwise, only what must be called is held to that."""
        if tools.choice == "auto" and not _reads(self.template, self.written_as):
            return None
        return self.written_as.grammar(tools)

    @override
    def _lines(self, lark: CallLark) -> list[str]:
        return self.written_as._lines(lark)  # noqa: SLF001 - one of us


def _reads(template: ResponseTemplate, written_as: ToolFormat) -> bool:
    """Whether a template reads calls that are written so."""
    name, arguments = "a", {"b": "c"}
    try:
        _, message = template.parsed(written_as.write([(name, arguments)]))
    except Exception:  # noqa: BLE001 - whatever a template does not expect in a text
        return False
    read = [as_written(value, "") for value in flat(message)]
    return [(one.name, one.arguments) for one in read] == [(name, arguments)]
