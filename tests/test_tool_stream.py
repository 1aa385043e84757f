"""A stream of chunks adds up to what the whole text holds, wherever the text is cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st
from langchain_core.messages import AIMessageChunk

from langchain_pareto.forms.tool_formats import Hermes, Llama, Mistral, NamedMistral
from langchain_pareto.forms.tool_stream import ToolSplitter
from langchain_pareto.forms.tools import read_tools


def weather(city: str, days: int = 1) -> None:
    """Tells the weather."""


def now() -> None:
    """Tells the time."""


HERMES = Hermes()
FORMATS = (HERMES, Llama(), Mistral(), NamedMistral())
TOOLS = [
    read_tools([weather, now], choice, parallel_tool_calls=parallel)
    for choice, parallel in ((None, True), (None, False), ("none", True), ("now", True))
]


def pieces(text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def stream(written_as, tools, parts):
    splitter = ToolSplitter(written_as, tools)
    for part in parts:
        yield from splitter.feed(part)
    yield from splitter.flush()


def summed(parts):
    total = AIMessageChunk("")
    for part in parts:
        total += (
            AIMessageChunk(part)
            if isinstance(part, str)
            else AIMessageChunk("", tool_call_chunks=[part])
        )
    return total


def shown(content, calls, invalid):
    """What must agree: ids are fresh each time, and a chunk has no place for an error."""
    return (
        content,
        [(call["name"], call["args"]) for call in calls],
        [(call["name"], call["args"]) for call in invalid],
    )


def check(text, written_as, tools, cuts):
    total = summed(stream(written_as, tools, pieces(text, cuts)))
    whole = written_as.parse(text, tools)
    assert shown(total.content, total.tool_calls, total.invalid_tool_calls) == shown(
        whole.content, whole.calls, whole.invalid
    )
    ids = [call["id"] for call in (*total.tool_calls, *total.invalid_tool_calls)]
    assert all(ids)
    assert len(set(ids)) == len(ids)


_parts = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        *('{"name": "weather", ', '"arguments": ', '{"city": "Rome"}', "weather", "now", "}", "{"),
        *("[", "]", '"', "\\", ";", ",", " ", "\n", '"name"', ":", "}}", "é", "a", "<", "1"),
        *('{"name": "now", "parameters": {}}', '{"name": "rain", "parameters": {}}', "{}"),
        *(
            '{"type": "function", ',
            "abcdefghi",
            '{"arguments": {"city": "a\\"b"}, "name": "weather"}',
        ),
    ]
)
_calls = st.lists(
    st.sampled_from(
        [
            ("weather", {"city": 'Zürich </tool_call> "{\\ 天', "days": 2}),
            ("weather", {"city": "x", "days": "3"}),
            ("weather", {}),
            ("rain", {"a": 1}),
            ("now", {}),
        ]
    ),
    max_size=3,
)
_cuts = st.lists(st.integers(0, 200), max_size=12)


@settings(max_examples=500)
@given(
    st.lists(_parts | st.text(max_size=4), max_size=14).map("".join),
    st.sampled_from(FORMATS),
    st.sampled_from(TOOLS),
    _cuts,
)
def test_hostile_text_adds_up(text, written_as, tools, cuts):
    """In every format, with every choice."""
    check(text, written_as, tools, cuts)


@settings(max_examples=300)
@given(
    st.sampled_from(["", "Ok.", " Let me look.\n\n", "{"]),
    _calls,
    st.sampled_from(["", "\n", " Done. "]),
    st.integers(0, 9),
    st.sampled_from(FORMATS),
    st.sampled_from(FORMATS),
    st.sampled_from(TOOLS),
    _cuts,
)
def test_calls_add_up(before, calls, after, lost, writer, reader, tools, cuts):
    """Also those of another format, and those that are cut off."""
    text = f"{before}{writer.write(calls)}{after}"
    check(text[: len(text) - lost], reader, tools, cuts)


@pytest.mark.parametrize("written_as", FORMATS)
def test_one_character_at_a_time(written_as):
    """The finest cut."""
    text = f"Look:\n{written_as.write([('weather', {'city': 'Rome'}), ('now', {})])}"
    check(text, written_as, TOOLS[0], range(len(text)))
    parts = list(stream(written_as, TOOLS[0], text))
    assert [len(part) for part in parts if isinstance(part, str)] == [1] * len("Look:")


@pytest.mark.parametrize("written_as", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "now" </tool_call> } x',
        '<tool_call>{"name": "now"}} </tool_call> x',
        '<tool_call>{"a": "\\\\"}</tool_call>"}',
        'forweather{"city": "x"} weather{"city": "x"}',
        '[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{"city": "x"} now{} ',
        'x [ {"type": "function", "name": "weather", "parameters": {"city": "x"}}]',
        ' {"name": "rain", "arguments": 1}; {"name": "Bob"}',
    ],
)
def test_every_single_cut(text, written_as):
    """Where a part of a mark, of a name or of an escape comes first."""
    for cut in range(len(text)):
        check(text, written_as, TOOLS[0], [cut])


def test_words_come_at_once_and_the_name_before_the_arguments():
    """Only what may open a call is held back."""
    splitter = ToolSplitter(HERMES, TOOLS[0])
    assert list(splitter.feed("Look <b> {x} ")) == ["Look <b> {x}"]
    assert list(splitter.feed("at <tool")) == [" at"]
    assert list(splitter.feed("_tip>")) == [" <tool_tip>"]
    assert list(splitter.feed('\n<tool_call>\n{"name": "wea')) == []
    [named] = splitter.feed('ther", "argum')
    assert (named["name"], named["args"], named["index"]) == ("weather", "", 0)
    assert list(splitter.feed('ents": {"city": "Ro')) == []
    assert list(splitter.feed('me", "days": "3"}}\n</tool_')) == []
    [filled] = splitter.feed("call>")
    assert (filled["name"], filled["id"], filled["index"]) == (None, None, 0)
    assert filled["args"] == '{"city": "Rome", "days": 3}'
    assert list(splitter.flush()) == []


def test_without_a_call_nothing_is_changed():
    """Not one space of the text goes."""
    text = "  Hello {there}.\n\n [1] \n"
    for written_as in FORMATS:
        assert "".join(stream(written_as, TOOLS[0], text)) == text


def test_a_cut_off_call_is_no_call():
    """LangChain would mend its arguments, and somebody would make half of what was meant."""
    total = summed(
        stream(HERMES, TOOLS[0], ['<tool_call>{"name": "weather", "arguments": {"city": "R"'])
    )
    assert total.tool_calls == []
    assert [call["name"] for call in total.invalid_tool_calls] == ["weather"]
