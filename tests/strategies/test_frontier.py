"""What step-level searches share: while there is no answer, no level takes more than half of what is left."""

import pytest

from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import DVTS, MCTS, Beam, Rebase, TreeOfThought

STEP, ANSWER = "0123456\n", "Answer: 7"  # 8 tokens, and 10 with the end
SEARCHES = [Beam(), DVTS(), MCTS(), Rebase(), TreeOfThought()]


def model() -> ScriptedBackend:
    """Two steps, then the answer; a text that is drawn to its end in one piece says the rest at once."""

    def says(text: str, _: int) -> str:
        return (STEP * 2 + ANSWER)[len(text.removeprefix("2+2?")) :]

    return ScriptedBackend(says)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: s.kind)
@pytest.mark.parametrize("tokens", [26, 40, 60, 100, 200, 1000])
async def test_an_answer_is_found_wherever_one_can_be_paid_for(ask, search, tokens):
    """26 tokens are one path to its end; what a wider level would take is kept for it."""
    outcome = await ask(search, model(), tokens)
    assert outcome.answer.thought.answer == "7"
    assert outcome.answer.thought.whole_text == STEP * 2 + ANSWER
    assert outcome.spent.tokens <= tokens


async def test_the_first_step_shows_how_long_steps_are(ask):
    """Of 100 tokens one step of 8, then as many as half of the rest holds at one and a half times its length, the best first."""
    outcome = await ask(Rebase(n=16), model(), 100)
    first = [t for t in outcome.thoughts if t.parent.number == 0]
    assert len(first) == 1 + (100 - 8) // 12 // 2
    assert outcome.stopped_by == "tokens"


async def test_with_room_for_all_nothing_is_narrowed(ask):
    """A level is as wide as the strategy wants it."""
    outcome = await ask(Rebase(n=4), model(), 10_000)
    assert len([t for t in outcome.thoughts if t.parent.number == 0]) == 4
    assert outcome.stopped_by == "done"
