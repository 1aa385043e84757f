"""Tools and structured output through ChatPareto: real weights that know nothing of JSON, held to it by grammars, on both runners."""

import asyncio
import json
from typing import TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from minds import Mind
from pydantic import BaseModel, Field

from langchain_pareto import ChatPareto, run_budget
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import CapabilityError, SettingError
from langchain_pareto.forms.schemas import violation
from langchain_pareto.forms.tools import read_tools

pytest.importorskip("llguidance")
STRATEGIES = ["single", "vote", "best_of_n", "auto"]


@tool
def weather(city: str, days: int = 1) -> str:
    """The weather of a city."""
    return f"{city}: sun for {days} days"


@tool
def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


@tool
def paint(colour: str, size: float, tags: list[str]) -> str:
    """Paints."""
    return colour


TOOLS = [weather, add, paint]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int


class City(TypedDict):
    """A city."""

    name: str
    people: int


@pytest.fixture(scope="module", params=["torch", "llama-cpp"])
def backend(request):
    if request.param == "llama-cpp":
        pytest.importorskip("llama_cpp")
    with load("nano", backend=request.param) as loaded:
        yield loaded


def model(backend, **settings):
    return ChatPareto(**{"backend": backend, "seed": 1, "max_tokens": 150, **settings})


def valid(call):
    return violation(call["args"], read_tools(TOOLS).parameters(call["name"])) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("choice", ["any", "weather", "add"])
def test_a_forced_call_is_valid_whatever_the_weights_say(backend, strategy, choice):
    """Every strategy gives calls of the tool that must be called, with arguments that fit, and no words."""
    llm = model(backend, strategy=strategy).bind_tools(TOOLS, tool_choice=choice)
    message = llm.invoke("Weather in Paris?")
    assert message.tool_calls
    assert not message.invalid_tool_calls
    assert all(map(valid, message.tool_calls))
    assert choice == "any" or {c["name"] for c in message.tool_calls} == {choice}
    assert message.content == ""
    assert message.response_metadata["finish_reason"] == "tool_calls"


def test_one_call_at_a_time(backend):
    """Without parallel calls there is exactly one, for many seeds."""
    llm = model(backend, seed=None).bind_tools(TOOLS, tool_choice="any", parallel_tool_calls=False)
    for message in llm.batch(["hi"] * 20):
        assert len(message.tool_calls) == 1
        assert valid(message.tool_calls[0])


def test_the_last_word_on_parallel_calls_counts():
    """Bound again, tools keep what was said, unless it is said otherwise."""
    llm = ChatPareto().bind_tools(TOOLS, parallel_tool_calls=False)
    assert llm.bind_tools(TOOLS).kwargs["parallel_tool_calls"] is False
    assert llm.bind_tools(TOOLS, parallel_tool_calls=True).kwargs["parallel_tool_calls"] is True
    assert "parallel_tool_calls" not in ChatPareto().bind_tools(TOOLS).kwargs
    calls = "".join(
        f'<tool_call>\n{{"name": "add", "arguments": {{"a": {a}, "b": 2}}}}\n</tool_call>'
        for a in (1, 2)
    )
    said = ChatPareto(backend=ScriptedBackend([calls]), strategy="single")
    one = said.bind_tools(TOOLS, parallel_tool_calls=False)
    assert len(one.invoke("hi").tool_calls) == 1
    assert len(one.bind_tools(TOOLS, parallel_tool_calls=True).invoke("hi").tool_calls) == 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stream_sums_to_the_same_calls(backend, strategy):
    """For one seed, a stream's chunks add up to what invoke gives, and the name comes before the arguments."""
    llm = model(backend, strategy=strategy).bind_tools(TOOLS, tool_choice="weather")
    whole = llm.invoke("hi")
    chunks = list(llm.stream("hi"))
    total = sum(chunks[1:], chunks[0])
    assert [(c["name"], c["args"]) for c in total.tool_calls] == [
        (c["name"], c["args"]) for c in whole.tool_calls
    ]
    assert total.response_metadata["finish_reason"] == "tool_calls"
    named = [c["name"] for chunk in chunks for c in chunk.tool_call_chunks if c["name"]]
    assert named == [c["name"] for c in whole.tool_calls]
    first = next(chunk.tool_call_chunks[0] for chunk in chunks if chunk.tool_call_chunks)
    assert first["name"] == "weather"
    assert strategy != "single" or first["args"] == ""  # a winner comes whole, after the decision


