"""Calls are read as real models write them, and a grammar leaves a model nothing to write that cannot be read."""

import json
import random
import warnings
from typing import Literal

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel, Field

from langchain_pareto.backends.characters import CharacterTokenizer
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.forms.schemas import violation
from langchain_pareto.forms.tool_formats import (
    Hermes,
    Llama,
    Mistral,
    NamedMistral,
    format_of,
    shows_tools,
)
from langchain_pareto.forms.tool_region import Region
from langchain_pareto.forms.tool_scan import CallScanner, Opened
from langchain_pareto.forms.tools import read_tools


def weather(city: str, days: int = 1) -> None:
    """Tells the weather: 天気 — Wetter für morgen."""


def add(a: int, b: float) -> None:
    """Adds."""


def now() -> None:
    """Tells the time."""


FORMATS = HERMES, LLAMA, MISTRAL, NAMED = Hermes(), Llama(), Mistral(), NamedMistral()
TOOLS = read_tools([weather, add, now])
ROME, FIVE = ("weather", {"city": "Rome"}), ("add", {"a": 2, "b": 3})


def read(written_as, text, tools=TOOLS):
    parsed = written_as.parse(text, tools)
    return parsed.content, [(call["name"], call["args"]) for call in parsed.calls], parsed.invalid


# --- as models write


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        # Hermes 2 Pro and Qwen 2.5: a line each
        (
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
            "",
            [ROME],
        ),
        (
            (
                'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
                '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
            ),
            "Let me look.",
            [ROME, FIVE],
        ),
        # the arguments first, as some Hermes models learned it; no closing mark; one brace too many
        (
            '<tool_call>\n{"arguments": {"city": "Rome"}, "name": "weather"}\n</tool_call>',
            "",
            [ROME],
        ),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}', "", [ROME]),
        (
            '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}\n<tool_call>{"name": "now"}',
            "",
            [ROME, ("now", {})],
        ),
        (
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}}\n</tool_call> ok',
            "ok",
            [ROME],
        ),
        # the mark was a special token, or forgotten
        (
            '{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
            "</tool_call>",
            [ROME],
        ),
        ('Sure.\n{"name": "weather", "arguments": {"city": "Rome"}}', "Sure.", [ROME]),
        # a list in one mark, OpenAI's nesting, arguments as a string
        (
            '<tool_call>[{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "now"}]</tool_call>',
            "",
            [ROME, ("now", {})],
        ),
        (
            (
                '<tool_call>{"type": "function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}}'
                "</tool_call>"
            ),
            "",
            [ROME],
        ),
        # the mark within a string is part of it
        (
            '<tool_call>{"name": "weather", "arguments": {"city": "a</tool_call>\\"{b"}}</tool_call>',
            "",
            [("weather", {"city": 'a</tool_call>"{b'})],
        ),
        # no call at all
        ("Hello.\n", "Hello.\n", []),
        ("", "", []),
        ('{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
        (
            'He said: {"name": "Bob", "arguments": {}}',
            'He said: {"name": "Bob", "arguments": {}}',
            [],
        ),
        ("a <tool_", "a <tool_", []),
    ],
)
def test_hermes(text, content, calls):
    """Hermes, Qwen 2.5 and Qwen 3."""
    assert read(HERMES, text) == (content, calls, ())


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
        (
            '<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Rome"}}',
            "",
            [ROME],
        ),
        (
            '{"name": "weather", "parameters": {"city": "Rome"}}; {"name": "add", "parameters": {"a": "2", "b": "3"}}',
            "",
            [ROME, FIVE],
        ),
        ('[{"name": "weather", "parameters": {"city": "Rome"}}]', "", [ROME]),
        ('I look.{"name": "weather", "parameters": {"city": "Rome"}} ;', "I look.;", [ROME]),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
        ("f(x) = {x; y}", "f(x) = {x; y}", []),
    ],
)
def test_llama(text, content, calls):
    """Llama 3.1, with its tag and without."""
    assert read(LLAMA, text) == (content, calls, ())


