"""Where a step ends: delimiters, a pattern or a number of tokens; whatever they are, the steps join to the text."""

import re

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from langchain_pareto import ChatPareto
from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.steps import Steps

TEXTS = st.text(alphabet="ab .;\n\t1Step:é", max_size=40)
STEPS = st.sampled_from(
    [
        Steps(),
        Steps(delimiters=("\n\n",)),
        Steps(delimiters=("\n\n", ";")),
        Steps(delimiters=("\n", "\n\n")),
        Steps(delimiters=("aa", "ab")),
        Steps(pattern=r"\nStep \d:"),
        Steps(pattern=r"[.;]\s|\n"),
        Steps(pattern=r"(?<=;)"),
        Steps(pattern=r"(a)\1"),
        Steps(tokens=4),
        Steps(tokens=4, delimiters=()),
    ]
)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        (" \n\n ", []),
        ("one", ["one"]),
        ("one\n", ["one\n"]),
        ("one\ntwo", ["one\n", "two"]),
        ("one\ntwo\n", ["one\n", "two\n"]),
        ("one\n\n\ntwo", ["one\n", "\n\ntwo"]),
        ("\n\none\ntwo", ["\n\none\n", "two"]),
        ("one\n\n ", ["one\n\n "]),
        ("one \n two ", ["one \n", " two "]),
        ("one\r\ntwo", ["one\r\n", "two"]),
    ],
)
def test_by_default_a_step_is_a_line(text, steps):
    """Blank lines belong to the step after them, blank ends to the last step; a blank text has no step."""
    assert Steps().split(text) == steps


def test_delimiters_replace_the_line():
    """The first that comes ends a step; a line is none then, and a full stop is no wildcard."""
    assert Steps(delimiters=("\n\n",)).split("a\nb\n\nc") == ["a\nb\n\n", "c"]
    assert Steps(delimiters=(".", ";")).split("ab; cd. ef") == ["ab;", " cd.", " ef"]
    assert Steps(delimiters=("\n", "\n\n")).split("a\n\nb") == ["a\n", "\nb"]
    assert Steps(delimiters="\n\n") == Steps(delimiters=("\n\n",)) == Steps(delimiters=["\n\n"])


def test_a_delimiter_needs_a_text_before_it():
    """What a step begins with does not end it."""
    assert Steps(delimiters=("<step>",)).split("<step>a<step>b") == ["<step>a<step>", "b"]
    assert Steps(delimiters=(";",)).split("; a; b") == ["; a;", " b"]


def test_a_pattern_replaces_the_delimiters():
    """It may have groups, choices and flags of its own, and say what comes before the end without taking it."""
    text = "Step 1: a\nb\nStep 2: c\nStep 3: d"
    assert Steps(pattern=r"\nStep \d+:").split(text) == [
        "Step 1: a\nb\nStep 2:",
        " c\nStep 3:",
        " d",
    ]
    assert Steps(pattern=r"(?=\nStep \d+:)").split(text) == [
        "Step 1: a\nb",
        "\nStep 2: c",
        "\nStep 3: d",
    ]
    assert Steps(pattern=r"x|\n").split("axb\nc") == ["ax", "b\n", "c"]
    assert Steps(pattern=r"(b)\1").split("abbabc") == ["abb", "abc"]
    assert Steps(pattern=r"(?i:end)").split("a END b end c") == ["a END", " b end", " c"]
    assert Steps(pattern="\n", delimiters=(";",)).split("a;b\nc") == ["a;b\n", "c"]


def test_where_only_tokens_count_a_text_is_one_step():
    """Each draw is a step then, and its text is judged once; without any end but the model's, so is the whole text."""
    for steps in (Steps(delimiters=(), tokens=5), Steps(delimiters=())):
        assert steps.end is None
        assert steps.split("a\nb") == ["a\nb"]
        assert steps.split(" \n") == []
    assert Steps(tokens=5).split("a\nb") == ["a\n", "b"]


@given(STEPS, TEXTS)
def test_steps_join_to_the_text(steps, text):
    """Nothing is lost or added, and no step is blank; only a blank text has none."""
    parts = steps.split(text)
    assert "".join(parts) == (text if text.strip() else "")
    assert all(part.strip() for part in parts)


@given(STEPS, TEXTS)
def test_a_step_ends_where_the_engine_says(steps, text):
    """All but the last match the end, and no shorter beginning of them does."""
    parts = steps.split(text)
    for part in parts[:-1]:
        assert steps.end is not None
        found = re.search(steps.end, part)
        # a look-ahead sees what comes next
        assert found is None or found.end() == len(part) or not part[found.end() :].strip()


@given(STEPS, TEXTS)
def test_splitting_twice_is_splitting_once(steps, text):
    """A whole step, once split, is one step."""
    for part in steps.split(text)[:-1]:
        assert len(steps.split(part)) == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"delimiters": ("",)}, "must not be empty"),
        ({"delimiters": ("\n", "")}, "must not be empty"),
        ({"delimiters": ""}, "must not be empty"),
        ({"delimiters": 3}, "delimiters=3"),
        ({"delimiters": (1,)}, "delimiters=1"),
        ({"delimiters": None}, "delimiters=None"),
        ({"pattern": "["}, "no regular expression"),
        ({"pattern": "*"}, "no regular expression"),
        ({"pattern": r"(?i)step"}, "no regular expression"),
        ({"pattern": "x*"}, "matches nothing at all"),
        ({"pattern": "$"}, "matches nothing at all"),
        ({"pattern": ""}, "matches nothing at all"),
        ({"pattern": 3}, "pattern=3"),
        ({"tokens": 0}, "tokens=0"),
        ({"tokens": -4}, "tokens=-4"),
        ({"tokens": 2.5}, "tokens=2.5"),
        ({"token": 4}, "token=4"),
    ],
    ids=repr,
)
def test_what_ends_no_step_is_a_setting_error(settings, named):
    """It says which setting is wrong, and what may stand there."""
    with pytest.raises(SettingError) as caught:
        Steps(**settings)
    assert named in str(caught.value)
    assert "delimiters=" in caught.value.hint
    assert "(?i:" in caught.value.hint


def test_steps_are_frozen_and_go_through_json():
    """As other settings."""
    steps = Steps(delimiters=("\n\n", ";"), tokens=7)
    assert Steps.model_validate_json(steps.model_dump_json()) == steps
    assert hash(Steps(pattern="x")) == hash(Steps(pattern="x")) != hash(Steps())
    with pytest.raises(ValidationError):
        steps.tokens = 3


def test_a_chat_model_says_what_is_wrong_with_its_steps():
    """As the settings themselves do."""
    with pytest.raises(SettingError, match="no regular expression"):
        ChatPareto(steps={"pattern": "["})
    assert ChatPareto(steps={"delimiters": "\n\n"}).steps == Steps(delimiters="\n\n")
