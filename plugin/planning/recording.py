"""
What a replay is told: the recorded answers of each role's model, how long their draws take, and what they cost.

Knows pools, shapes and step times; knows no strategy and no budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from langchain_pareto.backends.base import ModelSpec
from langchain_pareto.errors import NotRecorded, SettingError
from langchain_pareto.planning.pool import Floats, Pool
from langchain_pareto.planning.scorer_cost import ScorerCost
from langchain_pareto.strategies.scorers import Scorable
from langchain_pareto.strategies.thoughts import Thought


class Timing(Protocol):
    """What a batch of draws takes: `lengths` tokens each, side by side, after a prompt of `prompt` tokens that is read first."""

    def batch_seconds(self, lengths: Sequence[int], prompt: int) -> float:
        """Seconds until the last has ended; where all lengths are 0, until the prompt is read."""
        ...

    def drawn_by(self, lengths: Sequence[int], prompt: int, seconds: float) -> list[int]:
        """How many tokens each has after so many seconds."""
        ...


@dataclass(frozen=True, slots=True)
class LinearTiming:
    """Every step takes `step` seconds, however wide; reading the prompt is one. A step that has begun is ended."""

    step: float

    def batch_seconds(self, lengths: Sequence[int], prompt: int) -> float:  # noqa: ARG002 - of any length
        """The longest decides."""
        return self.step * (1 + max(lengths, default=0))

    def drawn_by(
        self,
        lengths: Sequence[int],
        prompt: int,  # noqa: ARG002
        seconds: float,
    ) -> list[int]:
        """A token each step."""
        steps = max(0, math.ceil(seconds / self.step) - 1)
        return [min(length, steps) for length in lengths]


@dataclass(frozen=True, slots=True)
class Recording:
    """The recorded answers of a role's model, and what it costs; None is unknown, and then a limit on that is refused.

    `spec` gives FLOPs, memory and the context; without it the context holds just the longest sample. `scoring` is of what is drawn here;
    None is a scorer that takes nothing.
    """

    pool: Pool
    spec: ModelSpec | None = None
    timing: Timing | None = None
    usd_per_token: float | None = None
    scoring: ScorerCost | None = None


class RecordedScores:
    """A scorer that gives each sample its recorded score: here, and in a real run over RecordedBackends.

    `pools` are by role. The question of a thought is its id in them, and its first token says which sample it is.
    """

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = dict(pools)
        self._rows = {
            role: {question: row for row, question in enumerate(pool.questions)}
            for role, pool in pools.items()
        }
        self._scores = {role: listed(pool.scores) for role, pool in pools.items()}
        for pool in pools.values():
            if pool.scores is not None and np.isnan(pool.scores).any():
                msg = f"the pool of {pool.model} has a score that is NaN"
                raise SettingError(msg, hint="Score it -inf, or leave the scores out.")

    async def score(self, thoughts: Sequence[Scorable]) -> list[float]:
        """Raises NotRecorded where a pool has no scores."""
        return [self._score(thought) for thought in thoughts]

    def _score(self, thought: Scorable) -> float:
        assert isinstance(thought, Thought)
        scores = self._scores[thought.role]
        if scores is None:
            msg = f"the pool of {self._pools[thought.role].model} has no scores"
            raise NotRecorded(msg, hint="Score its samples, or give another scorer=.")
        return scores[self._rows[thought.role][thought.question]][thought.tokens[0]]


def listed(values: Floats | None) -> list[list[float]] | None:
    """A column of a pool as lists."""
    return None if values is None else values.tolist()