@pytest.mark.parametrize("written_as", [MISTRAL, NAMED])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]', "", [ROME]),
        (
            (
                '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}, "id": "abcdefghi"}, '
                '{"name": "add", "arguments": {"a": 2, "b": 3}, "id": "abcdefghj"}]'
            ),
            "",
            [ROME, FIVE],
        ),
        (' [{"name": "weather", "arguments": {"city": "Rome"}}]', "", [ROME]),
        ('[TOOL_CALLS]weather{"city": "Rome"}', "", [ROME]),
        (
            '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]add[ARGS]{"a": 2, "b": 3}',
            "",
            [ROME, FIVE],
        ),
        ('[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Rome"}', "", [ROME]),
        ('weather{"city": "Rome"}add{"a": 2, "b": 3}', "", [ROME, FIVE]),
        ('I look.weatherabc123XYZ{"city": "Rome"}', "I look.", [ROME]),
        ('forweather{"a": 1}', 'forweather{"a": 1}', []),
        ("weather{x} now{", "weather{x} now{", []),
        ("[TOOL_CALLS]", "[TOOL_CALLS]", []),
        ("bad weather [1] now {2}", "bad weather [1] now {2}", []),
    ],
)
def test_mistral(written_as, text, content, calls):
    """The list of version 3, and the names of version 11; where the marks are special tokens, they are not in the text."""
    assert read(written_as, text) == (content, calls, ())


@pytest.mark.parametrize("written_as", FORMATS)
def test_what_is_written_can_be_read(written_as):
    """In every format, several at once, and with text before."""
    calls = [("weather", {"city": '</tool_call>"\\ Zürich\n🌧'}), FIVE, ("now", {})]
    assert read(written_as, written_as.write(calls)) == ("", calls, ())
    assert read(written_as, f"Well. {written_as.write(calls)}") == ("Well.", calls, ())
    assert written_as.result("7").count("7") == 1


# --- what is no call


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ('<tool_call>{"name": "rain", "arguments": {}}</tool_call>', "rain", "no tool 'rain'"),
        ('{"name": "rain", "arguments": {}}', "rain", "no tool 'rain'"),
        ('<tool_call>{"name": "weather", "arguments": {"city": "R', "weather", "not JSON"),
        (
            '<tool_call>{"name": "weather", "arguments": {"city": "R"}</tool_call>',
            "weather",
            "JSON",
        ),
        ('<tool_call>weather(city="Rome")</tool_call>', None, "not JSON"),
        ('<tool_call>{"name": "add", "arguments": [2, 3]}</tool_call>', "add", "object"),
        ('<tool_call>{"name": "add", "arguments": "a=2"}</tool_call>', "add", "object"),
        ('<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>', "now", "NaN"),
        ('<tool_call>{"arguments": {}}</tool_call>', None, "no name"),
        ("<tool_call>[]</tool_call>", None, "no call"),
        ("<tool_call></tool_call>", None, "not JSON"),
        ('<tool_call>{"name": ["weather"]}</tool_call>', None, "no name"),
        (f'<tool_call>{{"name": "now", "arguments": {"[" * 9999}', "now", "deep"),
        (f'<tool_call>{{"name": "now", "arguments": {{"a": {"9" * 9999}}}}}', "now", "not JSON"),
    ],
)
def test_a_broken_call_is_kept_and_explained(text, name, words):
    """Its whole text is there, and the error says what is wrong with it."""
    content, calls, [invalid] = read(HERMES, text)
    assert (content, calls) == ("", [])
    assert invalid["name"] == name
    assert words in invalid["error"]
    assert text in invalid["args"]
    assert invalid["id"]


