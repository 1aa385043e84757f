"""
Search: all that a strategy may do, and the tree of thoughts that it leaves behind.

Knows branches, money and answers; knows no device, no LangChain and no particular strategy. Every draw is reserved at its worst case,
run, committed at what it took and refunded; it waits only for others' open leases, and is shrunk or refused only against what is
spent. Every finished sample is offered by itself, so whenever the run ends there is an answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from langchain_pareto.backends.base import Backend
from langchain_pareto.budget import Budget, BudgetLike
from langchain_pareto.errors import ContextLengthError, SettingError
from langchain_pareto.ledger import Account, Room
from langchain_pareto.strategies.aggregation import aggregate
from langchain_pareto.strategies.desk import Desk
from langchain_pareto.strategies.drawing import Drawing
from langchain_pareto.strategies.record import Record
from langchain_pareto.strategies.scorers import RunScorer, Scorer, ask_scorer
from langchain_pareto.strategies.settings import Role, Settings
from langchain_pareto.strategies.sizing import Sizing
from langchain_pareto.strategies.thoughts import POLICY, Answer, Thought, best_of
from langchain_pareto.strategies.until import ANSWER, STEP, Until

if TYPE_CHECKING:
    from langchain_pareto.strategies.base import Strategy

_ASIDE = 512  # tokens that an aside may have, however short answers are to be


def _too_long(role: str, error: ContextLengthError) -> ContextLengthError:
    """The user did not write this prompt."""
    msg = f"what the role {role!r} is asked has {error.length} tokens, and its context holds {error.limit}"
    hint = "Give the role a model with a longer context, or ask it about fewer or shorter texts."
    return ContextLengthError(msg, length=error.length, limit=error.limit, hint=hint)


class Search:
    """One strategy's handle on models, money and the tree."""

    def __init__(
        self,
        backend: Backend,
        root: Thought,
        account: Account,
        settings: Settings,
        record: Record,
        *,
        nested: bool = False,
        main: bool = True,
    ) -> None:
        self.root = root
        self.settings = settings
        self._account = account
        self._record = record
        self._desk = Desk(backend, account, record, settings.usd_per_token, main)
        self._sizing = Sizing(self._desk, settings.max_tokens, root.aside)
        self._drawing = Drawing(self._desk, settings, root, self._sizing)
        self._nested = nested  # one of several: its offers are not the run's

    @property
    def room(self) -> Room:
        """What is left of the budget, at the tightest level."""
        return self._account.room()

    def share(self, n: int) -> Budget:
        """What each of `n` may take of what is left, at least one of a kind; what has no limit has none here."""
        left = self.room.unspent
        return Budget(
            tokens=None if left.tokens is None else max(1, left.tokens // n),
            flops=None if left.flops is None else max(1, left.flops // n),
            usd=None if left.nanodollars is None else max(1, left.nanodollars // n) / 1e9,
        )

    @property
    def limited(self) -> bool:
        """Whether any resource that a draw takes has a limit."""
        return self._sizing.limited

    @property
    def has_deadline(self) -> bool:
        """Whether there is a deadline."""
        return self._account.deadline is not None

    @property
    def context(self) -> int:
        """Tokens that a path may have at most, by the model and the caller, the prompt aside."""
        return self._sizing.cap(self.root)

    def turn(self, worth: float) -> AbstractAsyncContextManager[None]:
        """Waits while other calls under one shared budget have more use for it; `worth` is what this one's next draws are."""
        turns = None if self._nested else self._account.turns
        return nullcontext() if turns is None else turns.turn(worth)

    # --- drawing

    async def sample(self, thought: Thought, n: int = 1, until: Until = ANSWER) -> list[Thought]:
        """Up to `n` continuations of `thought`, in order of drawing; fewer when no more can be paid for."""
        return await self.expand([thought] * n, until)

    async def expand(self, thoughts: Sequence[Thought], until: Until = STEP) -> list[Thought]:
        """One continuation of each thought, which may be named several times, in that order; fewer when no more can be paid for."""
        drawn = [t async for ended in self._drawing.drawn(thoughts, until) for t in ended]
        return sorted(drawn, key=lambda t: t.number)

    async def samples(
        self, thought: Thought, n: int, until: Until = ANSWER
    ) -> AsyncGenerator[Thought, None]:
        """Up to `n` continuations, each as it finishes; leaving early cancels the rest, once this is closed."""
        async with aclosing(self.groups(thought, n, until)) as groups:
            async for ended in groups:
                for one in ended:
                    yield one

    def groups(
        self, thought: Thought, n: int, until: Until = ANSWER
    ) -> AsyncGenerator[list[Thought], None]:
        """The same, those that finish together in one list, the shortest first; a list may be empty."""
        return self._drawing.drawn([thought] * n, until)

    def append(self, thought: Thought, text: str) -> Thought | None:
        """A thought that nobody samples: `text` after that of `thought`, in place of a mark or an end that was drawn beyond it.

        Its tokens are prefill of what is drawn below it, and nothing before them is computed again. None where the context is too
        short for it and one token more.
        """
        return self._drawing.append(thought, text)

    def steps_in_half(self, thought: Thought, n: int) -> int:
        """How many of `n` steps below a thought half of what is left pays for, at their likely length."""
        return self._sizing.steps_in_half(thought, n)

    @property
    def knows_steps(self) -> bool:
        """Whether a step of this question was drawn already, so that their likely length is known."""
        return self._record.steps.count > 0

    def drop(self, thoughts: Sequence[Thought]) -> None:
        """Gives up thoughts that nothing will continue; what is theirs alone of the cache is free for others."""
        for thought in thoughts:
            self._release(self._account, thought.free())
            for reading in thought.forget():
                self._release(reading.account, reading.memory)

    # --- scoring

    async def score(self, thoughts: Sequence[Thought]) -> None:
        """Scores what this search's scorer has not scored yet and was not cut off; raises ScorerError.

        What another scorer gave is no score here. Where the budget has no room for a scorer's own work, thoughts stay without one.
        """
        scorer = self.settings.scorer
        new = [
            t
            for t in dict.fromkeys(thoughts)
            if t.whole and (t.score is None or t.scorer is not scorer)
        ]
        if not new:
            return
        found = await ask_scorer(scorer, self, new)
        for thought, value in zip(new, found, strict=True):
            thought.score, thought.scorer = None, scorer
            if isinstance(value, float):
                thought.score = value
            elif value is not None:
                thought.step_scores = tuple(value)
                thought.score = aggregate(thought.path_scores, self.settings.aggregation)

    # --- parts of a run

    async def run(self, strategy: Strategy, n: int = 1) -> list[Thought]:
        """The answers of `n` independent runs of `strategy`, each with its own keys and a child account."""
        return await strategy.run_many(self, n)

    def child(self) -> Search:
        """A search of its own from the same root: other keys, and a child account whose unspent money flows back."""
        assert self.root.branch is not None
        root = replace(self.root, branch=self._desk.fork(self.root.branch))
        return self._with(root=root, account=self._account.child(), nested=True)

    def within(self, budget: BudgetLike | None) -> Search:
        """The same search with at most so much more, None for no cap."""
        if budget is None:
            return self
        return self._with(account=self._account.child(Budget.parse(budget)))

    def at_temperature(self, temperature: float | None) -> Search:
        """The same search with another sampling temperature, None for the same."""
        if temperature is None or temperature == self.settings.sampling.temperature:
            return self
        sampling = replace(self.settings.sampling, temperature=temperature)
        return self._with(settings=replace(self.settings, sampling=sampling))

    def up_to(self, max_tokens: int | None) -> Search:
        """The same search with shorter texts, None for the same; asides are as long as whoever asks for them says."""
        if max_tokens is None:
            return self
        own = self.settings.max_tokens
        least = max_tokens if own is None or self.root.aside else min(own, max_tokens)
        return self._with(settings=replace(self.settings, max_tokens=least))

    def scored_by(self, scorer: Scorer | RunScorer) -> Search:
        """The same search with another scorer."""
        return self._with(settings=replace(self.settings, scorer=scorer))

    def as_role(self, name: str) -> Search:
        """The same question put to the model of a role; to the policy, where nobody plays that role."""
        role = self.settings.roles.get(name)
        if role is None or name == self.root.role:
            return self
        return self._at(role, name, role.prompt(), aside=False)

    def on(self, text: str, *, role: str = POLICY, aside: bool = False) -> Search:
        """A search whose root is a prompt of its own, `text`, put to the model of a role (the policy, where nobody plays it).

        What is drawn there is no answer of the run if it is `aside`: the call's stops do not end it, and it may be as long as an
        answer, and 512 tokens in any case.
        """
        name = role if role in self.settings.roles else POLICY
        player = self.settings.roles[name]
        return self._at(player, name, player.render(text), aside=aside)

    def asking(self, text: str, *, aside: bool = False) -> Search:
        """`on`, put to the same model at the same temperature."""
        asked = self.on(text, role=self.root.role, aside=aside)
        return asked.at_temperature(self.settings.sampling.temperature)

    async def ask(
        self,
        text: str,
        *,
        role: str = "judge",
        n: int = 1,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[Thought]:
        """Up to `n` replies to `text`, aside from the search; fewer when no more can be paid for."""
        aside = self.on(text, role=role, aside=True).at_temperature(temperature).up_to(max_tokens)
        return await aside.sample(aside.root, n)

    def player(self, role: str) -> Role:
        """The model of a role; SettingError where nobody plays it."""
        if role not in self.settings.roles:
            msg = f"no model plays the role {role!r}"
            hint = f"Name one, for example ChatPareto(roles={{{role!r}: ...}})."
            raise SettingError(msg, hint=hint)
        return self.settings.roles[role]

    def desk(self, role: str) -> Desk:
        """Where requests to the model of a role are paid; SettingError where nobody plays it."""
        return replace(self._desk, backend=self.player(role).backend, main=False)

    # --- answering

    def offer(self, answer: Answer | Thought) -> None:
        """Publishes an improvement: what is returned if the run ends now."""
        if self._nested:
            return
        self._record.offer = answer if isinstance(answer, Answer) else Answer(answer)

    def best(self, thoughts: Sequence[Thought]) -> Answer:
        """The best scored thought; ties by mean log-probability, then first drawn."""
        return Answer(best_of(thoughts))

    def _release(self, account: Account, memory: int) -> None:
        """Gives cache back to whoever paid for it."""
        with self._record.lock:
            account.release(memory=memory)
            self._record.held -= memory

    def _with(
        self,
        *,
        root: Thought | None = None,
        account: Account | None = None,
        settings: Settings | None = None,
        backend: Backend | None = None,
        nested: bool | None = None,
        main: bool | None = None,
    ) -> Search:
        return Search(
            backend or self._desk.backend,
            root or self.root,
            account or self._account,
            settings or self.settings,
            self._record,
            nested=self._nested if nested is None else nested,
            main=self._desk.main if main is None else main,
        )

    def _at(self, role: Role, name: str, prompt: Sequence[int], *, aside: bool) -> Search:
        key = (name, aside, tuple(prompt))
        if key not in self._record.roots:
            try:
                branch = replace(self._desk, backend=role.backend).open(prompt)
            except ContextLengthError as error:
                raise _too_long(name, error) from error
            # one root for one prompt, so that all that is drawn below it has keys of its own
            self._record.roots[key] = Thought(
                self.root.question, branch=branch, role=name, aside=aside
            )
        settings = replace(self.settings, sampling=role.sampling, grammar=role.grammar)
        if aside:  # no answer: it has a form, an end and a length of its own
            own = settings.max_tokens
            most = None if own is None else max(own, _ASIDE)
            settings = replace(settings, grammar=None, stop=(), max_tokens=most)
        return self._with(
            root=self._record.roots[key], settings=settings, backend=role.backend, main=False
        )
