"""Agents of langchain keep their budgets, whatever fails, and their last answer arrives."""

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from hypothesis import given, strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from langchain_pareto import Budget, BudgetExceeded, BudgetMiddleware, ChatPareto, run_budget
from langchain_pareto.agents.run_record import add_up
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import BudgetError, SettingError

CALL = "CALL"  # a line of one of ours that begins so is a tool call
LAST = "no longer available"  # said to the model when its last answer is due
NOTE = "Note on your budget"
DONE = "done it is"
AT_ONCE = {"initial_delay": 0.0, "backoff_factor": 0.0, "jitter": False}


@tool
def look() -> str:
    """Looks."""
    return "seen"


def ask(name: str = "look", id_: str = "1") -> dict:
    return {"name": name, "args": {}, "id": id_, "type": "tool_call"}


class Ours(ChatPareto):
    """ChatPareto with lines for tool calls: `bind_tools` only notes what it was told."""

    lost: object = None  # says whether an answer gets lost after it was drawn
    told: list = []  # noqa: RUF012 - pydantic copies it
    tool: str = "look"

    def bind_tools(self, tools, *, tool_choice=None, **settings):
        self.told.append(([t.name for t in tools], tool_choice, settings))
        return self.bind(**settings)

    def _read(self, result):
        message = result.generations[0].message
        if self.lost is not None and self.lost():
            raise ConnectionError("lost")
        if message.text.startswith(CALL) and message.response_metadata["finish_reason"] == "stop":
            message.tool_calls = [ask(self.tool, f"{id(message)}")]
        return result

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return self._read(super()._generate(messages, stop, None, **kwargs))

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        return self._read(await super()._agenerate(messages, stop, None, **kwargs))


def ours(answers, **fields) -> Ours:
    """One of ours that says what it is told."""
    return Ours(**{"backend": ScriptedBackend(answers), "strategy": "single", "told": []} | fields)


def worker(line: str = f"{CALL} now", **fields) -> Ours:
    """Calls a tool until it is told to end."""
    return ours(lambda text, i: DONE if LAST in text else line, **fields)


class Foreign(BaseChatModel):
    """A model of somebody else; `say(messages)` gives its messages, and `max_tokens` is what it may draw."""

    say: object
    max_tokens: int | None = None
    seen: list = []  # noqa: RUF012
    tokens: int = 0

    @property
    def _llm_type(self) -> str:
        return "foreign"

    def bind_tools(self, tools, *, tool_choice=None, **settings):
        return self.bind(tools=[t.name for t in tools], tool_choice=tool_choice, **settings)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append((messages, kwargs))
        message = self.say(messages)
        if message.usage_metadata is not None:
            self.tokens += message.usage_metadata["output_tokens"]
        return ChatResult(generations=[ChatGeneration(message=message)])


def said(text: str, tokens: int | None = 10, *calls: dict) -> AIMessage:
    usage = {"input_tokens": 5, "output_tokens": tokens, "total_tokens": 5 + (tokens or 0)}
    return AIMessage(text, tool_calls=calls, usage_metadata=None if tokens is None else usage)


def foreign(say, **fields) -> Foreign:
    return Foreign(say=say, **{"seen": []} | fields)


def agent(model, *limits, tools=(look,), around=(), checkpointer=None, **options):
    """An agent with the budget innermost."""
    kept = {k: options.pop(k) for k in ("response_format", "system_prompt") if k in options}
    kept |= {"context_schema": options.pop("context_schema", None)}
    return create_agent(
        model,
        tools=list(tools),
        middleware=[*around, BudgetMiddleware(*limits, **options)],
        checkpointer=checkpointer,
        **kept,
    )


def go(agent_, config=None, **kwargs) -> dict:
    return agent_.invoke({"messages": [("human", "go")]}, config, **kwargs)


def thread(name: str = "t") -> dict:
    return {"configurable": {"thread_id": name}}


def spent(out: dict) -> dict:
    return out["budget_spent"]["spent"]


