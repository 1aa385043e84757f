"""Scorers that do what nobody should, and those that mean well in another type."""

import asyncio
import sys
from types import ModuleType

import numpy as np
import pytest

from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.errors import ContextLengthError, ScorerError, SettingError
from langchain_pareto.strategies import BestOfN, Decompose, Knockout, Single
from langchain_pareto.strategies.thoughts import Thought
from langchain_pareto.strategies.verifier import Verifier


class Says:
    """A scorer that works with models, and says what it is told."""

    def __init__(self, scores) -> None:
        self.scores = scores

    async def score_in(self, search, thoughts):
        return self.scores(len(thoughts))


@pytest.mark.parametrize(
    "scores",
    [
        lambda n: None,
        lambda n: 5,
        lambda n: ["good"] * n,
        lambda n: [["good"]] * n,
        lambda n: [1j] * n,
        lambda n: [10**400] * n,
        lambda n: [float("nan")] * n,
        lambda n: [[0.5, float("nan")]] * n,
        lambda n: [0.5] * (n + 1),
    ],
)
async def test_what_is_no_score_is_a_scorers_error(ask, scores):
    """Whatever came instead, the hint says what a scorer returns."""
    backend = ScriptedBackend(["Answer: 4", "Answer: 5"])
    with pytest.raises(ScorerError) as caught:
        await ask(BestOfN(n=2), backend, scorer=Says(scores))
    assert "async def score" in caught.value.hint


@pytest.mark.parametrize(
    "scores", [lambda n: np.arange(n, dtype=np.float32), lambda n: map(float, range(n))]
)
async def test_a_score_is_any_number(ask, scores):
    """NumPy's and torch's scalars are numbers too."""
    backend = ScriptedBackend(["Answer: 4", "Answer: 5"])
    outcome = await ask(BestOfN(n=2), backend, scorer=Says(scores))
    assert (outcome.answer.thought.answer, outcome.answer.thought.score) == ("5", 1.0)


@pytest.mark.parametrize("times", [2, 4, 6, 8, 10, 12, 16])
async def test_a_plan_leaves_flops_for_the_answer(ask, times):
    """A plan whose prompt costs all that there is would leave a question without one, which could have been answered."""

    def says(text, i):
        return "1. one part\n2. another" if "numbered list" in text else "Answer: 4"

    alone = await ask(Single(), ScriptedBackend(says))
    outcome = await ask(Decompose(), ScriptedBackend(says), Budget(flops=times * alone.spent.flops))
    assert outcome.answer.thought.answer == "4"


def test_a_process_that_cannot_start_is_tried_once(monkeypatch):
    """Each try may run the user's script again, and take a minute."""
    module = ModuleType("only_here")
    exec("def check(question, answer): return True", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    verifier, tries = Verifier(module.check), list[object]()
    start = verifier._processes[0]._started
    monkeypatch.setattr(
        verifier._processes[0], "_started", lambda: tries.append(started := start()) or started
    )
    thoughts = [Thought("q?", answer=str(i)) for i in range(5)]
    with pytest.raises(SettingError, match="could not start") as caught:
        asyncio.run(verifier.score(thoughts))
    verifier.close()
    assert "only_here" in str(caught.value)
    assert len(tries) == 1


async def test_a_judge_whose_context_is_too_short_is_named(ask):
    """The prompt is not the user's: the error names the role, and what would help."""
    backend = ScriptedBackend(["Answer: 1", "Answer: 2"], context_length=60)
    with pytest.raises(ContextLengthError, match="what the role 'policy' is asked") as caught:
        await ask(Knockout(n=2), backend)
    assert "Give the role a model with a longer context" in str(caught.value.__notes__)
    assert backend.branches == 0
