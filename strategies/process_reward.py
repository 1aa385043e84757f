"""
A process reward model: a model that reads a question and its steps, and says after each whether it is good, in a word or by a head.

Knows how such models are asked, and that a step is read once: beside each thought of the search lies the reward model's own branch,
forked from its parent's. Knows no search in particular.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.desk import Desk
from langchain_pareto.strategies.head_reward import (
    CLASSES,
    QWEN_MATH_PRM,
    SKYWORK_PRM,
    TRL_PRM,
    StepHead,
    needs_head,
    needs_words,
    probability,
)
from langchain_pareto.strategies.marks import encode_after
from langchain_pareto.strategies.thoughts import Reading, Thought

if TYPE_CHECKING:
    from langchain_pareto.strategies.search import Search
    from langchain_pareto.strategies.settings import Role


class RewardFormat(BaseModel):
    """How a reward model reads: `prompt`, then for each step `before` (not the first), the step, and `after`, whose next token judges it.

    `prompt` has a place for `{question}`; None renders the question with the model's own chat template. With `template` only what that
    puts before a user's first text is the template's, in place of what `prompt` has before the question. P(good) is taken against P(bad).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    good: str = Field(min_length=1)
    bad: str = Field(min_length=1)
    prompt: str | None = None
    before: str = ""
    after: str = ""
    template: bool = False

    @model_validator(mode="after")
    def _has_place(self) -> Self:
        if self.template and "{question}" not in (self.prompt or ""):
            msg = "template=True needs a prompt with a place for {question}"
            raise ValueError(msg)
        return self


NANO = RewardFormat(good="<|good|>", bad="<|bad|>", after="\n")
"""The bundled family's."""
MATH_SHEPHERD = RewardFormat(
    good="+", bad="-", prompt="{question} ", before="\n", after=" \u043a\u0438"
)
"""Wang et al. 2023, arXiv 2312.08935; peiyi9979/math-shepherd-mistral-7b-prm: its mark of a step's end is a Cyrillic word."""
RLHFLOW = RewardFormat(
    good="+",
    bad="-",
    prompt="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{question} ",
    before="+<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    after="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    template=True,
)
"""RLHFlow/Llama3.1-8B-PRM-Mistral-Data and its kin: each step is a user's turn, each judgement the assistant's.

As in its published evaluation, the model's own chat template begins: that of Llama 3.1 puts a system turn first, that of Llama 3 does not.
"""

_FORMATS = {
    "nano": NANO,
    "math_shepherd": MATH_SHEPHERD,
    "rlhflow": RLHFLOW,
    "qwen_math_prm": QWEN_MATH_PRM,
    "skywork_prm": SKYWORK_PRM,
    "trl_prm": TRL_PRM,
}
_TEXT = "\ue000"  # a user's text that no template has in itself


class ProcessReward(BaseModel):
    """P(good) of each step, by the model that plays `role`; no step is read twice, nor another that says the same at the same place.

    All of it is on the account.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["process_reward"] = "process_reward"
    format: RewardFormat | StepHead = NANO
    """A RewardFormat, or the name of one: "nano", "math_shepherd", "rlhflow".

    For a model with a head for token classification a StepHead, or "qwen_math_prm", "skywork_prm", "trl_prm".
    """
    role: str = Field(default="scorer", min_length=1)

    @field_validator("format", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return _FORMATS.get(value, value) if isinstance(value, str) else value

    async def score_in(
        self, search: Search, thoughts: Sequence[Thought]
    ) -> list[Sequence[float] | None]:
        """The scores of the steps that each thought added; None where the budget has no room to read them."""
        reader = _Reader(self.format, search, search.desk(self.role), search.player(self.role))
        async with asyncio.TaskGroup() as group:
            readings = [group.create_task(reader.read(thought)) for thought in thoughts]
        found = [task.result() for task in readings]
        return [None if reading is None else reading.scores for reading in found]


class _Reader:
    """Reads thoughts with one model, their ancestors first."""

    def __init__(
        self, how: RewardFormat | StepHead, search: Search, desk: Desk, role: Role
    ) -> None:
        self._how, self._desk, self._role = how, desk, role
        self._split = search.settings.steps.split
        self._tokenizer = role.backend.tokenizer
        self._words = self._judging()

    async def read(self, thought: Thought) -> Reading | None:
        """What the model says of a thought; it is asked once, whoever wants to know."""
        key = id(self._role.backend), self._how
        if key not in thought.readings:
            thought.readings[key] = asyncio.ensure_future(self._read(thought))
        return await thought.readings[key]

    async def _read(self, thought: Thought) -> Reading | None:
        if thought.parent is None:
            branch = self._desk.open(self._question(thought.question))
            return Reading(branch, self._desk.account)
        origin = thought.origin
        if origin is not thought and origin.branch is not None:
            read = await self.read(origin)
            read = read and replace(read, branch=self._desk.fork(read.branch), memory=0)
        else:
            above = await self.read(thought.parent)
            read = above and await self._read_steps(thought, above)
        if read is not None:
            thought.step_scores = read.scores  # also where only what is below it was to be scored
        return read

    async def _read_steps(self, thought: Thought, above: Reading) -> Reading | None:
        """A judgement of each step, one after the other; None where the budget has no room for one."""
        branch, paid, scores = self._desk.fork(above.branch), above.paid, list[float]()
        memory = 0
        for i, step in enumerate(self._split(thought.text)):
            branch.append(self._shown(step.strip(), first=not (paid or i)))
            said = await self._desk.judge(branch, paid, self._words)
            if said is None:
                return None
            paid = len(branch.tokens)
            (good, bad), held = said
            memory += held
            scores.append(probability(good, bad))
        return Reading(branch, self._desk.account, paid, tuple(scores), memory)

    def _judging(self) -> Sequence[int]:
        """What may come after a step, good and bad."""
        how, backend = self._how, self._role.backend
        if isinstance(how, StepHead):
            needs_head(backend, "steps")
            return CLASSES
        needs_words(backend)
        words = [self._tokenizer.encode(word)[-1] for word in (how.good, how.bad)]
        if words[0] == words[1]:
            msg = f"{backend.name} writes {how.good!r} and {how.bad!r} with the same token"
            raise SettingError(msg, hint="Give the RewardFormat that this model was trained with.")
        return words

    def _shown(self, step: str, *, first: bool) -> list[int]:
        """The tokens of a step and of what stands around it."""
        if isinstance(self._how, StepHead):  # such models were trained on tokens that do not join
            parts = (step, self._how.after) if self._how.after else (step,)
            return [token for part in parts for token in encode_after(self._tokenizer, part)]
        before = "" if first else self._how.before
        return encode_after(self._tokenizer, before + step + self._how.after)

    def _question(self, question: str) -> Sequence[int]:
        how = self._how
        if how.prompt is None:
            return self._role.render(question)
        if isinstance(how, StepHead) or not how.template or not self._tokenizer.has_template:
            return self._tokenizer.encode_prompt(how.prompt.replace("{question}", question))
        begun = self._tokenizer.render(
            [{"role": "user", "content": _TEXT}], add_generation_prompt=False
        )
        rest = how.prompt[how.prompt.index("{question}") :].replace("{question}", question)
        return self._tokenizer.encode(begun.partition(_TEXT)[0] + rest)
