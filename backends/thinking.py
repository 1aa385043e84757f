"""
The tags of a think block: what a model writes around its reasoning, or its chat template writes for it.

Knows how the tags are spelt; knows no model that writes them.
"""

from __future__ import annotations

THINK, THINK_END = "<think>", "</think>"


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt has opened the block itself."""
    return prompt.rstrip().endswith(THINK)


def may_think(template: str | None) -> bool:
    """Whether a chat template knows of think blocks."""
    return template is not None and THINK_END in template
