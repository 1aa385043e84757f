"""
Self-refine: draft, critique, revise (Madaan et al. 2023, arXiv 2303.17651, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.judge import JudgeVote
from langchain_pareto.strategies.prompts import fill, showing, shown
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.thoughts import Answer, NothingDrawn, Thought

if TYPE_CHECKING:
    from langchain_pareto.strategies import AnyStrategy

_MARKS = " *_`\"'.!#"  # around the approval

_CRITIQUE = """\
Find what is wrong with the answer to this question.

Question:
{question}

Answer:
{answer}

Check every step, and name each mistake and how to mend it; do not write a new answer. If nothing is wrong, end with a line that \
says only CORRECT."""

_REVISION = """\
Improve your answer to this question.

Question:
{question}

Your answer:
{answer}

A critic says:
{critique}

Write the whole answer anew, without the mistakes, in the form that the question asks for."""


class Refine(Strategy):
    """Drafts an answer, and up to `rounds` times has it criticised and writes it anew; the paper's has 4 rounds at most.

    The role `critic` criticises (the policy, where nobody plays it). A critique whose last line is `approval` ends it; so does a
    revision that was cut off, or that has lost the answer: it is no version. The answer is the last version, or the one that the
    run's scorer likes best.
    """

    varied: ClassVar[bool] = False

    kind: Literal["refine"] = "refine"
    rounds: int = Field(default=2, ge=1)
    keep: Literal["last", "best"] = "last"
    critic: str = "judge"
    approval: str = "CORRECT"
    critique: Annotated[str, showing("question", "answer")] = _CRITIQUE
    revision: Annotated[str, showing("question", "answer", "critique")] = _REVISION
    of: AnyStrategy = Field(default_factory=Single)

    async def run(self, search: Search) -> Answer:
        """A draft, and better versions of it."""
        versions = await search.run(self.of)
        if not versions:
            raise NothingDrawn
        kept = await self._kept(search, versions)
        for _ in range(self.rounds):
            search.offer(kept)
            latest = {"question": search.root.question, "answer": shown(versions[-1])}
            critiques = await search.ask(fill(self.critique, **latest), role=self.critic)
            search.drop(critiques)
            if not critiques or self._approves(critiques[0]):
                break
            prompt = fill(self.revision, critique=shown(critiques[0]), **latest)
            writer = search.asking(prompt)
            revisions = await writer.sample(writer.root)
            if not any(_replaces(revision, versions[-1]) for revision in revisions):
                break
            versions += revisions
            kept = await self._kept(search, versions)
        return kept

    def _approves(self, critique: Thought) -> bool:
        """Whether its last line is the approval, whatever marks are around it."""
        last = shown(critique).strip().split("\n")[-1]
        return critique.finished and last.strip(_MARKS) == self.approval.strip(_MARKS)

    async def _kept(self, search: Search, versions: Sequence[Thought]) -> Answer:
        if self.keep == "last":
            return Answer(versions[-1])
        scorer = search.settings.scorer
        if not isinstance(scorer, JudgeVote):
            await search.score(versions)
            return search.best(versions)
        whole = [version for version in versions if version.whole]
        shares = await scorer.score_in(search, whole)  # those of different votes do not compare
        for version, share in zip(whole, shares, strict=True):
            if share is not None:
                version.score, version.scorer = share, scorer
        return search.best(versions)


def _replaces(revision: Thought, version: Thought) -> bool:
    """Whether a revision is whole, and gives an answer if the version before it did."""
    return revision.finished and (revision.answer is not None or version.answer is None)
