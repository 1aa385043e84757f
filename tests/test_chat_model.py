"""ChatPareto as a user of LangChain meets it: every door, what comes back, and what happens to mistakes."""

import asyncio
import copy
import gc
import json
import logging
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import cycle
from typing import ClassVar

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from pydantic import ValidationError
from transformers import AutoTokenizer

from langchain_pareto import Budget, BudgetError, BudgetExceeded, ChatPareto, Vote, run_budget
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.characters import CharacterTokenizer
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import policy_path, tokenizer_path
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import ContextLengthError, ParetoError, SettingError
from langchain_pareto.strategies.answers import AnswerFormat

PUZZLE = "Use 11 7 3 to make 74."
PUZZLES = [f"Use {a} {b} {a + b} to make {a * b + 3}." for a in range(2, 10) for b in range(11, 15)]
GUARD = 20.0  # seconds that nothing here may take


@cache
def nano() -> LocalBackend:
    """The bundled model, loaded once for all tests of this file."""
    return load(self_check=False)


def chat(**fields) -> ChatPareto:
    """A seeded nano model with short samples."""
    return ChatPareto(
        **{"backend": nano(), "seed": 1, "max_tokens": 40, "temperature": 0.8} | fields
    )


def endless(**fields) -> ChatPareto:
    """A nano model that babbles for more than a thousand tokens: hot enough for its end to be as rare as any token."""
    babble = {"temperature": 50.0, "seed": 15, "max_tokens": 1500, "strategy": "single"}
    return chat(**babble | fields)


def until(fact: Callable[[], bool]) -> None:
    """Returns once `fact` holds."""
    end = time.monotonic() + GUARD
    while not fact():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.001)


def at_rest() -> None:
    """Nothing runs and nobody holds a slot."""
    until(lambda: nano().engine.live == 0)
    pool = nano().runner.pool
    until(lambda: pool.free + pool.cached == pool.capacity)


def report(message: AIMessage) -> dict:
    """What the answer says of itself."""
    return message.response_metadata["pareto"]


# --- a backend that says what it is told


class Templated(CharacterTokenizer):
    """With a chat template that ends with `opening`, and notes what it was asked for."""

    has_template = True

    def __init__(self, opening: str) -> None:
        self.opening = opening
        self.kwargs: list[dict] = []

    def render(self, messages, *, template_kwargs, **_) -> str:
        self.kwargs.append(dict(template_kwargs))
        return super().render(messages) + self.opening


def told(*texts: str, opening: str = "", **fields) -> ChatPareto:
    """A chat model that says `texts` in turn, a character a token and one for the end."""
    said = cycle(texts)
    backend = ScriptedBackend(lambda *_: next(said), context_length=1 << 16)
    backend.tokenizer = Templated(opening)
    return ChatPareto(**{"backend": backend, "seed": 1} | fields)


def asked(llm: ChatPareto) -> list[tuple[Sampling, Stop]]:
    """What each draw was asked for."""
    return [draw.asked for draw in llm.backend.draws]


# --- the doors of a budget and of a strategy

DOORS: dict[str, Callable[[ChatPareto, str], AIMessage]] = {
    "keyword": lambda llm, b: llm.invoke(PUZZLE, budget=b),
    "bind": lambda llm, b: llm.bind(budget=b).invoke(PUZZLE),
    "config": lambda llm, b: llm.invoke(PUZZLE, config={"configurable": {"budget": b}}),
    "with_config": lambda llm, b: llm.with_config(configurable={"budget": b}).invoke(PUZZLE),
    "chain": lambda llm, b: (RunnableLambda(str) | llm).invoke(
        PUZZLE, config={"configurable": {"budget": b}}
    ),
    "chain with_config": lambda llm, b: (
        (RunnableLambda(str) | llm).with_config(configurable={"budget": b}).invoke(PUZZLE)
    ),
    "nested in a lambda": lambda llm, b: RunnableLambda(llm.invoke).invoke(
        PUZZLE, config={"configurable": {"budget": b}}
    ),
    "batch": lambda llm, b: llm.batch([PUZZLE], config={"configurable": {"budget": b}})[0],
    "batch with a config each": lambda llm, b: llm.batch(
        [PUZZLE, PUZZLE], config=[{}, {"configurable": {"budget": b}}]
    )[1],
    "batch keyword": lambda llm, b: llm.batch([PUZZLE], budget=b)[0],
    "stream": lambda llm, b: _sum(llm.stream(PUZZLE, config={"configurable": {"budget": b}})),
    "field": lambda llm, b: llm.model_copy(update={"budget": Budget.parse(b)}).invoke(PUZZLE),
    "agent": lambda llm, b: create_agent(llm, tools=[]).invoke(
        {"messages": [HumanMessage(PUZZLE)]}, config={"configurable": {"budget": b}}
    )["messages"][-1],
}


def _sum(chunks: Iterator[AIMessageChunk]) -> AIMessageChunk:
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert total is not None
    return total


