"""Random budgets: nothing is overrun, what is reported is what the engine counted, and nothing stays behind."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest

from langchain_pareto import BestOfN, BudgetExceeded, ChatPareto, Single, Vote, run_budget
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend

GUARD = 20.0  # seconds that nothing here may take


@cache
def nano() -> LocalBackend:
    """The bundled model, loaded once for all tests of this file."""
    return load(self_check=False)


def at_rest() -> None:
    """Nothing runs and nobody holds a slot."""
    end, pool = time.monotonic() + GUARD, nano().runner.pool
    while nano().engine.live or pool.free + pool.cached < pool.capacity:
        assert time.monotonic() < end, "something is still held"
        time.sleep(0.001)


def strategy(draw: random.Random) -> object:
    """Any of them, small."""
    n = draw.randint(1, 6)
    return draw.choice(
        [
            "auto",
            Single(),
            Vote(n=n, adaptive=draw.random() < 0.5, wave=draw.randint(1, 3)),
            BestOfN(n=n),
            BestOfN(n=n, threshold=-1.0, wave=draw.choice([None, 1, 2])),
            Vote(n=2, of=BestOfN(n=2)),
            BestOfN(n=2, of=Vote(n=2, of=Single(temperature=0.3))),
        ]
    )


def budget(draw: random.Random) -> dict[str, float]:
    """Any of tokens, flops and seconds, often all of them, often hopeless."""
    limits = {
        "tokens": draw.choice([1, 2, draw.randint(1, 60), 10**12]),
        "flops": int(10 ** draw.uniform(6, 9)),
        "seconds": 10 ** draw.uniform(-4, 0),
    }
    names = draw.sample(sorted(limits), draw.randint(1, 3))
    return {name: limits[name] for name in names}


@pytest.mark.parametrize("part", range(6))
def test_no_budget_is_overrun_and_every_report_is_the_engines(part):
    """50 calls one after another, each with a question, a strategy and a budget of its own."""
    draw, engine = random.Random(part), nano().engine
    llm = ChatPareto(backend=nano(), temperature=1.0)
    answered = 0
    for number in range(50):
        limits = budget(draw)
        meter = engine.meter.new_tokens, engine.meter.flops
        asked = f"Use {draw.randint(1, 20)} {draw.randint(1, 20)} 7 to make {number}."
        with run_budget({"tokens": 10**9}) as account:
            try:
                message = llm.invoke(
                    asked,
                    budget={**limits, "on_limit": draw.choice(["best", "best", "error"])},
                    strategy=strategy(draw),
                    max_tokens=draw.choice([draw.randint(1, 16), 64]),
                    seed=number,
                )
            except BudgetExceeded:
                message = None
        at_rest()
        tokens, flops = engine.meter.new_tokens - meter[0], engine.meter.flops - meter[1]
        assert tokens <= limits.get("tokens", tokens)
        assert flops <= limits.get("flops", flops)
        assert (account.spent.tokens, account.spent.flops) == (tokens, flops)
        assert (account.reserved.tokens, account.spent.memory) == (0, 0)
        if message is not None:
            answered += 1
            spent = message.response_metadata["pareto"]["spent"]
            assert (spent["tokens"], spent["flops"]) == (tokens, flops)
            assert message.usage_metadata["output_tokens"] == tokens
    assert 0 < answered < 50  # how many depends on the machine: some budgets are seconds


def test_concurrent_calls_share_one_budget_without_overrun_or_deadlock():
    """Eight calls, a run budget of three worst cases: all answer, because refunds flow back."""
    llm = ChatPareto(backend=nano(), seed=1, strategy="single", stop=["="], max_tokens=60)
    prompts = [f"Use 11 {a} 3 to make 74." for a in range(1, 9)]
    meter = nano().engine.meter.new_tokens
    with run_budget("180 tokens") as account:
        answers = llm.batch(prompts)
    at_rest()
    assert all(a.response_metadata["finish_reason"] == "stop" for a in answers)
    assert account.spent.tokens == nano().engine.meter.new_tokens - meter <= 180


def test_concurrent_calls_that_want_more_than_there_is_end():
    """Whoever finds nothing left is told; the sum is never overrun."""
    llm = ChatPareto(backend=nano(), strategy="vote", max_tokens=30, temperature=1.0)
    meter = nano().engine.meter.new_tokens

    def ask(number: int) -> str:
        try:
            return llm.invoke(f"Use 11 {number} 3 to make 74.", seed=number).type
        except BudgetExceeded:
            return "refused"

    with run_budget("150 tokens") as account:
        copies = [_in_context(ask, number) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            kinds = set(pool.map(lambda run: run(), copies))
    at_rest()
    assert "ai" in kinds
    assert account.spent.tokens == nano().engine.meter.new_tokens - meter <= 150
    assert account.reserved.tokens == 0


def _in_context(function, *args):
    from contextvars import copy_context

    context = copy_context()
    return lambda: context.run(function, *args)
