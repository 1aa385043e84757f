"""
How one call draws, reads answers, and scores: what every search of a run shares.

Knows models as roles; knows no strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from langchain_pareto.backends.base import Backend, Sampling
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.strategies.aggregation import Aggregation
from langchain_pareto.strategies.answers import AnswerFormat, Reads
from langchain_pareto.strategies.scorers import MeanLogprob, RunScorer, Scorer
from langchain_pareto.strategies.steps import Steps


@dataclass(frozen=True, slots=True)
class Role:
    """A model that strategies name, and how it reads what it is given: `prompt` is this call's, `render` makes one of a user's message.

    `grammar` makes what holds an answer of this model to the form that was asked for, from its first token on; None where none was.
    """

    backend: Backend
    sampling: Sampling
    prompt: Callable[[], Sequence[int]]
    render: Callable[[str], Sequence[int]]
    grammar: Callable[[], Constraint | None] | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How this call draws and reads answers."""

    sampling: Sampling
    max_tokens: int | None = None  # per sample
    stop: tuple[str, ...] = ()
    steps: Steps = field(default_factory=Steps)
    answers: Reads = field(default_factory=AnswerFormat)
    grammar: Callable[[], Constraint | None] | None = None  # as a role's
    scorer: Scorer | RunScorer = field(default_factory=MeanLogprob)
    aggregation: Aggregation = "last"  # of a process reward's scores
    roles: Mapping[str, Role] = field(default_factory=dict)
    usd_per_token: float = 0.0
    on_text: Callable[[str], None] | None = None  # of the first sample only: a stream