def test_what_need_not_be_called_may_be_words(backend):
    """With tool_choice="auto" a model that has nothing to call answers as without tools; with "none" too."""
    question = "Ben has 3 more cups than Ava. Ava has 5 cups. How many cups does Ben have?"
    for choice in (None, "auto", "none"):
        message = model(backend).bind_tools(TOOLS, tool_choice=choice).invoke(question)
        assert message.content.endswith("Answer: 8")
        assert message.tool_calls == message.invalid_tool_calls == []


def test_a_call_in_the_middle_of_words_is_held_to_its_schema():
    """Once a text has opened a call, the grammar holds it: only arguments that fit can follow, and nothing after."""
    with load("nano", memory="180 MB") as one:  # nobody else has that one
        Mind(one, lambda _: 'I look.\n<tool_call>\n{"name": "add", "arguments": {"a": "seven')
        message = model(one).bind_tools(TOOLS).invoke("hi")
    assert message.content == "I look."
    [call] = message.tool_calls
    assert valid(call)


def test_votes_are_over_calls():
    """First the tools are chosen, then their arguments; what is returned was really drawn; what breaks the schema has no vote."""

    def call(name, **arguments):
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"

    said = [
        call("weather", city="Rome"),
        call("weather", city="Rome"),
        call("add", a=1, b=2),
        call("add", b=2, a=1),
        call("add", a=1.0, b=2),
        call("add", a=5, b=5),
        call("weather", city="Oslo", days=1),
        call("weather", city=" Oslo"),
        call("weather", city="Oslo"),
        call("weather", town="Oslo"),
    ]
    llm = ChatPareto(
        backend=ScriptedBackend(said), strategy={"kind": "vote", "n": 10, "adaptive": False}
    )
    message = llm.bind_tools(TOOLS).invoke("hi")
    [got] = message.tool_calls
    assert (got["name"], got["args"]["city"].strip()) == ("weather", "Oslo")
    assert message.response_metadata["pareto"]["share"] == pytest.approx(3 / 9)


def test_words_outvote_a_call():
    """Where no tool need be called, that none is called is a vote like any other, also without a final answer."""
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    llm = ChatPareto(
        backend=ScriptedBackend([*["It is sunny."] * 3, call]),
        strategy={"kind": "vote", "n": 4, "adaptive": False},
    )
    message = llm.bind_tools(TOOLS).invoke("hi")
    assert message.content == "It is sunny."
    assert message.response_metadata["pareto"]["share"] == 0.75


@pytest.mark.parametrize("text", ["a </think> b", "a <think> b", "<think>", "</think>"])
def test_think_tags_in_an_argument_are_text(text):
    """Only a block at the beginning is one; invoke and stream agree."""
    call = json.dumps({"name": "weather", "arguments": {"city": text}})
    llm = ChatPareto(
        backend=ScriptedBackend([f"<think>hm</think>\n<tool_call>\n{call}\n</tool_call>"]),
        strategy="single",
    ).bind_tools(TOOLS)
    chunks = list(llm.stream("hi"))
    for message in (llm.invoke("hi"), sum(chunks[1:], chunks[0])):
        assert [c["args"] for c in message.tool_calls] == [{"city": text}]
        assert message.additional_kwargs["reasoning_content"] == "hm"


