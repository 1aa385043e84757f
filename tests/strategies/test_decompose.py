"""Decompose, solve, join: what each call is asked, and what comes back where one of them fails."""

import asyncio

import pytest

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import NumericalError
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import Decompose
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings

SOON = 10  # seconds; a guard against hangs
PLAN = "The parts:\n1. count apples\n 2) count {pears}  \nThat is all."
SHORT = Decompose(plan="plan {n}: {question}", solve="solve: {part}", join="{question}:\n{results}")
LINES = {
    "plan 4: q?": PLAN,
    "solve: count apples": "3 apples",
    "solve: count {pears}": "4 pears",
    "q?:\nPart 1: count apples\n3 apples\n\nPart 2: count {pears}\n4 pears\n\n": "Answer: 7",
    "q?": "Answer: alone",
}


async def ask(strategy, backend, budget=None, **settings):
    account = Account(Budget.parse(budget) if budget else None)
    try:
        outcome = await run(
            strategy,
            backend,
            "q?",
            question="q?",
            account=account,
            settings=Settings(Sampling(), **settings),
        )
    finally:
        assert account.reserved == Cost()
        assert account.spent.tokens == backend.meter.new_tokens
        assert account.spent.flops == backend.meter.flops
        assert (backend.branches, backend.live) == (0, [])
    if outcome.answer is not None and outcome.answer.figures:
        assert outcome.answer.figures["total_tokens"] == outcome.spent.tokens
    return outcome


def backend_of(lines, **options) -> ScriptedBackend:
    return ScriptedBackend(lambda text, _: lines[text], **options)


async def until(condition) -> None:
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


async def test_parts_are_solved_side_by_side_and_put_together_in_order():
    """Numbered lines of the plan are the parts; the last may end first."""
    backend = backend_of(LINES, manual=True)
    running = asyncio.create_task(ask(SHORT, backend))
    await until(lambda: backend.draws)
    backend.finish(0)
    await until(lambda: len(backend.draws) == 3)
    backend.finish(2)
    backend.finish(1)
    await until(lambda: len(backend.draws) == 4)
    backend.finish(3)
    outcome = await running
    assert outcome.answer.thought.answer == "7"
    chain = len(PLAN) + 1 + len("Answer: 7") + 1
    assert outcome.answer.figures == {
        "sequential_tokens": chain + len("3 apples") + 1,
        "total_tokens": chain + len("3 apples4 pears") + 2,
        "children": 2,
    }
    assert [t.aside for t in outcome.thoughts] == [True, True, True, False]


@pytest.mark.parametrize(
    "plan", ["1. The whole problem", "cannot be split", Line("1. a\n2. b\n", ends=False)]
)
async def test_where_there_is_nothing_to_split_the_question_is_answered(plan):
    """One part, none, or a plan that was cut off."""
    outcome = await ask(SHORT, backend_of({**LINES, "plan 4: q?": plan}), max_tokens=60)
    assert outcome.answer.thought.answer == "alone"
    assert outcome.answer.figures["children"] == 0


async def test_stops_and_lengths_of_the_call_are_its_answers():
    """A plan has several lines, and is longer than an answer may be."""
    whole = {**LINES, list(LINES)[3]: "Answer: 7\nand so on"}
    outcome = await ask(SHORT, backend_of(whole), stop=("\n",), max_tokens=11)
    assert outcome.answer.thought.text == "Answer: 7"
    assert outcome.answer.figures["children"] == 2


async def test_a_part_that_was_cut_off_is_left_out():
    """Unfinished work is not put together; without any the question is answered alone."""
    lines = {
        **LINES,
        "solve: count apples": Line("on and on ", ends=False),
        "q?:\nPart 2: count {pears}\n4 pears\n\n": "Answer: 4",
    }
    outcome = await ask(SHORT, backend_of(lines), max_tokens=70)
    assert outcome.answer.thought.answer == "4"
    lines["solve: count {pears}"] = Line("on and on ", ends=False)
    outcome = await ask(SHORT, backend_of(lines), max_tokens=70)
    assert outcome.answer.thought.answer == "alone"


async def test_no_more_parts_than_asked_for():
    """What the plan lists beyond them is left out."""
    lines = {
        "plan 2: q?": "1. a\n2. b\n3. c",
        "solve: a": "A",
        "solve: b": "B",
        "q?:\nPart 1: a\nA\n\nPart 2: b\nB\n\n": "Answer: 2",
    }
    outcome = await ask(SHORT.model_copy(update={"parts": 2}), backend_of(lines))
    assert outcome.answer.thought.answer == "2"


@pytest.mark.parametrize("budget", [*range(2, 120, 3), "3 Mflops", "1 Mflops", "3000 B"])
async def test_a_budget_leaves_something_for_the_answer(budget):
    """Plan and parts take their shares, so that there is one, cut off or whole; no part is taken for it."""

    def answers(text, _):
        return LINES.get(text, "Answer: some")

    outcome = await ask(SHORT, ScriptedBackend(answers), budget)
    if outcome.answer is not None:
        assert not outcome.answer.thought.aside
    assert isinstance(budget, str) or outcome.answer is not None


async def test_plan_and_parts_hold_no_memory_for_the_answer():
    """Nothing goes on where they end: what the longest of the four calls takes is enough for all."""
    lines = {
        "plan 4: q?": PLAN + "\n" * 100,
        "solve: count apples": "3 apples" + " " * 100,
        "solve: count {pears}": "4 pears" + " " * 100,
        list(LINES)[3]: "Answer: 7",
    }
    whole = len("plan 4: q?" + lines["plan 4: q?"]) + 2
    budget = {"memory": 2 * 16 * whole}  # parts are side by side
    outcome = await ask(SHORT, backend_of(lines), budget)
    assert outcome.answer.thought.answer == "7"
    assert outcome.stopped_by == "done"


async def test_a_part_that_fails_fails_the_strategy():
    """With its own error."""
    error = NumericalError("no")
    with pytest.raises(NumericalError) as caught:
        await ask(SHORT, backend_of({**LINES, "solve: count apples": error}))
    assert caught.value is error


async def test_the_default_prompts_say_what_is_asked():
    """The question is in each of the four calls, and the parts' results in the last."""
    heard = []

    def answers(text, i):
        heard.append(text)
        return "1. one thing\n2. another" if len(heard) == 1 else f"Answer: {len(heard)}"

    outcome = await ask(Decompose(), ScriptedBackend(answers))
    assert len(heard) == 4
    assert all("q?" in text for text in heard)
    assert "one thing" in heard[1]
    assert "another" in heard[2]
    assert "Part 2: another\nAnswer: 3" in heard[3]
    assert outcome.answer.thought.answer == "4"