def test_a_quote_too_many_costs_one_call():
    """The calls behind it are still found."""
    text = (
        '<tool_call>{"name": "weather", "arguments": {"city": "a"b"}}</tool_call>\n'
        '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    )
    content, calls, invalid = read(HERMES, text)
    assert (content, calls, len(invalid)) == ("", [("now", {})], 1)


def test_of_two_calls_where_one_was_asked_for_the_first_that_can_be_made_counts():
    """The other is kept as an invalid one, so that nobody makes it."""
    tools = read_tools([weather, add, now], parallel_tool_calls=False)
    text = HERMES.write([("rain", {}), ROME, FIVE])
    content, calls, invalid = read(HERMES, text, tools)
    assert (content, calls) == ("", [ROME])
    assert [call["name"] for call in invalid] == ["rain", "add"]
    assert "one call" in invalid[1]["error"]


def test_a_choice_holds_also_without_a_grammar():
    """Another tool than the one that was asked for is no valid call; where none may be called, all is text."""
    text = HERMES.write([ROME])
    _, calls, [invalid] = read(HERMES, text, read_tools([weather, now], "now"))
    assert (calls, invalid["name"]) == ([], "weather")
    assert read(HERMES, text, read_tools([weather], "none")) == (text, [], ())


def test_ids_are_fresh_and_fit_every_template():
    """Nine letters and digits, as Mistral's template demands."""
    parsed = HERMES.parse(HERMES.write([ROME, ROME]), TOOLS)
    ids = [call["id"] for call in parsed.calls]
    assert len(set(ids)) == 2
    assert all(len(one) == 9 and one.isalnum() and one.isascii() for one in ids)


# --- arguments


class Place(BaseModel):
    """A place."""

    name: str
    zip: str | None = None


class Trip(BaseModel):
    """Plans a trip."""

    days: int
    price: float = 0
    fast: bool = False
    by: Literal["train", "bus"] = "bus"
    stops: list[Place] = Field(default_factory=list)
    limit: int | None = None
    tags: dict[str, int] = Field(default_factory=dict)
    either: int | str = 0
    once: set[int] = Field(default_factory=set)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"days": "7"}, {"days": 7}),
        ({"days": 7.0}, {"days": 7}),
        ({"days": 7, "price": "1.5"}, {"days": 7, "price": 1.5}),
        ({"days": 7, "fast": "True"}, {"days": 7, "fast": True}),
        ({"days": 7, "price": None, "by": None}, {"days": 7}),
        ({"days": 7, "limit": None}, {"days": 7, "limit": None}),
        ({"days": 7, "limit": "3"}, {"days": 7, "limit": 3}),
        ({"days": 7, "limit": "null"}, {"days": 7, "limit": None}),
        (
            {"days": 7, "stops": '[{"name": "Rom", "zip": 123}]'},
            {"days": 7, "stops": [{"name": "Rom", "zip": "123"}]},
        ),
        ({"days": 7, "tags": {"a": 1}}, {"days": 7, "tags": {"a": 1}}),
        ({"days": 7, "either": "8"}, {"days": 7, "either": "8"}),
        ({"days": 7, "once": [2, "1", 2, 1]}, {"days": 7, "once": [2, 1]}),
        ({"days": 7, "more": "kept"}, {"days": 7, "more": "kept"}),
    ],
)
def test_arguments_are_made_to_fit(written, meant):
    """Where the meaning is plain; what fits already stays as it is."""
    assert read(HERMES, HERMES.write([("Trip", written)]), read_tools([Trip])) == (
        "",
        [("Trip", meant)],
        (),
    )


@pytest.mark.parametrize(
    "written",
    [
        {"days": "soon"},
        {"days": 7.5},
        {"days": True},
        {"days": None},
        {"days": 7, "by": "plane"},
        {"days": 7, "stops": [{}]},
    ],
)
def test_arguments_that_mean_nothing_are_left_as_they_are(written):
    """They are not guessed at: the call is one that breaks its schema, and whoever makes it says so to the model."""
    tools = read_tools([Trip])
    assert read(HERMES, HERMES.write([("Trip", written)]), tools) == ("", [("Trip", written)], ())
    assert violation(written, tools.parameters("Trip")) is not None


def test_arguments_that_are_nested_too_deeply_are_no_call():
    """Nobody downstream could write them again."""
    deep = '{"a": ' * 400 + "1" + "}" * 400
    text = f'<tool_call>{{"name": "t", "arguments": {deep}}}</tool_call>'
    kinds = {"$defs": {"x": {"properties": {"a": {"$ref": "#/$defs/x"}}}}, "$ref": "#/$defs/x"}
    tools = read_tools([{"name": "t", "parameters": {"type": "object", **kinds}}])
    _, calls, [invalid] = read(HERMES, text, tools)
    assert calls == []
    assert "deep" in invalid["error"]


