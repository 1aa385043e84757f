"""
The step-level searches of one run that have no answer yet: they share what is left, and one of them finds out how long steps are.

Knows who they are; knows no step and no money.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Seekers:
    """Whoever seeks is among them until it has an answer, or has ended without one."""

    seeking: set[object] = field(default_factory=set)
    first_step: asyncio.Lock = field(default_factory=asyncio.Lock)  # of whoever draws it