@pytest.mark.parametrize("strategy", ["beam", "dvts", "rebase", "mcts"])
def test_searches_over_steps_end_their_calls(strategy):
    """A text that is drawn step by step ends within `max_tokens` as well."""
    with load("nano") as one:
        llm = model(one, strategy=strategy).bind_tools(TOOLS, tool_choice="any")
        message = llm.invoke("hi")
    assert message.tool_calls
    assert all(map(valid, message.tool_calls))


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [Person, City, Person.model_json_schema()])
def test_structured_output(backend, method, schema):
    """An instance of a class, a dict otherwise; streamed, the last piece is the whole."""
    llm = model(backend).with_structured_output(schema, method=method)
    found = llm.invoke("Who?")
    if schema is Person:
        assert isinstance(found, Person)
    else:
        assert set(found) == ({"name", "people"} if schema is City else {"name", "age"})
    assert list(llm.stream("Who?"))[-1] == found
    assert asyncio.run(llm.ainvoke("Who?")) == found


def test_json_mode_gives_any_object(backend):
    """Without a schema the answer is some JSON object."""
    assert isinstance(
        model(backend).with_structured_output(None, method="json_mode").invoke("Who?"), dict
    )


def test_a_text_that_is_cut_off_is_an_error_with_the_text():
    """Where nothing holds the text, half an object is no object, and `include_raw` shows what came."""
    llm = ChatPareto(backend=ScriptedBackend(['{"name": "A", "ag']), strategy="single")
    with pytest.raises(OutputParserException, match="cut off"):
        llm.with_structured_output(Person).invoke("Who?")
    shown = llm.with_structured_output(Person, include_raw=True).invoke("Who?")
    assert shown["parsed"] is None
    assert shown["raw"].content == '{"name": "A", "ag'
    assert isinstance(shown["parsing_error"], OutputParserException)


def test_an_object_that_breaks_its_schema_says_where():
    """The place and the reason are in the message."""
    llm = ChatPareto(backend=ScriptedBackend(['{"name": [], "people": 1}']), strategy="single")
    with pytest.raises(OutputParserException, match=r"\$\.name"):
        llm.with_structured_output(City).invoke("Where?")


def test_a_budget_stays_bound(backend):
    """Whatever is bound after it: tools, a schema, a config; and a schema's call is held to it."""
    llm = model(backend, max_tokens=None).bind(budget="90 tokens")
    configured = model(backend, max_tokens=None).with_config(configurable={"budget": "90 tokens"})
    for one in (llm, configured):
        called = one.bind_tools(TOOLS, tool_choice="add", parallel_tool_calls=False).invoke("hi")
        assert called.response_metadata["pareto"]["budget"] == "90 tokens"
        assert called.response_metadata["pareto"]["spent"]["tokens"] <= 90
        assert valid(called.tool_calls[0])
        shown = one.with_structured_output(Person, include_raw=True).invoke("Who?")
        assert shown["raw"].response_metadata["pareto"]["budget"] == "90 tokens"
        assert isinstance(shown["parsed"], Person)
    bound = llm.bind_tools(TOOLS, tool_choice="add").bind(seed=3).with_config(tags=["x"])
    assert bound.invoke("hi").response_metadata["pareto"]["budget"] == "90 tokens"


def test_a_run_budget_holds_calls_with_tools(backend):
    """Calls under one budget never take more, and each ends with a whole call or with an error."""
    llm = model(backend, max_tokens=80, strategy="single").bind_tools(
        TOOLS, tool_choice="add", parallel_tool_calls=False
    )
    with run_budget("250 tokens") as account:
        for _ in range(3):
            assert valid(llm.invoke("hi").tool_calls[0])
    assert account.spent.tokens <= 250


def test_tools_are_in_the_prompt_and_counted():
    """Where the template has no words for tools, a system message describes them."""
    asked = []
    script = ScriptedBackend(lambda text, _: asked.append(text) or "ok")
    llm = ChatPareto(backend=script, strategy="single")
    plain = llm.get_num_tokens_from_messages([HumanMessage("hi")])
    assert llm.get_num_tokens_from_messages([HumanMessage("hi")], TOOLS) > plain
    llm.bind_tools(TOOLS).invoke("hi")
    assert all(word in asked[0] for word in ("weather", "The sum.", "<tool_call>", "colour"))


