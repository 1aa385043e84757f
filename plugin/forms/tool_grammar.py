"""
What a text must look like so that every call in it can be read: the parts of llguidance's Lark that formats share.

Knows texts, marks and the rules of arguments; which of them a format puts together is its own knowledge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from langchain_pareto.forms.schema_grammar import json_rule
from langchain_pareto.forms.schemas import closed
from langchain_pareto.forms.tools import Tools

TEXT = "TEXT: /(?s:.*)/"


@dataclass(frozen=True, slots=True)
class CallLark:
    """Parts of a grammar of calls of `tools`; `special` are marks that are one special token, `key` is what arguments are called."""

    tools: Tools
    special: Mapping[str, int]
    key: str

    def start(self, mark: str, body: str, more: str = "") -> list[str]:
        """Calls alone where they must be made, else after text; `more` are those after the first."""
        more = f" {more}" if self.tools.parallel and more else ""
        if self.tools.choice != "auto":
            return [f"start: {self.mark(mark)} {body}{more}"]
        if mark in self.special:
            return [f"start: TEXT | TEXT? {self.mark(mark)} {body}{more}", TEXT]
        return [f"start: TEXT | opened {body}{more}", f"opened[lazy]: TEXT {quoted(mark)}", TEXT]

    def mark(self, mark: str) -> str:
        """A mark as a token where it is one, else as text."""
        return f"<[{self.special[mark]}]>" if mark in self.special else quoted(mark)

    def objects(self) -> str:
        """`object`, a call with its name and arguments."""
        calls = [
            f"{quoted(self.head(name) + self.middle)} {self.arguments(i)}"
            for i, name in enumerate(self.tools.callable_names)
        ]
        return f"object: {' | '.join(calls)}"

    def head(self, name: str) -> str:
        """How a call of the tool begins."""
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}'

    @property
    def middle(self) -> str:
        """What stands between the name and the arguments."""
        return f', "{self.key}": '

    def arguments(self, i: int) -> str:
        """The arguments of the i-th tool, and the end of its call."""
        return f'args_{i} "}}"'

    def rules(self) -> list[str]:
        """`args_i` of every tool: its schema."""
        return [
            f"args_{i}: {json_rule(closed(self.tools.parameters(name)), what=f'the tool {name!r}')}"
            for i, name in enumerate(self.tools.callable_names)
        ]


def quoted(text: str) -> str:
    """A text in Lark."""
    return json.dumps(text, ensure_ascii=False)