class Clock:
    """Seconds that pass when told; an engine goes by the real ones, and knows deadlines as moments of those."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


# --- the promise


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("seed", range(50))
async def test_no_run_overruns_and_its_last_answer_arrives(seed: int, asynchronous: bool) -> None:
    """50 runs of up to 10 turns whose calls fail, are tried again and fall back: tokens and calls hold, and nothing is uncounted."""
    rng = random.Random(seed)
    turns, lost_any = rng.randint(0, 10), []

    def say(text: str, i: int) -> Line:
        over = LAST in text or text.count("seen") >= turns
        return Line((DONE if over else CALL) + " x" * rng.randint(0, 30))

    def lost() -> bool:
        lost_any.append(rng.random() < 0.2)
        return lost_any[-1]

    model = ours(say, lost=lost)
    other = foreign(lambda _: said(DONE, rng.randint(1, 30)), max_tokens=30)
    limit = Budget(
        tokens=rng.randint(40, 600), calls=rng.choice([None, rng.randint(1, 12)]), seconds=600
    )
    around = [
        ModelFallbackMiddleware(other),
        ModelRetryMiddleware(max_retries=2, on_failure="error", **AT_ONCE),
    ]
    one = agent(model, limit, around=around, reserve=rng.choice([0.1, 0.3]))
    question = {"messages": [("human", "go")]}
    out = await one.ainvoke(question) if asynchronous else one.invoke(question)

    sums, meter = spent(out), model.backend.meter
    assert sums["tokens"] == meter.new_tokens + other.tokens
    assert sums["tokens"] <= limit.tokens
    assert sums["calls"] == len(lost_any) + len(other.seen)
    assert limit.calls is None or sums["calls"] <= limit.calls
    last = out["messages"][-1]
    assert isinstance(last, AIMessage)
    assert last.text
    assert not last.tool_calls
    if not any(lost_any):  # what a lost answer took may have been the reserve
        assert last.text.startswith(DONE[:4])


def test_a_call_that_is_cut_short_is_followed_by_the_last_answer() -> None:
    """The reserve is for the model's own words, not for the rest of a cut one."""
    model = ours(lambda text, i: DONE if LAST in text else "on and " * 100)
    out = go(agent(model, "100 tokens", reserve="20 tokens"))
    assert [m.text for m in out["messages"]] == ["go", DONE]
    assert spent(out)["tokens"] == 80 + len(DONE) + 1
    assert spent(out)["calls"] == 2


def test_without_a_reserve_a_cut_answer_is_what_there_is() -> None:
    """reserve=0 keeps nothing: the text that was drawn is the answer."""
    out = go(agent(ours(["on and " * 100]), "100 tokens", reserve=0))
    assert len(out["messages"][-1].text) == 100


def test_a_cut_by_the_calls_own_budget_is_an_answer() -> None:
    """A call that ends at its own limit, while the run has more, is not repeated."""
    model = ours(["on and " * 100])
    out = go(agent(model, "1000 tokens", per_call="50 tokens"))
    assert len(out["messages"][-1].text) == 50
    assert spent(out)["calls"] == 1


@pytest.mark.parametrize("exit_", ["end", "error"])
@pytest.mark.parametrize("fallback", [False, True])
def test_a_cut_by_the_models_own_timeout_is_an_answer(exit_: str, fallback: bool) -> None:
    """The run has more time: nothing is repeated, noted or raised."""
    model = ours([DONE], backend=ScriptedBackend(["on and " * 500], delay=0.001), timeout=0.2)
    asked = worker(lost=lambda: True).with_fallbacks([model]) if fallback else model
    out = go(agent(asked, "100 s", exit=exit_, tools=() if fallback else (look,)))
    last = out["messages"][-1]
    assert last.response_metadata["pareto"]["stopped_by"] == "seconds"
    assert last.text.startswith("on and")
    assert len(out["messages"]) == 2
    assert len(model.backend.draws) == 1


