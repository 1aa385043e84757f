"""Agents and graphs over real weights: every way that a budget can take, cancelled calls, many turns, and what a turn computes anew."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langgraph.errors import NodeTimeoutError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import TimeoutPolicy
from minds import Mind
from pydantic import BaseModel, Field

from langchain_pareto import BudgetMiddleware, ChatPareto, Vote, run_budget
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import bundled, tokenizer_path
from langchain_pareto.budget import Cost

pytest.importorskip("llguidance")

QUESTION = "Ben has 3 more cups than Ava. Ava has 5 cups. How many cups does Ben have?"
ASKED = {"messages": [("human", QUESTION)]}


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    """The bundled policy."""
    with load("nano") as loaded:
        yield loaded


async def until(fact: Callable[[], bool]) -> None:
    """Waits for a fact; a guard against hangs."""
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110 - the engine is a thread of its own
            await asyncio.sleep(0.001)


# --- the table: each way that a budget can take, by what the model is part of

LIMIT = "20 tokens"
ROOM = 20  # tokens; without a limit each answer takes more


@tool
def note(text: str) -> str:
    """Writes something down."""
    return text


class Said(BaseModel):
    """Some words."""

    text: str


class Settings(AgentMiddleware):
    """Sets what an agent hands its model's call."""

    def __init__(self, **settings: object) -> None:
        self.settings, self.tools = settings, []

    def wrap_model_call(self, request, handler):
        return handler(request.override(**self.settings))

    async def awrap_model_call(self, request, handler):
        return await handler(request.override(**self.settings))


@dataclass
class Context:
    """What a caller hands an agent."""

    budget: str | None = None


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way of a budget to the engine; `shows` is what the report calls the budget of the call."""

    shows: str | None = LIMIT
    fields: dict = field(default_factory=dict)
    kept: Callable[[ChatPareto], Runnable] = lambda llm: llm
    keywords: dict = field(default_factory=dict)
    configurable: dict = field(default_factory=dict)
    around: bool = False
    middleware: Callable[[], AgentMiddleware] | None = None  # of ways that only agents have
    context: Context | None = None


ROUTES = {
    "nothing": Route(shows=None),
    "keyword": Route(keywords={"budget": LIMIT}),
    "bind": Route(kept=lambda llm: llm.bind(budget=LIMIT)),
    "with_config": Route(kept=lambda llm: llm.with_config(configurable={"budget": LIMIT})),
    "config": Route(configurable={"budget": LIMIT}),
    "constructor": Route(fields={"budget": LIMIT}),
    "run_budget": Route(shows=None, around=True),
    "model_settings": Route(middleware=lambda: Settings(model_settings={"budget": LIMIT})),
    "per_call": Route(middleware=lambda: BudgetMiddleware(per_call=LIMIT)),
    "per_run": Route(middleware=lambda: BudgetMiddleware(LIMIT, reserve=0)),
    "context": Route(middleware=lambda: BudgetMiddleware(reserve=0), context=Context(LIMIT)),
}


def agent_of(route: Route, llm: Runnable, **options: object) -> Runnable:
    """An agent, with the middleware and the context of the route."""
    around = [] if route.middleware is None else [route.middleware()]
    schema = None if route.context is None else Context
    return create_agent(llm, middleware=around, context_schema=schema, **options)


def with_tools(route: Route, llm: Runnable) -> Runnable:
    """With a tool bound to it; an agent binds its own."""
    if route.middleware is not None:
        return agent_of(route, llm, tools=[note])
    return llm.bind_tools([note])


def with_schema(route: Route, llm: Runnable) -> Runnable:
    """Held to a schema; an agent has a response format."""
    if route.middleware is not None:
        return agent_of(route, llm, tools=[], response_format=Said)
    return llm.with_structured_output(Said)


def an_agent(route: Route, llm: Runnable) -> Runnable:
    """In an agent that has a tool."""
    return agent_of(route, llm, tools=[note])


def a_node(route: Route, llm: Runnable) -> Runnable:
    """In a node of a graph, or as an agent that is one."""

    async def ask(state: MessagesState) -> MessagesState:
        return {"messages": [await llm.ainvoke(state["messages"], **route.keywords)]}

    graph = StateGraph(MessagesState, context_schema=None if route.context is None else Context)
    graph.add_node("ask", ask if route.middleware is None else agent_of(route, llm, tools=[]))
    graph.add_edge(START, "ask")
    return graph.compile()


def alone(route: Route, llm: Runnable) -> Runnable:
    """By itself; of an agent's ways, the agent."""
    return llm if route.middleware is None else agent_of(route, llm, tools=[])


