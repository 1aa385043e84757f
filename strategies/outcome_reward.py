"""
An outcome reward model: a model that reads a question and an answer, and has a head that says how good the answer is as a whole.

Knows how such models are shown both, and that what two texts have in common is read once: beside each thought of the search lies the
reward model's own branch. Knows no search in particular.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from langchain_pareto.backends.base import Branch
from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.desk import Desk
from langchain_pareto.strategies.head_reward import CLASSES, needs_head, probability
from langchain_pareto.strategies.prompts import fill, showing, shown
from langchain_pareto.strategies.thoughts import Reading, Thought

if TYPE_CHECKING:
    from langchain_pareto.backends.tokens import Tokenizer
    from langchain_pareto.strategies.search import Search


class OutcomeReward(BaseModel):
    """The reward of a whole text, by the model that plays `role`: its value as it is, or P(good) where it has two classes.

    By default it is shown a chat of the question and the answer, which its own template writes; `prompt` writes both in another way, in
    places `{question}` and `{answer}`, as for an encoder: "[CLS]{question}[SEP]{answer}[SEP]". A text that goes on from another, or
    begins as another does, is read from where they differ; by a model that can only read whole texts, from the beginning. All of it is
    on the account.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["outcome_reward"] = "outcome_reward"
    prompt: Annotated[str, showing("question", "answer")] | None = None
    role: str = Field(default="scorer", min_length=1)

    async def score_in(self, search: Search, thoughts: Sequence[Thought]) -> list[float | None]:
        """The reward of each; None where the budget has no room to read it."""
        backend = search.player(self.role).backend
        classes = needs_head(backend, "answers")
        reader = _Reader(self.prompt, search.desk(self.role), classes)
        async with asyncio.TaskGroup() as group:
            readings = [group.create_task(reader.read(thought)) for thought in thoughts]
        found = [task.result() for task in readings]
        return [None if reading is None else reading.scores[0] for reading in found]


class _Reader:
    """Reads texts with one model, each from where it differs from the nearest one above that was read."""

    def __init__(self, prompt: str | None, desk: Desk, classes: int) -> None:
        self._prompt, self._desk, self._classes = prompt, desk, classes
        self._key = id(desk.backend), prompt, "answers"

    async def read(self, thought: Thought) -> Reading | None:
        """What the model says of the text down to a thought; it is asked once, whoever wants to know."""
        if self._key not in thought.readings:
            thought.readings[self._key] = asyncio.ensure_future(self._read(thought))
        return await thought.readings[self._key]

    async def _read(self, thought: Thought) -> Reading | None:
        origin = thought.origin
        if origin is not thought and origin.branch is not None:
            read = await self.read(origin)
            return read and replace(read, branch=self._desk.fork(read.branch), memory=0)
        tokens = self._tokens(thought)
        above = await self._above(thought)
        if above is None:
            # whatever comes later in the tree has the question in common with it
            above = Reading(self._desk.open(tokens), self._desk.account)
            self._top(thought).readings.setdefault(self._key, _done(above))
        branch, paid = self._goes_on(above, tokens)
        said = await self._desk.judge(branch, paid, CLASSES)
        if said is None:
            return None
        (good, bad), held = said
        reward = good - bad if self._classes == 1 else probability(good, bad)
        return Reading(branch, self._desk.account, len(tokens), (reward,), held)

    async def _above(self, thought: Thought) -> Reading | None:
        """The nearest one above that is read, or is being read; None where nothing was."""
        node = thought.parent
        while node is not None:
            if self._key in node.readings and (read := await node.readings[self._key]) is not None:
                return read
            node = node.parent
        return None

    def _top(self, thought: Thought) -> Thought:
        """The root of its tree."""
        while thought.parent is not None:
            thought = thought.parent
        return thought

    def _goes_on(self, above: Reading, tokens: Sequence[int]) -> tuple[Branch, int]:
        """A branch of these tokens from where they differ, and how many of them are paid for; the last is never."""
        branch = self._desk.fork(above.branch)
        pairs = zip(branch.tokens, tokens, strict=False)
        common = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(branch.tokens), len(tokens))
        )
        if common == 0:
            branch.free()
            return self._desk.open(tokens), 0
        branch.truncate(common)
        branch.append(tokens[common:])
        return branch, min(above.paid, common, len(tokens) - 1)

    def _tokens(self, thought: Thought) -> Sequence[int]:
        """The question and the text so far, as the model reads them."""
        tokenizer: Tokenizer = self._desk.backend.tokenizer
        question, answer = thought.question, shown(thought)
        if self._prompt is not None:
            return tokenizer.encode_prompt(fill(self._prompt, question=question, answer=answer))
        if not tokenizer.has_template:
            msg = f"{self._desk.backend.name} has no chat template to show it a question and an answer with"
            hint = 'Say how it reads both, for example OutcomeReward(prompt="[CLS]{question}[SEP]{answer}[SEP]").'
            raise SettingError(msg, hint=hint)
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return tokenizer.encode(tokenizer.render(chat, add_generation_prompt=False))


def _done(reading: Reading) -> asyncio.Future[Reading | None]:
    """A reading that nobody has to wait for."""
    future = asyncio.get_running_loop().create_future()
    future.set_result(reading)
    return future