def test_when_only_the_reserve_is_left_tools_are_withdrawn() -> None:
    """Ours keep the tools in sight, with tool_choice="none"; of a foreign model they are removed."""
    model = worker()
    out = go(agent(model, "5 calls", reserve="1 call"))
    assert [choice for _, choice, _ in model.told] == [None] * 4 + ["none"]
    assert out["messages"][-1].text == DONE

    other = foreign(lambda ms: said("", 5, ask()) if LAST not in ms[-1].text else said(DONE))
    go(agent(other, "5 calls", reserve="1 call"))
    assert [kwargs.get("tools") for _, kwargs in other.seen] == [["look"]] * 4 + [None]


def test_a_last_answer_that_calls_a_tool_all_the_same_ends_the_run() -> None:
    """Its calls are dropped, and so the agent ends with its text."""
    calls = iter("abcdefgh")
    other = foreign(lambda _: said("I would look", 5, ask(id_=next(calls))))
    out = go(agent(other, "3 calls"))
    assert out["messages"][-1].text == "I would look"
    assert not out["messages"][-1].tool_calls
    assert spent(out)["calls"] == 3


def test_a_structured_last_answer_keeps_its_form() -> None:
    """The tool that returns the structured answer stays when the others go."""

    class City(BaseModel):
        name: str

    def say(messages):
        if LAST not in messages[-1].text:
            return said("", 5, ask(id_=str(len(messages))))
        return said("", 5, {"name": "City", "args": {"name": "Ulm"}, "id": "z"})

    other = foreign(say)
    out = go(agent(other, "3 calls", response_format=ToolStrategy(City)))
    assert out["structured_response"] == City(name="Ulm")
    assert other.seen[-1][1]["tools"] == ["City"]


# --- limits


def test_a_call_has_its_own_limit_and_the_model_is_told() -> None:
    """The tightest of the model's own budget, the call's and the run's is in the report."""
    model = worker("x" * 90, budget="70 tokens", told=[])
    out = go(agent(model, "1000 tokens", per_call="60 tokens"))
    assert out["messages"][-1].response_metadata["pareto"]["budget"] == "60 tokens"
    out = go(agent(model, "1000 tokens", per_call="90 tokens"))
    assert out["messages"][-1].response_metadata["pareto"]["budget"] == "70 tokens"
    out = go(agent(model, "1000 tokens"), {"configurable": {"budget": "80 tokens"}})
    assert out["messages"][-1].response_metadata["pareto"]["budget"] == "80 tokens"


def test_a_foreign_model_gets_no_setting_of_ours() -> None:
    """It would choke on a budget."""
    other = foreign(lambda _: said("fine"))
    go(agent(other, "1000 tokens", per_call="60 tokens", reserve=0))
    assert [set(kwargs) for _, kwargs in other.seen] == [{"tools", "tool_choice"}]


def test_a_bound_model_of_ours_is_one_of_ours() -> None:
    """What is bound travels with it, and the budget reaches it."""
    model = ours(["fine"]).bind(stop=["!"])
    out = go(agent(model, "1000 tokens", tools=[]))
    assert out["messages"][-1].response_metadata["pareto"]["budget"] == "900 tokens"


def test_a_foreign_model_is_called_only_if_its_most_fits() -> None:
    """With a known max_tokens no run overruns, and the last answer has room for as much."""
    calls = iter(range(99))
    other = foreign(
        lambda ms: (
            said(DONE, 30) if LAST in ms[-1].text else said("", 30, ask(id_=str(next(calls))))
        ),
        max_tokens=30,
    )
    out = go(agent(other, "100 tokens"))
    assert spent(out)["tokens"] == 90
    assert out["messages"][-1].text == DONE
    out = go(agent(other, "20 tokens"))
    assert spent(out)["calls"] == 0
    assert out["messages"][-1].response_metadata["stopped_by"] == "tokens"


def test_a_foreign_model_that_says_nothing_of_its_tokens_is_estimated() -> None:
    """What it does not count is not free."""
    out = go(agent(foreign(lambda _: said("word " * 40, None)), "1000 tokens"))
    assert 40 <= spent(out)["tokens"] <= 80


