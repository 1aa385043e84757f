"""
A language model as judge: how good is an answer, which of two is better, which of several is best.

Knows prompts and scores; knows no strategy. A reply that cannot be read is no judgement: it is kept in `failures`,
logged, and never turned into a number. Something of what a judge first says in a run has to be readable, or ScorerError says what came.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from langchain_pareto.errors import NothingScoredError
from langchain_pareto.strategies.answers import split_reasoning
from langchain_pareto.strategies.judgements import read_choice, read_score, read_side
from langchain_pareto.strategies.prompts import fill, showing, shown
from langchain_pareto.strategies.replies import replies
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import POLICY, Thought

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

SCORE = """\
Judge an answer to a question.

Question:
{question}

Answer:
{answer}

Check it step by step, in a few sentences. Then end with one line, "Score: N", where N goes from 0 (certainly wrong) to 10 (certainly \
right)."""

COMPARE = """\
Compare two answers to a question. Their order and their length mean nothing.

Question:
{question}

Answer A:
{a}

Answer B:
{b}

Check both, in a few sentences. Then end with one line, "Better: A" or "Better: B"."""

VOTE = """\
Choose the best of several answers to a question. Their order and their length mean nothing.

Question:
{question}

{answers}

Check each, in a few sentences. Then end with one line, "Best: N", where N is the number of the best answer."""


class _Judge(BaseModel):
    """Who judges and how: the policy judges where nobody plays the role."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str = "judge"
    prompt: str
    n: int = Field(default=1, ge=1)
    max_tokens: int | None = Field(default=512, ge=1)
    temperature: float | None = Field(default=0, ge=0, allow_inf_nan=False)

    @cached_property
    def failures(self) -> list[str]:
        """Replies that could not be read, of every call that these settings served."""
        return []

    async def _ask(
        self, search: Search, texts: Sequence[str], read: Callable[[str], _T | None]
    ) -> list[_T | None]:
        """What is read in the reply to each text; None where it cannot be read, or the budget has no room for it."""
        said = await replies(
            search,
            texts,
            role=self.role,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )
        readings = {reply: read(_conclusion(reply)) for reply in said if reply is not None}
        failures = [_failure(reply) for reply, reading in readings.items() if reading is None]
        self._keep(failures, len(readings), search.desk(POLICY).record.judges)
        return [None if reply is None else readings[reply] for reply in said]

    def _keep(self, failures: Sequence[str], total: int, readable: set[int]) -> None:
        """Keeps what could not be read; ScorerError where that is all that ever came, so that this judge is not among the `readable`."""
        self.failures.extend(failures)
        if len(failures) < total:
            readable.add(id(self))
        if failures and id(self) not in readable:
            msg = f"none of {total} judgements could be read; the first {failures[0]:.500}"
            raise NothingScoredError(msg, hint="Name another judge, or a prompt that it follows.")
        if failures:
            _logger.warning("%d of %d judgements could not be read", len(failures), total)


class JudgeScore(_Judge):
    """A scorer: each thought is judged by itself, from 0 to 10, which is scored as 0 to 1; the mean of `n` judgements."""

    kind: Literal["judge_score"] = "judge_score"
    prompt: Annotated[str, showing("question", "answer")] = SCORE

    async def score_in(self, search: Search, thoughts: Sequence[Thought]) -> list[float | None]:
        """A score of each; equal texts are judged once. None where no judgement could be read or paid for."""
        prompts = [fill(self.prompt, question=t.question, answer=shown(t)) for t in thoughts]
        asked = [prompt for prompt in dict.fromkeys(prompts) for _ in range(self.n)]
        found: dict[str, list[float]] = {prompt: [] for prompt in prompts}
        for prompt, score in zip(asked, await self._ask(search, asked, read_score), strict=True):
            if score is not None:
                found[prompt].append(score / 10)
        return [_mean(found[prompt]) for prompt in prompts]


class JudgeVote(_Judge):
    """A scorer: `n` votes for the best of the thoughts, and each is scored by its share of them."""

    relative: ClassVar[bool] = True  # a score compares those that were asked about together

    kind: Literal["judge_vote"] = "judge_vote"
    prompt: Annotated[str, showing("question", "answers")] = VOTE
    n: int = Field(default=5, ge=1)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    async def score_in(self, search: Search, thoughts: Sequence[Thought]) -> list[float | None]:
        """The share of each; None for all where no vote could be paid for. One alone needs none."""
        if len(thoughts) < 2:
            return [1.0] * len(thoughts)
        listed = (f"Answer {i}:\n{shown(t).strip()}" for i, t in enumerate(thoughts, 1))
        prompt = fill(self.prompt, question=search.root.question, answers="\n\n".join(listed))
        ballots = await self._ask(
            search, [prompt] * self.n, lambda text: read_choice(text, len(thoughts))
        )
        votes = [vote for vote in ballots if vote is not None]
        return [votes.count(i) / len(votes) if votes else None for i in range(len(thoughts))]


class JudgeCompare(_Judge):
    """Which of two is better: `n` judgements, every other one with the two in the other order, since judges prefer a place."""

    kind: Literal["judge_compare"] = "judge_compare"
    prompt: Annotated[str, showing("question", "a", "b")] = COMPARE

    async def compare(
        self, search: Search, pairs: Sequence[tuple[Thought, Thought]]
    ) -> list[float | None]:
        """For each pair, the share of judgements for the first; None where none could be read or paid for."""
        asked = [self._shown(pair, swapped=bool(i % 2)) for pair in pairs for i in range(self.n)]
        said = await self._ask(search, asked, read_side)
        firsts = [
            None if side is None else float(side == "AB"[i % self.n % 2])
            for i, side in enumerate(said)
        ]
        rows = (firsts[at : at + self.n] for at in range(0, len(firsts), self.n))
        return [_mean([first for first in row if first is not None]) for row in rows]

    def _shown(self, pair: tuple[Thought, Thought], *, swapped: bool) -> str:
        a, b = reversed(pair) if swapped else pair
        return fill(self.prompt, question=a.question, a=shown(a), b=shown(b))


def _conclusion(reply: Thought) -> str:
    """What a reply says after its reasoning; nothing if it was cut off, for it might have gone on "Score: 10"."""
    return split_reasoning(reply.text)[1] if reply.whole else ""


def _failure(reply: Thought) -> str:
    cut = "" if reply.whole else f" and was cut off after {reply.length} tokens"
    return f"reads{cut}: {reply.text!r}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
