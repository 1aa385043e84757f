"""Stream of search: one chain, told its length or not, with the answer at its end."""

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import SoS
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings

CHAIN = "try 1, wrong; try 2, right.\nAnswer: 2"


async def ask(strategy, backend, budget=None, **settings):
    account = Account(Budget.parse(budget) if budget else None)
    outcome = await run(
        strategy,
        backend,
        "q",
        question="q",
        account=account,
        settings=Settings(Sampling(), **settings),
    )
    assert outcome.spent.tokens == account.spent.tokens == backend.meter.new_tokens
    assert outcome.spent.flops == account.spent.flops == backend.meter.flops
    assert backend.branches == 0
    return outcome


async def test_one_chain_is_the_answer():
    """All of its tokens are sequential."""
    outcome = await ask(SoS(), ScriptedBackend([CHAIN]))
    assert (outcome.answer.thought.answer, outcome.answer.thought.text) == ("2", CHAIN)
    tokens = len(CHAIN) + 1
    assert outcome.answer.figures == {"sequential_tokens": tokens, "total_tokens": tokens}


async def test_the_model_is_told_its_token_budget_before_the_question():
    """In the paper's words; it is a condition and no cap."""
    heard = []

    def answers(text, _):
        heard.append(text)
        return CHAIN

    outcome = await ask(SoS(token_budget=1), ScriptedBackend(answers))
    assert heard == ["Token Budget: 1 q"]
    assert outcome.answer.thought.answer == "2"


async def test_a_chain_that_is_cut_off_has_no_answer():
    """What there is of it is returned, marked as cut off."""
    backend = ScriptedBackend([Line("Answer: 1 ", ends=False)])
    outcome = await ask(SoS(), backend, 25)
    thought = outcome.answer.thought
    assert (thought.answer, len(thought.text), outcome.stopped_by) == (None, 25, "tokens")


async def test_its_temperature_is_its_own():
    """With and without a condition."""
    for strategy, temperature in (
        (SoS(temperature=0.25), 0.25),
        (SoS(temperature=0.25, token_budget=512), 0.25),
        (SoS(token_budget=512), 1.0),
    ):
        backend = ScriptedBackend([CHAIN])
        await ask(strategy, backend)
        assert [task.asked[0].temperature for task in backend.draws] == [temperature]
