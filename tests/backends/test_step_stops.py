"""Steps that end where a regular expression matches, and judgements of single tokens: on every backend, in whatever way tokens are drawn."""

import re

import pytest
import torch

from langchain_pareto.backends import loading
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.decoders import Lookup, Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.nano import DRAFT
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.steps import Steps

LINE = Steps().end
PLAIN = Sampling()
WAIT = 60  # seconds: a guard against hangs
QUESTION = [{"role": "user", "content": "Tom has 3 apples. He buys 4 more. How many has he?"}]


def goes_on(whole: str) -> ScriptedBackend:
    """A model that has `whole` to say after "q", however far it has come."""
    return ScriptedBackend(lambda text, _: whole[len(text) - 1 :])


def pieces(backend, branch, sizes, **stop) -> list[tuple[str, str]]:
    """(text, finish) of one extension after the other, each told the text before it."""
    out, before = [], ""
    for size in sizes:
        stops = Stop(size, before=before, **stop)
        said = backend.extend(branch, PLAIN, stops).future.result(WAIT)
        out.append((said.text, said.finish))
        before = "" if said.finish == "step" else before + said.text
    return out


# --- by hand


def test_a_step_ends_with_the_token_that_completes_it():
    """Its text stays in it; blank lines before it are its own, and the next one begins after it."""
    backend = goes_on("\n\none\n\ntwo\nthree")
    stops = {"step": LINE, "keep": True}
    assert pieces(backend, backend.open("q"), [99] * 3, **stops) == [
        ("\n\none\n", "step"),
        ("\ntwo\n", "step"),
        ("three", "eos"),
    ]


def test_a_step_that_ends_with_the_last_token_it_may_have_is_whole():
    """As one that ends before it."""
    for size, finish in ((3, "length"), (4, "step"), (5, "step")):
        backend = goes_on("one\ntwo")
        [(text, told)] = pieces(backend, backend.open("q"), [size], step=LINE, keep=True)
        assert (text, told) == ("one\n"[:size], finish)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 20])
@pytest.mark.parametrize("end", ["\n", "\n\n", "</s>"])
def test_a_step_in_pieces_is_the_step_in_one(size, end):
    """Wherever it is cut: a delimiter may lie across the cut, or stand alone after it."""
    whole = f"one{end}twos{end}three"
    stops = {"step": Steps(delimiters=(end,)).end, "keep": True}
    backend = goes_on(whole)
    in_pieces = pieces(backend, backend.open("q"), [size] * 60, **stops)
    backend = goes_on(whole)
    in_one = [text for text, _ in pieces(backend, backend.open("q"), [99] * 3, **stops)]
    joined = [""]
    for text, finish in in_pieces:
        joined[-1] += text
        if finish == "step":
            joined.append("")
    assert joined == in_one == [f"one{end}", f"twos{end}", "three"]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 20])
def test_a_stop_string_may_lie_across_a_cut(size, keep):
    """It ends the piece that completes it; of the text before, nothing is said again."""
    backend = goes_on("abSTOcdSTOPef")
    told = []
    branch, before = backend.open("q"), ""
    while True:
        stop = Stop(size, strings=("STOP",), keep=True, before=before)
        if not keep and size > 3:  # as an answer that goes on after steps
            stop = Stop(99, strings=("STOP",), keep=False, before=before)
        said = backend.extend(branch, PLAIN, stop, on_text=told.append).future.result(0)
        before += said.text
        if said.finish != "length":
            break
    assert (said.finish, said.stop) == ("stop", "STOP")
    assert "".join(told) == before
    assert backend.tokenizer.decode(branch.tokens) == "qabSTOcdSTOP"
    assert before == "abSTOcd" + ("STOP" if keep or size <= 3 else "")


