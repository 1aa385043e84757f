"""What a constraint forces is written in one step: the same tokens, figures and prices as one by one, on both runners."""

import json

import pytest

pytest.importorskip("llguidance")

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.closing import Closing
from langchain_pareto.backends.decoders import Lookup, Rounds, Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.grammar import compile_grammar

WAIT = 120
HOT = Sampling(temperature=1.0)
ENOUGH = Stop(160)
PROMPT = [5, 9, 13, 200, 7, 7, 31, 18]
LONG = "a_name_that_is_longer_than_any_value"
ORDER = {
    "type": "object",
    "properties": {LONG: {"enum": [1, 2]}, LONG + "_2": {"type": "string", "maxLength": 3}},
    "required": [LONG, LONG + "_2"],
    "additionalProperties": False,
}


STYLE = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}


class Mute:
    """The same constraint, which does not tell what it forces."""

    def __init__(self, within):
        self.within = within

    def allowed(self):
        return self.within.allowed()

    def advance(self, token):
        self.within.advance(token)

    def rollback(self, n):
        self.within.rollback(n)

    def fork(self):
        return Mute(self.within.fork())


def drawn(backend, make, *, stop=ENOUGH, branches=3, prompt=PROMPT, **more):
    """What so many branches of one prompt draw, each under a constraint of its own."""
    root = backend.open(prompt, seed=3)
    children = root.fork(branches)
    tasks = [backend.extend(c, HOT, stop, stats=True, constraint=make(), **more) for c in children]
    found = [task.future.result(WAIT) for task in tasks]
    for branch in (root, *children):
        branch.free()
    return found


def ordered(tokenizer, schema=ORDER):
    """Makes constraints of a schema."""
    return compile_grammar(tokenizer, f"start: %json {json.dumps({**schema, **STYLE})}")


def same(found, wanted):
    """The figures of wide steps are those of narrow ones up to rounding."""
    assert [f.tokens for f in found] == [w.tokens for w in wanted]
    assert [(f.text, f.finish, f.stop) for f in found] == [
        (w.text, w.finish, w.stop) for w in wanted
    ]
    for f, w in zip(found, wanted, strict=True):
        assert f.logprobs == pytest.approx(w.logprobs, abs=1e-3)
        assert f.usage.new_tokens == w.usage.new_tokens == len(f.tokens)


@pytest.mark.parametrize("architecture", ["llama", "mamba2", "lfm2", "gemma3"])
def test_forced_tokens_take_one_step(make_backend, tokenizer, architecture):
    """Without a draft model: the same text for a fraction of the steps, no token forwarded twice and no guess wrong."""
    backend = make_backend(architecture)
    make = ordered(tokenizer)
    wanted = drawn(backend, lambda: Mute(make()))
    found = drawn(backend, make)
    same(found, wanted)
    for f, w in zip(found, wanted, strict=True):
        assert f.finish == "eos"
        assert w.usage.forwards >= len(w.tokens)
        assert f.usage.forwards < w.usage.forwards / 4
        assert f.usage.drafted == f.usage.accepted > 80
        assert f.usage.forward_tokens <= w.usage.forward_tokens
        assert f.usage.flops <= w.usage.flops


def test_a_prompt_is_read_with_what_comes_after_it(make_backend, tokenizer):
    """In chunks: the forced tokens are wanted in one piece, at the end of the last one."""
    backend = make_backend(slots=8000)
    make = ordered(tokenizer)
    prompt = tokenizer.encode("once upon a time " * 90)[:1500]
    wanted = drawn(backend, lambda: Mute(make()), prompt=prompt)
    same(drawn(backend, make, prompt=prompt), wanted)
    [one] = drawn(backend, make, prompt=prompt[5:], branches=1)
    assert json.loads(one.text).keys() == ORDER["properties"].keys()


@pytest.mark.parametrize(
    "stop",
    [
        Stop(11),
        Stop(1),
        Stop(2),
        Stop(160, strings=("longer",)),
        Stop(160, strings=("_any",), keep=True),
        Stop(160, tokens=frozenset({ord("v")})),
        Stop(160, step=r"[^_]*_"),
    ],
)
def test_a_stop_within_what_is_forced_ends_there(make_backend, tokenizer, stop):
    """The limit, a string, a token or a step; the branch ends with it, and goes on from there."""
    backend = make_backend()
    make = ordered(tokenizer)
    same(drawn(backend, make, stop=stop), drawn(backend, lambda: Mute(make()), stop=stop))


def test_an_end_within_a_text_is_forced_as_well(make_backend, tokenizer):
    """A schema of one value is one step, and its end token is the draw on top."""
    backend = make_backend()
    found = drawn(backend, ordered(tokenizer, {"const": {LONG: [1, None, "x"]}}), branches=2)
    for one in found:
        assert one.finish == "eos"
        assert json.loads(one.text) == {LONG: [1, None, "x"]}
        assert one.usage.forwards <= 1 + len(one.tokens) // 32


def test_what_is_forced_and_what_is_guessed_go_together(make_backend, tokenizer):
    """With every decoder that guesses: the same text; what is forced is asked of nobody."""
    engine = Engine("test")
    target, draft = make_backend(engine=engine), make_backend(engine=engine)
    make = ordered(tokenizer)
    wanted = drawn(target, lambda: Mute(make()))
    for decoder in (
        Speculative(draft_tokens=4),
        Speculative(draft_tokens=4, accept="max"),
        Rounds(schedule="first_come"),
        Lookup(shortest=1, draft_tokens=4),
    ):
        backend = DecodingBackend(target, decoder, draft)
        found = drawn(backend, make)
        if getattr(decoder, "accept", "draw") == "draw":
            same(found, wanted)
        mute = drawn(backend, lambda: Mute(make()))
        assert sum(f.usage.forwards for f in found) < sum(m.usage.forwards for m in mute) / 2


@pytest.mark.parametrize("most", [84, 90, 100, 130])
def test_the_way_out_is_forced(make_backend, tokenizer, most):
    """A text that must end soon ends as it would one by one."""
    backend = make_backend()
    make = ordered(tokenizer)
    wanted = drawn(backend, lambda: Mute(Closing(make(), tokenizer, most)), stop=Stop(most))
    found = drawn(backend, lambda: Closing(make(), tokenizer, most), stop=Stop(most))
    same(found, wanted)


def test_cancelling_leaves_what_was_verified(make_backend, tokenizer):
    """A deadline that has passed gives no guess to the branch."""
    backend = make_backend()
    root = backend.open(PROMPT, seed=3)
    task = backend.extend(root, HOT, Stop(160), constraint=ordered(tokenizer)(), deadline=0.0)
    found = task.future.result(WAIT)
    assert found.finish == "deadline"
    assert list(root.tokens) == PROMPT + found.tokens
    root.free()
