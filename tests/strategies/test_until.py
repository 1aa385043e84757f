"""What a backend is told to stop at is what the strategy asked for."""

import pytest

from langchain_pareto.backends.base import Extension, Sampling, Usage
from langchain_pareto.backends.characters import CharacterTokenizer
from langchain_pareto.strategies.marks import Before
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.steps import Steps
from langchain_pareto.strategies.thoughts import Thought
from langchain_pareto.strategies.until import ANSWER, STEP, before_stop, ends, joined

ROOT = Thought("2+2?")


def end_of(until, *, above=ROOT, cap=100, **settings):
    settings = Settings(Sampling(), **settings)
    return ends(until, above, cap, settings=settings, tokenizer=CharacterTokenizer())


def drawn(text, finish="length", stop=None) -> Extension:
    return Extension(list(map(ord, text)), text, finish, stop, usage=Usage(new_tokens=len(text)))


@pytest.mark.parametrize("until", [7, ANSWER, STEP, Before(("!",))])
def test_no_draw_is_longer_than_its_cap(until):
    """Tokens, steps, texts and marks end at the cap at the latest."""
    assert end_of(until, cap=5).tokens == 5


def test_tokens_that_were_asked_for_are_a_whole_draw():
    """What reaches its count is whole; a text that does is cut off."""
    assert end_of(3).is_whole(drawn("abc"))
    assert end_of(STEP, steps=Steps(tokens=3)).is_whole(drawn("abc"))
    assert not end_of(3).is_whole(drawn("ab"))
    assert not end_of(ANSWER, cap=3).is_whole(drawn("abc"))
    assert end_of(ANSWER, cap=3).is_whole(drawn("abc", "eos"))


def test_only_the_rest_of_a_text_loses_its_stop():
    """A step keeps its end, since the next one goes on there."""
    kept = {until: end_of(until, stop=("X",)).stop(9, []).keep for until in (ANSWER, STEP, 4)}
    assert kept == {ANSWER: False, STEP: True, 4: True}


def test_a_stop_string_may_begin_in_the_text_above():
    """The backend is told as much of it as may belong to a stop string, and the text is cut where that began."""
    above = Thought("2+2?", ROOT, text="one EN")
    end = end_of(STEP, above=above, stop=("END",))
    assert end.stop(9, [drawn("a")]).before == "ENa"
    assert before_stop(above, drawn("D.", "stop", "END")) == ""
    assert before_stop(above, drawn("!aEND", "stop", "END")) == "!a"


def test_a_mark_is_told_from_a_stop():
    """A draw ends before a mark, or at one of the caller's stop strings, which is none."""
    end = end_of(Before(("<go>",)), stop=("X",))
    assert end.strings == ("X", "<go>")
    assert end.mark(drawn("a<go>", "stop", "<go>")) == "<go>"
    assert end.mark(drawn("aX", "stop", "X")) is None
    assert end.mark(drawn("a", "eos")) is None


def test_parts_join_and_each_keeps_its_bill():
    """Consecutive extensions are one, which ends as the last does; the usage of the first is not written over."""
    first, bill = drawn("ab"), Usage(new_tokens=2)
    first.usage = bill
    whole = joined([first, drawn("cd", "step")])
    assert (whole.text, whole.tokens, whole.finish) == ("abcd", list(map(ord, "abcd")), "step")
    assert (whole.usage.new_tokens, bill.new_tokens) == (4, 2)