@pytest.mark.parametrize(
    ("before", "line", "text", "finish"),
    [
        ("\n", "Q: more", "", "stop"),  # begins before
        ("\n", "xQ: more", "xQ: more", "eos"),  # only looked like it
        ("\n", "\nQ: more", "", "stop"),
        ("", "a\nQ: more", "a", "stop"),
        ("ab\nQ", "b", "b", "eos"),
        ("ab\nQ", ":", "", "stop"),
        ("\nQ:", "ab", "ab", "eos"),  # what ends before counts no more
        ("\nQ:", "a\nQ:", "a", "stop"),
    ],
)
def test_what_was_said_before_is_no_part_of_the_text(before, line, text, finish):
    """But a stop string may begin in it."""
    backend, told = ScriptedBackend([line]), []
    stop = Stop(99, strings=("\nQ:",), before=before)
    said = backend.extend(backend.open("q"), PLAIN, stop, on_text=told.append).future.result(0)
    assert (said.text, said.finish) == (text, finish)
    assert "".join(told) == text


def test_kept_text_is_not_said_twice():
    """What might have begun a stop string when the tokens ran out is in the text once."""
    backend = ScriptedBackend([Line("abST", ends=False)])
    for size in range(1, 9):
        stop = Stop(size, strings=("STOP",), keep=True)
        said = backend.extend(backend.open("q"), PLAIN, stop).future.result(0)
        assert said.text == "abSTabST"[:size]


def test_a_stop_string_comes_before_the_end_of_a_step():
    """Where one token completes both."""
    backend = ScriptedBackend(["one\nUser\n"])
    stop = Stop(99, strings=("e\n",), step=LINE, keep=True)
    said = backend.extend(backend.open("q"), PLAIN, stop).future.result(0)
    assert (said.text, said.finish, said.stop) == ("one\n", "stop", "e\n")


def test_a_step_that_is_no_regular_expression_is_the_callers_error():
    """It is raised where the request is made, and the branch stays usable."""
    backend = ScriptedBackend(["one"])
    branch = backend.open("q")
    with pytest.raises(re.error):
        backend.extend(branch, PLAIN, Stop(9, step="["))
    assert backend.extend(branch, PLAIN, Stop(9)).future.result(0).text == "one"


# --- the bundled models


@pytest.fixture(scope="module")
def nano():
    """(policy, draft) on the CPU, in float32."""
    models = [
        loading.load(name, device="cpu", dtype="float32", self_check=False)
        for name in (None, DRAFT)
    ]
    yield models
    for backend in models:
        backend.close()


def lines_of(backend, seed, size=200) -> list[tuple[str, list[int], str]]:
    """Step after step, down to the end of the text, each in pieces of up to `size` tokens."""
    tokenizer = backend.tokenizer
    branch = backend.open(tokenizer.encode(tokenizer.render(QUESTION)), seed=seed)
    out = []
    for _ in range(30):
        text, tokens, finish = "", [], "length"
        while finish == "length" and len(tokens) < 100:
            stop = Stop(size, step=LINE, keep=True, before=text)
            said = backend.extend(branch, PLAIN, stop).future.result(WAIT)
            text, finish = text + said.text, said.finish
            tokens += said.tokens
        out.append((text, tokens, finish))
        if finish != "step":
            break
    branch.free()
    return out


@pytest.mark.parametrize("seed", range(4))
def test_nano_steps_are_lines_of_the_whole_text(nano, seed):
    """The tokens are those of one extension, cut after each line end; so they are in pieces of any size."""
    policy, _ = nano
    tokenizer = policy.tokenizer
    steps = lines_of(policy, seed)
    assert [finish for _, _, finish in steps] == ["step"] * (len(steps) - 1) + ["eos"]
    branch = policy.open(tokenizer.encode(tokenizer.render(QUESTION)), seed=seed)
    whole = policy.extend(branch, PLAIN, Stop(400)).future.result(WAIT)
    branch.free()
    assert [t for _, tokens, _ in steps for t in tokens] == whole.tokens
    assert "".join(text for text, _, _ in steps) == whole.text
    assert all(text.endswith("\n") for text, _, _ in steps[:-1])
    assert Steps().split(whole.text) == [text for text, _, _ in steps if text]
    for size in (1, 3, 7):
        assert lines_of(policy, seed, size) == steps


