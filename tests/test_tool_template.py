"""Where a tokenizer has a response template, transformers' own parser reads the calls, whole and in streams, and what it cannot read is read by marks."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from langchain_core.messages import AIMessageChunk
from minds import Mind
from test_tool_stream import check, stream, summed
from tokenizers import Tokenizer as Fast, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from langchain_pareto import ChatPareto
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.forms.tool_formats import Hermes, Templated, format_of
from langchain_pareto.forms.tools import read_tools

# As transformers' own server has them for models whose tokenizers come without (transformers/cli/serving/utils.py).
QWEN_3_5 = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>",
            },
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}
QWEN_3 = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {
            "close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>)",
            "content": "text",
        },
    },
}
GEMMA_4 = {
    "defaults": {"role": "assistant"},
    "start_anchor": ["<|turn>model\n", "<tool_response|>"],
    "fields": {
        "reasoning_content": {
            "open": "<|channel>thought\n",
            "close": "<channel|>",
            "content": "text",
        },
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
        "content": {"close": ["<turn|>", "<|tool_response>", "<eos>"], "content": "text"},
    },
}


def weather(city: str, days: int = 1) -> None:
    """Tells the weather."""


def now() -> None:
    """Tells the time."""


TOOLS = read_tools([weather, now])
ROME = ("weather", {"city": "Rome", "days": 2})
XML = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
)
PLAIN_XML = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
CURLY = '<|tool_call>call:weather{city:<|"|>Rome<|"|>,days:2}<tool_call|>'


def tokenizer(template: object, ends: str = "<|im_end|>") -> HFTokenizer:
    """Bytes, and a token that ends a text."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: i for i, letter in enumerate(sorted(letters))}
    fast = Fast(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token=ends, response_template=template
    )
    return HFTokenizer(made)


def test_marks_that_are_special_tokens_are_text_to_whoever_reads_by_them():
    """A call between special tokens is found; those that the template does not name, and the ends, stay out of the text."""
    marks = ["<|tool_call>", "<tool_call|>", '<|"|>']
    theirs = tokenizer(GEMMA_4, ends="<eos>")._hf
    theirs.add_special_tokens({"additional_special_tokens": [*marks, "<|image>", "<eos>"]})
    ours = HFTokenizer(theirs)
    tokens = ours.encode(f"<|image>{CURLY}<eos>")
    assert len(tokens) < len(CURLY), "the marks are tokens"
    assert ours.decode(tokens) == CURLY
    [call] = format_of(None, ours).parse(ours.decode(tokens), TOOLS).calls
    assert (call["name"], call["args"]) == ROME
    plain = tokenizer(None, ends="<eos>")._hf
    plain.add_special_tokens({"additional_special_tokens": marks})
    assert HFTokenizer(plain).decode(HFTokenizer(plain).encode(CURLY)).startswith("call:weather")


def written_as(template: object) -> object:
    """The format of a model with that response template, and no chat template."""
    return format_of(None, tokenizer(template))


READS = {
    name: written_as(spec)
    for name, spec in (("qwen3.5", QWEN_3_5), ("qwen3", QWEN_3), ("gemma4", GEMMA_4))
}


@pytest.mark.parametrize(
    ("model", "text", "content", "calls"),
    [
        ("qwen3.5", XML, "", [ROME]),
        ("qwen3.5", f"I look.\n\n{XML}\n{PLAIN_XML}", "I look.", [ROME, ("now", {})]),
        ("qwen3.5", f"{PLAIN_XML}\nDone.", "Done.", [("now", {})]),
        ("qwen3", Hermes().write([ROME]), "", [ROME]),
        (
            "qwen3",
            f"I look.\n{Hermes().write([ROME, ('now', {})])}",
            "I look.",
            [ROME, ("now", {})],
        ),
        ("gemma4", CURLY, "", [ROME]),
        (
            "gemma4",
            f"I look.{CURLY}<|tool_call>call:now{{}}<tool_call|>",
            "I look.",
            [ROME, ("now", {})],
        ),
        *((model, " Hello {there}.\n", " Hello {there}.\n", []) for model in READS),
        *((model, "", "", []) for model in READS),
        # not as the template has it, but as others write
        *((model, Hermes().write([ROME]), "", [ROME]) for model in READS),
        *((model, 'So. {"name": "now", "arguments": {}}', "So.", [("now", {})]) for model in READS),
    ],
)
def test_calls_are_read_as_the_template_says(model, text, content, calls):
    """Their arguments as the tool takes them, though XML knows only text."""
    parsed = READS[model].parse(text, TOOLS)
    assert isinstance(READS[model], Templated)
    assert (parsed.content, parsed.invalid) == (content, ())
    assert [(call["name"], call["args"]) for call in parsed.calls] == calls


