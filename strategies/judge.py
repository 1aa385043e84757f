"""
A language model as judge: how good is an answer, which of two is better, which of several is best.

Knows prompts, and how a judgement is read; knows no search. A reply that cannot be read is no judgement: it is kept in `failures`,
logged, and never turned into a number. Of what is asked at once, something has to be readable, or ScorerError says what came.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from langchain_pareto.errors import ScorerError, SettingError
from langchain_pareto.strategies.answers import split_reasoning
from langchain_pareto.strategies.drawing import ANSWER
from langchain_pareto.strategies.prompts import fill, shown
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Thought

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

    names: ClassVar[tuple[str, ...]] = ()  # what a prompt has to show

    role: str = "judge"
    prompt: str
    n: int = Field(default=1, ge=1)
    max_tokens: int | None = Field(default=512, ge=1)
    temperature: float | None = Field(default=0, ge=0, allow_inf_nan=False)

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str) -> str:
        return checked_prompt(value, cls.names)

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
        got = [reply for reply in said if reply is not None]
        readings = [read(_conclusion(reply)) if reply is not None else None for reply in said]
        failures = [
            _failure(reply)
            for reply, reading in zip(said, readings, strict=True)
            if reply is not None and reading is None
        ]
        self.failures.extend(failures)
        if failures and len(failures) == len(got):
            msg = f"none of {len(got)} judgements could be read; the first {failures[0]:.500}"
            raise ScorerError(msg, hint="Name another judge, or a prompt that it follows.")
        if failures:
            _logger.warning("%d of %d judgements could not be read", len(failures), len(got))
        return readings


class JudgeScore(_Judge):
    """A scorer: each thought is judged by itself, from 0 to 10, which is scored as 0 to 1; the mean of `n` judgements."""

    names: ClassVar = ("question", "answer")

    kind: Literal["judge_score"] = "judge_score"
    prompt: str = SCORE

    async def score_in(self, search: Search, thoughts: Sequence[Thought]) -> list[float | None]:
        """A score of each; equal texts are judged once. None where no judgement could be read or paid for."""
        prompts = [fill(self.prompt, question=t.question, answer=shown(t)) for t in thoughts]
        asked = [prompt for prompt in dict.fromkeys(prompts) for _ in range(self.n)]
        found: dict[str, list[float]] = {prompt: [] for prompt in prompts}
        for prompt, score in zip(asked, await self._ask(search, asked, _read_score), strict=True):
            if score is not None:
                found[prompt].append(score / 10)
        return [_mean(found[prompt]) for prompt in prompts]


class JudgeVote(_Judge):
    """A scorer: `n` votes for the best of the thoughts, and each is scored by its share of them."""

    names: ClassVar = ("question", "answers")

    kind: Literal["judge_vote"] = "judge_vote"
    prompt: str = VOTE
    n: int = Field(default=5, ge=1)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    async def score_in(self, search: Search, thoughts: Sequence[Thought]) -> list[float | None]:
        """The share of each; None for all where no vote could be paid for. One alone needs none."""
        if len(thoughts) < 2:
            return [1.0] * len(thoughts)
        listed = (f"Answer {i}:\n{shown(t).strip()}" for i, t in enumerate(thoughts, 1))
        prompt = fill(self.prompt, question=search.root.question, answers="\n\n".join(listed))
        ballots = await self._ask(
            search, [prompt] * self.n, lambda text: _read_choice(text, len(thoughts))
        )
        votes = [vote for vote in ballots if vote is not None]
        return [votes.count(i) / len(votes) if votes else None for i in range(len(thoughts))]


class JudgeCompare(_Judge):
    """Which of two is better: `n` judgements, every other one with the two in the other order, since judges prefer a place."""

    names: ClassVar = ("question", "a", "b")

    kind: Literal["judge_compare"] = "judge_compare"
    prompt: str = COMPARE

    async def compare(
        self, search: Search, pairs: Sequence[tuple[Thought, Thought]]
    ) -> list[float | None]:
        """For each pair, the share of judgements for the first; None where none could be read or paid for."""
        asked = [self._shown(pair, swapped=bool(i % 2)) for pair in pairs for i in range(self.n)]
        said = await self._ask(search, asked, _read_side)
        firsts = [
            None if side is None else float(side == "AB"[i % self.n % 2])
            for i, side in enumerate(said)
        ]
        rows = (firsts[at : at + self.n] for at in range(0, len(firsts), self.n))
        return [_mean([first for first in row if first is not None]) for row in rows]

    def _shown(self, pair: tuple[Thought, Thought], *, swapped: bool) -> str:
        a, b = reversed(pair) if swapped else pair
        return fill(self.prompt, question=a.question, a=shown(a), b=shown(b))


async def replies(
    search: Search,
    texts: Sequence[str],
    *,
    role: str,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> list[Thought | None]:
    """A reply to each text, which may be named several times, drawn side by side and aside from the search.

    None where the budget has no room for one, or ended in the middle of it; one of `max_tokens` tokens is there, but not `whole`.
    """
    asides = [
        search.on(text, role=role, aside=True).at_temperature(temperature).up_to(max_tokens)
        for text in texts
    ]
    if not asides:
        return []
    drawn = await asides[0].expand([aside.root for aside in asides], ANSWER)
    search.drop(drawn)
    most = {aside.root: aside.context for aside in asides}
    got: dict[Thought | None, list[Thought]] = {aside.root: [] for aside in asides}
    for reply in drawn:
        if reply.whole or (reply.parent and reply.length >= most[reply.parent]):
            got[reply.parent].append(reply)
    return [got[root].pop(0) if got[root] else None for root in (aside.root for aside in asides)]


def checked_prompt(prompt: str, names: Sequence[str]) -> str:
    """The prompt itself; SettingError where it does not show all that it is for."""
    missing = [name for name in names if f"{{{name}}}" not in prompt]
    if missing:
        msg = (
            f"the prompt lacks {', '.join(f'{{{name}}}' for name in missing)}; got {prompt!r:.200}"
        )
        raise SettingError(msg)
    return prompt


_MARKS = r"[\s*_`\"'\[\]()]*"  # markdown around a word
_SCORE = r"(\d+(?:\.\d+)?)(?:\s*/\s*10|\s+out of 10)?"


def _conclusion(reply: Thought) -> str:
    """What a reply says after its reasoning; nothing if it was cut off, for it might have gone on "Score: 10"."""
    return split_reasoning(reply.text)[1] if reply.whole else ""


def _read(text: str, label: str, value: str) -> str | None:
    """The value on the last line that begins with the label, or all there is; None where that is anything more."""
    label = rf"{_MARKS}(?:final |overall )?{label}\b"
    labelled = [line for line in text.splitlines() if re.match(label, line, re.IGNORECASE)]
    whole = rf"(?:{label}{_MARKS}[:=])?{_MARKS}{value}[.\s*_`\"'\[\]()]*"
    found = re.fullmatch(whole, labelled[-1] if labelled else text, re.IGNORECASE)
    return found[1] if found else None


def _read_score(text: str) -> float | None:
    """From 0 to 10."""
    found = _read(text, "score", _SCORE)
    return float(found) if found is not None and float(found) <= 10 else None


def _read_choice(text: str, n: int) -> int | None:
    """Which of `n`, from 0."""
    found = _read(text, "best", r"(?:answer )?(\d+)")
    return int(found) - 1 if found is not None and 1 <= int(found) <= n else None


def _read_side(text: str) -> str | None:
    """A or B."""
    found = _read(text, "better", r"(?:answer )?([ab])")
    return found.upper() if found is not None else None


def _failure(reply: Thought) -> str:
    cut = "" if reply.whole else f" and was cut off after {reply.length} tokens"
    return f"reads{cut}: {reply.text!r}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
