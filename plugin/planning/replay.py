"""
Strategies over recorded answers, fast: their own coroutines, with a search that draws from a pool and a clock that is computed.

Does what `run` does with whole answers to one question, without an engine: the same draws, prices and reasons. A real run over
RecordedBackends is what it is tested against. Draws that are asked for at one time run side by side, as one batch. Knows strategies
and event loops; knows neither how a draw is sized nor what it costs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType
from typing import TypeVar

from langchain_pareto.backends.base import Sampling
from langchain_pareto.budget import Budget, Limits
from langchain_pareto.errors import SettingError
from langchain_pareto.planning.allowance import Allowance
from langchain_pareto.planning.play import Play
from langchain_pareto.planning.players import Cast
from langchain_pareto.planning.pool import NO_ANSWER
from langchain_pareto.planning.recording import RecordedScores, Recording
from langchain_pareto.planning.replay_search import ReplaySearch
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
from langchain_pareto.strategies.scorers import MeanLogprob, RunScorer, Scorer
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import POLICY, Answer, NothingDrawn, Thought

_T = TypeVar("_T")
_PLAIN = (Single, Auto, Vote, BestOfN, WeightedVote, Cascade, FirstFinish)  # wait for draws alone


@dataclass(frozen=True, slots=True)
class Played:
    """What a run would have given, and what it would have taken.

    `answer` is a class of the pool's, NO_ANSWER where the sample was cut off or says nothing, which is wrong. `sample` is its place in the
    pool of `role`, None where not a token was drawn. `steps` are decode steps one after the other. `stopped_by` is as in Outcome. `free` says
    that no limit had a say in it: with larger ones it is the same.
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
    free: bool


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
        self.cast = Cast(recordings)
        self.questions = self.cast.questions
        scores = RecordedScores({role: r.pool for role, r in recordings.items()})
        self.settings = Settings(
            Sampling() if sampling is None else sampling,
            max_tokens=max_tokens,
            scorer=scores if scorer is None else scorer,
        )
        self._limits = lru_cache(maxsize=64)(self._checked)  # a measurement goes round its budgets

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
        play = Play(self.cast, self.settings.sampling, question, seed, turns=not plain)
        root = Thought(self.questions[question])
        search = ReplaySearch(play, play.tree(POLICY), root, self._allowance(budget), self.settings)
        run = _answer(strategy, search, play)
        answer = _at_once(run) if plain else _in_loop(run)
        play.end()
        return self._played(play, answer)

    def _is_plain(self, strategy: Strategy) -> bool:
        """Whether a strategy waits for its own draws alone, so that it needs no event loop."""
        nested, scorer = type(getattr(strategy, "of", None)), type(self.settings.scorer)
        named = type(strategy) in _PLAIN and nested in (NoneType, Single)
        return named and scorer in (RecordedScores, MeanLogprob)

    def _allowance(self, budget: Budget | None) -> Allowance:
        if budget is None:
            return Allowance(Limits(), math.inf)
        deadline = math.inf if budget.seconds is None else budget.seconds
        return Allowance(self._limits(budget), deadline)

    def _checked(self, budget: Budget) -> Limits:
        self.cast.check(budget)
        return budget.limits()

    def _played(self, play: Play, answer: Answer | None) -> Played:
        thought = None if answer is None else answer.thought
        player = self.cast.players[POLICY if thought is None else thought.role]
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
            free=not play.bound and play.limited_by is None,
        )


async def _answer(strategy: Strategy, search: Search, play: Play) -> Answer | None:
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