@pytest.mark.parametrize("door", DOORS)
def test_a_budget_reaches_the_model_by_every_door(door):
    """A budget of 7 tokens ends the answer at 7 tokens, whichever way it came."""
    answer = DOORS[door](told("x" * 50, budget="30 tokens"), "7 tokens")
    assert report(answer)["budget"] == "7 tokens"
    assert report(answer)["spent"]["tokens"] == 7
    assert report(answer)["stopped_by"] == "tokens"
    assert answer.content == "x" * 7


@pytest.mark.parametrize("door", ["ainvoke", "astream", "abatch", "bound", "chain"])
async def test_a_budget_reaches_the_model_by_every_async_door(door):
    """The async doors read the same places."""
    llm = told("x" * 50)
    config = {"configurable": {"budget": 7}}
    match door:
        case "ainvoke":
            answer = await llm.ainvoke("?", config)
        case "astream":
            answer = _sum([chunk async for chunk in llm.astream("?", config)])
        case "abatch":
            [answer] = await llm.abatch(["?"], config)
        case "bound":
            answer = await llm.bind(budget=7).ainvoke("?")
        case "chain":
            answer = await (RunnableLambda(str) | llm).ainvoke("?", config)
    assert report(answer)["spent"]["tokens"] == 7


async def test_a_budget_reaches_the_model_by_the_event_doors():
    """v2 and v3 events, sync and async, read the config too."""
    config = {"configurable": {"budget": 7}}
    llm = told("x" * 50)
    ends = [
        event["data"]["output"]
        async for event in llm.astream_events("?", config, version="v2")
        if event["event"] == "on_chat_model_end"
    ]
    assert [report(end)["spent"]["tokens"] for end in ends] == [7]


async def test_a_call_tells_of_its_plan_its_thoughts_and_what_it_took():
    """As custom events, in that order, from a chain's astream_events and for a handler of a sync call; all of it plain JSON."""
    llm = told("Answer: 1", "Answer: 1", "Answer: 2", strategy=Vote(n=3, adaptive=False))
    told_by = [
        event
        async for event in (RunnableLambda(str) | llm).astream_events("?", version="v2")
        if event["event"] == "on_custom_event"
    ]
    names = ["pareto_plan", *["pareto_thought"] * 3, "pareto_spend"]
    assert [event["name"] for event in told_by] == names
    plan, *thoughts, spend = (json.loads(json.dumps(event["data"])) for event in told_by)
    assert plan["strategy"]["kind"] == "vote"
    assert [thought["answer"] for thought in thoughts] == ["1", "1", "2"]
    assert spend["spent"]["tokens"] == sum(thought["tokens"] for thought in thoughts)

    class Handler(BaseCallbackHandler):
        heard: ClassVar[list[str]] = []

        def on_custom_event(self, name, data, **_):
            self.heard.append(name)

    llm.invoke("?", {"callbacks": [Handler()]})
    assert Handler.heard == names


def test_the_nearest_door_comes_first():
    """Call keyword, then binding, then config, then field."""
    llm = told("x" * 50, budget=40)
    config = {"configurable": {"budget": 20}}

    def tokens(answer: AIMessage) -> int:
        return report(answer)["spent"]["tokens"]

    assert tokens(llm.invoke("?")) == 40
    assert tokens(llm.invoke("?", config)) == 20
    assert tokens(llm.bind(budget=10).invoke("?", config)) == 10
    assert tokens(llm.bind(budget=10).invoke("?", config, budget=5)) == 5
    assert tokens(llm.with_config(config).invoke("?", {"configurable": {"budget": 15}})) == 15
    assert tokens(llm.invoke("?", budget=None)) == 40
    assert tokens(llm.invoke("?", {"configurable": {"budget": None}})) == 40


def test_a_strategy_travels_the_same_ways():
    """By keyword, binding, config and field; as a name, an object, a dict and JSON."""
    llm = told("Answer: 1", strategy="single")
    vote = Vote(n=3, adaptive=False)
    answers = [
        llm.invoke("?", strategy=vote),
        llm.bind(strategy={"kind": "vote", "n": 3, "adaptive": False}).invoke("?"),
        llm.invoke("?", config={"configurable": {"strategy": vote.model_dump_json()}}),
        told("Answer: 1", strategy=vote).invoke("?"),
    ]
    assert [report(a)["samples"] for a in answers] == [3, 3, 3, 3]
    assert report(llm.invoke("?"))["samples"] == 1
    assert report(llm.invoke("?", strategy="best_of_n"))["strategy"]["kind"] == "best_of_n"


def test_nested_run_budgets_are_the_tightest_and_never_the_sum():
    """Whatever stands around a call, it spends from all of it."""
    llm = told("x" * 50)
    with run_budget("30 tokens") as outer:
        with run_budget("500 tokens") as inner:
            first = llm.invoke("?", budget="20 tokens")
            second = llm.invoke("?", budget="20 tokens")
        assert report(first)["spent"]["tokens"] == 20
        assert report(second)["spent"]["tokens"] == 10
        assert inner.spent.tokens == outer.spent.tokens == 30
        with pytest.raises(BudgetExceeded):
            llm.invoke("?")
    assert report(llm.invoke("?"))["spent"]["tokens"] == 51
    with run_budget("500 tokens"), run_budget("30 tokens") as inner:
        llm.batch(["?"] * 4, budget="20 tokens", return_exceptions=True)
        assert inner.spent.tokens == 30


