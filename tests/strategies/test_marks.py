"""Marks, and the host's own text in a thought's place: to the character, to the token, and computed once."""

import asyncio
from typing import Literal

import pytest

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.characters import CharacterTokenizer
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.marks import Before, decode_after, encode_after, split_at_end
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import Answer, Thought

PAIR = 0x20000  # a token of two characters is the first's code point times this, plus the second's


class Pairs(CharacterTokenizer):
    """Two characters a token, where there are two."""

    def encode(self, text):
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        return [ord(p) if len(p) == 1 else ord(p[0]) * PAIR + ord(p[1]) for p in pairs]

    def piece(self, token):
        first, second = divmod(token, PAIR)
        return (chr(first) + chr(second) if first else chr(second)).encode()


class Spaced(CharacterTokenizer):
    """A text of its own begins with a space, as SentencePiece has it."""

    def encode(self, text):
        return super().encode(" " + text)


@pytest.mark.parametrize(
    ("drawn", "text", "kept", "rest"),
    [
        ("abcd<mark>", "abcd", "abcd", ""),
        ("abc<mark>", "abc", "ab", "c"),
        ("a<mark>", "a", "", "a"),
        ("<mark>", "", "", ""),
        ("abcd", "abcd", "abcd", ""),
    ],
)
def test_a_text_that_ends_within_a_token_leaves_a_rest(drawn, text, kept, rest):
    """The tokens up to it are kept; of the one that holds its end and more, the text is left over."""
    tokenizer = Pairs()
    thought = Thought("", text=text, tokens=tokenizer.encode(drawn))
    tokens, left = split_at_end(tokenizer, [], thought)
    assert ("".join(tokenizer.piece(t).decode() for t in tokens), left) == (kept, rest)


def test_what_the_host_wrote_is_all_text():
    """There is nothing to cut from it, whatever its text says."""
    thought = Thought("", text="c", tokens=Pairs().encode("abc"), given=True)
    assert split_at_end(Pairs(), [], thought) == (thought.tokens, "")


@pytest.mark.parametrize("tokenizer", [CharacterTokenizer(), Spaced(), Pairs()])
@pytest.mark.parametrize("text", ["", "a", "<Sub Searches>\n", "\n\n", " a"])
def test_a_text_that_goes_on_begins_with_no_space_of_its_own(tokenizer, text):
    """Its tokens add exactly that text."""
    before = tokenizer.encode("before\n")
    assert decode_after(tokenizer, before, encode_after(tokenizer, text)) == text


class Do(Strategy):
    """Writes up to a mark, is given other words, and goes on."""

    kind: Literal["do"] = "do"
    mark: str
    words: str

    async def run(self, search) -> Answer:
        [first] = await search.sample(search.root, until=Before((self.mark,)))
        given = search.append(first, self.words)
        assert given is not None
        [last] = await search.sample(given)
        return Answer(last)


async def test_a_mark_is_drawn_and_paid_and_no_part_of_the_text():
    """A thought that ends at one is whole and not finished, and cannot have an answer; a stop of the caller's is an end."""
    backend = ScriptedBackend(["Answer: 1<mark>", "Answer: 2<stop>"])
    settings = Settings(Sampling(), stop=("<stop>",))
    outcome = await run(Do(mark="<mark>", words=", no: "), backend, "q", settings=settings)
    first, given, last = outcome.thoughts
    assert (first.text, first.mark, first.whole, first.finished) == (
        "Answer: 1",
        "<mark>",
        True,
        False,
    )
    assert (first.answer, len(first.tokens)) == (None, len("Answer: 1<mark>"))
    assert (given.text, given.given, given.finish, given.usage.new_tokens) == (
        ", no: ",
        True,
        None,
        0,
    )
    assert (last.whole_text, last.answer) == ("Answer: 1, no: Answer: 2", "2")
    assert last.mark is None
    assert outcome.spent.tokens == sum(len(t.tokens) for t in (first, last))
    assert last.usage.prompt_tokens == len(", no: ")


async def test_on_a_real_model_it_is_as_if_the_text_had_always_stood_there():
    """Greedy, the thought goes on as a fresh prompt of the same tokens would, and computes only what is new."""
    with load(self_check=False) as backend:
        prompt = backend.tokenizer.encode("<|user|>Use 3 5 7 to make 22.<|assistant|>")
        greedy = Sampling(temperature=0)
        words = "<|spawn|> leftover 5\n<|join|>"
        outcome = await run(
            Do(mark=" left", words=words), backend, prompt, settings=Settings(greedy, max_tokens=60)
        )
        first, given, last = outcome.thoughts
        kept = backend.tokenizer.encode(first.text)
        context = [*prompt, *kept, *backend.tokenizer.encode(words)]
        fresh = backend.open(context)
        extension = await asyncio.wrap_future(
            backend.extend(fresh, greedy, Stop(len(last.tokens))).future
        )
        fresh.free()
        assert extension.tokens == list(last.tokens)
        assert last.usage.prompt_tokens == len(given.tokens)
        assert outcome.spent.flops == outcome.usage.flops
