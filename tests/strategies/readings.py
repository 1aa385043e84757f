"""What scorers on other models keep of branches that several runs share."""

from langchain_pareto.strategies.thoughts import Answer
from langchain_pareto.strategies.until import STEP


async def drawn_by_one_and_read_by_another(search) -> Answer:
    """Two runs draw the same step, one of them has it scored, and both drop it: all memory is back on the account that paid."""
    one, two = search.child(), search.child()
    [first] = await one.sample(one.root, until=STEP)
    [again] = await two.sample(two.root, until=STEP)
    drawn = search.room.unspent.memory
    await two.score([again])
    assert search.room.unspent.memory < drawn
    held = first.memory + again.memory
    one.drop([first])
    two.drop([again])
    assert search.room.unspent.memory == drawn + held
    return Answer(first)