async def test_a_run_budget_holds_for_async_calls_and_their_tasks():
    """Tasks that start inside spend from it."""
    llm = told("x" * 50)
    with run_budget("30 tokens") as account:
        await asyncio.gather(llm.ainvoke("?", budget=10), llm.ainvoke("?", budget=10))
        await llm.abatch(["?"], budget=5)
        assert [c async for c in llm.astream("?", budget=5)]
    assert account.spent.tokens == 30
    assert account.reserved.tokens == 0


def test_timeout_folds_into_seconds():
    """The tighter one of `timeout` and the budget's seconds counts."""
    assert report(told("x", timeout=3).invoke("?"))["budget"] == "3 s"
    assert (
        report(told("x", timeout=3, budget="9 tokens, 5s").invoke("?"))["budget"] == "9 tokens, 3 s"
    )
    assert report(told("x", timeout=3).invoke("?", budget="2s"))["budget"] == "2 s"


def test_a_deadline_gives_the_best_so_far():
    """At the deadline the answer is what was drawn until then, and nothing stays behind."""
    answer = endless(timeout=0.3).invoke(PUZZLE)
    assert report(answer)["stopped_by"] == "seconds"
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.content
    at_rest()


# --- many at once


def test_batch_submits_all_at_once():
    """32 prompts take at most 1.3 times the steps of the longest one, and every text is that of a single call."""
    llm = chat(strategy="single", max_tokens=60)
    engine = nano().engine
    before = engine.steps
    texts = [a.content for a in llm.batch(PUZZLES)]
    together = engine.steps - before
    alone, steps = [], []
    for puzzle in PUZZLES:
        before = engine.steps
        alone.append(llm.invoke(puzzle).content)
        steps.append(engine.steps - before)
    assert texts == alone
    assert len(PUZZLES) == 32
    assert together <= 1.3 * max(steps)


async def test_abatch_submits_all_at_once():
    """The async twin."""
    llm = chat(strategy="single", max_tokens=60)
    engine = nano().engine
    before = engine.steps
    answers = await llm.abatch(PUZZLES[:8])
    together = engine.steps - before
    longest = max(len(report(a)["tree"][0]["text"]) for a in answers)
    assert together <= 1.3 * longest
    assert [a.content for a in answers] == [a.content for a in llm.batch(PUZZLES[:8])]


@pytest.mark.parametrize("each", [False, True])
def test_max_concurrency_is_respected(each):
    """No more calls run side by side than the config says."""
    running, most, lock = 0, 0, threading.Lock()

    class Counting(BaseCallbackHandler):
        def on_chat_model_start(self, *args, **kwargs):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)

        def on_llm_end(self, *args, **kwargs):
            nonlocal running
            with lock:
                running -= 1

    config = {"max_concurrency": 2, "callbacks": [Counting()]}
    chat(strategy="single", max_tokens=10).batch(PUZZLES[:6], [config] * 6 if each else config)
    assert 1 <= most <= 2


@pytest.mark.parametrize("most", [0, -1, "2"])
async def test_a_batch_of_which_nothing_may_run_is_refused(most):
    """It would wait for ever; also where the limit comes with a list of configs, or from a chain around it."""
    llm, config = told("x"), {"max_concurrency": most}

    async def both(_):
        return await llm.abatch(["?", "?"])

    asks = (
        lambda: llm.abatch(["?", "?"], config),
        lambda: llm.abatch(["?", "?"], [config, {}]),
        lambda: RunnableLambda(both).ainvoke("?", config),
    )
    for ask in asks:
        with pytest.raises(SettingError, match="max_concurrency"):
            await asyncio.wait_for(ask(), 10)
    with pytest.raises(SettingError, match="max_concurrency"):
        llm.batch(["?", "?"], config)


def test_batch_gives_exceptions_back_when_asked():
    """A bad input fails alone."""
    good, bad = told("x").batch(["?", []], return_exceptions=True)
    assert good.content == "x"
    assert isinstance(bad, SettingError)
    assert told("x").batch([]) == []


def test_batch_as_completed_gives_every_answer():
    """Each with its index."""
    got = dict(chat(strategy="single", max_tokens=10).batch_as_completed(PUZZLES[:4]))
    assert sorted(got) == [0, 1, 2, 3]


def test_sixteen_threads_share_one_engine():
    """Calls from threads of any kind get the texts that they would get alone."""
    llm = chat(strategy="single", max_tokens=20)
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda p: llm.invoke(p).content, PUZZLES[:16]))
    assert texts == [llm.invoke(p).content for p in PUZZLES[:16]]
    at_rest()


async def test_invoke_works_inside_a_running_loop():
    """As in Jupyter."""
    assert told("x").invoke("?").content == "x"
    assert _sum(told("xy").stream("?", strategy="single")).content == "xy"


def test_invoke_works_inside_a_callback_of_the_private_loop():
    """A scorer that calls the model again does not wait for itself."""

    class Asks:
        async def score(self, thoughts):
            assert told("x").invoke("?").content == "x"
            return [0.0 for _ in thoughts]

    assert told("a", strategy="best_of_n", scorer=Asks()).invoke("?").content == "a"


