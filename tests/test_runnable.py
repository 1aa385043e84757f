"""StrategyRunnable: one strategy in LCEL, with a child run for every thought."""

import asyncio
import json

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

from langchain_pareto import (
    BestOfN,
    Budget,
    BudgetError,
    BudgetExceeded,
    Single,
    StrategyRunnable,
    Vote,
    run_budget,
)
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import SettingError

FOUR = Vote(n=4, adaptive=False)


def voting(*says: str, strategy=FOUR, **settings) -> StrategyRunnable:
    """A vote of four over what is said in turn."""
    backend = ScriptedBackend(says or ["Answer: 1", "Answer: 2", "Answer: 2", "?"])
    return StrategyRunnable(strategy, backend, **{"seed": 1} | settings)


def report(message: AIMessage) -> dict:
    """What the answer says of itself."""
    return message.response_metadata["pareto"]


def test_it_takes_what_a_chat_model_takes():
    """And returns an AIMessage whose metadata is plain JSON."""
    prompt = ChatPromptTemplate.from_template("{q}")
    for given in ("?", [HumanMessage("?")], [("human", "?")], prompt.invoke({"q": "?"})):
        message = voting().invoke(given)
        assert message.content == "Answer: 2"
        assert report(message)["answer"] == "2"
        assert json.dumps(message.response_metadata)


def test_it_is_a_link_of_a_chain():
    """Between a prompt and a parser, and beside others."""
    prompt = ChatPromptTemplate.from_template("{q}")
    chain = prompt | voting() | StrOutputParser()
    assert chain.invoke({"q": "?"}) == "Answer: 2"
    assert "".join(chain.stream({"q": "?"})) == "Answer: 2"
    both = RunnableParallel(vote=voting(), one=voting(strategy="single"))
    got = both.invoke("?")
    assert (got["vote"].content, got["one"].content) == ("Answer: 2", "Answer: 1")


def _thoughts(collector: RunCollectorCallbackHandler) -> list:
    [root] = collector.traced_runs
    [runnable] = [run for run in [root, *root.child_runs] if run.name == "VoteRunnable"]
    return [run for run in runnable.child_runs if run.name == "thought"]


@pytest.mark.parametrize("chained", [False, True])
def test_every_thought_is_a_child_run(chained):
    """With its number, its text and its answer, below the runnable's own run."""
    collector = RunCollectorCallbackHandler()
    runnable = RunnableLambda(str) | voting() if chained else voting()
    message = runnable.invoke("?", config={"callbacks": [collector]})
    runs = _thoughts(collector)
    assert [run.outputs["text"] for run in runs] == [n["text"] for n in report(message)["tree"]]
    assert [run.outputs["answer"] for run in runs] == ["1", "2", "2", None]
    assert sorted(run.inputs["id"] for run in runs) == [1, 2, 3, 4]
    assert all(run.end_time is not None and run.error is None for run in runs)


@pytest.mark.parametrize("chained", [False, True])
async def test_every_thought_is_a_child_run_async(chained):
    """All of them are there when the call returns."""
    collector = RunCollectorCallbackHandler()
    runnable = RunnableLambda(str) | voting() if chained else voting()
    await runnable.ainvoke("?", config={"callbacks": [collector]})
    runs = _thoughts(collector)
    assert sorted(run.inputs["id"] for run in runs) == [1, 2, 3, 4]
    assert all(run.end_time is not None for run in runs)


def test_a_broken_handler_does_not_break_the_call():
    """LangChain logs what handlers raise."""

    class Broken(BaseCallbackHandler):
        def on_chain_start(self, serialized, inputs, **kwargs):
            raise ValueError("x")

    assert voting().invoke("?", config={"callbacks": [Broken()]}).content == "Answer: 2"


