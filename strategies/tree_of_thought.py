"""
Tree of thoughts (Yao et al. 2023, arXiv 2305.10601): next thoughts are sampled or proposed, states are scored, judged or voted on, and
the tree is searched breadth-first (algorithm 1) or depth-first, with backtracking (algorithm 2).

Knows prompts and the two orders; how a state is judged is the run's scorer's, or the judge's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.frontier import Frontier
from langchain_pareto.strategies.judge import JudgeScore, JudgeVote
from langchain_pareto.strategies.prompts import fill, showing
from langchain_pareto.strategies.replies import replies
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Choice, Thought, promise

PROPOSE = """\
A problem is to be solved step by step.

Problem:
{question}

Steps so far:
{path}

Propose {n} different next steps. Write each on a line of its own, numbered, as the solution would say it; do not go beyond one step. \
If the steps so far solve the problem, reply with the word DONE instead."""

VALUE = """\
Judge the beginning of a solution.

Problem:
{question}

Steps so far:
{answer}

Check them, and look a few steps ahead, in a few sentences. Then end with one line, "Score: N", where N goes from 0 (they can no longer \
lead to the right answer) to 10 (they surely will)."""

VOTE = """\
Several solutions of a problem are begun or finished. Choose the one that is most promising.

Problem:
{question}

{answers}

Check each, in a few sentences. Then end with one line, "Best: N", where N is the number of the most promising one."""


class TreeOfThought(Strategy):
    """Searches a tree of steps: `samples` next thoughts of a state, at most `depth` of them in a path.

    Breadth-first, the best `breadth` states of a level are kept, answers found before among them: the search ends when all of them are
    answers. Depth-first, it goes on from the best next thought, and back to the next best, until `answers` answers are found or
    `expansions` states were looked at. States scored below `threshold` are pruned, answers never, nor the last state while there is
    no answer. What is unfinished in the end is drawn to its end in one piece.

    `evaluate`: "score" by the run's scorer; "value" judges each state by itself, "vote" those of a level together, and in the end the
    answers together.
    """

    kind: Literal["tree_of_thought"] = "tree_of_thought"
    order: Literal["breadth_first", "depth_first"] = "breadth_first"
    generate: Literal["sample", "propose"] = "sample"
    evaluate: Literal["score", "value", "vote"] = "score"
    samples: int = Field(default=5, ge=1)
    breadth: int = Field(default=5, ge=1)
    depth: int = Field(default=8, ge=1)
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    answers: int = Field(default=1, ge=1)
    expansions: int = Field(default=100, ge=1)
    propose: Annotated[str, showing("question", "path")] = PROPOSE
    value: JudgeScore = Field(default_factory=lambda: JudgeScore(prompt=VALUE))
    vote: JudgeVote = Field(default_factory=lambda: JudgeVote(prompt=VOTE))
    choose: Choice = "best"

    async def run(self, search: Search) -> Answer:
        """The tree, in one of the two orders."""
        if self.evaluate != "score":
            search = search.scored_by(self.value if self.evaluate == "value" else self.vote)
        frontier = Frontier(search, self.choose)
        if self.order == "breadth_first":
            await self._breadth_first(search, frontier)
        else:
            await self._depth_first(search, frontier)
        if self.evaluate == "vote":  # shares of different levels do not compare
            await self._vote(search, frontier.leaves)
        return frontier.answer()

    async def _breadth_first(self, search: Search, frontier: Frontier) -> None:
        paths, ended = [search.root], list[Thought]()
        for _ in range(self.depth):
            drawn = await self._next(search, frontier, paths)
            followed = {thought.parent for thought in drawn}
            ended += [path for path in paths if path not in followed]
            open_ = self._worth([t for t in drawn if not t.finished], last=not frontier.leaves)
            best = sorted([*open_, *frontier.leaves], key=promise, reverse=True)[: self.breadth]
            paths = [t for t in best if not t.finished]
            frontier.give_up([t for t in drawn if not t.finished and t not in paths])
            if not paths:
                break
        await frontier.finish(ended + paths)

    async def _depth_first(self, search: Search, frontier: Frontier) -> None:
        stack = [search.root]
        for _ in range(self.expansions):
            if not stack or len(self._worth(frontier.leaves)) >= self.answers:
                break
            path = stack.pop()
            deep = len(path.path) >= self.depth
            drawn = [] if deep else await self._next(search, frontier, [path])
            if not drawn:
                await frontier.finish([path])
                continue
            open_ = [t for t in drawn if not t.finished]
            worth = self._worth(open_, last=not stack and not frontier.leaves)
            frontier.give_up([t for t in open_ if t not in worth])
            stack += sorted(worth, key=promise)
        if not frontier.leaves:
            await frontier.finish(stack[-1:])

    async def _next(
        self, search: Search, frontier: Frontier, paths: Sequence[Thought]
    ) -> list[Thought]:
        """The next thoughts of each path, with their scores."""
        if self.generate == "sample":
            return await frontier.grow([path for path in paths for _ in range(self.samples)])
        thoughts = await self._proposed(search, paths)
        await search.score(thoughts)
        return thoughts

    async def _proposed(self, search: Search, paths: Sequence[Thought]) -> list[Thought]:
        """What the model proposes as the next step of each path, when asked aside."""
        prompts = [self._prompt(path) for path in paths]
        temperature = search.settings.sampling.temperature
        said = await replies(search, prompts, role=search.root.role, temperature=temperature)
        end = (search.settings.steps.delimiters or ("\n",))[0]
        thoughts = list[Thought]()
        for path, reply in zip(paths, said, strict=True):
            if reply is None:
                continue
            for step in proposals(reply)[: self.samples]:
                if (thought := search.append(path, step + end)) is not None:
                    thought.whole, thought.finish = True, "step"
                    thought.mean_logprob = reply.mean_logprob  # as likely as the list that it is on
                    thoughts.append(thought)
        return thoughts

    def _prompt(self, path: Thought) -> str:
        """What asks for the next steps of a path."""
        steps = path.whole_text.strip() or "(none)"
        return fill(self.propose, question=path.question, path=steps, n=str(self.samples))

    def _worth(self, thoughts: Sequence[Thought], *, last: bool = False) -> list[Thought]:
        """Those that the threshold does not prune; the most promising in any case, if one of them is the `last` hope."""
        if self.threshold is None:
            return list(thoughts)
        least = self.threshold
        worth = [t for t in thoughts if t.score is not None and t.score >= least]
        return sorted(thoughts, key=promise)[-1:] if last and not worth else worth

    async def _vote(self, search: Search, leaves: Sequence[Thought]) -> None:
        for leaf, share in zip(leaves, await self.vote.score_in(search, leaves), strict=True):
            if share is not None:
                leaf.score, leaf.scorer = share, self.vote


def proposals(reply: Thought) -> list[str]:
    """The different steps that a reply lists, in order: its numbered lines, or all of them where none is; none if it says DONE."""
    lines = [line.strip() for line in reply.text.splitlines()]
    lines = lines if reply.whole else lines[:-1]  # the last one was cut off
    items = [re.fullmatch(r"(?:\d+[.)]|[-*•])\s+(\S.*)", line) for line in lines]
    steps = [item[1] for item in items if item] or [line for line in lines if line]
    done = len(steps) == 1 and re.fullmatch(r"\W*done\W*", steps[0], re.IGNORECASE)
    return [] if done else list(dict.fromkeys(steps))