# --- streaming


def test_a_single_sample_streams_live():
    """Several pieces, which join to what invoke returns."""
    llm = chat(strategy="single")
    chunks = list(llm.stream(PUZZLE))
    whole = llm.invoke(PUZZLE)
    assert sum(bool(c.content) for c in chunks) > 1
    assert "".join(c.content for c in chunks) == whole.content
    assert _sum(chunks).usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    [streamed], [invoked] = report(_sum(chunks))["tree"], report(whole)["tree"]
    # a prefix that was cached is rounded otherwise
    assert streamed.pop("mean_logprob") == pytest.approx(invoked.pop("mean_logprob"), abs=1e-5)
    assert streamed == invoked


def test_a_stream_renders_its_prompt_once():
    """As a call that does not stream; whether the prompt opens the think block is seen in that text."""
    llm = told("so</think>xy", opening="<think>", strategy="single")
    streamed = _sum(llm.stream("?"))
    assert len(llm.backend.tokenizer.kwargs) == 1
    assert (streamed.content, streamed.additional_kwargs["reasoning_content"]) == ("xy", "so")
    llm.invoke("?")
    assert len(llm.backend.tokenizer.kwargs) == 2


async def test_a_single_sample_streams_live_async():
    """The async twin."""
    llm = chat(strategy="single")
    chunks = [c async for c in llm.astream(PUZZLE)]
    assert sum(bool(c.content) for c in chunks) > 1
    assert "".join(c.content for c in chunks) == (await llm.ainvoke(PUZZLE)).content


@pytest.mark.parametrize("strategy", ["vote", "auto", "best_of_n"])
def test_other_strategies_stream_the_winner(strategy):
    """One piece, after the decision."""
    llm = chat(strategy=strategy, budget="400 tokens")
    chunks = list(llm.stream(PUZZLE))
    assert [c.content for c in chunks if c.content] == [llm.invoke(PUZZLE).content]


@pytest.mark.parametrize("strategy", ["single", "vote"])
def test_one_chunk_has_the_usage_and_one_the_name(strategy):
    """Exactly one each, so that sums are right."""
    chunks = list(chat(strategy=strategy).stream(PUZZLE))
    assert sum(c.usage_metadata is not None for c in chunks) == 1
    assert sum("model_name" in c.response_metadata for c in chunks) == 1
    assert chunks[-1].chunk_position == "last"


def test_an_empty_answer_streams():
    """A model that ends at once gives an empty message and its usage, not an error."""
    for strategy in ("single", Vote(n=1)):
        message = _sum(told("", strategy=strategy).stream("?"))
        assert message.content == ""
        assert message.usage_metadata["output_tokens"] == 1


def test_leaving_a_stream_stops_the_engine():
    """A loop that breaks off costs no more than the step in progress."""
    for _ in endless().stream(PUZZLE):
        break
    gc.collect()
    before = nano().engine.steps
    at_rest()
    assert nano().engine.steps - before <= 1


async def test_leaving_an_async_stream_stops_the_engine():
    """As soon as the generator is closed, as `break` makes Python do."""
    async for _ in endless().astream(PUZZLE):
        break
    await asyncio.to_thread(at_rest)