def test_calls_keep_the_order_in_which_they_are_written():
    """Those that can be made among themselves, whatever stands between them."""
    calls = [FIVE, ("now", {}), ROME, ("now", {}), FIVE]
    for written_as in FORMATS:
        assert read(written_as, written_as.write(calls)) == ("", calls, ())
    text = HERMES.write([ROME, ("rain", {}), FIVE])
    assert read(HERMES, text)[1] == [ROME, FIVE]


def test_a_number_beyond_floats_and_half_a_character_can_be_written_again():
    """As JSON, and as UTF-8."""
    text = '<tool_call>{"name": "t", "arguments": {"a": 1e999, "b": "\\ud800\\ud83d\\ude00"}}</tool_call>'
    tools = read_tools(
        [{"name": "t", "parameters": {"type": "object", "additionalProperties": True}}]
    )
    _, [(_, args)], _ = read(HERMES, text, tools)
    assert args["b"] == "\N{REPLACEMENT CHARACTER}😀"
    json.dumps(args, ensure_ascii=False, allow_nan=False).encode()


# --- hostile text

_parts = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        *('{"name": "weather", ', '"arguments": ', '{"city": "Rome"}', "weather", "now", "}", "{"),
        *("[", "]", '"', "\\", ";", ",", " ", "\n", '"name"', ":", "}}", "é", "a", "<", "1"),
        *('{"name": "now", "parameters": {}}', '{"name": "rain", "parameters": {}}', "{}"),
    ]
)
HOSTILE = st.lists(_parts | st.text(max_size=4), max_size=14).map("".join)
TOLD = [
    read_tools([weather, add, now], choice, parallel_tool_calls=parallel)
    for choice in (None, "none", "weather")
    for parallel in (True, False)
]


@settings(max_examples=400)
@given(HOSTILE, st.sampled_from(FORMATS), st.sampled_from(TOLD))
def test_nothing_is_lost(text, written_as, tools):
    """Every character outside of regions is in the content, every region is a call or an invalid one, and no text raises."""
    parsed = written_as.parse(text, tools)
    if tools.choice == "none":
        assert parsed.content == text
        return
    scanner = CallScanner(written_as.marks, tools.names)
    found = [one for one in (*scanner.feed(text), *scanner.flush()) if not isinstance(one, Opened)]
    assert "".join(one.raw if isinstance(one, Region) else one for one in found) == text
    regions = [one for one in found if isinstance(one, Region)]
    words = "".join(one for one in found if isinstance(one, str))
    assert len(parsed.calls) + len(parsed.invalid) >= len(regions)
    if regions:
        idle = " \t\n\r\f\v;,"
        kept = parsed.content.translate(dict.fromkeys(map(ord, idle)))
        assert "".join(kept.split()) == "".join(
            words.translate(dict.fromkeys(map(ord, idle))).split()
        )
    else:
        assert parsed.content == text
    for call in parsed.calls:
        assert call["name"] in tools.callable_names
        json.dumps(call["args"])


# --- templates


@pytest.mark.parametrize(
    ("template", "written_as"),
    [
        (None, HERMES),
        ("{{ messages }}", HERMES),
        ("... <tool_call>\\n{{ tool_call | tojson }} ...", HERMES),
        ("{{ '[TOOL_CALLS] [' }}", MISTRAL),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", NAMED),
        ("{{ '<|python_tag|>' }}", LLAMA),
        ("""{{ '"parameters": ' }}""", LLAMA),
        ("{{ 'Environment: ipython' }}", LLAMA),
    ],
)
def test_a_template_shows_its_format(template, written_as):
    """By the marks in it."""
    assert format_of(template) == written_as


def test_formats_can_be_told_apart():
    """Each equals itself only: a reader tries each format once."""
    assert list(dict.fromkeys([*FORMATS, *SPECIAL, Hermes(), NamedMistral()])) == [
        *FORMATS,
        *SPECIAL,
    ]