def test_past_calls_and_results_are_in_the_prompt():
    """A model without words for them in its template reads past calls and what they gave as text."""
    asked = []
    script = ScriptedBackend(lambda text, _: asked.append(text) or "ok")
    history = [
        HumanMessage("Weather?"),
        AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Köln"}, "id": "1"}]),
        ToolMessage("Köln: sun", tool_call_id="1"),
    ]
    ChatPareto(backend=script, strategy="single").bind_tools(TOOLS).invoke(history)
    assert '{"name": "weather", "arguments": {"city": "Köln"}}' in asked[0]
    assert "<tool_response>\nKöln: sun\n</tool_response>" in asked[0]


def test_unreadable_calls_are_no_exception():
    """Words that were meant as a call and are none come back as invalid calls."""
    for said in (
        "<tool_call>\n{oops\n</tool_call>",
        '<tool_call>\n{"name": "fly", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": "a=1"}\n</tool_call>',
    ):
        llm = ChatPareto(backend=ScriptedBackend([said]), strategy="single").bind_tools(TOOLS)
        for message in (llm.invoke("hi"), sum(list(llm.stream("hi"))[1:], next(llm.stream("hi")))):
            assert message.tool_calls == []
            assert len(message.invalid_tool_calls) == 1


def said_call(name, /, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_a_call_that_breaks_its_schema_is_tried_again():
    """It is a call, also streamed: the agent's tool answers with what is wrong, and the model makes a better one."""
    from langchain.agents import create_agent

    def say(text, i):
        if "tool_response" not in text:
            return said_call("add", a="one", b=2)
        return "It is 3." if text.count("<tool_response>") > 1 else said_call("add", a=1, b=2)

    llm = ChatPareto(backend=ScriptedBackend(say), strategy="single")
    chunks = list(llm.bind_tools(TOOLS).stream("hi"))
    for message in (llm.bind_tools(TOOLS).invoke("hi"), sum(chunks[1:], chunks[0])):
        assert message.invalid_tool_calls == []
        assert [call["args"] for call in message.tool_calls] == [{"a": "one", "b": 2}]
    out = create_agent(llm, TOOLS).invoke({"messages": [("human", "1 + 2?")]})["messages"]
    wrong, right = [message for message in out if isinstance(message, ToolMessage)]
    assert (wrong.status, right.status) == ("error", "success")
    assert "valid integer" in wrong.content
    assert right.content == "3"
    assert out[-1].content == "It is 3."


def test_an_object_made_of_a_call_keeps_its_schema():
    """Nobody is there to try again: arguments that break it are an error."""
    said = said_call("City", name="Ulm", people="many")
    llm = ChatPareto(backend=ScriptedBackend([said]), strategy="single")
    for schema in (City, convert_to_openai_tool(City)):
        with pytest.raises(OutputParserException, match="people"):
            llm.with_structured_output(schema, method="function_calling").invoke("Where?")


def test_a_call_that_breaks_its_schema_has_no_vote():
    """However many say the same: one that keeps its schema wins."""
    said = [said_call("add", a="one", b=2)] * 5 + [said_call("add", a=1, b=2)]
    llm = ChatPareto(
        backend=ScriptedBackend(said), strategy={"kind": "vote", "n": 6, "adaptive": False}
    )
    message = llm.bind_tools(TOOLS).invoke("hi")
    assert [call["args"] for call in message.tool_calls] == [{"a": 1, "b": 2}]
    assert message.response_metadata["pareto"]["share"] == 1


def test_a_judge_compares_calls_as_text():
    """A knockout among calls: what the judge prefers wins, though more samples say the other."""
    judged = []

    def say(text, i):
        if "Compare two answers" not in text:
            return said_call("add", a=1 if i % 4 else 2, b=2)
        judged.append(text)
        return "Better: A" if text.index('"a": 2') < text.index('"a": 1') else "Better: B"

    llm = ChatPareto(backend=ScriptedBackend(say), strategy={"kind": "knockout", "n": 4})
    for choice in (None, "any"):
        message = llm.bind_tools(TOOLS, tool_choice=choice).invoke("hi")
        assert [call["args"] for call in message.tool_calls] == [{"a": 2, "b": 2}]
    assert judged


def test_calls_are_made_in_the_order_written():
    """Side by side as they are, by whole messages and by streams."""
    calls = [("add", {"a": i, "b": 0}) for i in (3, 1, 2)] + [("weather", {"city": "Rome"})]
    said = "\n".join(said_call(name, **args) for name, args in calls)
    llm = ChatPareto(backend=ScriptedBackend([said]), strategy="single").bind_tools(TOOLS)
    chunks = list(llm.stream("hi"))
    for message in (llm.invoke("hi"), sum(chunks[1:], chunks[0])):
        assert [(call["name"], call["args"]) for call in message.tool_calls] == calls


def test_without_the_grammar_library(backend, monkeypatch):
    """What must be called is refused with what to install; what may be called is left to the model."""
    monkeypatch.setattr("langchain_pareto.backends.grammar.find_spec", lambda _: None)
    with pytest.raises(CapabilityError, match="llguidance") as error:
        model(backend).bind_tools(TOOLS, tool_choice="any").invoke("hi")
    assert "langchain-pareto[grammar]" in str(error.value.hint)
    assert model(backend).bind_tools(TOOLS).invoke("Use 3 4 5 to make 35.").content


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tools": "weather"}, "list"),
        ({"tools": [3]}, "not a tool"),
        ({"tools": [weather], "tool_choice": "fly"}, "tool_choice"),
        ({"tool_choice": "any"}, "no tools"),
        ({"response_format": 3}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "strnig"}},
                }
            },
            "not a JSON schema",
        ),
    ],
)
def test_bad_settings_say_what_to_do(settings, words):
    """Each with a hint, before anything is drawn."""
    script = ScriptedBackend(["ok"])
    with pytest.raises(SettingError, match=words) as error:
        ChatPareto(backend=script).invoke("hi", **settings)
    assert error.value.hint
    assert not script.draws