@pytest.mark.parametrize("strategy", ["single", "vote"])
async def test_cancelling_a_call_frees_the_engine_within_a_step(strategy):
    """After the cancelled `ainvoke` at most the step in progress ends."""
    engine = nano().engine
    before = engine.steps
    call = asyncio.create_task(endless(strategy=strategy).ainvoke(PUZZLE))
    await asyncio.to_thread(until, lambda: engine.steps >= before + 3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    before = engine.steps
    at_rest()
    assert engine.steps - before <= 1


async def test_cancelling_a_stream_frees_the_engine():
    """Cancelled in the middle of waiting for a piece."""

    async def read() -> None:
        async for _ in endless(strategy="vote").astream(PUZZLE):
            pass

    before = nano().engine.steps
    reading = asyncio.create_task(read())
    await asyncio.to_thread(until, lambda: nano().engine.steps >= before + 3)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    at_rest()


async def test_a_timeout_around_a_call_stops_the_engine():
    """`asyncio.timeout` leaves nothing running."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await endless(strategy="vote").ainvoke(PUZZLE)
    at_rest()


@pytest.mark.parametrize("bad", [[], [HumanMessage([{"type": "image", "url": "x"}])]])
async def test_a_stream_of_a_bad_prompt_raises_once(bad, caplog):
    """The error reaches the reader, and no task is left with an exception that nobody fetched."""
    with pytest.raises(SettingError):
        list(chat(strategy="single").stream(bad))
    with pytest.raises(SettingError):
        _ = [c async for c in chat(strategy="single").astream(bad)]
    gc.collect()
    await asyncio.sleep(0)
    assert not [r for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.WARNING]


# --- what comes back


def test_metadata_is_plain_json_and_complete():
    """Whoever stores it needs no class of ours."""
    message = chat(strategy=Vote(n=4, adaptive=False)).invoke(PUZZLE)
    metadata = json.loads(json.dumps(message.response_metadata, allow_nan=False))
    said = metadata["pareto"]
    assert metadata["model_name"] == "nano"
    assert metadata["finish_reason"] in {"stop", "length"}
    assert set(said) >= {"strategy", "budget", "spent", "stopped_by", "samples", "answer", "tree"}
    assert set(said["spent"]) >= {"tokens", "seconds", "flops"}
    assert said["samples"] == len(said["tree"]) == 4
    assert sum(node["tokens"] for node in said["tree"]) == said["spent"]["tokens"]
    assert [node["text"] for node in said["tree"] if node["chosen"]] == [message.content]
    assert [node["parent"] for node in said["tree"]] == [0, 0, 0, 0]


def test_usage_counts_everything():
    """Samples that are not shown count as reasoning."""
    message = told("Answer: 1", "Answer: 1", "No: 2", strategy=Vote(n=3, adaptive=False)).invoke(
        "?"
    )
    usage = message.usage_metadata
    assert usage["output_tokens"] == 10 + 10 + 6
    assert usage["output_token_details"]["reasoning"] == 10 + 6
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens"] == len("?\n")


def test_usage_counts_think_text_as_reasoning():
    """LangChain: "tokens generated by the model ... not returned as part of model output"."""
    usage = told("<think>abc</think>ok", strategy="single").invoke("?").usage_metadata
    assert usage["output_tokens"] == 21


@pytest.mark.parametrize(
    "strategy",
    [
        "single",
        Vote(n=8, adaptive=False),
    ],
)
def test_the_second_turn_reads_the_first_from_the_cache(strategy, tmp_path):
    """Everything but the new turn is cache_read, however many samples share it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path())
    # the bundled template shows the model the last question alone
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    )
    tokenizer.save_pretrained(tmp_path)
    first = [HumanMessage("Use 8 8 1 to make 63.")]
    llm = chat(
        backend="torch",
        model=str(policy_path()),
        tokenizer=str(tmp_path),
        memory="64 MB",
        strategy=strategy,
    )
    answer = llm.invoke(first)
    turns = [*first, answer, HumanMessage("Use 1 2 3 to make 6.")]
    second = llm.invoke(turns).usage_metadata
    known = llm.get_num_tokens_from_messages(first)
    assert known <= second["input_token_details"]["cache_read"] + 1
    assert second["input_token_details"]["cache_read"] < second["input_tokens"]
    llm.close()


def test_usage_callbacks_add_up():
    """LangChain's own handler finds name and usage, in calls and in streams."""
    handler = UsageMetadataCallbackHandler()
    config = {"callbacks": [handler]}
    told("abc").invoke("?", config)
    list(told("abc").stream("?", config))
    assert handler.usage_metadata["scripted"]["output_tokens"] == 8


# --- reasoning

THINKS = {
    "plain": ("", "<think>\nAnswer: 1\n</think>\n\nAnswer: 2", "Answer: 1", "Answer: 2"),
    "opened by the template": (
        "<think>\n",
        "Answer: 1\n</think>\n\nAnswer: 2",
        "Answer: 1",
        "Answer: 2",
    ),
    "none": ("", "Answer: 2", None, "Answer: 2"),
    "empty": ("", "<think>\n\n</think>\n\nAnswer: 2", "", "Answer: 2"),
    "never closed": ("", "<think>Answer: 1", "Answer: 1", ""),
    "never closed, opened by the template": ("<think>", "Answer: 1", "Answer: 1", ""),
    "other tags": ("", "<thinly>Answer: 2", None, "<thinly>Answer: 2"),
    "a less-than sign": ("", "< 3 </thin Answer: 2", None, "< 3 </thin Answer: 2"),
    "space before": ("", " \n<think>a</think>b", "a", "b"),
    "inner blank lines": ("", "<think>a\n\nb</think>c\n\nd", "a\n\nb", "c\n\nd"),
}


@pytest.mark.parametrize("case", THINKS)
def test_think_text_is_reasoning_content(case):
    """It is not part of the answer, and the answer is read after it."""
    opening, text, reasoning, rest = THINKS[case]
    message = told(text, opening=opening, strategy="single").invoke("?")
    assert message.content == rest
    assert message.additional_kwargs.get("reasoning_content") == reasoning
    assert report(message)["answer"] == ("2" if "Answer: 2" in rest else None)


@pytest.mark.parametrize("case", THINKS)
def test_think_text_streams_as_reasoning_content(case):
    """The chunks join to what invoke gives."""
    opening, text, reasoning, rest = THINKS[case]
    message = _sum(told(text, opening=opening, strategy="single").stream("?"))
    assert message.content == rest
    assert message.additional_kwargs.get("reasoning_content", "") == (reasoning or "")


def test_streamed_reasoning_comes_before_the_end():
    """It is shown as it grows."""
    chunks = list(told("<think>abcdef</think>gh", strategy="single").stream("?"))
    thinking = [c for c in chunks if c.additional_kwargs.get("reasoning_content")]
    assert len(thinking) > 1
    assert [b["type"] for b in thinking[0].content_blocks] == ["reasoning"]


