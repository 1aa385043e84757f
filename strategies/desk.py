"""
Where one run's requests to one model are paid: reserved at their worst case, run, and committed at what they took.

Knows a backend, an account and the run's record; knows no strategy and no thought.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from langchain_pareto.backends.base import Backend, Branch, Request, Task
from langchain_pareto.budget import Cost
from langchain_pareto.ledger import Account, Lease, Price
from langchain_pareto.strategies.record import PaidTask, Record, finished


@dataclass(frozen=True, slots=True)
class Desk:
    """One model, and the account that pays for it."""

    backend: Backend
    account: Account
    record: Record
    usd_per_token: float = 0.0
    main: bool = False  # whether the prompt is the call's own

    def open(self, prompt: Sequence[int]) -> Branch:
        """A root of the run's."""
        branch = self.backend.open(prompt, seed=self.record.seed)
        self.record.branches.append(branch)
        return branch

    def fork(self, branch: Branch) -> Branch:
        """A child of the run's."""
        [child] = branch.fork(1)
        self.record.branches.append(child)
        return child

    def price(self, length: int, tokens: int, *, known: int) -> Cost:
        """The worst case of one draw of up to `tokens` tokens on a branch of `length`, of which the first `known` are paid for."""
        flops, memory = self.backend.estimate(Request(known, length - 1 - known, 1, tokens))
        return self.cost(tokens, flops, memory)

    def cost(self, tokens: int, flops: int, memory: int) -> Cost:
        """What a request takes from the account."""
        usd = Cost.of(usd=tokens * self.usd_per_token)
        return usd + Cost(tokens=tokens, flops=flops, memory=memory)

    async def prefill(self, branch: Branch, known: int = 0) -> bool:
        """Computes and pays for a shared prefix once, before many branches continue it; False where there is no room for it.

        The first `known` tokens are paid for.
        """
        pending = len(branch.tokens) - 1 - known
        if pending == 0:
            return False
        flops, memory = self.backend.estimate(Request(known, pending - 1, 1, 1))
        start = partial(self.backend.prefill, branch, deadline=self.account.deadline)
        paid = await self._read(start, self.cost(0, flops, memory))
        return paid is not None and bool(paid.future.result())

    async def judge(
        self, branch: Branch, known: int, tokens: Sequence[int]
    ) -> tuple[list[float], int] | None:
        """Raw log-probabilities of what might come next, and the bytes of cache that it left; None where there is no room for it, or no time.

        The first `known` tokens of the branch are paid for.
        """
        pending = len(branch.tokens) - known
        assert pending > 0
        flops, memory = self.backend.estimate(Request(known, pending - 1, 1, 1))
        start = partial(
            self.backend.score, branch, [[t] for t in tokens], deadline=self.account.deadline
        )
        paid = await self._read(start, self.cost(0, flops, memory))
        if paid is None or (found := paid.future.result()) is None:
            return None
        assert isinstance(found, list)
        return [logprob for [logprob] in found], paid.held

    async def lease(self, price: Price, most: int = 1, least: int = 1) -> Lease | None:
        """Room for a request of up to `most` tokens; None where not even `least` fit, or the run has ended."""
        lease = await self.account.reserve(price, most, least)
        if lease is None:
            self.note_limit(price(least))
        elif self.record.ended:
            lease.cancel()
            return None
        return lease

    def start(self, start: Callable[[], Task], lease: Lease, *, pending: int = 0) -> PaidTask:
        """Starts a request; whatever happens to us meanwhile, its lease is committed at what it took.

        `pending` tokens of the branch are its own to compute, however much is cached.
        """
        try:
            task = start()
        except BaseException:
            lease.cancel()
            raise
        paid, record, spec = PaidTask(task), self.record, self.backend.spec
        record.tasks.append(paid)

        def pay() -> None:
            used = task.usage
            memory = spec.kv_bytes_per_token * (used.prompt_tokens + used.new_tokens)
            memory = min(lease.cost.memory, memory + spec.state_bytes_per_sequence)
            with record.lock:
                memory = 0 if record.ended else memory
                paid.held = memory
                record.held += memory
                if self.main:
                    record.prefix += max(0, used.prompt_tokens - pending)
                lease.commit(self.cost(used.new_tokens, used.flops, memory))

        paid.settle(pay)
        return paid

    def note_limit(self, least: Cost) -> None:
        """What stood in the way of a request of this cost."""
        reason = self.account.stopped_by(least)
        if reason is not None:
            self.record.limited_by, self.record.refused = reason, least

    async def _read(self, start: Callable[[], Task], cost: Cost) -> PaidTask | None:
        """A request that draws nothing, done and paid; None where there is no room for it."""
        lease = await self.lease(lambda _: cost)
        if lease is None:
            return None
        paid = self.start(start, lease)
        await finished(paid)
        return paid