def test_a_limit_that_cannot_be_kept_is_refused() -> None:
    """Nobody knows what a foreign model costs in usd."""
    with pytest.raises(BudgetError, match="usd"):
        go(agent(foreign(lambda _: said("fine")), "$1"))


def test_a_thread_has_one_budget_over_its_runs() -> None:
    """It lasts as long as the checkpoints, also for an agent that is built anew; another thread has its own."""
    saver = InMemorySaver()
    for turn in range(3):
        model = ours(["four"])  # and its end
        one = agent(model, None, per_thread="13 tokens", reserve=0, checkpointer=saver)
        out = go(one, thread())
        assert spent(out)["tokens"] == (5, 5, 3)[turn]
        assert out["budget_spent"]["thread"]["tokens"] == (5, 10, 13)[turn]
    out = go(one, thread())
    assert out["messages"][-1].response_metadata["finish_reason"] == "budget"
    assert "this thread is spent: 13 of 13 tokens" in out["messages"][-1].text
    assert spent(go(one, thread("other")))["tokens"] == 5


def test_each_run_has_its_own_budget() -> None:
    """The second invoke of a thread starts anew."""
    one = agent(ours(["four"]), "6 tokens", reserve=0, checkpointer=InMemorySaver())
    assert [spent(go(one, thread()))["tokens"] for _ in range(3)] == [5, 5, 5]


def test_the_state_is_plain_json() -> None:
    """Whole numbers and a name."""
    kept = go(agent(ours(["four"]), "60 tokens, 5 s"))["budget_spent"]
    assert json.loads(json.dumps(kept)) == kept
    assert all(type(n) is int for sums in (kept["spent"], kept["thread"]) for n in sums.values())


@dataclass
class Context:
    """What a caller hands an agent."""

    budget: object = None


@pytest.mark.parametrize("context", [Context("40 tokens"), Context(Budget(tokens=40))])
def test_the_runtime_context_tightens(context: Context) -> None:
    """A budget in it holds with the middleware's own."""
    one = agent(ours(["on and " * 50]), "90 tokens", reserve=0, context_schema=Context)
    assert spent(go(one, context=context))["tokens"] == 40
    assert spent(go(one, context=Context("400 tokens")))["tokens"] == 90
    assert spent(go(one, context=Context()))["tokens"] == 90


def test_a_context_may_be_a_mapping() -> None:
    """`{"budget": ...}` is read as well."""
    one = agent(ours(["on and " * 50]), reserve=0, context_schema=dict)
    assert spent(go(one, context={"budget": 40}))["tokens"] == 40


def test_a_budget_around_the_agent_holds_too() -> None:
    """`run_budget` around an invoke is charged, and the reserve is kept within it."""
    model = ours(lambda text, i: DONE if LAST in text else "on and " * 100)
    with run_budget("100 tokens") as account:
        out = go(agent(model, "500 tokens", reserve="20 tokens"))
    assert account.spent.tokens == spent(out)["tokens"] == 80 + len(DONE) + 1
    assert out["messages"][-1].text == DONE


# --- the end


def test_nothing_left_is_said_or_raised() -> None:
    """exit="end" says so in a message, exit="error" and `on_limit="error"` raise with the numbers."""
    out = go(agent(worker(), "3 calls", reserve=0))
    assert out["messages"][-1].text == "The budget of this run is spent: 3 of 3 calls."
    assert isinstance(out["messages"][-2], ToolMessage)
    for options in ({"exit": "error"}, {}):
        limit = "3 calls" if options else "3 calls, on error"
        with pytest.raises(BudgetExceeded, match="3 of 3 calls") as caught:
            go(agent(worker(), limit, reserve=0, **options))
        assert (caught.value.resource, caught.value.spent, caught.value.limit) == ("calls", 3, 3)