@pytest.mark.parametrize(
    ("schema", "method", "words"),
    [
        (None, "json_schema", "needs a schema"),
        (Person, "yaml", "method"),
        (3, "json_schema", "not a schema"),
        ({"title": "x", "type": "strnig"}, "json_schema", "not a JSON schema"),
    ],
)
def test_bad_schemas_say_what_to_do(schema, method, words):
    """When the chain is made, not when it runs."""
    with pytest.raises(SettingError, match=words):
        ChatPareto().with_structured_output(schema, method=method)


class Tree(BaseModel):
    """A tree."""

    value: int
    below: list["Tree"] = []


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_class_that_holds_itself(backend, method):
    """Its grammar holds all depths to the class."""
    found = model(backend, max_tokens=200).with_structured_output(Tree, method=method).invoke("?")
    assert isinstance(found, Tree)


def test_a_call_that_does_not_come_is_an_error():
    """As with a schema: nothing is given back in silence, and `include_raw` says why."""
    llm = ChatPareto(backend=ScriptedBackend(["I will not."]), strategy="single")
    with pytest.raises(OutputParserException, match="calls nothing"):
        llm.with_structured_output(Person, method="function_calling").invoke("Who?")
    shown = llm.with_structured_output(Person, method="function_calling", include_raw=True)
    assert isinstance(shown.invoke("Who?")["parsing_error"], OutputParserException)


def test_a_budget_of_the_call_reaches_a_chain_that_shows_the_raw_message(backend):
    """`include_raw` changes nothing of how the call is made."""
    chain = model(backend).with_structured_output(Person, include_raw=True)
    raw = chain.invoke("Who?", budget="70 tokens")["raw"]
    assert raw.response_metadata["pareto"]["budget"] == "70 tokens"
