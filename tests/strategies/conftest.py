"""What tests of strategies share: a run after which the books are closed."""

import asyncio

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.ledger import Account
from langchain_pareto.strategies.run import Outcome, run
from langchain_pareto.strategies.settings import Role, Settings

PROMPT = "2+2?"  # 4 tokens


async def _ask(strategy, backend, budget=None, *, roles=None, seed=0, **settings) -> Outcome:
    """Runs a strategy on PROMPT; `roles` names the backends of other roles. Whatever happens, all is paid and nothing stays."""
    account = Account(Budget.parse(budget) if budget else None)
    roles = roles or {}
    players = {
        name: Role(one, Sampling(), lambda: list(map(ord, PROMPT)), one.tokenizer.encode_prompt)
        for name, one in roles.items()
    }
    try:
        outcome = await run(
            strategy,
            backend,
            PROMPT,
            question=PROMPT,
            account=account,
            settings=Settings(Sampling(), roles=players, **settings),
            seed=seed,
        )
        assert outcome.spent.tokens == account.spent.tokens
        assert outcome.spent.flops == account.spent.flops
        return outcome
    finally:
        backends = {id(one): one for one in (backend, *roles.values())}.values()
        assert account.reserved == Cost()
        assert account.spent.tokens == sum(one.meter.new_tokens for one in backends)
        assert account.spent.flops == sum(one.meter.flops for one in backends)
        assert account.spent.memory == 0
        assert [(one.branches, one.live) for one in backends] == [(0, [])] * len(backends)


async def _until(condition) -> None:
    """Lets everybody else run until `condition()`; ten seconds are a guard against hangs."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


@pytest.fixture
def ask():
    """`await ask(strategy, backend, budget, roles={"judge": backend}, ...)` is the outcome."""
    return _ask


@pytest.fixture
def until():
    """`await until(condition)` lets everybody else run until then."""
    return _until