def test_a_template_shows_tools_if_it_reads_them():
    """The word alone, in a text, does not count."""
    assert shows_tools("{%- if tools %}x{% endif %}")
    assert shows_tools("{% for t in tools %}{{ t }}{% endfor %}")
    assert not shows_tools("You have no tools. {{ messages }}")
    assert not shows_tools("{{ x }} tools {{ y }}")
    assert not shows_tools(None)


@pytest.mark.parametrize("written_as", FORMATS)
def test_a_description_names_what_may_be_called(written_as):
    """Its example is in the format, and can be read."""
    told = written_as.describe(TOOLS)
    assert all(name in told for name in TOOLS.names)
    assert "天気" in told
    assert written_as.marks.open in told or isinstance(written_as, Llama)
    one = written_as.describe(read_tools([weather, now], "now", parallel_tool_calls=False))
    assert "weather" not in one
    assert written_as.describe(read_tools([now], "none")) == ""


# --- grammars

_NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value"],
}
TOOL_SETS = (
    [weather],
    [now],
    [weather, add, now],
    [Trip, now],
    [
        {
            "name": "größe-1",
            "description": 'Größe 大きさ "quoted" \\ \n',
            "parameters": {
                "type": "object",
                "properties": {
                    "ä": {"enum": ["é", '"', "\\", 1, None, True]},
                    "where": {"type": "object", "properties": {"x": {"type": "number"}}},
                },
                "required": ["ä", "where"],
            },
        },
        {
            "name": "walk",
            "parameters": {
                "type": "object",
                "properties": {"node": {"$ref": "#/$defs/node"}},
                "required": ["node"],
                "$defs": {"node": _NODE},
            },
        },
    ],
)


@pytest.fixture(scope="module")
def nano():
    hf = pytest.importorskip("llguidance.hf")
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_path() / "tokenizer.json")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = hf.from_tokenizer(fast, eos_token=0)
    return tokenizer, [tokenizer.decode_str([i]) for i in range(tokenizer.vocab_size)]


