"""
Strategies over recorded answers, fast: their own coroutines, with a search that draws from a pool and a clock that is computed.

Knows what `Search`, `Drawing`, `Desk` and `run` do with whole answers to one question, and does the same without an engine: the same
widths, reservations, prices and reasons. A real run over RecordedBackends is what it is tested against. Draws that are asked for at one
time run side by side, as one batch. Whatever was not recorded raises NotRecorded: steps, judgements, prompts of a strategy's own. A
score costs nothing here, and temperatures are the pool's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from types import NoneType
from typing import NoReturn, Protocol, TypeVar

import numpy as np

from langchain_pareto.backends.base import Finish, ModelSpec, Sampling, Usage
from langchain_pareto.backends.cost import forward_flops
from langchain_pareto.backends.recorded import (
    CUT,
    length_of,
    likelihood,
    order,
    prompt_of,
    text_of,
)
from langchain_pareto.budget import Budget, BudgetLike, Cost, Limits
from langchain_pareto.errors import BudgetError, ContextLengthError, NotRecorded, SettingError
from langchain_pareto.ledger import Room
from langchain_pareto.planning.pool import NO_ANSWER, Floats, Pool
from langchain_pareto.strategies import (
    Auto,
    BestOfN,
    Cascade,
    FirstFinish,
    Single,
    Strategy,
    Vote,
    WeightedVote,
)
from langchain_pareto.strategies.record import Lengths, Record
from langchain_pareto.strategies.run import anytime
from langchain_pareto.strategies.scorers import (
    MeanLogprob,
    RunScorer,
    Scorable,
    Scorer,
    ask_scorer,
)
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.sizing import WIDEST, reserved, widest
from langchain_pareto.strategies.thoughts import POLICY, Answer, NothingDrawn, Thought
from langchain_pareto.strategies.until import ANSWER, STEP, Until

_T = TypeVar("_T")
_Bill = tuple[int, int, int, int]  # tokens, flops, nanodollars, bytes of memory
_NAMES = ("tokens", "flops", "usd", "memory")
_FREE: _Bill = (0, 0, 0, 0)
_PLAIN = (Single, Auto, Vote, BestOfN, WeightedVote, Cascade, FirstFinish)  # wait for draws alone
_HINT = "Measure it live: only strategies that draw whole answers to the question can be replayed."


class Timing(Protocol):
    """What a batch of draws takes: `lengths` tokens each, side by side, after a prompt of `prompt` tokens that is read first."""

    def batch_seconds(self, lengths: Sequence[int], prompt: int) -> float:
        """Seconds until the last has ended; where all lengths are 0, until the prompt is read."""
        ...

    def drawn_by(self, lengths: Sequence[int], prompt: int, seconds: float) -> list[int]:
        """How many tokens each has after so many seconds."""
        ...


@dataclass(frozen=True, slots=True)
class LinearTiming:
    """Every step takes `step` seconds, however wide; reading the prompt is one. A step that has begun is ended."""

    step: float

    def batch_seconds(self, lengths: Sequence[int], prompt: int) -> float:  # noqa: ARG002 - of any length
        """The longest decides."""
        return self.step * (1 + max(lengths, default=0))

    def drawn_by(
        self,
        lengths: Sequence[int],
        prompt: int,  # noqa: ARG002
        seconds: float,
    ) -> list[int]:
        """A token each step."""
        steps = max(0, math.ceil(seconds / self.step) - 1)
        return [min(length, steps) for length in lengths]


@dataclass(frozen=True, slots=True)
class Recording:
    """The recorded answers of a role's model, and what it costs; None is unknown, and then a limit on that is refused.

    `spec` gives FLOPs, memory and the context; without it the context holds just the longest sample.
    """

    pool: Pool
    spec: ModelSpec | None = None
    timing: Timing | None = None
    usd_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class Played:
    """What a run would have given, and what it would have taken.

    `answer` is a class of the pool's, NO_ANSWER where the sample was cut off or says nothing, which is wrong. `sample` is its place in the
    pool of `role`, None where not a token was drawn. `steps` are decode steps one after the other. `stopped_by` is as in Outcome.
    """

    answer: int
    right: bool | None  # None where the pool does not say
    score: float | None
    share: float | None
    tokens: int
    flops: int | None
    seconds: float | None
    usd: float | None
    memory: int | None  # bytes held when it ended
    samples: int
    steps: int
    stopped_by: str
    finished: bool
    role: str
    sample: int | None


class Replayer:
    """Plays strategies over the recordings of the roles that they name; a role without one is the policy's.

    All pools have the same questions. `scorer` is by default what the pools recorded; `max_tokens` is of a sample.
    """

    def __init__(
        self,
        recordings: Mapping[str, Recording],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        scorer: Scorer | RunScorer | None = None,
    ) -> None:
        if POLICY not in recordings:
            msg = f"nothing is recorded of the role {POLICY!r}, only of {sorted(recordings)}"
            raise SettingError(msg, hint=f"Give {{{POLICY!r}: Recording(...)}}.")
        self.questions = recordings[POLICY].pool.questions
        if len(set(self.questions)) < len(self.questions):
            msg = f"the pool of {recordings[POLICY].pool.model} names a question twice"
            raise SettingError(msg, hint="Join its samples in one row.")
        self.recordings = dict(recordings)
        scores = RecordedScores({role: r.pool for role, r in recordings.items()})
        self.settings = Settings(
            Sampling() if sampling is None else sampling,
            max_tokens=max_tokens,
            scorer=scores if scorer is None else scorer,
        )
        self.players = {
            role: _Player(role, recording, self.questions) for role, recording in recordings.items()
        }
        self.order = lru_cache(maxsize=1 << 15)(order)
        self._limits: tuple[Budget | None, Limits] = (None, Limits())

    def play(
        self, strategy: Strategy, question: int, budget: Budget | None = None, *, seed: int = 0
    ) -> Played:
        """One run on question number `question`, whose samples are met in an order that depends on question and `seed` alone.

        At a limit the best so far is the answer, whatever `budget.on_limit` says. Raises NotRecorded, and BudgetError for a limit on
        what the recordings do not know.
        """
        if not 0 <= question < len(self.questions):
            msg = f"there is no question {question}"
            raise SettingError(msg, hint=f"They count from 0 to {len(self.questions) - 1}.")
        plain = self._is_plain(strategy)
        play = _Play(self, question, seed, turns=not plain)
        root = Thought(self.questions[question])
        search = ReplaySearch(play, play.tree(POLICY), root, self._purse(budget), self.settings)
        run = _answer(strategy, search, play)
        answer = _at_once(run) if plain else _in_loop(run)
        play.end()
        return self._played(play, answer)

    def _is_plain(self, strategy: Strategy) -> bool:
        """Whether a strategy waits for its own draws alone, so that it needs no event loop."""
        nested, scorer = type(getattr(strategy, "of", None)), type(self.settings.scorer)
        named = type(strategy) in _PLAIN and nested in (NoneType, Single)
        return named and scorer in (RecordedScores, MeanLogprob)

    def _purse(self, budget: Budget | None) -> _Purse:
        if budget is None:
            return _Purse(Limits(), math.inf)
        if budget is not self._limits[0]:
            self.check(budget)
            self._limits = (budget, budget.limits())
        return _Purse(self._limits[1], math.inf if budget.seconds is None else budget.seconds)

    def check(self, budget: Budget) -> None:
        """Raises BudgetError for a limit on what is not known of every recording."""
        every = self.recordings.values()
        unknown = {
            "seconds": any(r.timing is None for r in every) and "timing=",
            "flops": any(r.spec is None for r in every) and "spec=",
            "memory": any(r.spec is None for r in every) and "spec=",
            "usd": any(r.usd_per_token is None for r in every) and "usd_per_token=, or seconds",
            "joules": "seconds instead",
        }
        for resource, missing in unknown.items():
            if missing and getattr(budget, resource) is not None:
                msg = f"a limit on {resource} is not kept: the recordings do not say what it takes"
                raise BudgetError(msg, hint=f"Give {missing}.")

    def _played(self, play: _Play, answer: Answer | None) -> Played:
        thought = None if answer is None else answer.thought
        player = self.players[POLICY if thought is None else thought.role]
        sample = thought.tokens[0] if thought is not None and thought.tokens else None
        said = thought is not None and thought.answer is not None and sample is not None
        tokens, flops, nanodollars, memory = play.spent
        of = [tree.player.recording for tree in play.trees]
        priced = all(recording.usd_per_token is not None for recording in of)
        shaped = all(recording.spec is not None for recording in of)
        timed = all(recording.timing is not None for recording in of)
        return Played(
            answer=player.answers[play.row][sample or 0] if said else NO_ANSWER,
            right=None if player.right is None else said and player.right[play.row][sample or 0],
            score=None if thought is None else thought.score,
            share=None if answer is None else answer.share,
            tokens=tokens,
            flops=flops if shaped else None,
            seconds=play.clock if timed else None,
            usd=nanodollars / 1e9 if priced else None,
            memory=memory if shaped else None,
            samples=len(play.thoughts),
            steps=play.steps,
            stopped_by=play.reason(answer),
            finished=thought is not None and thought.finished,
            role=player.role,
            sample=sample,
        )


class RecordedScores:
    """A scorer that gives each sample its recorded score: here, and in a real run over RecordedBackends.

    `pools` are by role. The question of a thought is its id in them, and its first token says which sample it is.
    """

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = dict(pools)
        self._rows = {
            role: {question: row for row, question in enumerate(pool.questions)}
            for role, pool in pools.items()
        }
        self._scores = {role: _listed(pool.scores) for role, pool in pools.items()}
        for pool in pools.values():
            if pool.scores is not None and np.isnan(pool.scores).any():
                msg = f"the pool of {pool.model} has a score that is NaN"
                raise SettingError(msg, hint="Score it -inf, or leave the scores out.")

    async def score(self, thoughts: Sequence[Scorable]) -> list[float]:
        """Raises NotRecorded where a pool has no scores."""
        return [self._score(thought) for thought in thoughts]

    def _score(self, thought: Scorable) -> float:
        assert isinstance(thought, Thought)
        scores = self._scores[thought.role]
        if scores is None:
            msg = f"the pool of {self._pools[thought.role].model} has no scores"
            raise NotRecorded(msg, hint="Score its samples, or give another scorer=.")
        return scores[self._rows[thought.role][thought.question]][thought.tokens[0]]


class ReplaySearch(Search):
    """What a strategy that draws whole answers does with a search, over a pool."""

    def __init__(
        self,
        play: _Play,
        tree: _Tree,
        root: Thought,
        purse: _Purse,
        settings: Settings,
        *,
        nested: bool = False,
    ) -> None:
        self.root = root
        self.settings = settings
        self._play = play
        self._tree = tree
        self._purse = purse
        self._nested = nested
        room, most = tree.player.room(play.row), settings.max_tokens
        self._cap = max(1, room if most is None else min(room, most))

    @property
    def room(self) -> Room:
        """What is left; nothing is ever reserved by others."""
        left = Limits(
            tokens=self._purse.left(0),
            flops=self._purse.left(1),
            nanodollars=self._purse.left(2),
            memory=self._purse.left(3),
        )
        seconds = self._purse.deadline - self._play.clock
        return Room(left, left, max(0.0, seconds) if self.has_deadline else None)

    @property
    def limited(self) -> bool:
        return bool(self._purse.pots)

    @property
    def has_deadline(self) -> bool:
        return self._purse.deadline < math.inf

    @property
    def context(self) -> int:
        return self._cap

    @property
    def knows_steps(self) -> bool:
        return False

    # --- drawing

    def turn(self, worth: float) -> AbstractAsyncContextManager[None]:  # noqa: ARG002
        """At once: a replay is one call."""
        return nullcontext()

    async def sample(self, thought: Thought, n: int = 1, until: Until = ANSWER) -> list[Thought]:
        self._check([thought], until)
        return await self._drawn(n)

    async def expand(self, thoughts: Sequence[Thought], until: Until = STEP) -> list[Thought]:
        self._check(thoughts, until)
        return await self._drawn(len(thoughts))

    async def samples(
        self, thought: Thought, n: int, until: Until = ANSWER
    ) -> AsyncIterator[Thought]:
        self._check([thought], until)
        await self._prefill(n)
        while n > 0:
            width = self._width(n)
            draws = await self._begin(width)
            race = _Race(self._play, draws)
            try:
                await self._turn(2)
                for group in race.ended():
                    for one in [self._settle(draw) for draw in group]:
                        yield one
            finally:
                race.leave()
            if len(draws) < width:
                break
            await self._turn(2)
            n -= width

    async def _drawn(self, n: int) -> list[Thought]:
        """Up to `n` samples, in order of drawing."""
        await self._prefill(n)
        out = list[Thought]()
        while n > 0:
            width = self._width(n)
            draws = await self._begin(width)
            self._play.batch += draws
            await self._turn(2)
            self._play.pass_time()
            out += [self._settle(draw) for draw in draws]
            if len(draws) < width:
                break  # no more can be paid for
            await self._turn(2)
            n -= width
        return out

    async def _turn(self, n: int) -> None:
        """Lets others run as often as they do while the real search waits, so that they draw in the same order."""
        if self._play.turns:
            for _ in range(n):
                await asyncio.sleep(0)

    async def _prefill(self, n: int) -> None:
        """Pays for the prompt before several draws continue it."""
        tree, play, player = self._tree, self._play, self._tree.player
        if n < 2 or tree.prompt == 1 or self.root.computed:
            return
        last = tree.prompt - 1
        price = (0, player.flops(0, last, 1), 0, player.kv * last + player.state)
        if (reason := play.lack(self._purse, price)) is not None:
            play.limited_by = reason
            return
        read = 1 if tree.computed else last
        tree.computed = True
        memory = min(price[3], player.kv * read + player.state)
        play.pay(self._purse, (0, player.flops(last - read, last, 1), 0, memory))
        await self._turn(2)
        self.root.computed = True

    def _width(self, n: int) -> int:
        """How many of `n` draws run side by side."""
        purse = self._purse
        if not purse.pots:
            return min(n, WIDEST)
        fits = lambda tokens: purse.times(self._price(tokens), n)  # noqa: E731 - of this moment
        return widest(n, self._play.lengths.q95, self._cap, fits)

    async def _begin(self, width: int) -> list[_Draw]:
        """Draws that are reserved and paid in their order, as if all time had passed; fewer where no more fit."""
        play, purse = self._play, self._purse
        tokens = purse.left(0)
        share = 0 if tokens is None else tokens // width
        number, play.placed = play.placed, play.placed + width
        await self._turn(1)
        most, least, likely = self._cap, 1, play.lengths.q95
        if likely is not None and purse.pots:
            most, least = reserved(self._cap, likely, share, play.lengths.q25)
        draws = list[_Draw]()
        while len(draws) < width:
            amount = self._reserve(most, least)
            if amount is None:
                break
            number += 1
            draws.append(self._draw(number, amount))
        return draws

    def _draw(self, number: int, amount: int) -> _Draw:
        """The next sample, up to so many tokens."""
        tree, play, player = self._tree, self._play, self._tree.player
        sample = tree.next_sample(play.question)
        length = player.lengths[play.row][sample]
        before = 0 if self.root.computed else tree.prompt - 1
        most = player.kv * (before + amount) + player.state
        draw = _Draw(tree, self._purse, number, sample, length, most, not tree.computed)
        tree.computed = True
        play.take(draw, min(length, amount))
        return draw

    def _reserve(self, most: int, least: int) -> int | None:
        """The most tokens that can be paid for, None where not even the least can."""
        play, purse = self._play, self._purse
        if (reason := play.lack(purse, self._price(least))) is not None:
            play.limited_by = reason
            return None
        if purse.lack(self._price(most)) is None:
            return most
        while least + 1 < most:
            middle = (least + most) // 2
            fits = purse.lack(self._price(middle)) is None
            least, most = (middle, most) if fits else (least, middle)
        return least

    def _price(self, tokens: int) -> _Bill:
        """The worst case of one draw."""
        if not self._purse.dear:
            return tokens, 0, 0, 0
        player, last = self._tree.player, self._tree.prompt - 1
        flops = player.flops(last, last + tokens, tokens)
        before = 0 if self.root.computed else last
        if before:
            flops += player.flops(0, last, 0)
        memory = player.kv * (before + tokens) + player.state
        return tokens, flops, player.nanodollars(tokens), memory

    def _settle(self, draw: _Draw) -> Thought:
        """What is known once a draw has ended."""
        play, player, finish = self._play, self._tree.player, draw.finish
        if finish == "deadline":
            play.limited_by = "seconds"
        elif finish == "length" and draw.drawn < self._cap:
            play.lengths.cut += draw.drawn
            play.limited_by = play.lack(self._purse, self._price(self._cap)) or play.limited_by
        self.root.computed = True
        said = player.answers[play.row][draw.sample]
        whole = finish == "eos"
        if whole:
            play.lengths.add(draw.drawn)
        logprobs = player.logprobs if draw.drawn else None
        thought = Thought(
            play.question,
            self.root,
            text_of(said) if whole else CUT,
            range(draw.sample, draw.sample + draw.drawn),
            finish,
            None if logprobs is None else logprobs[play.row][draw.sample],
            player.said(said) if whole else None,
            whole=whole,
            role=self.root.role,
            usage=Usage(new_tokens=draw.drawn),
            number=draw.number,
        )
        play.thoughts.append(thought)
        return thought

    # --- scoring, answering

    async def score(self, thoughts: Sequence[Thought]) -> None:
        new = [t for t in dict.fromkeys(thoughts) if t.score is None and t.whole]
        if not new:
            return
        found = await ask_scorer(self.settings.scorer, self, new)
        for thought, value in zip(new, found, strict=True):
            if not isinstance(value, float):
                raise _not_recorded("a score of steps")
            thought.score = value

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
        self._play.replayer.check(more)
        ends = math.inf if more.seconds is None else self._play.clock + more.seconds
        return self._like(purse=_Purse(more.limits(), ends, self._purse))

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
        if name not in play.replayer.players or name == self.root.role:
            return self
        if name not in play.roots:
            play.roots[name] = play.tree(name), Thought(play.question, role=name)
        tree, root = play.roots[name]
        sampling = play.replayer.settings.sampling
        return self._like(tree=tree, root=root, settings=replace(self.settings, sampling=sampling))

    def _like(
        self,
        *,
        tree: _Tree | None = None,
        root: Thought | None = None,
        purse: _Purse | None = None,
        settings: Settings | None = None,
        nested: bool = False,
    ) -> ReplaySearch:
        return ReplaySearch(
            self._play,
            tree or self._tree,
            root or self.root,
            purse or self._purse,
            settings or self.settings,
            nested=nested or self._nested,
        )

    # --- what was not recorded

    def _check(self, thoughts: Sequence[Thought], until: Until) -> None:
        if until != ANSWER:
            raise _not_recorded("a step, or some tokens of a text")
        if any(thought is not self.root for thought in thoughts):
            raise _not_recorded("a draw below a draw")

    def append(self, thought: Thought, text: str) -> NoReturn:  # noqa: ARG002
        raise _not_recorded("what a model says after a text of the host's")

    def steps_in_half(self, thought: Thought, n: int) -> NoReturn:  # noqa: ARG002
        raise _not_recorded("a step")

    def drop(self, thoughts: Sequence[Thought]) -> NoReturn:  # noqa: ARG002
        raise _not_recorded("what a search gives up")

    def on(self, text: str, *, role: str = POLICY, aside: bool = False) -> NoReturn:  # noqa: ARG002
        raise _not_recorded("a prompt of a strategy's own")

    def player(self, role: str) -> NoReturn:
        raise _not_recorded(f"what the role {role!r} is asked beside the question")

    def desk(self, role: str) -> NoReturn:
        raise _not_recorded(f"what the role {role!r} is asked beside the question")


class _Player:
    """One role's recording, as quick to read as lists are; its rows are those of the policy's questions."""

    def __init__(self, role: str, recording: Recording, questions: Sequence[str]) -> None:
        pool, spec = _in_order(role, recording.pool, questions), recording.spec
        self.role = role
        self.recording = recording
        self.samples = pool.samples
        self.answers: list[list[int]] = pool.answers.tolist()
        self.lengths = [[length_of(n) for n in row] for row in pool.tokens.tolist()]
        self.prompts = [prompt_of(n) for n in pool.prompts.tolist()]
        self.right: list[list[bool]] | None = None if pool.right is None else pool.right.tolist()
        means = _listed(pool.logprobs)
        self.logprobs = None if means is None else [list(map(likelihood, row)) for row in means]
        self.kv = 0 if spec is None else spec.kv_bytes_per_token
        self.state = 0 if spec is None else spec.state_bytes_per_sequence
        self._longest = max(map(max, self.lengths))
        # FLOPs from a first position to a last one, so many of which give a token
        self.flops = lru_cache(maxsize=1 << 16)(partial(_flops, spec))
        self.nanodollars = lru_cache(maxsize=1 << 16)(
            partial(_nanodollars, recording.usd_per_token)
        )
        self.prompt_seconds = lru_cache(maxsize=1 << 12)(partial(_prompt_seconds, recording.timing))
        self.said = lru_cache(maxsize=1 << 12)(_said)

    def room(self, row: int) -> int:
        """Tokens of the context that a question leaves; raises ContextLengthError where it leaves none."""
        spec, prompt = self.recording.spec, self.prompts[row]
        if spec is None:
            return self._longest
        if prompt >= (limit := spec.context_length):
            msg = f"a prompt of {prompt} tokens leaves no room in the context of {spec.name} ({limit})"
            raise ContextLengthError(msg, length=prompt + 1, limit=limit)
        return limit - prompt


class _Purse:
    """What is left of all limits that there are, at every level; `deadline` is on the clock of a play."""

    __slots__ = ("deadline", "dear", "pots")

    def __init__(self, limits: Limits, deadline: float, above: _Purse | None = None) -> None:
        amounts = (limits.tokens, limits.flops, limits.nanodollars, limits.memory)
        self.pots = [[i, amount] for i, amount in enumerate(amounts) if amount is not None]
        self.deadline = deadline
        if above is not None:
            self.pots = sorted([*above.pots, *self.pots], key=lambda pot: pot[0])
            self.deadline = min(deadline, above.deadline)
        self.dear = any(i > 0 for i, _ in self.pots)  # whether more than tokens counts

    def left(self, resource: int) -> int | None:
        """What is left of one resource at the tightest level, None without a limit."""
        return min((amount for i, amount in self.pots if i == resource), default=None)

    def lack(self, bill: _Bill) -> str | None:
        """The first resource in which a bill does not fit."""
        for i, amount in self.pots:
            if bill[i] > amount:
                return _NAMES[i]
        return None

    def times(self, bill: _Bill, most: int) -> int:
        """How many times a bill fits, at most `most`."""
        for i, amount in self.pots:
            if bill[i] > amount:
                return 0
            if bill[i]:
                most = min(most, amount // bill[i])
        return most

    def pay(self, bill: _Bill) -> None:
        """Takes a bill out; what is below zero comes back."""
        for pot in self.pots:
            pot[1] -= bill[pot[0]]


class _Tree:
    """One question put to the model of one role, and the samples below it in the order in which they are met."""

    __slots__ = ("computed", "met", "order", "player", "prompt", "read")

    def __init__(self, player: _Player, prompt: int, samples: Sequence[int]) -> None:
        self.player = player
        self.prompt = prompt
        self.order = samples
        self.met = 0
        self.computed = False  # whether somebody has paid for the prompt
        self.read = False  # whether the clock has waited for it

    def next_sample(self, question: str) -> int:
        """The next one; raises NotRecorded after the last."""
        if self.met == len(self.order):
            msg = f"the question {question!r:.80} has {self.met} recorded samples, and one more is wanted"
            raise NotRecorded(msg, hint="Record more samples, or ask for fewer.")
        self.met += 1
        return self.order[self.met - 1]


class _Draw:
    """One sample, as far as it is drawn and paid."""

    __slots__ = ("bill", "drawn", "first", "late", "length", "most", "number", "purse", "sample", "tree")  # fmt: skip

    def __init__(
        self,
        tree: _Tree,
        purse: _Purse,
        number: int,
        sample: int,
        length: int,
        most: int,
        first: bool,
    ) -> None:
        self.tree, self.purse = tree, purse
        self.number = number  # in order of drawing
        self.sample, self.length = sample, length
        self.most = most  # bytes of memory that were reserved
        self.first = first  # whether the prompt is on its bill
        self.drawn, self.bill, self.late = 0, _FREE, False

    @property
    def finish(self) -> Finish:
        """How it ended."""
        if self.late:
            return "deadline"
        return "eos" if self.drawn == self.length else "length"


class _Play:
    """What one run shares among its searches: its clock, its books, and what it learned of lengths."""

    def __init__(self, replayer: Replayer, row: int, seed: int, *, turns: bool) -> None:
        self.replayer = replayer
        self.row = row
        self.question = replayer.questions[row]
        self.seed = seed
        self.turns = turns  # whether others may run where a search waits
        self.trees = list[_Tree]()
        self.roots = dict[str, tuple[_Tree, Thought]]()  # beside the first one, by role
        self.thoughts = list[Thought]()
        self.placed = 0
        self.lengths = Lengths()
        self.offer: Answer | None = None
        self.limited_by: str | None = None
        self.clock = 0.0  # seconds
        self.steps = 0
        self.spent = _FREE
        self.batch = list[_Draw]()  # whose time has not passed yet
        self.races = list[_Race]()

    def tree(self, role: str) -> _Tree:
        """The question put to a role."""
        player = self.replayer.players[role]
        samples = self.replayer.order(self.question, self.seed, player.samples)
        tree = _Tree(player, player.prompts[self.row], samples)
        self.trees.append(tree)
        return tree

    def lack(self, purse: _Purse, bill: _Bill) -> str | None:
        """What stands in the way of a request, None if nothing does."""
        return "seconds" if self.clock >= purse.deadline else purse.lack(bill)

    def pay(self, purse: _Purse, bill: _Bill) -> None:
        """Puts a request on the books."""
        tokens, flops, nanodollars, memory = self.spent
        self.spent = (tokens + bill[0], flops + bill[1], nanodollars + bill[2], memory + bill[3])
        purse.pay(bill)

    def take(self, draw: _Draw, tokens: int) -> None:
        """So many tokens of a sample are drawn, be that more than so far or less: pays, or gives back."""
        tree, player = draw.tree, draw.tree.player
        last = tree.prompt - 1
        if tokens:
            flops = player.flops(0 if draw.first else last, last + tokens, tokens)
            kept = player.kv * (tokens + (tree.prompt if draw.first else 1)) + player.state
        else:
            flops, kept = 0, player.state
            tree.computed = tree.computed and not draw.first
        bill, old = (tokens, flops, player.nanodollars(tokens), min(draw.most, kept)), draw.bill
        draw.drawn, draw.bill = tokens, bill
        self.pay(
            draw.purse,
            (bill[0] - old[0], bill[1] - old[1], bill[2] - old[2], bill[3] - old[3]),
        )

    def pass_time(self) -> None:
        """All that waits is drawn, side by side; what a deadline comes before is cut off."""
        batch, self.batch = self.batch, []
        for tree in dict.fromkeys(draw.tree for draw in batch):  # one model after the other
            draws = [draw for draw in batch if draw.tree is tree]
            self.clock += self.reach(draws, self.clock)
            self.steps += max(draw.drawn for draw in draws)

    def reach(self, draws: Sequence[_Draw], now: float) -> float:
        """Seconds from `now` until draws of one tree have ended; cuts them off at their deadlines."""
        tree, timing = draws[0].tree, draws[0].tree.player.recording.timing
        if timing is None:
            return 0.0
        known = tree.player.prompt_seconds(tree.prompt) if tree.read else 0.0
        tree.read = True
        seconds = _seconds(timing, [d.drawn for d in draws], tree.prompt, known)
        for deadline in sorted({draw.purse.deadline for draw in draws}):
            left = max(0.0, deadline - now)
            if seconds <= left:
                break
            lengths = [draw.drawn for draw in draws]
            reached = (
                timing.drawn_by(lengths, tree.prompt, left + known) if left else [0] * len(draws)
            )
            for draw, tokens in zip(draws, reached, strict=True):
                if draw.purse.deadline == deadline and tokens < draw.drawn:
                    draw.late = True
                    self.take(draw, tokens)
            lengths = [draw.drawn for draw in draws]
            begun = left or any(lengths)
            seconds = max(left, _seconds(timing, lengths, tree.prompt, known)) if begun else 0.0
        return seconds

    def reason(self, answer: Answer | None) -> str:
        """Why it ended."""
        if self.limited_by is not None:
            return self.limited_by
        return "length" if answer is not None and answer.thought.finish == "length" else "done"

    def anytime(self) -> Answer | None:
        """The best there is, where the strategy has none."""
        return anytime(Record(thoughts=self.thoughts, offer=self.offer))

    def end(self) -> None:
        """Whoever is still drawn is cut off."""
        for race in self.races:
            race.leave()


class _Race:
    """Draws that are seen as they end. Who leaves has drawn no more of the others than of the last that was seen."""

    def __init__(self, play: _Play, draws: Sequence[_Draw]) -> None:
        self._play, self._draws = play, draws
        self._began, self._at, self._left = play.clock, 0, not draws
        self._read = bool(draws) and draws[0].tree.read
        if draws:
            play.reach(draws, play.clock)
        play.races.append(self)

    def ended(self) -> Iterator[list[_Draw]]:
        """Those that end together, the shortest first."""
        ranked = sorted(self._draws, key=lambda draw: (draw.drawn, draw.number))
        for tokens, group in groupby(ranked, key=lambda draw: draw.drawn):
            self._at = tokens
            self._pass_time()
            yield list(group)

    def leave(self) -> None:
        """Ends the others; twice is once."""
        if self._left:
            return
        self._left = True
        for draw in self._draws:
            if draw.drawn > self._at:
                self._play.take(draw, self._at)
        self._play.steps += self._at

    def _pass_time(self) -> None:
        """Until the last of those that are seen has ended."""
        tree = self._draws[0].tree
        timing = tree.player.recording.timing
        if timing is not None:
            known = tree.player.prompt_seconds(tree.prompt) if self._read else 0.0
            lengths = [min(draw.drawn, self._at) for draw in self._draws]
            now = self._began + _seconds(timing, lengths, tree.prompt, known)
            late = any(draw.late and draw.drawn <= self._at for draw in self._draws)
            ends = [draw.purse.deadline for draw in self._draws] if late else []
            self._play.clock = max(self._play.clock, now, *ends)


def _seconds(timing: Timing, lengths: Sequence[int], prompt: int, known: float) -> float:
    """Seconds of a batch, less those of a prompt that was read before."""
    return max(0.0, timing.batch_seconds(lengths, prompt) - known)


def _prompt_seconds(timing: Timing | None, prompt: int) -> float:
    return 0.0 if timing is None else timing.batch_seconds((0,), prompt)


def _flops(spec: ModelSpec | None, start: int, stop: int, rows: int) -> int:
    return 0 if spec is None else forward_flops(spec, start, stop, rows)


def _nanodollars(usd_per_token: float | None, tokens: int) -> int:
    return Cost.of(usd=usd_per_token * tokens).nanodollars if usd_per_token else 0


def _said(answer: int) -> str | None:
    """What is read in the text of a sample."""
    return str(answer) if answer >= 0 else None


def _listed(values: Floats | None) -> list[list[float]] | None:
    return None if values is None else values.tolist()


def _in_order(role: str, pool: Pool, questions: Sequence[str]) -> Pool:
    """A pool with the rows of these questions; raises SettingError where it has not just these."""
    if pool.questions == tuple(questions):
        return pool
    rows = {question: row for row, question in enumerate(pool.questions)}
    missing = [question for question in questions if question not in rows]
    if missing:
        msg = f"the pool of {pool.model}, which plays {role!r}, lacks {len(missing)} questions, such as {missing[0]!r:.80}"
        raise SettingError(msg, hint="Record the same questions with every model.")
    return pool.part([rows[question] for question in questions])


def _not_recorded(what: str) -> NotRecorded:
    return NotRecorded(f"{what} was not recorded", hint=_HINT)


async def _answer(strategy: Strategy, search: Search, play: _Play) -> Answer | None:
    """The strategy's answer, or the best that was drawn where it ends with nothing."""
    try:
        result = await strategy.run(search.at_temperature(strategy.temperature))
    except NothingDrawn:
        return play.anytime()
    except BaseExceptionGroup as group:
        error: BaseException | None = group.split(NothingDrawn)[1]
        if error is None:
            return play.anytime()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None  # one strategy, one error
    if isinstance(result, Thought):
        return Answer(result)
    return result if isinstance(result, Answer) else play.anytime()


def _at_once(run: Coroutine[object, None, _T]) -> _T:
    """The result of a coroutine that waits for nothing."""
    try:
        run.send(None)
    except StopIteration as stop:
        result: _T = stop.value
        return result
    finally:
        run.close()
    raise AssertionError("a strategy waited for something else than its draws")


def _in_loop(run: Coroutine[object, None, _T]) -> _T:
    """The result of a coroutine that needs an event loop, of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            return runner.run(run)
    with ThreadPoolExecutor(1) as pool:  # a thread has one loop at a time
        return pool.submit(lambda: _in_loop(run)).result()