def test_a_vote_counts_answers_after_the_thinking():
    """What was only thought does not vote."""
    said = "<think>Answer: 1</think>Answer: 2"
    for door in (lambda m: m.invoke("?"), lambda m: _sum(m.stream("?"))):
        message = door(told(said, strategy=Vote(n=4)))
        assert report(message)["answer"] == "2"
        assert message.content == "Answer: 2"
        assert message.additional_kwargs["reasoning_content"] == "Answer: 1"


# --- settings


def test_temperature_zero_makes_auto_one_greedy_sample():
    """Two greedy samples would be the same."""
    llm = told("Answer: 1", temperature=0)
    assert report(llm.invoke("?"))["samples"] == 1
    assert [s.temperature for s, _ in asked(llm)] == [0]


def test_temperature_zero_with_a_vote_warns_once():
    """A strategy named explicitly keeps a sampling temperature, and says so."""
    llm = told("Answer: 1", temperature=0, strategy="vote")
    with pytest.warns(UserWarning, match="temperature=0"):
        llm.invoke("?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.invoke("?")
        llm.invoke("?", strategy="auto")
    assert {s.temperature for s, _ in asked(llm)} == {0.8, 0}


def test_settings_of_a_call_override_fields():
    """Each draw is made as the nearest setting says."""
    llm = told("x", temperature=0.5, top_p=0.9, max_tokens=30, stop=["a"], strategy="single")
    llm.invoke("?", temperature=1.5, top_k=3, max_tokens=20, stop=["b", "c"])
    [(sampling, stop)] = asked(llm)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.5, 0.9, 3)
    assert (stop.max_tokens, stop.strings) == (20, ("b", "c"))
    llm.bind(stop=["d"]).invoke("?")
    assert asked(llm)[-1][1].strings == ("d",)


def test_a_stop_string_cuts_the_answer():
    """The stop itself is not part of it, also when it streams."""
    llm = chat(strategy="single", stop=["\n"])
    assert "\n" not in llm.invoke(PUZZLE).content
    assert _sum(llm.stream(PUZZLE)).content == llm.invoke(PUZZLE).content
    assert llm.invoke(PUZZLE).response_metadata["finish_reason"] == "stop"


def test_one_stop_string_may_come_bare():
    """`stop="ab"` is one stop string, not the letters of it."""
    llm = told("x", strategy="single")
    llm.invoke("?", stop="ab")
    assert asked(llm)[-1][1].strings == ("ab",)
    assert told("x", stop="ab").stop == ["ab"]


