"""Messages become prompts, and a streamed text splits at its think tags wherever it is cut."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
)

from langchain_pareto.backends.characters import CharacterTokenizer
from langchain_pareto.backends.thinking import opens_thinking
from langchain_pareto.errors import SettingError
from langchain_pareto.messages import (
    ReasoningSplitter,
    last_question,
    prompt_text,
    prompt_tokens,
    to_chat,
)
from langchain_pareto.strategies.answers import split_reasoning


def test_every_kind_of_message_has_its_role():
    """Also a ChatMessage, which brings its own."""
    turns = to_chat(
        [
            SystemMessage("s"),
            HumanMessage("h", name="ann"),
            AIMessage("a"),
            ToolMessage("t", tool_call_id="1"),
            ChatMessage("c", role="critic"),
        ]
    )
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "critic"]
    assert [turn["content"] for turn in turns] == ["s", "h", "a", "t", "c"]
    assert turns[1]["name"] == "ann"
    assert turns[3]["tool_call_id"] == "1"


def test_the_sum_of_a_stream_is_a_turn_like_any_other():
    """Chunks have a type of their own in LangChain, and the same role."""
    chunks = [SystemMessageChunk("s"), HumanMessageChunk("h"), AIMessageChunk("a")]
    assert to_chat(chunks) == to_chat([SystemMessage("s"), HumanMessage("h"), AIMessage("a")])


def test_tool_calls_go_to_the_template():
    """As functions with arguments."""
    call = {"name": "add", "args": {"a": 1}, "id": "7", "type": "tool_call"}
    [turn] = to_chat([AIMessage("", tool_calls=[call])])
    function = {"name": "add", "arguments": {"a": 1}}
    assert turn["tool_calls"] == [{"type": "function", "id": "7", "function": function}]


def test_blocks_of_text_are_joined_and_reasoning_is_left_out():
    """What a model thought in an earlier turn is not said again."""
    content = [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text", "text": "a"},
        "b",
        {"type": "tool_use", "name": "f", "id": "1", "input": {}},
    ]
    assert to_chat([AIMessage(content)])[0]["content"] == "ab"


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "file", "nonsense"])
def test_what_is_no_text_is_refused_by_name(kind):
    """The model cannot see it, and must not answer as if it had."""
    with pytest.raises(SettingError, match=kind):
        to_chat([HumanMessage([{"type": "text", "text": "Look:"}, {"type": kind}])])


def test_the_question_is_the_last_that_a_human_said():
    """Or the last message, when no human spoke."""
    assert last_question([HumanMessage("a"), HumanMessage("b"), AIMessage("c")]) == "b"
    assert last_question([SystemMessage("s"), AIMessage("c")]) == "c"
    assert last_question([HumanMessage("a"), HumanMessageChunk("b")]) == "b"
    assert last_question([]) == ""


def test_a_prompt_is_rendered_and_encoded():
    """Without a template the contents stand a line each."""
    tokenizer = CharacterTokenizer()
    text = prompt_text(tokenizer, [SystemMessage("s"), HumanMessage("h")], {})
    assert text == "s\nh\n"
    assert prompt_tokens(tokenizer, text) == list(map(ord, text))


def test_a_template_tells_by_its_end_that_it_opened_the_block():
    """A think tag further up does not count."""
    assert opens_thinking("user: ?\nassistant: <think>\n")
    assert not opens_thinking("<think> is a tag\nassistant:")


def _stream(text: str, cuts: list[int], *, thinking: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(thinking=thinking)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [splitter.feed(text[a:b]) for a, b in pairwise(edges)]
    parts.append(splitter.flush())
    return "".join(r for r, _ in parts), "".join(a for _, a in parts)


_words = st.text(st.sampled_from(" \nab</thikn>"), max_size=12).filter(
    lambda text: "<think>" not in text and "</think>" not in text
)
_cuts = st.lists(st.integers(0, 60), max_size=8)


@given(_words, _words, _cuts, st.booleans())
def test_a_stream_splits_as_the_whole_text_does(inside, after, cuts, opened):
    """Wherever it is cut, and whether the model or the template opened the block."""
    text = f"<think>{inside}</think>{after}"
    reasoning, rest = split_reasoning(text)
    shown = text.removeprefix("<think>") if opened else text
    assert _stream(shown, cuts, thinking=opened) == (reasoning, rest)


@given(_words, _cuts)
def test_a_stream_without_thinking_is_left_as_it_is(text, cuts):
    """Not one space of it goes."""
    assert _stream(text, cuts) == ("", text)


@given(_words, _cuts, st.booleans())
def test_a_block_that_never_ends_is_all_reasoning(inside, cuts, opened):
    """Nothing of it is shown as the answer."""
    shown = inside if opened else f"<think>{inside}"
    assert _stream(shown, cuts, thinking=opened) == (inside.strip(), "")


def test_only_what_may_be_a_tag_is_held_back():
    """Everything else is shown at once."""
    splitter = ReasoningSplitter(thinking=False)
    assert splitter.feed("<thi") == ("", "")
    assert splitter.feed("nk>a") == ("a", "")
    assert splitter.feed("b </th") == ("b", "")
    assert splitter.feed("is") == (" </this", "")
    assert splitter.feed("</think>\n") == ("", "")
    assert splitter.feed("c") == ("", "c")
