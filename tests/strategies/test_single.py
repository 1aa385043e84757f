"""One sample, and n of one root."""

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies import BestOfN, Single
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings


async def test_one_sample_is_the_answer():
    """It is drawn once and returned, with or without an answer in it."""
    for text, answer in (("Answer: 1", "1"), ("prose", None)):
        backend = ScriptedBackend([text])
        outcome = await run(Single(), backend, "q", settings=Settings(Sampling()))
        assert len(backend.draws) == 1
        thought = outcome.answer.thought
        assert (thought.text, thought.answer, outcome.answer.share) == (text, answer, None)
        assert outcome.stopped_by == "done"


async def test_a_sample_that_is_cut_off_is_still_returned():
    """By the caller's own cap, as by a budget."""
    backend = ScriptedBackend([Line("ab", ends=False)])
    outcome = await run(Single(), backend, "q", settings=Settings(Sampling(), max_tokens=3))
    assert (outcome.answer.thought.text, outcome.stopped_by) == ("aba", "length")


async def test_stops_cut_the_text():
    """A stop string ends the sample, and is not part of its text."""
    backend = ScriptedBackend(["one; two"])
    outcome = await run(Single(), backend, "q", settings=Settings(Sampling(), stop=(";",)))
    assert (outcome.answer.thought.text, outcome.answer.thought.finish) == ("one", "stop")


async def test_many_samples_share_one_root():
    """`run_many` forks one root, computes the prompt once, and has its own temperature."""
    backend = ScriptedBackend(["a", "b"])
    outcome = await run(
        BestOfN(n=4, of=Single(temperature=0.3)), backend, "q" * 9, settings=Settings(Sampling())
    )
    assert {task.asked[0].temperature for task in backend.draws} == {0.3}
    assert outcome.usage.prompt_tokens == 8 + 4
    assert [t.text for t in outcome.thoughts] == ["a", "b", "a", "b"]
