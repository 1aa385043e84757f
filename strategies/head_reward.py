"""
Reward models that have a head of values or classes in place of words: what a scorer sees of one, and how it is shown steps.

Knows formats and what a head gives; knows no search.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from langchain_pareto.backends.base import Backend
from langchain_pareto.errors import CapabilityError

CLASSES = (1, 0)  # good and bad, as such a model's continuations

_WRITTEN = "Qwen2.5-Math-PRM, Skywork-o1-Open-PRM or another model for token classification"


@runtime_checkable
class Head(Protocol):
    """What a backend with a head tells of it: what it judges, and whether by one value or two classes."""

    @property
    def judges(self) -> Literal["steps", "answers"]: ...
    @property
    def classes(self) -> int: ...


class StepHead(BaseModel):
    """How a reward model with a head reads: `prompt`, then each step and `after`, encoded by itself; the last token of both judges it.

    `prompt` has a place for `{question}`; None renders the question with the model's own chat template. Without `after` a step is judged
    at its own last token. The reward is P(good), of two classes the second's, of one value the sigmoid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: str
    prompt: str | None = None


QWEN_MATH_PRM = StepHead(
    after="<extra_0>",
    prompt="<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
)
"""Qwen/Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K (Zhang et al. 2025, arXiv 2501.07301): their mark after each step."""
SKYWORK_PRM = StepHead(after="\n", prompt="<|im_start|>{question}\n")
"""Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B: a value at the end of each line."""
TRL_PRM = StepHead(after="\n", prompt="{question}")
"""What the PRMTrainer of trl makes with its defaults: question and steps as they are, a separator after each step."""


def needs_head(backend: Backend, judges: Literal["steps", "answers"]) -> int:
    """How many classes the head of a model for `judges` has; CapabilityError where it has no such head."""
    if not isinstance(backend, Head):
        kind, model = (
            ("token", _WRITTEN)
            if judges == "steps"
            else ("sequence", "a reward model for sequence classification")
        )
        msg = f"{backend.name} has no head for {kind} classification: it is a model of words"
        hint = (
            f"Name {model} in its role, a folder or hub id: torch reads heads, llama.cpp does not."
        )
        raise CapabilityError(
            msg, hint=f"{hint} A model of words scores as JudgeScore or ProcessReward."
        )
    if backend.judges != judges:
        scorer = "OutcomeReward()" if judges == "steps" else "ProcessReward(format=...)"
        msg = f"{backend.name} scores {backend.judges}, not {judges}"
        raise CapabilityError(msg, hint=f"Take scorer={scorer}, or name another model in its role.")
    return backend.classes


def needs_words(backend: Backend) -> None:
    """Raises CapabilityError for a model that has a head, and no words to judge with."""
    if isinstance(backend, Head):
        msg = f"{backend.name} has a head that scores {backend.judges}, and no words to judge with"
        hint = "Take scorer=OutcomeReward()."
        if backend.judges == "steps":
            hint = 'Take format="qwen_math_prm", "skywork_prm", "trl_prm", or a StepHead of yours.'
        raise CapabilityError(msg, hint=hint)


def probability(good: float, bad: float) -> float:
    """P(good) against P(bad), from their log-probabilities."""
    return 1 / (1 + math.exp(min(bad - good, 700.0)))