def random_text(nano, grammar, rng, *, start=(), most=400):
    """What random allowed tokens after `start` give, None where they do not end in time; and where they could first have ended.

    Those that close something are preferred, since a string would hardly end.
    """
    from llguidance import LLMatcher

    tokenizer, pieces = nano
    matcher, tokens, first = LLMatcher(tokenizer, grammar), list(start), None
    assert not matcher.get_error()
    assert matcher.consume_tokens(tokens), matcher.get_error()
    while len(tokens) < most:
        bits = matcher.compute_bitmask()
        allowed = [i for i in range(tokenizer.vocab_size) if bits[i // 8] >> (i % 8) & 1]
        if 0 in allowed:
            first = first or len(tokens)
            if len(allowed) == 1 or rng.random() < 0.5:
                break
            allowed.remove(0)
        closing = [i for i in allowed if pieces[i] in ('"', "}", "]", '"}', '"]')]
        tokens.append(rng.choice(closing if closing and rng.random() < 0.3 else allowed))
        assert matcher.consume_token(tokens[-1])
    else:
        return None, most
    text = [i for i in tokens if not tokenizer.is_special_token(i)]
    return tokenizer.decode_bytes(text).decode(), first


SPECIAL = (
    Hermes((("<tool_call>", 4), ("</tool_call>", 5))),
    Llama((("<|python_tag|>", 4),)),
    Mistral((("[TOOL_CALLS]", 4),)),
    NamedMistral((("[TOOL_CALLS]", 4), ("[ARGS]", 5))),
)


@pytest.mark.parametrize("written_as", [*FORMATS, *SPECIAL], ids=str)
def test_random_tokens_under_a_forced_grammar_are_valid_calls(nano, written_as):
    """Whatever the tools are, and whether the marks are text or special tokens, which the text does not show."""
    rng, finished = random.Random(str(written_as)), 0
    for i, specs in enumerate(TOOL_SETS * 4):
        parallel = i % 2 == 0
        tools = read_tools(specs, "any", parallel_tool_calls=parallel)
        text, _ = random_text(nano, written_as.grammar(tools), rng)
        if text is None:
            continue
        finished += 1
        parsed = written_as.parse(text, tools)
        assert (parsed.content, parsed.invalid) == ("", ()), text
        assert len(parsed.calls) == 1 or (parallel and parsed.calls)
        for call in parsed.calls:
            assert violation(call["args"], tools.parameters(call["name"])) is None
    assert finished > 10


@pytest.mark.parametrize("written_as", [*FORMATS, *SPECIAL], ids=str)
def test_where_a_call_may_be_made_the_mark_begins_it(nano, written_as):
    """Any words may come first; from the mark on, random tokens are valid calls, and nothing comes after them."""
    rng, finished = random.Random(str(written_as)), 0
    for i, specs in enumerate(TOOL_SETS * 3):
        tools = read_tools(specs, None, parallel_tool_calls=i % 2 == 0)
        name = tools.names[0]
        opening = written_as.write([(name, {})]).split(name)[0]
        if isinstance(written_as, Llama):
            opening += f'{name}"'
        words = rng.choice(["", "Ok. ", "Zürich {[<tool\n"])
        start, marks = nano[0].tokenize_str(words), dict(written_as.special)
        mark = marks.get(written_as.marks.open)
        start += nano[0].tokenize_str(opening.split("\n")[0]) if mark is None else [mark]
        text, first = random_text(nano, written_as.grammar(tools), rng, start=start)
        assert first > len(start), "the text could have ended at the mark"
        if text is None:
            continue
        finished += 1
        parsed = written_as.parse(text, tools)
        assert (parsed.content, parsed.invalid) == (words.rstrip(), ()), text
        assert len(parsed.calls) == 1 or (tools.parallel and parsed.calls)
    assert finished > 5


@pytest.mark.parametrize("written_as", [*FORMATS, *SPECIAL], ids=str)
def test_where_no_call_is_made_any_text_may_be_written(nano, written_as):
    """And may end after every character."""
    from llguidance import LLMatcher

    matcher = LLMatcher(nano[0], written_as.grammar(TOOLS))
    for token in nano[0].tokenize_str('Hello {"a": [1]} <tool\n\n[TOOL'):
        assert matcher.is_accepting()
        assert matcher.consume_token(token)
    assert matcher.consume_tokens(nano[0].tokenize_str(" é 天"))  # but not within a character
    assert matcher.is_accepting()


@pytest.mark.parametrize("written_as", FORMATS)
def test_a_grammar_takes_what_the_format_writes(nano, written_as):
    """Forced or not, one call or several; and not a tool that was not asked for."""
    from llguidance import LLMatcher

    def takes(tools, text):
        matcher = LLMatcher(nano[0], written_as.grammar(tools))
        tokens = nano[0].tokenize_str(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    one, two = written_as.write([ROME]), written_as.write([ROME, FIVE])
    single = read_tools([weather, add], "any", parallel_tool_calls=False)
    assert takes(TOOLS, one)
    assert takes(TOOLS, f"Ok. {two}")
    assert takes(TOOLS.forced(), two)
    assert not takes(TOOLS.forced(), f"Ok. {one}")
    assert takes(single, one)
    assert not takes(single, two)
    assert not takes(read_tools([weather, add], "add"), one)
    assert written_as.grammar(read_tools([weather], "none")) is None


class _OneToken(CharacterTokenizer):
    """Has [TOOL_CALLS] as one special token."""

    special_tokens = frozenset({7})

    def encode(self, text):
        return [7] if text == "[TOOL_CALLS]" else super().encode(text)


def test_a_format_learns_special_marks_from_the_tokenizer():
    """Its grammar names them by their ids, since as text they can be told from nothing."""
    found = format_of("{{ '[TOOL_CALLS] [' }}", _OneToken())
    assert found == Mistral((("[TOOL_CALLS]", 7),))
    assert "<[7]>" in found.grammar(TOOLS)
    assert "[TOOL_CALLS]" not in found.grammar(TOOLS)
    assert format_of(None, CharacterTokenizer()).special == ()
