"""
Prompts as settings: text with named places, `{question}` and the like.

Knows text only; other braces are the prompt's own.
"""

from __future__ import annotations

import re

from langchain_pareto.strategies.answers import split_reasoning
from langchain_pareto.strategies.thoughts import Thought


def fill(prompt: str, **parts: str) -> str:
    """The prompt with its places filled; what is filled in is not read again."""
    return re.sub(r"\{(\w+)\}", lambda place: parts.get(place[1], place[0]), prompt)


def shown(thought: Thought) -> str:
    """What other models read of a text: what comes after its reasoning, or all of it where nothing does."""
    text = thought.whole_text
    return split_reasoning(text)[1] or text