@pytest.mark.parametrize(
    "decoder",
    [Speculative(), Speculative(draft_tokens=7), Lookup(draft_tokens=5)],
    ids=["auto", "seven", "lookup"],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_decoder_gives_the_same_steps(nano, decoder, seed):
    """Guesses beyond the end of a step are no part of it, nor of what comes next."""
    policy, draft = nano
    plain = lines_of(policy, seed)
    decoding = DecodingBackend(policy, decoder, draft)
    assert lines_of(decoding, seed) == plain
    assert lines_of(decoding, seed, 5) == plain


# --- judgements


def test_single_tokens_are_the_log_softmax_of_a_plain_forward(make_backend, reference):
    """Read off one row; mixed with longer continuations, repeated, and in any order."""
    backend = make_backend()
    prompt = [3, 200, 17, 80, 81, 4, 9]
    branch = backend.open(prompt)
    logprobs = reference("llama", prompt)[0].log_softmax(-1)
    single = backend.score(branch, [[5], [200], [5], [0]]).future.result(WAIT)
    expected = [[logprobs[t].item()] for t in (5, 200, 5, 0)]
    assert torch.allclose(torch.tensor(single), torch.tensor(expected), atol=1e-3)
    mixed = backend.score(branch, [[7, 8], [5], [9, 1, 2], [200]]).future.result(WAIT)
    assert [len(part) for part in mixed] == [2, 1, 3, 1]
    after = reference("llama", [*prompt, 9, 1], 3).log_softmax(-1)
    assert mixed[2] == pytest.approx(
        [after[i, t].item() for i, t in enumerate((9, 1, 2))], abs=1e-3
    )
    assert [mixed[1], mixed[3]] == [
        pytest.approx(single[0], abs=1e-4),
        pytest.approx(single[1], abs=1e-4),
    ]
    alone = [backend.score(branch, [[t]]).future.result(WAIT)[0][0] for t in (5, 200)]
    assert alone == pytest.approx([single[0][0], single[1][0]], abs=1e-4)
    assert list(branch.tokens) == prompt
    assert backend.score(branch, []).future.result(WAIT) == []


def test_single_tokens_cost_one_forward(make_backend):
    """However many are named; the pending tokens are computed once."""
    backend = make_backend()
    usage = []
    for tokens in ([[1]], [[t] for t in range(50)]):
        task = backend.score(backend.open([len(tokens), 200, 17, 80]), tokens)
        assert len(task.future.result(WAIT)) == len(tokens)
        usage.append((task.usage.forwards, task.usage.forward_tokens, task.usage.new_tokens))
    assert usage == [(1, 4, 0)] * 2


def test_many_branches_are_judged_beside_each_other(make_backend, reference):
    """Each gets its own."""
    backend = make_backend()
    root = backend.open([3, 200, 17])
    children = root.fork(6)
    for i, child in enumerate(children):
        child.append([i, 80 + i])
    tasks = [backend.score(child, [[1], [2], [i]]) for i, child in enumerate(children)]
    for i, task in enumerate(tasks):
        logprobs = reference("llama", [3, 200, 17, i, 80 + i])[0].log_softmax(-1)
        told = [value for [value] in task.future.result(WAIT)]
        assert told == pytest.approx([logprobs[t].item() for t in (1, 2, i)], abs=1e-3)


def test_a_scripted_model_says_what_is_likely():
    """Of each named token, by the text before it; by default -1."""
    seen = []

    def likely(before, token):
        seen.append((before, token))
        return -float(len(before)) - ord(token) / 1000

    backend = ScriptedBackend(["x"], likely=likely)
    branch = backend.open("ab")
    a, b, c = ord("a"), ord("b"), ord("c")
    scores = backend.score(branch, [[a], [a, b, c], [b]]).future.result(0)
    assert scores == [[-2.097], [-2.097, -3.098, -4.099], [-2.098]]
    assert sorted(seen) == [("ab", "a"), ("ab", "a"), ("ab", "b"), ("aba", "b"), ("abab", "c")]
    plain = ScriptedBackend(["x"])
    assert plain.score(plain.open("ab"), [[a], [b, c]]).future.result(0) == [[-1.0], [-1.0, -1.0]]
    with pytest.raises(SettingError):
        plain.score(plain.open("ab"), [[]])
