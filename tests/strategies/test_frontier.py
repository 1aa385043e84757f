"""What step-level searches share: while there is no answer, no level takes more than half of what is left."""

import pytest

from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import (
    DVTS,
    MCTS,
    Beam,
    BestOfN,
    Rebase,
    TreeOfThought,
    Vote,
    WeightedVote,
)

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


@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: s.kind)
@pytest.mark.parametrize("around", [BestOfN, Vote, WeightedVote])
@pytest.mark.parametrize("tokens", [26, 52, 100, 200, 400])
async def test_searches_side_by_side_find_an_answer_wherever_one_does(ask, search, around, tokens):
    """They share half of what is left: eight that each took half of the same would leave no answer to any."""
    outcome = await ask(around(n=8, of=search), model(), tokens)
    assert outcome.answer.thought.answer == "7"
    assert outcome.spent.tokens <= tokens


async def test_with_room_for_them_all_searches_find_answers(ask):
    """Four paths of each of four are 416 tokens: of half as many each search has an answer, and none has all four."""
    outcome = await ask(BestOfN(n=4, of=Rebase(n=4)), model(), 208)
    assert len({id(t.path[0].parent) for t in outcome.thoughts if t.finished}) == 4


async def test_without_a_limit_searches_side_by_side_are_as_wide_as_alone(ask):
    """Each draws all first steps at once."""
    outcome = await ask(BestOfN(n=3, of=Rebase(n=4)), model())
    assert [t.text for t in outcome.thoughts[:12]] == [STEP] * 12
    assert outcome.stopped_by == "done"
