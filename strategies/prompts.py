"""
Prompts as settings: text with named places, `{question}` and the like.

Knows text only; other braces are the prompt's own.
"""

from __future__ import annotations

import re

from pydantic import AfterValidator

from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.answers import split_reasoning
from langchain_pareto.strategies.thoughts import Thought


def fill(prompt: str, **parts: str) -> str:
    """The prompt with its places filled; what is filled in is not read again."""
    return re.sub(r"\{(\w+)\}", lambda place: parts.get(place[1], place[0]), prompt)


def showing(*names: str) -> AfterValidator:
    """A check of a setting that is a prompt: SettingError where it lacks one of these places."""

    def check(prompt: str) -> str:
        missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in prompt]
        if missing:
            msg = f"the prompt lacks {', '.join(missing)}; got {prompt!r:.200}"
            raise SettingError(msg)
        return prompt

    return AfterValidator(check)


def shown(thought: Thought) -> str:
    """What other models read of a text: what comes after its reasoning, or all of it where nothing does."""
    text = thought.whole_text
    return split_reasoning(text)[1] or text