async def invoked(one: Runnable, question: object, config: dict, **keywords: object) -> None:
    """One call, from a thread without a loop."""
    await asyncio.to_thread(one.invoke, question, config, **keywords)


async def awaited(one: Runnable, question: object, config: dict, **keywords: object) -> None:
    """One call on this loop."""
    await one.ainvoke(question, config, **keywords)


async def batched(one: Runnable, question: object, config: dict, **keywords: object) -> None:
    """Three calls at once."""
    await asyncio.to_thread(one.batch, [question] * 3, config, **keywords)


async def streamed(one: Runnable, question: object, config: dict, **keywords: object) -> None:
    """One call as it grows."""
    async for _ in one.astream(question, config, **keywords):
        pass


Build, Door = Callable[[Route, Runnable], Runnable], Callable[..., Awaitable[None]]
PLACES: dict[str, tuple[Build, Door]] = {
    "bind_tools": (with_tools, invoked),
    "with_structured_output": (with_schema, invoked),
    "create_agent": (an_agent, invoked),
    "LangGraph node": (a_node, awaited),
    "batch": (alone, batched),
    "astream": (alone, streamed),
}
ABSENT = {("keyword", "create_agent"): "LangGraph drops the keywords of an agent's call"}


class Heard(BaseCallbackHandler):
    """Every message that a model gave."""

    def __init__(self) -> None:
        self.messages = list[AIMessage]()

    def on_llm_end(self, response, **_: object) -> None:
        self.messages += [row[0].message for row in response.generations]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_budget_reaches_the_engine(backend, route: str, place: str) -> None:
    """By each way to each place a call is held to its budget, whose words stand in the report; without one it takes more."""
    way, (build, door) = ROUTES[route], PLACES[place]
    llm = way.kept(
        ChatPareto(backend=backend, strategy="single", seed=1, max_tokens=60, **way.fields)
    )
    one = build(way, llm)
    heard = Heard()
    config = {"callbacks": [heard], "configurable": way.configurable}
    of_call = {} if place == "LangGraph node" else way.keywords
    if way.context is not None:
        of_call = {**of_call, "context": way.context}
    takes_text = "messages" not in one.get_input_jsonschema().get("properties", {})

    with run_budget(LIMIT) if way.around else nullcontext() as account:
        await door(one, QUESTION if takes_text else ASKED, config, **of_call)

    reports = [message.response_metadata["pareto"] for message in heard.messages]
    spent = [report["spent"]["tokens"] for report in reports]
    assert len(reports) == (3 if place == "batch" else 1)
    if route == "nothing" or (route, place) in ABSENT:
        assert {report["budget"] for report in reports} == {None}
        assert min(spent) > ROOM
        return
    assert {report["budget"] for report in reports} == {way.shows}
    assert min(spent) > 0
    assert max(spent) <= ROOM
    if account is not None:
        assert sum(spent) == account.spent.tokens <= ROOM
        assert account.reserved == Cost()


# --- weights that know nothing of JSON


@tool
def weather(city: str, days: int = 1) -> str:
    """The weather of a city."""
    return f"{city}: sun for {days} days"


@tool
def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


class Painting(BaseModel):
    """What to paint."""

    colour: Literal["red", "green", "blue"]
    size: float
    tags: list[str] = Field(max_length=2)


@tool(args_schema=Painting)
def paint(colour: str, size: float, tags: list[str]) -> str:
    """Paints."""
    return f"{colour} {size} {len(tags)}"


TOOLS = [weather, add, paint]