def test_a_string_of_digits_stays_a_string():
    """JSON has types of its own, which nothing is guessed over."""

    def post(code: str | int) -> None:
        """Posts."""

    text = Hermes().write([("post", {"code": "007"})])
    [call] = READS["qwen3"].parse(text, read_tools([post])).calls
    assert call["args"] == {"code": "007"}


def test_half_a_character_is_none():
    """What is no text could not be sent to anybody."""
    text = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud800"}}</tool_call>'
    [call] = READS["qwen3"].parse(text, TOOLS).calls
    assert call["args"] == {"city": "\N{REPLACEMENT CHARACTER}"}


def test_what_was_thought_in_a_channel_is_no_content():
    """A template knows reasoning that has no think tags."""
    parsed = READS["gemma4"].parse(f"<|channel>thought\nHm {{<channel|>So:{CURLY}", TOOLS)
    assert (parsed.content, parsed.reasoning) == ("So:", "Hm {")
    assert [call["name"] for call in parsed.calls] == ["weather"]


@pytest.mark.parametrize(
    ("model", "text", "content", "names"),
    [
        # cut off: half a call is none
        ("qwen3.5", XML[:-20], "", ["weather"]),
        ("qwen3.5", XML[: XML.index("<parameter=days")], "", ["weather"]),
        ("gemma4", f"So. {CURLY[:-20]}", "So.", [None]),
        ("qwen3", Hermes().write([ROME])[:50], "", ["weather"]),
        # no JSON, no such tool, no name, no object
        ("gemma4", "So. <|tool_call>call:weather{city Rome}<tool_call|> ok", "So.", [None]),
        ("qwen3", "<tool_call>\noops\n</tool_call>", "", [None]),
        ("qwen3.5", XML.replace("weather", "rain"), "", ["rain"]),
        ("gemma4", "<|tool_call>call:rain{}<tool_call|>", "", ["rain"]),
        ("qwen3", '<tool_call>{"arguments": {}}</tool_call>', "", [None]),
        ("qwen3", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>', "", ["weather"]),
        ("qwen3", "<tool_call>3</tool_call>", "", [None]),
        # what Python takes for JSON and nobody else does
        ("qwen3", '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>', "", ["now"]),
    ],
)
def test_what_cannot_be_read_is_an_invalid_call(model, text, content, names):
    """Never an exception; the error says why."""
    parsed = READS[model].parse(text, TOOLS)
    assert (parsed.content, parsed.calls) == (content, ())
    assert [call["name"] for call in parsed.invalid] == names
    assert all(call["error"] and call["id"] for call in parsed.invalid)


def test_a_call_that_cannot_be_read_costs_no_other():
    """Marks find those that the template's parser gave up."""
    text = f"<tool_call>\noops\n</tool_call>\n{Hermes().write([ROME])}"
    parsed = READS["qwen3"].parse(text, TOOLS)
    assert [call["name"] for call in parsed.calls] == ["weather"]
    assert len(parsed.invalid) == 1


def test_a_call_that_only_the_end_of_the_text_closes_is_whole():
    """Where the mark that closes it is the token that ends a text, which is never in it."""
    ended = json.loads(json.dumps(QWEN_3_5))
    ended["fields"]["tool_calls"]["close_pattern"] = r"<\|im_end\|>"
    text = XML.removesuffix("</tool_call>")
    parsed = written_as(ended).parse(text, TOOLS)
    assert [(call["name"], call["args"]) for call in parsed.calls] == [ROME]
    cut = format_of(None, tokenizer(ended, ends="<|other|>")).parse(text, TOOLS)
    assert (cut.calls, [call["error"] for call in cut.invalid]) == ((), ["the call was cut off"])


def test_where_none_may_be_called_all_is_text():
    """As in every format."""
    for one in READS.values():
        parsed = one.parse(XML + CURLY, read_tools([weather], "none"))
        assert (parsed.content, parsed.calls, parsed.invalid) == (XML + CURLY, (), ())


_parts = st.sampled_from(
    [
        *(XML, PLAIN_XML, CURLY, Hermes().write([ROME]), '{"name": "now", "arguments": {}}'),
        *("<tool_call>", "</tool_call>", "<function=weather>", "</function>", "<parameter=city>"),
        *("<|tool_call>", "call:now{}", "<tool_call|>", "<|channel>thought\n", "<channel|>"),
        *("<think>", "</think>", "<|im_end|>", "<turn|>", " ", "\n", "I look.", "{", "}", "é", "<"),
    ]
)
_CHOICES = [
    TOOLS,
    read_tools([weather, now], parallel_tool_calls=False),
    read_tools([weather, now], "none"),
]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(_parts | st.text(max_size=4), max_size=8).map("".join),
    st.sampled_from(sorted(READS)),
    st.sampled_from(_CHOICES),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_hostile_text_adds_up(text, model, tools, cuts):
    """Wherever it is cut, a stream adds up to what the whole text holds, and nothing raises."""
    check(text, READS[model], tools, cuts)


@pytest.mark.parametrize("model", READS)
def test_words_come_at_once_and_a_call_whole_at_the_end(model):
    """What the template alone can read does not come in parts."""
    call = {"qwen3.5": XML, "qwen3": Hermes().write([ROME]), "gemma4": CURLY}[model]
    parts = [*stream(READS[model], TOOLS, f"I look. {call}")]
    words = [part for part in parts if isinstance(part, str)]
    assert words[0] == "I"
    assert "".join(words) == "I look."
    [called] = [part for part in parts if not isinstance(part, str)][::2]
    assert (called["name"], called["index"]) == ("weather", 0)
    total = summed(parts)
    assert [(one["name"], one["args"]) for one in total.tool_calls] == [ROME]


def test_a_tokenizer_without_a_usable_template_is_read_by_marks(caplog):
    """One that this transformers cannot read is warned of once, and none is no matter."""
    assert format_of(None, tokenizer(None)) == Hermes()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert format_of(None, tokenizer({"version": 99, "fields": {"a": {}}})) == Hermes()
    assert len(caplog.records) == 1
    assert "response_template is not used" in caplog.text
    assert format_of(None, tokenizer({"fields": {"a": {"x": object()}}})) == Hermes()


def test_a_grammar_is_for_calls_that_the_template_reads():
    """What begins like a call of its own must not be held to another format; what must be called is, and then read by marks."""
    for model, same in (("qwen3", True), ("qwen3.5", False), ("gemma4", False)):
        free = READS[model].grammar(TOOLS)
        assert free == (Hermes().grammar(TOOLS) if same else None)
        forced = READS[model].grammar(TOOLS.forced())
        assert forced == Hermes().grammar(TOOLS.forced())
        assert READS[model].grammar(read_tools([weather], "none")) is None


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """The bundled tokenizer, that of a model which writes calls as Qwen 3.5 does."""
    for path in tokenizer_path().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = tmp_path / "tokenizer_config.json"
    found = json.loads(config.read_text()) | {"response_template": QWEN_3_5}
    config.write_text(json.dumps(found))
    return tmp_path


@pytest.mark.parametrize("strategy", ["single", {"kind": "vote", "n": 2}])
@pytest.mark.parametrize(
    ("text", "thought"),
    [
        (f"<|channel>thought\nHm {{<channel|>So:{CURLY}", "Hm {"),
        (f"<think>Hm</think><|channel>thought\nAh<channel|>So:{CURLY}", "Hm"),
        (f"So:{CURLY}", None),
    ],
)
def test_what_was_thought_in_a_channel_is_in_the_stream(shown, text, thought, strategy):
    """Its chunks add up to what invoke gives; what stands between think tags is what was thought, where there are any."""
    config = shown / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"response_template": GEMMA_4}))
    with load("nano", tokenizer=shown, memory="200 MB") as backend:
        Mind(backend, lambda _: text)
        llm = ChatPareto(backend=backend, strategy=strategy, seed=1, max_tokens=200)
        bound = llm.bind_tools([weather, now])
        for message in (bound.invoke("hi"), sum(bound.stream("hi"), AIMessageChunk(""))):
            assert message.additional_kwargs.get("reasoning_content") == thought
            assert message.content == "So:"
            assert [(one["name"], one["args"]) for one in message.tool_calls] == [ROME]


def test_a_model_whose_tokenizer_has_a_template_is_read_by_it(shown):
    """Loaded from its files, answering whole, streamed, and by a vote; and held to a grammar where it must call."""
    pytest.importorskip("llguidance")
    with load("nano", tokenizer=shown, memory="200 MB") as backend:
        Mind(backend, lambda _: f"I look.\n{XML}")
        for strategy in ("single", {"kind": "vote", "n": 2}):
            llm = ChatPareto(backend=backend, strategy=strategy, seed=1, max_tokens=200)
            bound = llm.bind_tools([weather, now])
            whole = bound.invoke("hi")
            streamed = sum(bound.stream("hi"), AIMessageChunk(""))
            for message in (whole, streamed):
                assert message.content == "I look."
                assert [(one["name"], one["args"]) for one in message.tool_calls] == [ROME]
                assert message.response_metadata["finish_reason"] == "tool_calls"
        forced = ChatPareto(backend=backend, strategy="single", seed=1, max_tokens=200)
        [call] = (
            forced.bind_tools([weather, now], tool_choice="now", parallel_tool_calls=False)
            .invoke("hi")
            .tool_calls
        )
        assert (call["name"], call["args"]) == ("now", {})