def test_time_is_a_limit_that_tools_use_up() -> None:
    """Past the time for work, the last answer is due."""
    clock = Clock()

    @tool
    def wait() -> str:
        """Waits."""
        clock.now += 40
        return "seen"

    calls = iter(range(99))
    other = foreign(
        lambda ms: said(DONE) if LAST in ms[-1].text else said("", 1, ask("wait", str(next(calls))))
    )
    out = go(agent(other, "100 s", tools=[wait], reserve="30 s", clock=clock))
    assert out["messages"][-1].text == DONE
    assert spent(out)["microseconds"] == 80_000_000
    assert spent(out)["calls"] == 3


def test_the_model_is_told_before_the_end_and_nobody_else() -> None:
    """A note stands after the last message of the calls that are low; the system prompt stays, and the thread does not keep it."""
    calls = iter(range(99))
    other = foreign(lambda ms: said("", 1, ask(id_=str(next(calls)))))
    out = go(agent(other, "10 calls", warn=0.3, system_prompt="Be kind."))
    assert {messages[0].text for messages, _ in other.seen} == {"Be kind."}
    asked = [messages[-1].text for messages, _ in other.seen]
    assert [text in ("go", "seen") for text in asked] == [True] * 7 + [False] * 3
    assert all(text.startswith("seen\n\nNote on your budget: ") for text in asked[7:])
    assert [LAST in text for text in asked] == [False] * 9 + [True]
    assert "2 calls are left" in asked[7]
    assert not any(NOTE in m.text for m in out["messages"] if isinstance(m, ToolMessage))


def test_a_prompt_only_grows() -> None:
    """What a model was told stays where it was in the later calls of the run: no prompt takes back what an earlier one said."""
    other = foreign(lambda ms: said("", 1, ask(id_=f"{len(ms)}")))
    go(agent(other, "10 calls", warn=0.5))
    asked = [[m.text for m in messages] for messages, _ in other.seen]
    for earlier, later in itertools.pairwise(asked):
        assert later[: len(earlier)] == earlier
    assert sum(NOTE in text for text in asked[-1]) == 5


def test_a_note_ends_with_its_run() -> None:
    """The next run of the thread begins with its own budget, and reads nothing of what was left of the last one."""
    other = foreign(lambda ms: said("", 1, ask(id_=f"{len(ms)}")) if len(ms) < 4 else said(DONE))
    one = agent(other, "4 calls", warn=0.9, checkpointer=InMemorySaver())
    for _ in range(2):
        go(one, thread())
    first, second = [m for m, _ in other.seen if len(m) == 3], other.seen[-1][0]
    assert any(NOTE in m.text for m in first[0])
    assert not any(NOTE in m.text for m in second[:-1])
    assert [m.type for m in second] == ["human", *["ai", "tool"] * 2, "ai", "human"]


def test_a_note_needs_no_role_that_a_template_refuses() -> None:
    """Roles take turns as they did: no message is added to those of the user and the tools."""
    other = foreign(lambda ms: said("", 1, ask(id_=f"{len(ms)}")))
    go(agent(other, "5 calls", warn=0.9))
    for i, (messages, _) in enumerate(other.seen):
        assert [m.type for m in messages] == ["human", *["ai", "tool"] * i]


def test_a_note_is_added_to_blocks_too() -> None:
    """A message of blocks gets one more, and stays as it was itself."""
    other = foreign(lambda _: said("fine"))
    mine = HumanMessage([{"type": "text", "text": "go"}])
    out = agent(other, "1 call").invoke({"messages": [mine]})
    assert [block["type"] for block in other.seen[0][0][-1].content] == ["text", "text"]
    assert [block["text"] for block in mine.content] == ["go"]
    assert [block["text"] for block in out["messages"][0].content] == ["go"]


def test_after_an_answer_a_note_is_the_users() -> None:
    """Where the last message is one of the model's, which nobody else may go on with."""
    other = foreign(lambda _: said("fine"))
    agent(other, "1 call").invoke({"messages": [("human", "go"), ("ai", "I will")]})
    messages, _ = other.seen[0]
    assert [m.type for m in messages] == ["human", "ai", "human"]
    assert messages[-1].text.startswith(NOTE)


