"""
What a strategy that draws whole answers does with a search, done over a pool.

Knows what `Search` gives and takes; whatever was not recorded raises NotRecorded. A score costs what the recording tells, and
temperatures are the pool's.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import NoReturn

from langchain_pareto.backends.recorded_samples import not_recorded
from langchain_pareto.budget import Budget, BudgetLike, Limits
from langchain_pareto.ledger import Room
from langchain_pareto.planning.allowance import FREE, Allowance, minus
from langchain_pareto.planning.draws import Tree
from langchain_pareto.planning.play import Play
from langchain_pareto.planning.replay_drawing import ReplayDrawing
from langchain_pareto.strategies.scorers import RunScorer, Scorer, ask_scorer
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import POLICY, Answer, NothingDrawn, Thought
from langchain_pareto.strategies.until import ANSWER, STEP, Until


class ReplaySearch(Search):
    """A search over a pool."""

    def __init__(
        self,
        play: Play,
        tree: Tree,
        root: Thought,
        allowance: Allowance,
        settings: Settings,
        *,
        nested: bool = False,
    ) -> None:
        self.root = root
        self.settings = settings
        self._play = play
        self._tree = tree
        self._allowance = allowance
        self._nested = nested
        self._draws = ReplayDrawing(play, tree, root, allowance, settings.max_tokens)

    @property
    def room(self) -> Room:
        """What is left; nothing is ever reserved by others."""
        self._play.bound = True  # whoever asks may go by it
        left = Limits(
            tokens=self._allowance.left(0),
            flops=self._allowance.left(1),
            nanodollars=self._allowance.left(2),
            memory=self._allowance.left(3),
        )
        seconds = self._allowance.deadline - self._play.clock
        return Room(left, left, max(0.0, seconds) if self.has_deadline else None)

    @property
    def limited(self) -> bool:
        return bool(self._allowance.pots)

    @property
    def has_deadline(self) -> bool:
        return self._allowance.deadline < math.inf

    @property
    def context(self) -> int:
        return self._draws.cap

    @property
    def knows_steps(self) -> bool:
        return False

    # --- drawing

    def turn(self, worth: float) -> AbstractAsyncContextManager[None]:  # noqa: ARG002
        """At once: a replay is one call."""
        return nullcontext()

    async def sample(self, thought: Thought, n: int = 1, until: Until = ANSWER) -> list[Thought]:
        self._check([thought], until)
        return await self._draws.drawn(n)

    async def expand(self, thoughts: Sequence[Thought], until: Until = STEP) -> list[Thought]:
        self._check(thoughts, until)
        return await self._draws.drawn(len(thoughts))

    def groups(
        self, thought: Thought, n: int, until: Until = ANSWER
    ) -> AsyncGenerator[list[Thought], None]:
        self._check([thought], until)
        return self._draws.as_they_end(n)

    # --- scoring, answering

    async def score(self, thoughts: Sequence[Thought]) -> None:
        new = [t for t in dict.fromkeys(thoughts) if t.score is None and t.whole]
        paid = self._pay_for_scores(new)
        if not paid:
            return
        found = await ask_scorer(self.settings.scorer, self, paid)
        for thought, value in zip(paid, found, strict=True):
            if not isinstance(value, float):
                raise not_recorded("a score of steps")
            thought.score = value

    def _pay_for_scores(self, thoughts: Sequence[Thought]) -> Sequence[Thought]:
        """Those that there is room for, once the time of scoring them has passed; where a deadline comes first, what was drawn is all there is."""
        play, player = self._play, self._tree.player
        scoring = player.recording.scoring
        if scoring is None or not thoughts:
            return thoughts
        paid, tokens, charged = list[Thought](), 0, FREE
        for thought in thoughts:
            so_far = player.score_charge(len(paid) + 1, tokens + thought.length)
            charge = minus(so_far, charged)
            if (reason := play.lack(self._allowance, charge)) is not None:
                play.limited_by = reason
                break
            play.pay(self._allowance, charge)
            paid.append(thought)
            tokens, charged = tokens + thought.length, so_far
        if not paid:
            return paid
        seconds = scoring.seconds.of(len(paid), tokens)
        ends, deadline = play.clock + seconds, self._allowance.deadline
        play.clock = max(play.clock, min(ends, deadline))
        if ends > deadline:
            play.limited_by = "seconds"
            raise NothingDrawn
        return paid

    def offer(self, answer: Answer | Thought) -> None:
        if not self._nested:
            self._play.offer = answer if isinstance(answer, Answer) else Answer(answer)

    # --- parts of a run

    def child(self) -> Search:
        return self._like(root=replace(self.root), nested=True)

    def within(self, budget: BudgetLike | None) -> Search:
        if budget is None:
            return self
        more = Budget.parse(budget)
        self._play.cast.check(more)
        ends = math.inf if more.seconds is None else self._play.clock + more.seconds
        return self._like(allowance=Allowance(more.limits(), ends, self._allowance))

    def at_temperature(self, temperature: float | None) -> Search:
        if temperature is None or temperature == self.settings.sampling.temperature:
            return self
        sampling = replace(self.settings.sampling, temperature=temperature)
        return self._like(settings=replace(self.settings, sampling=sampling))

    def up_to(self, max_tokens: int | None) -> Search:
        if max_tokens is None:
            return self
        own = self.settings.max_tokens
        least = max_tokens if own is None else min(own, max_tokens)
        return self._like(settings=replace(self.settings, max_tokens=least))

    def scored_by(self, scorer: Scorer | RunScorer) -> Search:
        return self._like(settings=replace(self.settings, scorer=scorer))

    def as_role(self, name: str) -> Search:
        play = self._play
        if name not in play.cast.players or name == self.root.role:
            return self
        if name not in play.roots:
            play.roots[name] = play.tree(name), Thought(play.question, role=name)
        tree, root = play.roots[name]
        settings = replace(self.settings, sampling=play.sampling)
        return self._like(tree=tree, root=root, settings=settings)

    def _like(
        self,
        *,
        tree: Tree | None = None,
        root: Thought | None = None,
        allowance: Allowance | None = None,
        settings: Settings | None = None,
        nested: bool = False,
    ) -> ReplaySearch:
        return ReplaySearch(
            self._play,
            tree or self._tree,
            root or self.root,
            allowance or self._allowance,
            settings or self.settings,
            nested=nested or self._nested,
        )

    # --- what was not recorded

    def _check(self, thoughts: Sequence[Thought], until: Until) -> None:
        if until != ANSWER:
            raise not_recorded("a step, or some tokens of a text")
        if any(thought is not self.root for thought in thoughts):
            raise not_recorded("a draw below a draw")

    def append(self, thought: Thought, text: str) -> NoReturn:  # noqa: ARG002
        raise not_recorded("what a model says after a text of the host's")

    def steps_in_half(self, thought: Thought, n: int) -> NoReturn:  # noqa: ARG002
        raise not_recorded("a step")

    def drop(self, thoughts: Sequence[Thought]) -> NoReturn:  # noqa: ARG002
        raise not_recorded("what a search gives up")

    def on(self, text: str, *, role: str = POLICY, aside: bool = False) -> NoReturn:  # noqa: ARG002
        raise not_recorded("a prompt of a strategy's own")

    def player(self, role: str) -> NoReturn:
        raise not_recorded(f"what the role {role!r} is asked beside the question")

    def desk(self, role: str) -> NoReturn:
        raise not_recorded(f"what the role {role!r} is asked beside the question")