BAD_CALLS = {
    "unknown keyword": ({"foo": 1}, SettingError, "foo"),
    "zero tokens": ({"budget": 0}, BudgetError, "above zero"),
    "zero tokens as text": ({"budget": "0 tokens"}, BudgetError, "above zero"),
    "negative": ({"budget": -5}, BudgetError, "above zero"),
    "unknown unit": ({"budget": "5 parsecs"}, BudgetError, "parsecs"),
    "unknown resource": ({"budget": {"token": 5}}, BudgetError, "token"),
    "nonsense budget": ({"budget": 3.5}, BudgetError, "3.5"),
    "joules without watts": ({"budget": "1 J"}, BudgetError, "joules"),
    "strategy": ({"strategy": "nope"}, SettingError, "known strategies"),
    "strategy setting": ({"strategy": {"kind": "vote", "n": 0}}, SettingError, "vote.n"),
    "strategy type": ({"strategy": 5}, SettingError, "known strategies"),
    "temperature": ({"temperature": -1}, SettingError, "temperature"),
    "temperature nan": ({"temperature": float("nan")}, SettingError, "temperature"),
    "temperature text": ({"temperature": "hot"}, SettingError, "temperature"),
    "max_tokens": ({"max_tokens": 0}, SettingError, "max_tokens"),
    "tools": ({"tools": [3]}, SettingError, "not a tool"),
    "empty stop": ({"stop": [""]}, SettingError, "stop"),
    "stop of numbers": ({"stop": [3]}, SettingError, "stop"),
    "another model": ({"model": "gpt-9"}, SettingError, "gpt-9"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_mistakes_in_a_call_are_named(case):
    """Each raises an error of ours that names what was wrong, and leaves nothing behind."""
    kwargs, error, words = BAD_CALLS[case]
    with pytest.raises(error, match=words):
        chat(strategy="single").invoke(PUZZLE, **kwargs)
    at_rest()


@pytest.mark.parametrize(
    "fields",
    [
        {"budgett": 3},
        {"budget": -1},
        {"budget": "5 parsecs"},
        {"strategy": "nope"},
        {"strategy": {"kind": "vote", "n": 0}},
        {"backend": "tensorrt"},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"max_tokens": 0},
        {"timeout": 0},
        {"max_retries": -1},
        {"stop": [""]},
        {"presence_penalty": float("inf")},
    ],
    ids=str,
)
def test_mistakes_in_a_field_are_named_at_construction(fields):
    """An error of ours, or pydantic's that names the field, before anything is loaded."""
    with pytest.raises((ValidationError, ParetoError), match=next(iter(fields))):
        ChatPareto(**fields)


def test_odd_budgets_give_an_answer_or_say_why():
    """One token, and a million million; one flop, and a microsecond."""
    llm = chat(strategy="auto")
    assert llm.invoke(PUZZLE, budget=1).usage_metadata["output_tokens"] == 1
    assert llm.invoke(PUZZLE, budget=10**12).content
    for small in ("1 flop", "0.001 ms"):
        with pytest.raises(BudgetExceeded):
            llm.invoke(PUZZLE, budget=small)
    with pytest.raises(BudgetExceeded):
        llm.invoke(PUZZLE, budget="1 token, on error")
    at_rest()


def test_odd_prompts_give_an_answer_or_say_why():
    """Too long, empty, half a character, control characters, and no message at all."""
    llm = chat(strategy="single", max_tokens=5)
    with pytest.raises(ContextLengthError, match="2048"):
        llm.invoke("a" * 20_000)
    with pytest.raises(SettingError):
        llm.invoke([])
    with pytest.raises(SettingError, match="Unicode"):
        llm.invoke("\ud800")
    for odd in ("", "\x00\x01\xff\x7f", "\u202e\u0000<|end|>", "🙂" * 50, "a" * 2000):
        assert isinstance(llm.invoke(odd).content, str)
    at_rest()


def test_a_config_may_be_none():
    """As every Runnable takes it."""
    assert told("x").invoke("?", None).content == "x"
    assert told("x").invoke("?", config={"configurable": {}}).content == "x"
    assert told("x").batch(["?"], None)[0].content == "x"


def test_messages_of_many_shapes_are_prompts():
    """Strings, tuples, dicts, messages and prompt values."""
    llm = told("x")
    prompt = ChatPromptTemplate.from_messages([("system", "Be {how}."), ("human", "{q}")])
    for given in (
        "?",
        [("human", "?")],
        [{"role": "user", "content": "?"}],
        [SystemMessage("s"), HumanMessage([{"type": "text", "text": "?"}])],
        prompt.invoke({"how": "kind", "q": "?"}),
    ):
        assert llm.invoke(given).content == "x"
    chain = prompt | llm | StrOutputParser()
    assert chain.invoke({"how": "kind", "q": "?"}) == "x"
    assert "".join(chain.stream({"how": "kind", "q": "?"})) == "x"


# --- the object itself


def test_a_pickle_carries_settings_only():
    """A copy elsewhere has the same settings and loads its own model."""
    llm = ChatPareto(seed=3, budget="2000 tokens, 5s", strategy=Vote(n=3), stop=["x"], max_tokens=9)
    assert llm.invoke(PUZZLE, strategy="single", budget=3).content
    back = pickle.loads(pickle.dumps(llm))
    assert back.asdict() == llm.asdict()
    assert back._models._loaded == {}
    assert back.invoke(PUZZLE, strategy="single", budget=3).content
    llm.close()
    back.close()


def test_what_cannot_be_pickled_says_so():
    """A loaded model stays where it is."""
    with pytest.raises(SettingError, match="pickled"):
        pickle.dumps(chat())


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, ChatPareto.model_copy])
def test_copies_answer_like_the_original(copying):
    """Shallow or deep, one loaded model serves them all."""
    for llm in (told("x"), ChatPareto(seed=1, strategy="single", max_tokens=3)):
        first = llm.invoke(PUZZLE).content
        other = copying(llm)
        assert other.invoke(PUZZLE).content == first
        llm.close()
        assert other.invoke(PUZZLE).content == first
        other.close()


def test_a_deep_copy_has_settings_of_its_own():
    """Lists and dicts are not shared."""
    llm = told("x", stop=["a"], chat_template_kwargs={"k": [1]})
    other = copy.deepcopy(llm)
    other.stop.append("b")
    other.chat_template_kwargs["k"].append(2)
    assert llm.stop == ["a"]
    assert llm.chat_template_kwargs == {"k": [1]}


def test_a_closed_model_opens_again():
    """`close` gives the weights back; the next call loads them; twice is once."""
    llm = ChatPareto(seed=1, strategy="single", max_tokens=5)
    first = llm.invoke(PUZZLE).content
    llm.close()
    llm.close()
    assert llm.invoke(PUZZLE).content == first
    llm.close()


def test_closing_spares_a_backend_that_was_handed_in():
    """Whoever made it closes it."""
    llm = chat(strategy="single", max_tokens=5)
    llm.close()
    assert llm.invoke(PUZZLE).content


def test_identifying_parameters_are_json():
    """What goes to traces, and to the key of the cache."""
    for llm in (ChatPareto(budget="5s", stop=["x"]), told("x")):
        for params in (llm._identifying_params, llm.asdict()):
            assert json.dumps(dict(params), allow_nan=False)
    assert ChatPareto(budget="5s").asdict()["budget"] == "5 s"


def test_langsmith_sees_provider_and_model():
    """Also the model that one call names."""
    params = ChatPareto(temperature=0.5, max_tokens=7)._get_ls_params(stop=["x"])
    assert params["ls_provider"] == "pareto"
    assert params["ls_model_name"] == "nano"
    assert params["ls_model_type"] == "chat"
    assert (params["ls_temperature"], params["ls_max_tokens"], params["ls_stop"]) == (0.5, 7, ["x"])
    assert ChatPareto()._get_ls_params(model="other")["ls_model_name"] == "other"
    assert told("x")._get_ls_params()["ls_model_name"] == "scripted"