async def test_forced_calls_of_random_runs_are_valid(backend) -> None:
    """40 agents with 3 tools, side by side: every call fits its schema, every budget holds, nothing is left running."""
    tools = {one.name: one for one in TOOLS}

    async def go(i: int) -> list[tuple[str, dict]]:
        strategy = Vote(n=2) if i % 10 == 0 else "single"
        llm = ChatPareto(backend=backend, seed=i, temperature=1.0, strategy=strategy)
        settings = {"parallel_tool_calls": i % 2 == 1}
        forced = Settings(tool_choice="any", model_settings=settings)
        budget = BudgetMiddleware("220 tokens, 3 calls", per_call="100 tokens")
        one = create_agent(llm, tools=TOOLS, middleware=[forced, budget])
        out = await one.ainvoke({"messages": [("human", f"Go {i}.")]})
        spent = out["budget_spent"]["spent"]
        assert spent["tokens"] <= 220
        assert spent["calls"] <= 3
        said = [m for m in out["messages"] if isinstance(m, AIMessage)]
        assert not said[-1].tool_calls
        for message in said:  # of calls in a row the last one may be cut off
            cut = message.response_metadata["finish_reason"] == "length"
            assert len(message.invalid_tool_calls) <= (cut and settings["parallel_tool_calls"])
        calls = [call for m in said for call in m.tool_calls]
        ran = [m for m in out["messages"] if isinstance(m, ToolMessage) and m.status == "success"]
        assert [m.tool_call_id for m in ran] == [call["id"] for call in calls]
        return [(call["name"], call["args"]) for call in calls]

    runs = await asyncio.gather(*map(go, range(40)))
    assert all(runs)
    for name, arguments in itertools.chain(*runs):
        tools[name].args_schema.model_validate_json(json.dumps(arguments), strict=True)
    await until(lambda: backend.engine.live == 0)


# --- what is cancelled, or takes too long


@pytest.fixture(scope="module")
def talker() -> Iterator[LocalBackend]:
    """One that never comes to an end, with weights of its own."""
    with load("nano", memory="200 MB") as loaded:
        Mind(loaded, lambda _: "and on " * 1000)
        yield loaded


def endless(backend: LocalBackend, strategy: str = "single") -> ChatPareto:
    """A model whose answers take as long as its context."""
    return ChatPareto(backend=backend, seed=1, temperature=1.0, strategy=strategy)


async def at_rest(engine: Engine) -> None:
    """The engine has no request left, within one step."""
    before = engine.steps
    await until(lambda: engine.live == 0)
    assert engine.steps - before <= 1