# --- what fails


def test_a_lost_answer_is_charged() -> None:
    """Also where a retry gives up and nobody keeps what the attempts took."""
    model = ours(["four"], lost=lambda: True)
    retry = ModelRetryMiddleware(max_retries=2, on_failure="continue", **AT_ONCE)
    out = go(agent(model, "60 tokens", around=[retry]))
    assert spent(out)["tokens"] == model.backend.meter.new_tokens == 15
    assert spent(out)["calls"] == 3


def test_a_failed_run_is_charged_to_its_thread() -> None:
    """The next run of the thread finds what the failed one took, and only that; idle time is free."""
    clock, saver = Clock(), InMemorySaver()
    lost = iter([True, False])
    model = ours(["four"], lost=lambda: next(lost))
    one = agent(model, None, per_thread="100 tokens, 1 h", checkpointer=saver, clock=clock)
    with pytest.raises(ConnectionError):
        go(one, thread())
    clock.now += 3000
    out = go(one, thread())
    assert spent(out)["tokens"] == 5
    assert out["budget_spent"]["thread"]["tokens"] == 10
    assert out["budget_spent"]["thread"]["microseconds"] == 0


def test_an_answer_that_is_thrown_away_is_charged() -> None:
    """A middleware outside that calls twice pays twice."""
    from langchain.agents.middleware import wrap_model_call

    @wrap_model_call
    def twice(request, handler):
        handler(request)
        return handler(request)

    out = go(agent(ours(["four"]), "60 tokens", around=[twice]))
    assert spent(out)["tokens"] == 10


@pytest.mark.parametrize("anew", [False, True])
def test_an_interrupted_run_goes_on_with_its_budget(anew: bool) -> None:
    """Whether the same agent resumes it or one that is built anew; the pause is free."""
    clock, saver = Clock(), InMemorySaver()

    def build():
        model = ours(lambda text, i: DONE if "seen" in text else f"{CALL} now")
        human = HumanInTheLoopMiddleware(interrupt_on={"look": True})
        return agent(model, "60 tokens, 10 s", around=[human], checkpointer=saver, clock=clock)

    one = build()
    out = go(one, thread())
    assert out["__interrupt__"]
    clock.now += 3600
    one = build() if anew else one
    out = one.invoke(Command(resume={"decisions": [{"type": "approve"}]}), thread())
    assert out["messages"][-1].text == DONE
    assert spent(out)["tokens"] == len(f"{CALL} now") + 1 + len(DONE) + 1
    assert spent(out)["calls"] == 2
    assert spent(out)["microseconds"] == 0


# --- tools and agents inside


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_models_in_parallel_tools_share_the_run(asynchronous: bool) -> None:
    """What tools call is charged; together they leave the reserve alone, and one that finds no room says so."""
    inner = ours(["on and " * 100])

    @tool
    async def think() -> str:
        """Thinks."""
        return (await inner.ainvoke("?")).text if asynchronous else inner.invoke("?").text

    @tool("think")
    def think_now() -> str:
        """Thinks."""
        return inner.invoke("?").text

    def say(messages):
        if LAST in messages[-1].text:
            return said(DONE, 10)
        return said("", 10, *[ask("think", str(i)) for i in range(4)])

    other = foreign(say, max_tokens=10)
    one = agent(other, "200 tokens", tools=[think if asynchronous else think_now], reserve=0.2)
    question = {"messages": [("human", "go")]}
    out = await one.ainvoke(question) if asynchronous else one.invoke(question)
    assert out["messages"][-1].text == DONE
    assert spent(out)["tokens"] == inner.backend.meter.new_tokens + other.tokens <= 200
    assert inner.backend.meter.new_tokens == 150
    told = [m for m in out["messages"] if isinstance(m, ToolMessage)]
    assert len(told) == 4
    assert {m.status for m in told} == {"success", "error"}