def test_the_profile_knows_the_context():
    """Agents that summarise at a fraction of the context need it."""
    assert chat().profile["max_input_tokens"] == 2048


def test_tokens_are_counted_by_the_models_own_tokenizer():
    """Not by GPT-2's, and with the template."""
    llm = chat()
    assert llm.get_num_tokens(PUZZLE) == len(nano().tokenizer.encode(PUZZLE))
    counted = llm.get_num_tokens_from_messages([HumanMessage(PUZZLE)])
    assert counted == llm.invoke(PUZZLE, budget=1).usage_metadata["input_tokens"]


def test_template_kwargs_reach_the_template():
    """As for thinking models that can be told not to."""
    llm = told("x", chat_template_kwargs={"enable_thinking": False})
    llm.invoke("?")
    assert llm.backend.tokenizer.kwargs == [{"enable_thinking": False}]


# --- with the rest of LangChain


@pytest.fixture
def llm_cache() -> Iterator[InMemoryCache]:
    """LangChain's cache, on for one test."""
    made = InMemoryCache()
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


def test_the_cache_answers_again(llm_cache):
    """The same call is answered from the cache, another budget is another call."""
    llm = told("a", "b", "c", strategy="single")
    assert llm.invoke("?").content == "a"
    assert llm.invoke("?").content == "a"
    assert llm.invoke("?", budget="9 tokens").content == "b"
    assert llm.invoke("?", {"configurable": {"budget": "9 tokens"}}).content == "b"
    assert llm.invoke("?", budget=Budget(tokens=9)).content in {"b", "c"}


def test_the_cache_tells_models_apart_that_answer_differently(llm_cache):
    """Whatever changes the text or how it is read is in the key."""
    told("a").invoke("?")
    for other in (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"answers": AnswerFormat(last_number=True)},
        {"max_tokens": 9},
        {"strategy": "vote"},
        {"timeout": 9.0},
    ):
        assert told("b", **other).invoke("?").content == "b"


def test_models_in_folders_of_one_name_are_told_apart():
    """/a/policy and /b/policy are two models, in the cache's key too."""
    one, two = ChatPareto(model="/a/policy"), ChatPareto(model="/b/policy")
    assert one._get_llm_string() != two._get_llm_string()


def test_an_honest_bill_does_not_make_agents_summarise():
    """Sixteen samples cost much more than the conversation is long; the middleware goes by its length."""
    llm = told("Answer: " + "1" * 80, strategy=Vote(n=16, adaptive=False))
    question = HumanMessage("?")
    answer = llm.invoke([question])
    assert answer.usage_metadata["total_tokens"] > 1000
    middleware = SummarizationMiddleware(model=llm, trigger=("tokens", 600), keep=("messages", 1))
    state = {"messages": [question, answer, HumanMessage("And?")]}
    assert middleware.before_model(state, None) is None
    agent = create_agent(llm, tools=[], middleware=[middleware])
    turns = agent.invoke({"messages": [question]})["messages"]
    turns = agent.invoke({"messages": [*turns, HumanMessage("And?")]})["messages"]
    assert [m.type for m in turns] == ["human", "ai", "human", "ai"]
    long = [HumanMessage("x" * 4000), answer, HumanMessage("And?")]
    assert middleware.before_model({"messages": long}, None) is not None


def test_retries_and_fallbacks_wrap_it():
    """A bad model falls back to a good one."""
    bad = told("x", budget="1 token, on error")
    good = told("y")
    assert bad.with_fallbacks([good]).invoke("?").content == "y"
    assert good.with_retry().invoke("?").content == "y"
    assert good.with_retry(stop_after_attempt=2).bind(budget=1).invoke("?").content == "y"


def test_configurable_fields_work():
    """LangChain makes another model of the same fields for each call."""
    for llm in (told("x" * 9), ChatPareto(seed=1, strategy="single")):
        wide = llm.configurable_fields(max_tokens=ConfigurableField(id="most"))
        answer = wide.invoke(PUZZLE, config={"configurable": {"most": 4}})
        assert answer.usage_metadata["output_tokens"] == 4
        assert wide.invoke(PUZZLE).usage_metadata["output_tokens"] > 4


def test_agents_run_it_without_tools():
    """create_agent binds settings and invokes without a config."""
    agent = create_agent(told("hello"), tools=[])
    state = agent.invoke({"messages": [HumanMessage("?")]})
    assert state["messages"][-1].content == "hello"


def test_the_cache_tells_models_apart():
    """Two backends of one name do not answer for each other."""
    cache = InMemoryCache()
    one, other = (
        ChatPareto(backend=ScriptedBackend([text]), strategy="single", cache=cache)
        for text in ("one", "other")
    )
    assert [one.invoke("?").content, other.invoke("?").content] == ["one", "other"]
    assert one.invoke("?").content == "one"


def test_what_is_no_backend_is_refused_at_construction():
    """An object that cannot extend a branch is no backend."""
    with pytest.raises(SettingError, match="no backend"):
        ChatPareto(backend=object())