def test_a_budget_comes_by_every_door():
    """Keyword, binding, config, constructor and run budget; the nearest comes first."""
    runnable = voting("x" * 50, strategy="single", budget=40)
    config = {"configurable": {"budget": 20}}

    def tokens(message: AIMessage) -> int:
        return report(message)["spent"]["tokens"]

    assert tokens(runnable.invoke("?")) == 40
    assert tokens(runnable.invoke("?", config)) == 20
    assert tokens(runnable.with_config(config).invoke("?")) == 20
    assert tokens((RunnableLambda(str) | runnable).invoke("?", config)) == 20
    assert tokens(runnable.bind(budget=10).invoke("?", config)) == 10
    assert tokens(runnable.invoke("?", config, budget=Budget(tokens=5))) == 5
    assert tokens(runnable.batch(["?"], config)[0]) == 20
    with run_budget("7 tokens") as account:
        assert tokens(runnable.invoke("?")) == 7
        with pytest.raises(BudgetExceeded):
            runnable.invoke("?")
    assert account.spent.tokens == 7


async def test_a_batch_of_which_nothing_may_run_is_refused():
    """By both doors: it would wait for ever."""
    config = {"max_concurrency": 0}
    with pytest.raises(SettingError, match="max_concurrency"):
        await asyncio.wait_for(voting().abatch(["?", "?"], config), 10)
    with pytest.raises(SettingError, match="max_concurrency"):
        voting().batch(["?", "?"], config)


def test_batch_gives_each_its_own_answer():
    """In order; a bad one fails alone."""
    runnable = voting(strategy=Single())
    got = runnable.batch(["a", [], "b"], return_exceptions=True)
    assert [type(one) for one in got] == [AIMessage, SettingError, AIMessage]


async def test_it_runs_in_a_running_loop_by_both_doors():
    """As in Jupyter."""
    assert voting().invoke("?").content == "Answer: 2"
    assert (await voting().ainvoke("?")).content == "Answer: 2"
    assert [m.content for m in await voting().abatch(["?", "?"])] == ["Answer: 2"] * 2


async def test_cancelling_ends_every_draw():
    """Nothing is left on the backend."""
    backend = ScriptedBackend(["x" * 500], delay=0.001)
    call = asyncio.create_task(StrategyRunnable(FOUR, backend).ainvoke("?"))
    async with asyncio.timeout(20):
        while len(backend.live) < 4:  # noqa: ASYNC110 - the backend has a thread and no event
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while backend.live or backend.branches:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("bad", [0, -1, "5 parsecs", {"token": 1}, 2.5, ""])
@pytest.mark.parametrize(
    "door",
    [
        lambda bad: voting().invoke("?", budget=bad),
        lambda bad: voting().invoke("?", {"configurable": {"budget": bad}}),
        lambda bad: voting(budget=bad),
    ],
    ids=["keyword", "config", "constructor"],
)
def test_a_bad_budget_is_named_at_every_door(bad, door):
    """A zero is a mistake, not an absent budget."""
    with pytest.raises(BudgetError):
        door(bad)


def test_mistakes_are_named():
    """At construction where they are made there, in the call otherwise."""
    for wrong in ({"temperature": -1}, {"foo": 1}, {"max_tokens": 0}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            voting(**wrong)
    with pytest.raises(SettingError, match="known strategies"):
        voting(strategy="nope")
    with pytest.raises(SettingError, match="foo"):
        voting().invoke("?", foo=1)
    with pytest.raises(SettingError):
        voting().invoke([])


def test_an_error_of_the_model_reaches_the_caller_and_the_trace():
    """As it is, and nothing stays behind."""
    collector = RunCollectorCallbackHandler()
    backend = ScriptedBackend([ValueError("broken")])
    with pytest.raises(ValueError, match="broken"):
        StrategyRunnable(FOUR, backend).invoke("?", {"callbacks": [collector]})
    [run] = collector.traced_runs
    assert "broken" in run.error
    assert (backend.live, backend.branches) == ([], 0)


def test_settings_reach_the_draws():
    """Sampling, stops and the scorer."""

    class Shortest:
        async def score(self, thoughts):
            return [-float(len(t.text)) for t in thoughts]

    runnable = voting(
        "aaa;x", "a;x", "aa;x", strategy=BestOfN(n=3), scorer=Shortest(), stop=(";",), top_k=7
    )
    assert runnable.invoke("?").content == "a"
    assert {draw.asked[0].top_k for draw in runnable.backend.draws} == {7}


def test_temperature_zero_keeps_a_vote_warm():
    """Four greedy samples would be one."""
    runnable = voting(temperature=0)
    runnable.invoke("?")
    assert {draw.asked[0].temperature for draw in runnable.backend.draws} == {0.8}