@pytest.mark.parametrize("strategy", ["single", "vote"])
@pytest.mark.parametrize("limit", ["run_timeout", "step_timeout"])
async def test_a_node_that_takes_too_long_stops_the_engine(talker, limit, strategy) -> None:
    """Whether the node has a timeout or the graph: the engine is at rest within a step, and no lease stays open."""
    llm, engine = endless(talker, strategy), talker.engine

    async def ask(state: MessagesState) -> MessagesState:
        return {"messages": [await llm.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node(
        "ask", ask, timeout=TimeoutPolicy(run_timeout=1.0) if limit == "run_timeout" else None
    )
    graph.add_edge(START, "ask")
    compiled = graph.compile()
    if limit == "step_timeout":
        compiled.step_timeout = 1.0
    steps = engine.steps
    with run_budget("100000 tokens") as account:
        with pytest.raises(NodeTimeoutError if limit == "run_timeout" else TimeoutError):
            await compiled.ainvoke(ASKED)
        await at_rest(engine)
    assert engine.steps > steps
    assert account.reserved == Cost()
    assert account.spent.tokens > 0


@pytest.mark.parametrize("strategy", ["single", "vote"])
async def test_a_cancelled_agent_stops_the_engine(talker, strategy) -> None:
    """As above; what it drew is charged to what is around it."""
    engine = talker.engine
    one = create_agent(
        endless(talker, strategy), tools=TOOLS, middleware=[BudgetMiddleware("100000 tokens")]
    )
    with run_budget("100000 tokens") as account:
        running = asyncio.create_task(one.ainvoke(ASKED))
        await until(lambda: engine.live > 0)
        steps = engine.steps
        await until(lambda: engine.steps > steps + 3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await at_rest(engine)
    assert account.reserved == Cost()
    assert account.spent.tokens > 0


async def test_leaving_a_stream_of_an_agent_stops_the_engine(talker) -> None:
    """After its first piece; what it drew is charged."""
    engine = talker.engine
    one = create_agent(endless(talker), tools=TOOLS, middleware=[BudgetMiddleware("100000 tokens")])
    with run_budget("100000 tokens") as account:
        async with aclosing(one.astream(ASKED, stream_mode="messages")) as pieces:
            await anext(pieces)
            assert engine.live > 0
        await at_rest(engine)
    assert account.reserved == Cost()
    assert account.spent.tokens > 0


# --- many turns, by a model that knows what to say

# All messages and the tools, as Hermes has them, between tokens that the bundled models know.
TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}{{- messages[0]['content'] + '\n' -}}{%- endif -%}
{%- if tools -%}<tools>{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}</tools>{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '<|user|>' + message['content'] -}}
{%- elif message['role'] == 'tool' -%}
{{- '<|user|><tool_response>\n' + message['content'] + '\n</tool_response>' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<|assistant|>' + message['content'] -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '\n' if message['content'] or not loop.first else '' -}}
{{- '<tool_call>\n{"name": "' + call['function']['name'] + '", "arguments": ' -}}
{{- (call['function']['arguments'] | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""
LAST = "no longer available"  # said to the model when its last answer is due
DONE = "That is all."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """The bundled tokenizer with a template that shows everything."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for path in tokenizer_path().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(params=["torch", "llama-cpp"])
def shown(request, tokenizer: Path, tmp_path: Path) -> Iterator[LocalBackend]:
    """The bundled policy with that tokenizer, and weights of its own: a Mind is put into them."""
    if request.param == "torch":
        with load("nano", tokenizer=tokenizer, memory="256 MB") as loaded:
            yield loaded
        return
    pytest.importorskip("llama_cpp")
    from langchain_pareto.backends.nano.gguf import write_gguf

    path = tmp_path / "nano.gguf"
    write_gguf(bundled("nano"), tokenizer, path)
    with load(path) as loaded:
        yield loaded


def caller(turns: int) -> Callable[[str], str]:
    """Says what a model would that calls a tool so many times, and then answers."""

    def say(prompt: str) -> str:
        done = prompt.count("<tool_response>")
        if LAST in prompt or done >= turns:
            return DONE
        return f'<tool_call>\n{{"name": "add", "arguments": {{"a": {done}, "b": {turns}}}}}\n</tool_call>'

    return say


@pytest.mark.parametrize("shown", ["torch"], indirect=True)
def test_agents_of_several_turns_keep_their_budgets_and_answer(shown) -> None:
    """10 runs of up to 5 turns, with tokens for all of them or for one: nothing overruns, and the last answer arrives."""
    turns = 0

    def say(prompt: str) -> str:
        return caller(turns)(prompt)

    Mind(shown, say)
    llm, meter = ChatPareto(backend=shown, strategy="single", seed=1), shown.engine.meter
    for turns in range(1, 6):
        for tokens in (130, 1000):
            before = meter.new_tokens
            budget = BudgetMiddleware(f"{tokens} tokens, {turns + 2} calls", reserve="30 tokens")
            one = create_agent(llm, tools=[add], middleware=[budget])
            out = one.invoke({"messages": [("human", "Add up.")]})
            spent = out["budget_spent"]["spent"]
            assert spent["tokens"] == meter.new_tokens - before <= tokens
            assert spent["calls"] <= turns + 2
            assert out["messages"][-1].text == DONE
            results = [m.text for m in out["messages"] if isinstance(m, ToolMessage)]
            assert results == [str(i + turns) for i in range(turns if tokens == 1000 else 1)]


def computed_anew(shown: LocalBackend, *limits: object, **options: object) -> int:
    """The prompts of an agent that calls a tool ten times: of each, at most 1.1 times what came since is computed."""
    Mind(shown, caller(10))
    llm = ChatPareto(backend=shown, strategy="single", seed=1)
    one = create_agent(llm, tools=[add], middleware=[BudgetMiddleware(*limits, **options)])
    out = one.invoke({"messages": [("human", "Add up.")]})
    answers = [m for m in out["messages"] if isinstance(m, AIMessage)]
    assert answers[-1].text == DONE
    assert len(answers) == 11
    for ninth, tenth in itertools.pairwise(m.usage_metadata for m in answers):
        new = tenth["input_tokens"] - ninth["input_tokens"] - ninth["output_tokens"]
        computed = tenth["input_tokens"] - tenth["input_token_details"]["cache_read"]
        assert new > 0
        assert computed <= 1.1 * new
    return sum("budget_note" in m.response_metadata for m in answers)


def test_the_tenth_turn_computes_only_what_is_new(shown) -> None:
    """What the ninth turn read and wrote is in the cache."""
    assert computed_anew(shown, "5000 tokens, 60 calls") == 0


def test_a_note_costs_no_more_than_its_own_tokens(shown) -> None:
    """As above while the model is told from the eighth turn on that little is left, and at the end that nothing is."""
    assert computed_anew(shown, "11 calls", warn=0.3, reserve="1 call") == 4