def test_an_agent_in_a_tool_spends_from_the_run() -> None:
    """Within its own budget and within what the outer run has left for work."""
    model = worker()
    sub = agent(model, "1000 calls")

    @tool
    def delegate() -> str:
        """Asks another agent."""
        return go(sub)["messages"][-1].text

    outer = worker(tool="delegate")
    out = go(agent(outer, "20 calls", tools=[delegate], reserve="2 calls"))
    assert out["messages"][-1].text == DONE
    assert spent(out)["calls"] == 19
    assert spent(out)["tokens"] == model.backend.meter.new_tokens + outer.backend.meter.new_tokens


async def test_agents_side_by_side_do_not_wait_for_each_other() -> None:
    """The asynchronous hooks leave the loop to others: each of two models answers only once both are called."""
    both = asyncio.Barrier(2)

    class Meeting(Foreign):
        async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
            async with asyncio.timeout(60):
                await both.wait()
            return self._generate(messages)

    one = agent(Meeting(say=lambda _: said("fine")), "100 tokens")
    question = {"messages": [HumanMessage("go")]}
    outs = await asyncio.gather(one.ainvoke(question), one.ainvoke(question))
    assert [spent(out)["tokens"] for out in outs] == [10, 10]


def test_a_stream_of_messages_keeps_the_budget() -> None:
    """Streaming takes the same path."""
    model = ChatPareto(backend=ScriptedBackend(["on and " * 100]), strategy="single")
    one = agent(model, "50 tokens", tools=[], reserve=0)
    texts = [
        chunk.text
        for chunk, _ in one.stream({"messages": [("human", "go")]}, stream_mode="messages")
    ]
    assert len("".join(texts)) == 50 == model.backend.meter.new_tokens


def test_no_purse_stays_behind() -> None:
    """An ended run leaves nothing in memory."""
    budget = BudgetMiddleware("9 calls")
    one = create_agent(worker(), tools=[look], middleware=[budget])
    go(one)
    assert len(budget._purses) == 0


SUMS = st.dictionaries(st.sampled_from(["tokens", "calls", "flops"]), st.integers(0, 10**12))


@given(SUMS, st.lists(SUMS, max_size=5), st.randoms())
def test_updates_add_up_in_any_order(before: dict, updates: list[dict], rng) -> None:
    """Calls side by side may write in any order: nothing is lost."""
    record = {"run": "a", "spent": before, "thread": before}
    ways = []
    for _ in range(2):
        rng.shuffle(updates)
        now = record
        for sums in updates:
            now = add_up(now, {"run": "a", "spent": sums})
        ways.append(now)
    assert ways[0] == ways[1]
    total = before.get("tokens", 0) + sum(sums.get("tokens", 0) for sums in updates)
    assert ways[0]["spent"].get("tokens", 0) == ways[0]["thread"].get("tokens", 0) == total


# --- mistakes


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"per_run": "much"}, BudgetError),
        ({"per_thread": -1}, BudgetError),
        ({"reserve": 1.5}, SettingError),
        ({"reserve": -0.1}, SettingError),
        ({"per_run": "10 tokens", "reserve": "10 tokens"}, SettingError),
        ({"reserve": "some"}, BudgetError),
        ({"warn": 1}, SettingError),
        ({"warn": "soon"}, SettingError),
        ({"exit": "stop"}, SettingError),
    ],
)
def test_a_mistake_is_named(options: dict, error: type) -> None:
    """Where the middleware is made."""
    with pytest.raises(error):
        BudgetMiddleware(**options)


def test_a_bad_budget_in_the_context_is_named() -> None:
    """Before anything is called."""
    one = agent(ours(["four"]), context_schema=Context)
    with pytest.raises(BudgetError, match="lots"):
        go(one, context=Context("lots"))


def test_without_langchain_the_extra_is_named() -> None:
    """The name loads late, and says what to install."""
    code = (
        "import sys; sys.modules['langchain'] = None\n"
        "import langchain_pareto\n"
        "try: langchain_pareto.BudgetMiddleware\n"
        "except langchain_pareto.ParetoError as error: print(error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "pip install 'langchain-pareto[agents]'", done.stderr
