"""Runs that have no answer before their end: side by side they go in waves that what is left pays for."""

import asyncio

import pytest

from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import NumericalError
from langchain_pareto.strategies import BestOfN, Decompose, Refine, SpawnJoin, Vote, WeightedVote
from langchain_pareto.strategies.spawn_grammar import TaskList

TASKS = TaskList(spawn="[do]", end="[done]", found="{task}: {result}\n", joined="{results}[so]\n")
SPAWN = SpawnJoin(grammar=TASKS)
PARTS = Decompose(plan="plan {n}: {question}", solve="solve: {part}", join="{question}:\n{results}")
RUNS = [PARTS, SPAWN]
NEEDS = {"decompose": 73, "spawn_join": 31}  # tokens that one run takes when it has enough

runs = pytest.mark.parametrize("run", RUNS, ids=lambda strategy: strategy.kind)


def says(text: str, _: int) -> str:
    """A plan of two parts or a spawn of two tasks, their results, and the answer; a critic approves of it."""
    if "Find what is wrong" in text:
        return "CORRECT"
    if text.startswith("plan"):
        return "1. count apples\n2. count pears"
    if text.endswith("[do]"):
        return "a\nb[done]"
    if text.startswith("solve"):
        return "there are three"
    return (
        "Answer: 7" if text.endswith(("[so]\n", "\n\n")) else "see [do]" if text == "2+2?" else "A"
    )


def answered(outcome) -> int:
    """How many runs have found an answer with all that their parts found."""
    return len([t for t in outcome.thoughts if t.answer == "7"])


@runs
async def test_what_one_takes(ask, run):
    """The figures of these tests."""
    outcome = await ask(run, ScriptedBackend(says))
    assert (answered(outcome), outcome.spent.tokens) == (1, NEEDS[run.kind])


@runs
@pytest.mark.parametrize("around", [BestOfN, Vote, WeightedVote])
@pytest.mark.parametrize("n", [2, 8])
async def test_side_by_side_they_find_an_answer_wherever_one_does(ask, run, around, n):
    """The first goes by itself, and shows what one takes: eight that all began would leave no answer to any."""
    tokens = NEEDS[run.kind] * 3 // 2
    outcome = await ask(run, ScriptedBackend(says), tokens)
    assert answered(outcome) == 1
    outcome = await ask(around(n=n, of=run), ScriptedBackend(says), tokens)
    assert outcome.answer.thought.answer == "7"
    assert outcome.spent.tokens <= tokens


@runs
@pytest.mark.parametrize("n", [2, 5, 8])
async def test_with_room_for_them_all_each_finds_its_answer(ask, run, n):
    """To a quarter more than they take."""
    outcome = await ask(
        BestOfN(n=n, of=run), ScriptedBackend(says), NEEDS[run.kind] * (n * 4 + 1) // 4
    )
    assert answered(outcome) == n
    assert outcome.spent.tokens == n * NEEDS[run.kind]


@runs
@pytest.mark.parametrize("resource", ["flops", "usd"])
async def test_waves_are_of_every_resource(ask, run, resource):
    """Of FLOPs and of money there is too little for eight at once, too."""
    settings = {"usd_per_token": 1e-6}
    alone = await ask(run, ScriptedBackend(says), **settings)
    limit = {resource: getattr(alone.spent, resource) * 2}
    outcome = await ask(BestOfN(n=8, of=run), ScriptedBackend(says), limit, **settings)
    assert answered(outcome) >= 1
    assert outcome.answer.thought.answer == "7"


async def test_a_wave_is_as_wide_as_fits_at_one_and_a_half_times_what_the_dearest_took(ask):
    """After the first of 73 tokens 5 times as many are left: 3 begin together, and then 1, and 1."""
    outcome = await ask(BestOfN(n=6, of=PARTS), ScriptedBackend(says), 6 * NEEDS["decompose"] + 20)
    plans = "".join("p" if t.text.startswith("1.") else "." for t in outcome.thoughts)
    assert plans.split("p") == ["", "...", "", "", "." * 9, "...", "..."]


@runs
async def test_without_a_limit_all_begin_at_once(ask, until, run):
    """Nobody waits for what another takes."""
    backend = ScriptedBackend(says, manual=True)
    running = asyncio.create_task(ask(BestOfN(n=5, of=run), backend))
    await until(lambda: len(backend.draws) == 5)
    while not running.done():
        backend.step()
        await asyncio.sleep(0)
    assert answered(running.result()) == 5


@runs
async def test_none_is_cut_off_by_another_of_its_wave(ask, run):
    """One that never ends takes its share, and the other has its answer."""
    said = []

    def one_is_endless(text, i):
        line = says(text, i)
        said.append(line)
        endless = line == "Answer: 7" and said.count(line) == 2
        return Line("and so on ", ends=False) if endless else line

    outcome = await ask(BestOfN(n=3, of=run), ScriptedBackend(one_is_endless), NEEDS[run.kind] * 5)
    assert answered(outcome) == 2
    assert outcome.answer.thought.answer == "7"


@runs
@pytest.mark.parametrize(
    "around",
    [
        lambda run: BestOfN(n=2, of=Vote(n=4, adaptive=False, of=run)),
        lambda run: BestOfN(n=8, of=Refine(of=run)),
        lambda run: Vote(n=4, of=BestOfN(n=2, of=run)),
    ],
)
async def test_the_waves_are_those_of_the_whole_run(ask, run, around):
    """However deep they nest, what is left is that of all."""
    tokens = NEEDS[run.kind] * 3 // 2
    outcome = await ask(around(run), ScriptedBackend(says), tokens)
    assert outcome.answer.thought.answer == "7"
    outcome = await ask(around(run), ScriptedBackend(says), NEEDS[run.kind] * 40)
    assert answered(outcome) >= 3


@runs
@pytest.mark.parametrize("at", [1, 3, 6, 12, 20])
async def test_one_that_fails_ends_those_that_wait(ask, run, at):
    """With its own error, whatever wave it is in."""
    error, said = NumericalError("no"), []

    def fails(text, i):
        said.append(text)
        return error if len(said) == at else says(text, i)

    with pytest.raises(NumericalError) as caught:
        await ask(BestOfN(n=8, of=run), ScriptedBackend(fails), NEEDS[run.kind] * 6)
    assert caught.value is error


@runs
@pytest.mark.parametrize("at", [1, 3, 6, 12, 20])
async def test_cancelling_ends_those_that_wait(ask, run, at):
    """In any wave."""
    said = []

    def cancels(text, i):
        said.append(text)
        if len(said) == at:
            running.cancel()
        return says(text, i)

    running = asyncio.create_task(
        ask(BestOfN(n=8, of=run), ScriptedBackend(cancels), NEEDS[run.kind] * 6)
    )
    with pytest.raises(asyncio.CancelledError):
        await running
