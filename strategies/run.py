"""
Runs one strategy under one account: admission, deadline, cancellation, and the anytime answer.

Knows no strategy in particular. Whenever the run ends, the answer is the strategy's own, else its last offer, else the leader of the
vote, else the best scored, else the first finished, else the longest partial text. It is always one sample that was really drawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from langchain_pareto.backends.base import Backend, Branch, Usage
from langchain_pareto.budget import Cost
from langchain_pareto.errors import BudgetExceeded
from langchain_pareto.ledger import Account
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.record import Record, finished
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Role, Settings
from langchain_pareto.strategies.thoughts import (
    POLICY,
    Answer,
    NothingDrawn,
    Thought,
    best_of,
    leader,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave, what it took, and why it ended.

    `answer` is None only if not a single token could be paid for. `stopped_by` is "done", or the resource that shrank, refused
    or cut off a draw. `seconds` is wall time from admission.
    """

    strategy: Strategy
    answer: Answer | None
    thoughts: tuple[Thought, ...]
    prompt_tokens: int
    spent: Cost
    seconds: float
    usage: Usage
    stopped_by: str
    cache_read: int  # tokens of the prompt that an earlier call had computed
    refused: Cost  # the draw that did not fit, if one did not


async def run(
    strategy: Strategy,
    backend: Backend,
    prompt: str | Sequence[int],
    *,
    question: str = "",
    account: Account | None = None,
    settings: Settings,
    seed: int = 0,
    on_thought: Callable[[Thought], None] | None = None,
) -> Outcome:
    """Runs `strategy` on `prompt`; everything it computes is on `account`, and nothing stays behind.

    Cancelling it cancels the engine's work within a step. Raises what the backend raises for a bad prompt, ScorerError, and
    BudgetExceeded when the account says `on_limit="error"`.
    """
    account = Account() if account is None else account
    began = time.monotonic()
    branch = backend.open(prompt, seed=seed)
    record = Record(branches=[branch], seed=seed, on_thought=on_thought)
    root = Thought(question, branch=branch)
    search = Search(backend, root, account, _with_policy(settings, backend, branch), record)
    answer: Answer | None = None
    try:
        await _admit(account)
        answer = await _answer(strategy, search, record, account)
        record.ended = True
        await _end_draws(record)
        stopped_by = _reason(answer, record)
        if stopped_by not in ("done", "length") and account.on_limit == "error":
            account.raise_if_exhausted(record.refused)
        return Outcome(
            strategy=strategy,
            answer=answer,
            thoughts=tuple(t for t in record.thoughts if t.finish is not None or t.given),
            prompt_tokens=len(branch.tokens),
            spent=_spent(record, settings),
            seconds=time.monotonic() - began,
            usage=sum((task.usage for task in record.tasks), Usage()),
            stopped_by=stopped_by,
            cache_read=max(0, len(branch.tokens) - 1 - record.prefix) if record.tasks else 0,
            refused=record.refused,
        )
    finally:
        record.ended = True
        try:
            await _end_draws(record)
        finally:
            _free(record, account, answer)


def _with_policy(settings: Settings, backend: Backend, branch: Branch) -> Settings:
    """The same with the policy among the roles, so that strategies can name it."""
    if POLICY in settings.roles:
        return settings
    render = backend.tokenizer.encode_prompt
    policy = Role(backend, settings.sampling, lambda: branch.tokens, render, settings.grammar)
    return replace(settings, roles={**settings.roles, POLICY: policy})


async def _answer(
    strategy: Strategy, search: Search, record: Record, account: Account
) -> Answer | None:
    """The strategy's answer; at the deadline, or when it ends with nothing, the best that was drawn."""
    run_ = asyncio.ensure_future(strategy.run(search.at_temperature(strategy.temperature)))
    try:
        done, _ = await asyncio.wait({run_}, timeout=account.room().seconds)
        if not done:
            record.limited_by = "seconds"
            await _let_end(run_, record)
    except asyncio.CancelledError:
        run_.cancel()
        await asyncio.gather(run_, return_exceptions=True)
        raise
    if not run_.done() or run_.cancelled():
        return anytime(record)
    try:
        result = run_.result()
    except NothingDrawn:
        return anytime(record)
    except BaseExceptionGroup as group:
        error = _first(group)
        if isinstance(error, NothingDrawn):
            return anytime(record)
        raise error from None  # one strategy, one error
    if isinstance(result, Thought):
        return Answer(result)
    return result if isinstance(result, Answer) else anytime(record)


def _free(record: Record, account: Account, answer: Answer | None) -> None:
    """Gives all branches back, what was chosen last: the next turn goes on there, and what is freed last stays cached longest."""
    chosen = answer.thought.branch if answer is not None else None
    for branch in sorted(record.branches, key=lambda branch: branch is chosen):
        branch.free()
    with record.lock:
        account.release(memory=record.held)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a tree of groups; that nothing could be drawn is only one if there is no other."""
    _, errors = group.split(NothingDrawn)
    error: BaseException = NothingDrawn() if errors is None else errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _end_draws(record: Record) -> None:
    """What the engine still does for this run ends within a step, and is on the bill; its errors are nobody's."""
    live = [task for task in record.tasks if not task.future.done()]
    for task in live:
        task.cancel()
    for task in live:
        with contextlib.suppress(Exception):
            await finished(task)


async def _let_end(run_: asyncio.Future[Answer], record: Record) -> None:
    """Past the deadline: the engine hands back what was drawn within a step; a strategy that does not end then is cancelled."""
    await _end_draws(record)
    await asyncio.wait({run_}, timeout=0.05)
    if not run_.done():
        run_.cancel()
        await asyncio.wait({run_})


def anytime(record: Record) -> Answer | None:
    """The best answer there is, whatever ended the run."""
    drawn = [t for t in record.thoughts if t.finish is not None and not t.aside]
    if record.offer is not None:
        return record.offer
    if not drawn:
        return None
    if any(t.answer is not None for t in drawn):
        return leader(drawn)
    finished_ = [t for t in drawn if t.finished]
    scored = [t for t in finished_ if t.score is not None]
    if scored:
        return Answer(best_of(scored))
    if finished_:
        return Answer(min(finished_, key=lambda t: t.number))
    return Answer(max(drawn, key=lambda t: (len(t.whole_text), -t.number)))


async def _admit(account: Account) -> None:
    """Pays for the call itself."""
    lease = await account.reserve(lambda _: Cost(calls=1), 1)
    if lease is None:
        account.raise_if_exhausted(Cost(calls=1))
        msg = "the budget has no room for another call"
        raise BudgetExceeded(msg, resource="calls", spent=0, limit=0)
    lease.commit(lease.cost)


def _reason(answer: Answer | None, record: Record) -> str:
    if record.limited_by is not None:
        return record.limited_by
    return "length" if answer is not None and answer.thought.finish == "length" else "done"


def _spent(record: Record, settings: Settings) -> Cost:
    drawn = [task.usage.new_tokens for task in record.tasks]
    usd = sum((Cost.of(usd=settings.usd_per_token * tokens) for tokens in drawn), Cost())
    flops = sum(task.usage.flops for task in record.tasks)
    return usd + Cost(tokens=sum(drawn), flops=flops, calls=1, memory=record.held)
