"""
Search: all that a strategy may do, and the tree of thoughts that it leaves behind.

Knows branches, money and answers; knows no device, no LangChain and no particular strategy. Every draw is reserved at its worst case,
run, committed at what it took and refunded; it waits only for others' open leases, and is shrunk or refused only against what is
spent. Every finished sample is offered by itself, so whenever the run ends there is an answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from langchain_pareto.backends.base import Backend, Branch, Extension, Request, Sampling, Stop, Task
from langchain_pareto.budget import Cost, Limits
from langchain_pareto.errors import ParetoError, ScorerError, SettingError
from langchain_pareto.ledger import Account, Lease, Room
from langchain_pareto.strategies.answers import AnswerFormat
from langchain_pareto.strategies.record import Bill, Record, finished
from langchain_pareto.strategies.scorers import MeanLogprob, Scorer
from langchain_pareto.strategies.thoughts import Answer, NothingDrawn, Thought, best_of

if TYPE_CHECKING:
    from langchain_pareto.strategies.base import Strategy

_WIDEST = 256  # draws side by side: beyond, setting them up takes longer than a step

ANSWER: Literal["answer"] = "answer"
STEP: Literal["step"] = "step"
Until = Literal["answer", "step"] | int


@dataclass(frozen=True, slots=True)
class Settings:
    """How this call draws and reads answers."""

    sampling: Sampling
    max_tokens: int | None = None  # per sample
    stop: tuple[str, ...] = ()
    step: tuple[str, ...] = ("\n",)
    answers: AnswerFormat = field(default_factory=AnswerFormat)
    scorer: Scorer = field(default_factory=MeanLogprob)
    usd_per_token: float = 0.0
    on_text: Callable[[str], None] | None = None  # of the first sample only: a stream


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
    ) -> None:
        self.root = root
        self.settings = settings
        self._backend = backend
        self._account = account
        self._record = record
        self._nested = nested  # one of several: its offers are not the run's

    @property
    def room(self) -> Room:
        """What is left of the budget, at the tightest level."""
        return self._account.room()

    @property
    def limited(self) -> bool:
        """Whether any resource that a draw takes has a limit."""
        return replace(self.room.unspent, calls=None) != Limits()

    @property
    def has_deadline(self) -> bool:
        """Whether there is a deadline."""
        return self._account.deadline is not None

    async def sample(self, thought: Thought, n: int = 1, until: Until = ANSWER) -> list[Thought]:
        """Up to `n` continuations of `thought`, in order of drawing; fewer when no more can be paid for."""
        drawn = [t async for t in self.samples(thought, n, until)]
        return sorted(drawn, key=lambda t: t.number)

    async def samples(
        self, thought: Thought, n: int, until: Until = ANSWER
    ) -> AsyncIterator[Thought]:
        """Up to `n` continuations, each as it finishes; leaving early cancels the rest.

        They are drawn in waves: as many side by side as the room holds at their likely length, at least one (wide waves on a
        tight budget only cut each other off). A wave starts when the one before it has ended, so what is drawn
        does not depend on which of its samples ended first.
        """
        if isinstance(until, int) and until < 1:
            msg = f"a draw takes at least 1 token, got until={until}"
            raise SettingError(msg)
        if n > 1 and not thought.computed:
            await self._prefill(thought)
        started, refused = 0, False
        while started < n and not refused:
            width = min(self._width(thought, n), n - started, _WIDEST)
            started += width
            tokens = self.room.unspent.tokens
            share = 0 if tokens is None else tokens // width  # no draw need be shorter than this
            draws = [self._draw(thought, until, self._number(), share) for _ in range(width)]
            flying = {asyncio.create_task(draw) for draw in draws}
            try:
                while flying:
                    done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                    if errors := [e for task in done if (e := task.exception()) is not None]:
                        raise errors[0]
                    results = [task.result() for task in done]
                    refused = refused or None in results
                    for drawn in sorted(filter(None, results), key=lambda t: t.number):
                        yield drawn
            finally:
                for task in flying:
                    task.cancel()
                if flying:
                    await asyncio.gather(*flying, return_exceptions=True)

    async def score(self, thoughts: Sequence[Thought]) -> None:
        """Scores what is not scored yet, by this run's scorer; raises ScorerError."""
        new = [t for t in thoughts if t.score is None and t.finished]
        if new:
            for thought, value in zip(new, await self._scores(new), strict=True):
                thought.score = value

    async def run(self, strategy: Strategy, n: int = 1) -> list[Thought]:
        """The answers of `n` independent runs of `strategy`, each with its own keys and a child account."""
        return await strategy.run_many(self, n)

    def child(self) -> Search:
        """A search of its own from the same root: other keys, and a child account whose unspent money flows back."""
        branch = self._fork(self.root)
        root = replace(self.root, branch=branch)
        account = self._account.child()
        return Search(self._backend, root, account, self.settings, self._record, nested=True)

    def at_temperature(self, temperature: float | None) -> Search:
        """The same search with another sampling temperature, None for the same."""
        if temperature is None or temperature == self.settings.sampling.temperature:
            return self
        settings = replace(
            self.settings, sampling=replace(self.settings.sampling, temperature=temperature)
        )
        return Search(
            self._backend, self.root, self._account, settings, self._record, nested=self._nested
        )

    def offer(self, answer: Answer | Thought) -> None:
        """Publishes an improvement: what is returned if the run ends now."""
        if self._nested:
            return
        self._record.offer = answer if isinstance(answer, Answer) else Answer(answer)

    def best(self, thoughts: Sequence[Thought]) -> Answer:
        """The best scored thought; ties by mean log-probability, then first drawn."""
        if not thoughts:
            raise NothingDrawn
        return Answer(best_of(thoughts))

    async def _scores(self, thoughts: Sequence[Thought]) -> list[float]:
        """What the scorer says, once that is one number a thought."""
        try:
            scores = [float(score) for score in await self.settings.scorer.score(thoughts)]
        except ParetoError:
            raise
        except Exception as error:
            msg = f"the scorer failed: {type(error).__name__}: {error}"
            raise ScorerError(msg) from error
        if len(scores) != len(thoughts) or any(map(math.isnan, scores)):
            msg = f"expected {len(thoughts)} scores, got {len(scores)}: {scores!r:.80}"
            raise ScorerError(msg)
        return scores

    # --- one draw

    def _number(self) -> int:
        # its place, filled when it finishes
        self._record.thoughts.append(Thought(self.root.question))
        return len(self._record.thoughts)

    def _fork(self, thought: Thought) -> Branch:
        assert thought.branch is not None, "a thought that can be continued has a branch"
        [branch] = thought.branch.fork(1)
        self._record.branches.append(branch)
        return branch

    def _price(self, thought: Thought, tokens: int) -> Cost:
        """The worst case of one draw of up to `tokens` tokens."""
        assert thought.branch is not None
        known = len(thought.branch.tokens) - 1
        context, prefill = (known, 0) if thought.computed else (0, known)
        flops, memory = self._backend.estimate(Request(context, prefill, 1, tokens))
        return self._cost(tokens, flops, memory)

    def _cost(self, tokens: int, flops: int, memory: int) -> Cost:
        usd = Cost.of(usd=tokens * self.settings.usd_per_token)
        return usd + Cost(tokens=tokens, flops=flops, memory=memory)

    def _cap(self, thought: Thought) -> int:
        """The most tokens that a draw may take by the model and the caller."""
        assert thought.branch is not None
        room = self._backend.capabilities.context_length - len(thought.branch.tokens)
        return max(
            1, room if self.settings.max_tokens is None else min(room, self.settings.max_tokens)
        )

    def _width(self, thought: Thought, n: int) -> int:
        """How many draws may run side by side."""
        if not self.limited:
            return n
        unspent = self.room.unspent
        q95 = self._record.lengths.q95
        if q95 is None:
            cap = self._cap(thought)
            return n if _times(unspent, self._price(thought, cap)) >= n else 1
        return min(n, max(1, _times(unspent, self._price(thought, min(q95, self._cap(thought))))))

    async def _draw(
        self, thought: Thought, until: Until, number: int, share: int
    ) -> Thought | None:
        """Reserve, run, commit; None when nothing fits."""
        branch = self._fork(thought)
        cap = self._cap(thought)
        wanted = cap if not isinstance(until, int) else min(cap, until)
        lengths = self._record.lengths
        if until == ANSWER and self.limited and lengths.q95 is not None:
            wanted = min(wanted, max(share, lengths.q95))
        least = min(wanted, lengths.q25) if until == ANSWER else 1
        price = partial(self._price, thought)
        lease = await self._account.reserve(price, wanted, least)
        if lease is None:
            self._note_limit(price(least))
            branch.free()
            return None
        if self._record.ended:
            lease.cancel()
            return None
        settings = self.settings
        strings = (
            settings.stop
            if until == ANSWER
            else settings.stop + settings.step
            if until == STEP
            else ()
        )
        stop = Stop(lease.amount, strings, keep=until != ANSWER)
        start = partial(
            self._backend.extend,
            branch,
            settings.sampling,
            stop,
            stats=True,
            deadline=self._account.deadline,
            on_text=settings.on_text if number == 1 else None,
        )
        extension = await self._settle(start, lease, pending=1)
        assert isinstance(extension, Extension)
        if extension.finish == "deadline":
            self._record.limited_by = "seconds"
        elif extension.finish == "length" and lease.amount < cap and until == ANSWER:
            lengths.cut += lease.amount
            self._note_limit(price(cap))
        return self._note(thought, branch, extension, until, number)

    def _note(
        self, parent: Thought, branch: Branch, extension: Extension, until: Until, number: int
    ) -> Thought:
        """Writes one draw into the tree."""
        logprobs, drawn = extension.logprobs, self._record.thoughts[number - 1]
        drawn.parent = parent
        drawn.text = extension.text
        drawn.tokens = extension.tokens
        drawn.finish = extension.finish
        drawn.mean_logprob = sum(logprobs) / len(logprobs) if logprobs else None
        drawn.usage = extension.usage
        drawn.number = number
        drawn.branch = branch
        drawn.computed = True
        parent.computed = True
        if (drawn.finished and until != STEP) or extension.finish == "eos":
            drawn.answer = self.settings.answers.extract("".join(t.text for t in drawn.path))
            self._record.lengths.add(sum(len(t.tokens) for t in drawn.path))
        if self._record.on_thought is not None:
            self._record.on_thought(drawn)
        return drawn

    async def _prefill(self, thought: Thought) -> None:
        """Computes and pays for a shared prefix once, before many branches continue it."""
        assert thought.branch is not None
        known = len(thought.branch.tokens) - 1
        if known == 0:
            return
        flops, memory = self._backend.estimate(Request(0, known - 1, 1, 1))
        cost = self._cost(0, flops, memory)
        lease = await self._account.reserve(lambda _: cost, 1)
        if lease is None:
            return  # the draws will be refused in turn, and say why
        if self._record.ended:
            lease.cancel()
            return
        start = partial(self._backend.prefill, thought.branch, deadline=self._account.deadline)
        if await self._settle(start, lease):
            thought.computed = True

    async def _settle(self, start: Callable[[], Task], lease: Lease, *, pending: int = 0) -> object:
        """Starts a request and waits for it; whatever happens to us meanwhile, its lease is committed at what it took.

        `pending` tokens of the branch are its own to compute, however much is cached.
        """
        try:
            task = start()
        except BaseException:
            lease.cancel()
            raise
        bill, record = Bill(task), self._record
        record.tasks.append(bill)

        def pay() -> None:
            used, spec = task.usage, self._backend.spec
            memory = spec.kv_bytes_per_token * (used.prompt_tokens + used.new_tokens)
            memory = min(lease.cost.memory, memory + spec.state_bytes_per_sequence)
            with record.lock:
                memory = 0 if record.ended else memory
                record.held += memory
                record.prefix += max(0, used.prompt_tokens - pending)
                lease.commit(self._cost(used.new_tokens, used.flops, memory))

        bill.settle(pay)
        return await finished(bill)

    def _note_limit(self, least: Cost) -> None:
        reason = self._account.stopped_by(least)
        if reason is not None:
            self._record.limited_by, self._record.refused = reason, least


def _times(limits: Limits, cost: Cost) -> int:
    """How many times `cost` fits into `limits`."""
    if not limits.hold(cost):
        return 0
    most = 1
    while most < 1 << 16 and limits.hold(_multiple(cost, 2 * most)):
        most *= 2
    step = most
    while step > 1:
        step //= 2
        if limits.hold(_multiple(cost, most + step)):
            most += step
    return most


def _multiple(cost: Cost, n: int) -> Cost:
    return Cost(
        tokens=cost.tokens * n,
        flops=cost.flops * n,
        nanojoules=cost.nanojoules * n,
        nanodollars=cost.nanodollars * n,
        calls=cost.calls * n,
        memory=cost.memory * n,
    )
