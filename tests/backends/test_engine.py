"""Programs on the engine: alone, in company, short of room, cut short, broken, and at the end of the process."""

import gc
import math
import random
import subprocess
import sys
import threading
import time
from dataclasses import fields

import pytest
import torch

from langchain_pareto.backends import engine as engine_module
from langchain_pareto.backends.base import Sampling, Stop, Usage
from langchain_pareto.backends.engine import Engine, engine_for
from langchain_pareto.backends.local_branch import LocalBranch
from langchain_pareto.backends.programs import Draw, Named, Work
from langchain_pareto.backends.running import Running
from langchain_pareto.errors import (
    CapacityError,
    ContextLengthError,
    EngineClosedError,
    EngineFailedError,
    NumericalError,
    SequenceError,
    SettingError,
)

PLAIN = Sampling()
GREEDY = Sampling(temperature=0)
WAIT = 60  # seconds: a guard against hangs


def some(n, seed=0):
    """`n` random tokens."""
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(n)]


def upto(n, **settings):
    """A stop after `n` tokens, whatever they are."""
    return Stop(n, eos=False, **settings)


def run(backend, branch, sampling=PLAIN, stop=None, **settings):
    """One extension, waited for."""
    return backend.extend(branch, sampling, stop or upto(10), **settings).future.result(WAIT)


def on_engine(backend, look):
    """What `look` sees between two steps."""
    return backend.engine.call(look).result(WAIT)


def integers(usage: Usage) -> dict[str, int]:
    return {f.name: getattr(usage, f.name) for f in fields(usage) if "seconds" not in f.name}


# --- results do not depend on company or room


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_oss"])
def test_texts_do_not_depend_on_company_or_room(make_backend, architecture, loose):
    """Sixty-four branches in a pool for about twenty finish with the texts that they have in a large pool."""
    prompts = [some(30, i) for i in range(4)]

    def texts(slots):
        backend = make_backend(architecture, slots=slots)
        roots = [backend.open(prompt) for prompt in prompts]
        branches = [child for root in roots for child in root.fork(16)]
        tasks = [backend.extend(branch, PLAIN, upto(12)) for branch in branches]
        out = [task.future.result(WAIT).text for task in tasks]
        for branch in (*roots, *branches):
            branch.free()
        assert on_engine(backend, lambda: backend.runner.pool.live) == 0
        return out, backend.engine.meter.replayed_tokens

    (plenty, none), (few, replayed) = texts(4000), texts(4 * 30 + 20 * 12)
    same = sum(a == b for a, b in zip(plenty, few, strict=True))
    assert same == len(plenty) or (loose() and same > 0.8 * len(plenty))
    assert none == 0
    assert replayed > 0
    assert len(set(plenty)) > 50


def test_alone_equals_batched(make_backend):
    """A branch that runs alone says what it says among others of other settings."""
    samplings = [
        PLAIN,
        GREEDY,
        Sampling(top_p=0.8),
        Sampling(top_k=5),
        Sampling(frequency_penalty=0.7),
    ]
    backend = make_backend()
    tasks = [
        backend.extend(backend.open(some(20, i)), s, upto(10)) for i, s in enumerate(samplings)
    ]
    together = [task.future.result(WAIT).tokens for task in tasks]
    other = make_backend()
    alone = [run(other, other.open(some(20, i)), s).tokens for i, s in enumerate(samplings)]
    assert together == alone


def test_a_prompt_that_fills_the_pool_still_ends(make_backend):
    """One sequence may use every slot; two such take turns, and both end with their context full."""
    backend = make_backend(slots=200)
    tasks = [backend.extend(backend.open(some(150, i)), PLAIN, upto(500)) for i in range(2)]
    for task in tasks:
        extension = task.future.result(WAIT)
        assert (len(extension.tokens), extension.finish) == (50, "length")


def test_scores_that_do_not_fit_together_take_turns(make_backend):
    """Continuations that fill the pool several times over are all scored."""
    backend = make_backend(slots=120)
    continuations = [some(60, i) for i in range(6)]
    small = backend.score(backend.open(some(40)), continuations).future.result(WAIT)
    other = make_backend()
    large = other.score(other.open(some(40)), continuations).future.result(WAIT)
    assert torch.allclose(torch.tensor(small), torch.tensor(large), atol=1e-4)


def test_what_cannot_fit_is_refused_at_once(make_backend):
    """A prompt beyond the pool is a CapacityError, one beyond the context a ContextLengthError; both name numbers."""
    with pytest.raises(CapacityError) as caught:
        make_backend(slots=50).open(some(51))
    assert (caught.value.needed, caught.value.free) == (51, 50)
    backend = make_backend(max_context=40)
    with pytest.raises(ContextLengthError) as late:
        backend.open(some(30)).append(some(11))
    assert (late.value.length, late.value.limit) == (41, 40)
    full = backend.open(some(40))
    with pytest.raises(ContextLengthError):
        backend.extend(full, PLAIN, upto(1))
    with pytest.raises(ContextLengthError):
        backend.score(full, [[1]])


# --- prefixes


def test_a_second_prompt_is_not_computed_again(make_backend):
    """The next call with the same prompt computes its last token only, also after the first branch was freed."""
    backend = make_backend()
    prompt = some(100)
    first = backend.open(prompt)
    usage = run(backend, first, stop=upto(1)).usage
    assert (usage.prompt_tokens, usage.forward_tokens, usage.cached_tokens) == (100, 100, 0)
    first.free()
    again = run(backend, backend.open(prompt), stop=upto(1)).usage
    assert (again.prompt_tokens, again.forward_tokens, again.cached_tokens) == (1, 1, 99)
    longer = run(backend, backend.open(prompt + some(20, 5)), stop=upto(1)).usage
    assert (longer.forward_tokens, longer.cached_tokens) == (20, 100)


def test_simultaneous_prompts_are_computed_once(make_backend):
    """Eight opens of one prompt of 300 tokens, at once, cost one prefill; so do prompts with a common start."""
    backend = make_backend()
    prompt = some(300)
    go = threading.Event()
    backend.engine.post(go.wait)  # all arrive in one round
    branches = [backend.open(prompt, seed=i) for i in range(8)]
    branches += [backend.open([*prompt, i]) for i in range(4)]
    tasks = [backend.extend(branch, PLAIN, upto(1)) for branch in branches]
    go.set()
    total = sum(task.future.result(WAIT).usage.forward_tokens for task in tasks)
    assert total == 300 + 7 + 4 * 1 + 0 * len(branches)


def test_decoding_goes_on_during_a_prefill(make_backend, gate):
    """While somebody decodes, a long prompt comes in chunks: no step computes more than 512 tokens."""
    backend = make_backend(slots=6000)
    watch = gate(backend)
    watch.stop_at(3)
    decoding = backend.extend(backend.open(some(5)), PLAIN, upto(30))
    watch.wait()
    long = backend.extend(backend.open(some(3000)), PLAIN, upto(2))
    watch.open()
    long.future.result(WAIT)
    decoding.future.result(WAIT)
    steps = watch.steps[3:30]
    assert all(step[0] == (1, 1) for step in steps), "the decoder is in every step"
    assert max(sum(n for n, _ in step) for step in steps) <= 512
    assert sum(len(step) > 1 for step in steps) >= 6


def test_long_mail_leaves_steps_their_turn(make_backend, gate, monkeypatch):
    """Texts that are read whole come by mail, a batch at a time: who decodes beside them has steps, and ends in time."""
    monkeypatch.setattr(engine_module, "_MAIL", 0.0)
    backend = make_backend()
    watch = gate(backend)
    watch.stop_at(3)
    task = backend.extend(backend.open(some(5)), PLAIN, upto(20))
    watch.wait()
    read = [backend.engine.call(lambda: len(watch.steps)) for _ in range(6)]
    watch.open()
    task.future.result(WAIT)
    seen = [future.result(WAIT) for future in read]
    assert len(set(seen)) == len(seen)


def test_steps_side_by_side_are_timed_apart(make_backend, monkeypatch):
    """Two models that step in the same round are each charged their own seconds, which add up to those of the round."""
    clock = 0.0
    engine = Engine("test")
    slow = {}
    for kind, seconds in (("llama", 0.01), ("qwen3", 0.03)):
        backend = make_backend(kind, engine=engine)

        def step(chunks, step=backend.runner.step, seconds=seconds):
            nonlocal clock
            clock += seconds
            return step(chunks)

        monkeypatch.setattr(backend.runner, "step", step)
        slow[backend] = seconds
    monkeypatch.setattr(engine_module.time, "perf_counter", lambda: clock)
    tasks = [backend.extend(backend.open(some(5)), PLAIN, upto(20)) for backend in slow]
    for task, seconds in zip(tasks, slow.values(), strict=True):
        usage = task.future.result(WAIT) and task.usage
        assert usage.device_seconds == pytest.approx(seconds * usage.forwards)
    assert engine.meter.device_seconds == pytest.approx(clock)
    for backend, seconds in slow.items():
        assert engine.times(backend.runner).seconds(1) == pytest.approx(seconds)


def test_many_decoders_do_not_starve_a_prefill(make_backend, gate):
    """However many decode, a prompt gets some tokens of every step."""
    backend = make_backend(slots=9000)
    watch = gate(backend)
    watch.stop_at(3)
    root = backend.open(some(5))
    tasks = [backend.extend(branch, PLAIN, upto(12)) for branch in root.fork(40)]
    watch.wait()
    late = backend.extend(backend.open(some(200)), PLAIN, upto(1))
    watch.open()
    assert late.future.result(WAIT).usage.forwards <= 4
    for task in tasks:
        task.future.result(WAIT)


# --- how an extension ends


def test_a_branch_holds_what_was_drawn(make_backend):
    """After the future is done the branch has the drawn tokens and can be forked, extended and truncated."""
    backend = make_backend()
    branch = backend.open(some(10))
    extension = run(backend, branch)
    assert list(branch.tokens) == some(10) + extension.tokens
    assert extension.finish == "length"
    child = branch.fork()[0]
    more = run(backend, child)
    assert list(child.tokens) == list(branch.tokens) + more.tokens


def test_the_branch_is_free_before_the_future_is_done(make_backend, monkeypatch):
    """Whoever waits for the future finds the branch idle and its tokens there, however the threads are switched."""
    backend = make_backend()
    end = LocalBranch.end

    def late(branch):
        time.sleep(0.05)
        end(branch)

    monkeypatch.setattr(LocalBranch, "end", late)
    branch = backend.open(some(10))
    for _ in range(3):
        before = len(branch.tokens)
        run(backend, branch, stop=upto(2))
        assert len(branch.tokens) == before + 2
        branch.append([1])


def test_a_full_context_ends_with_length(make_backend):
    """A branch whose context is full after a few tokens ends there, as if they were all that was asked for."""
    backend = make_backend(max_context=25)
    branch = backend.open(some(20))
    extension = run(backend, branch, stop=upto(100))
    assert (len(extension.tokens), extension.finish, len(branch.tokens)) == (5, "length", 25)


def test_eos_ends_and_adds_no_text(make_backend, tokenizer):
    """The end-of-text token ends the extension, stays in the branch, and is no text; switched off it is a token."""
    backend = make_backend()
    eos = Sampling(logit_bias=((256, 1e4),))
    branch = backend.open(some(10))
    extension = run(backend, branch, eos, Stop(5))
    assert (extension.tokens, extension.text, extension.finish) == ([256], "", "eos")
    assert branch.tokens[-1] == 256
    on = run(backend, backend.open(some(10)), eos, upto(3))
    assert (on.tokens, on.text, on.finish) == ([256] * 3, "", "length")


def test_a_stop_token_ends_with_stop(make_backend):
    """A token of `Stop.tokens` ends the extension, and its text is not part of it."""
    backend = make_backend()
    prompt = some(10)
    plain = run(backend, backend.open(prompt), GREEDY)
    token = plain.tokens[-1]
    at = plain.tokens.index(token)
    cut = run(backend, backend.open(prompt), GREEDY, upto(10, tokens=frozenset({token})))
    assert (cut.tokens, cut.finish, cut.stop) == (plain.tokens[: at + 1], "stop", None)


def letters(n=0):
    """A sampling that draws small letters only."""
    return Sampling(
        logit_bias=tuple((t, 200.0) for t in range(256) if is_letter(t)), temperature=1 + n / 9
    )


def is_letter(token):
    """Byte symbols are sorted by character: the printable ones of ASCII come first."""
    return ord("a") - 33 <= token <= ord("z") - 33


def test_a_stop_string_spans_tokens(make_backend):
    """A stop of several tokens ends the extension where it completes; the text is cut before it, the branch is not."""
    backend = make_backend()
    plain = run(backend, backend.open(some(9)), letters(), upto(20))
    assert plain.text.isalpha()
    word = plain.text[7:10]
    at = plain.text.index(word)
    branch = backend.open(some(9))
    pieces = []
    cut = run(backend, branch, letters(), upto(20, strings=("zzzz", word)), on_text=pieces.append)
    assert (cut.text, cut.finish, cut.stop) == (plain.text[:at], "stop", word)
    assert list(branch.tokens[9:]) == cut.tokens == plain.tokens[: at + 3]
    assert "".join(pieces) == cut.text


def test_kept_stops_join(make_backend, tokenizer):
    """With `keep` the texts of consecutive extensions are the text of their tokens, stops and half characters included."""
    backend = make_backend()
    for sampling, strings in [(letters(), tuple("aeiou")), (PLAIN, ("\n",)), (PLAIN, ())]:
        branch = backend.open(tokenizer.encode("the"))
        texts, pieces = [], []
        for _ in range(6):
            extension = run(
                backend,
                branch,
                sampling,
                upto(5, strings=strings, keep=True),
                on_text=pieces.append,
            )
            texts.append(extension.text)
            assert (extension.finish == "stop") == (extension.stop is not None)
            if extension.stop:
                assert extension.text.endswith(extension.stop)
        whole = tokenizer.decode(branch.tokens)[3:]
        assert whole.startswith("".join(texts))
        assert len(whole) - len("".join(texts)) <= 1, "half a character at most"
        assert "".join(pieces) == "".join(texts)


def test_streamed_pieces_join_to_the_text(make_backend):
    """Pieces come as they are certain, from random bytes too, and are the text in the end."""
    backend = make_backend()
    for seed in range(3):
        pieces = []
        extension = run(
            backend, backend.open(some(9), seed=seed), PLAIN, upto(40), on_text=pieces.append
        )
        assert "".join(pieces) == extension.text
        assert len(pieces) > 3


def test_no_tokens_is_a_mistake(make_backend):
    """An empty prompt, no tokens to draw, an empty continuation and tokens beyond the vocabulary are SettingErrors."""
    backend = make_backend()
    branch = backend.open(some(4))
    for use in (
        lambda: backend.open([]),
        lambda: backend.open(""),
        lambda: backend.extend(branch, PLAIN, Stop(0)),
        lambda: backend.score(branch, [[1], []]),
        lambda: backend.open([3, 260]),
        lambda: branch.append([-1]),
    ):
        with pytest.raises(SettingError):
            use()
    assert run(backend, branch).finish == "length"


# --- sampling settings


def test_temperature_zero_takes_the_best(make_backend, reference):
    """Greedy decoding is the argmax of the stock model, token by token, under any seed."""
    backend = make_backend("qwen3")
    branch = backend.open(some(12), seed=5)
    extension = run(backend, branch, GREEDY, stats=True)
    tokens = list(branch.tokens)
    for i in range(12, len(tokens)):
        logits = reference("qwen3", tokens[:i])[0]
        assert tokens[i] == int(logits.argmax())
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum()
        assert math.isclose(extension.logprobs[i - 12], logprobs.max(), abs_tol=1e-3)
        assert math.isclose(extension.entropies[i - 12], entropy, abs_tol=1e-3)
        assert math.isclose(
            extension.top_logprobs[i - 12], logprobs.topk(20).values.mean(), abs_tol=1e-3
        )


def test_figures_come_only_when_asked_for(make_backend):
    """Without `stats` there are no figures, whoever else in the batch asked for some."""
    backend = make_backend()
    tasks = [
        backend.extend(backend.open(some(9)), PLAIN, upto(5), stats=stats)
        for stats in (True, False)
    ]
    asked, plain = (task.future.result(WAIT) for task in tasks)
    assert asked.tokens == plain.tokens
    assert len(asked.logprobs) == len(asked.entropies) == len(asked.top_logprobs) == 5
    assert plain.logprobs == plain.entropies == plain.top_logprobs == []


def test_penalties_see_what_was_drawn(make_backend):
    """A huge presence penalty forbids repeating the output but not the prompt; a repetition penalty forbids both."""
    backend = make_backend()
    prompt = some(10)
    extension = run(backend, backend.open(prompt), Sampling(0, presence_penalty=1e6), upto(60))
    assert len(set(extension.tokens)) == 60
    bias = tuple((t, 50.0) for t in prompt)
    again = run(backend, backend.open(prompt), Sampling(0, presence_penalty=1e6, logit_bias=bias))
    assert set(again.tokens) <= set(prompt)
    fresh = run(backend, backend.open(prompt), Sampling(0, repetition_penalty=1e6, logit_bias=bias))
    assert len(set(fresh.tokens)) == 10


def test_a_prompt_that_was_cut_is_no_prompt(make_backend):
    """Tokens drawn where a truncated prompt stood are output to the penalties."""
    backend = make_backend()
    branch = backend.open(some(30))
    branch.truncate(2)
    extension = run(backend, branch, Sampling(0, presence_penalty=1e6), upto(40))
    assert len(set(extension.tokens)) == 40


def test_a_bias_decides(make_backend):
    """A biased token is drawn, a forbidden one never."""
    backend = make_backend()
    up = run(backend, backend.open(some(9)), Sampling(logit_bias=((65, 1e4),)), upto(4))
    assert up.tokens == [65] * 4
    forbidden = run(backend, backend.open(some(9)), PLAIN).tokens
    down = Sampling(logit_bias=tuple((t, -1e9) for t in forbidden))
    assert not set(run(backend, backend.open(some(9)), down).tokens) & set(forbidden)


class Cycle:
    """Allows the tokens of a ring, one after the other, and any of a set at its end."""

    def __init__(self, ring, fails=""):
        self.ring, self.at, self.fails = ring, 0, fails

    def allowed(self):
        if self.fails == "allowed" and self.at == 2:
            raise ZeroDivisionError("the grammar broke")
        if self.fails == "empty" and self.at == 2:
            return []
        if self.fails == "outside" and self.at == 2:
            return [260]
        return self.ring[self.at % len(self.ring)]

    def advance(self, token):
        if self.fails == "advance" and self.at == 2:
            raise ZeroDivisionError("the grammar broke")
        assert token in self.allowed()
        self.at += 1

    def rollback(self, n):
        self.at -= n

    def fork(self):
        return Cycle(self.ring)


def test_a_constraint_decides_what_may_come(make_backend):
    """Each token is one that the constraint allows then, drawn by the model among those; others are not constrained."""
    backend = make_backend()
    ring = [[1, 2, 3], [10], [40, 41]]
    cycle = Cycle(ring)
    free = backend.extend(backend.open(some(9)), PLAIN, upto(9))
    extension = run(backend, backend.open(some(9)), PLAIN, upto(9), constraint=cycle)
    assert all(token in ring[i % 3] for i, token in enumerate(extension.tokens))
    assert cycle.at == 9
    assert not set(free.future.result(WAIT).tokens) <= {1, 2, 3, 10, 40, 41}


# --- scores


@pytest.mark.parametrize("prefilled", [False, True])
def test_scores_are_log_probabilities_of_the_stock_model(make_backend, reference, prefilled):
    """Each continuation's tokens get the log-softmax of a full forward; the branch stays as it is."""
    backend = make_backend("gemma3")
    prompt = some(50)
    branch = backend.open(prompt)
    if prefilled:
        run(backend, backend.open(prompt), stop=upto(1))
    continuations = [some(n, n) for n in (1, 7, 3, 40)]
    scores = backend.score(branch, continuations).future.result(WAIT)
    for tokens, got in zip(continuations, scores, strict=True):
        logits = reference("gemma3", prompt + tokens, len(tokens) + 1)[:-1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(got), expected, atol=1e-3)
    assert list(branch.tokens) == prompt
    assert on_engine(backend, lambda: branch.sequence.tokens) == prompt
    live = on_engine(backend, lambda: backend.runner.pool.live)
    branch.free()
    assert on_engine(backend, lambda: backend.runner.pool.live) == 0 <= live
    assert backend.score(backend.open(prompt), []).future.result(WAIT) == []


@pytest.mark.parametrize("change", ["append", "truncate", "free", "extend"])
@pytest.mark.parametrize("action", ["score", "prefill"])
def test_what_comes_after_a_score_does_not_change_it(make_backend, gate, action, change):
    """It is of the branch as it was when it was asked for, however busy the engine is."""
    backend = make_backend("llama")
    want = backend.score(backend.open(some(20)), [[1, 2, 3]]).future.result(WAIT)
    gated = gate(backend)
    gated.stop_at(0)
    before = backend.prefill(backend.open(some(5)))
    gated.wait()
    branch = backend.open(some(20))
    task = backend.score(branch, [[1, 2, 3]]) if action == "score" else backend.prefill(branch)
    match change:
        case "append":
            branch.append([4, 5])
        case "truncate":
            branch.truncate(7)
        case "free":
            branch.free()
        case "extend":
            backend.extend(branch, PLAIN, Stop(3, eos=False))
    gated.open()
    assert before.future.result(WAIT)
    found = task.future.result(WAIT)
    assert found is True if action == "prefill" else found == [pytest.approx(want[0], abs=1e-4)]


def test_a_score_of_what_is_cached_is_right(make_backend, reference):
    """Where the index knows the continuation already, its rows are computed all the same."""
    backend = make_backend()
    prompt = some(40)
    branch = backend.open(prompt)
    drawn = run(backend, branch, stop=upto(20)).tokens
    branch.free()
    [got] = backend.score(backend.open(prompt), [drawn]).future.result(WAIT)
    logits = reference("llama", prompt + drawn, 21)[:-1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(drawn)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(got), expected, atol=1e-3)


@pytest.mark.parametrize("length", [500, 505, 511, 512, 513, 520])
def test_the_rows_of_a_score_are_in_one_chunk(make_backend, reference, length):
    """A prompt whose chunks would end among the wanted rows is cut before them."""
    backend = make_backend()
    prompt, tokens = some(length), some(12, 1)
    decoding = backend.extend(backend.open([1]), PLAIN, upto(8))
    [got] = backend.score(backend.open(prompt), [tokens]).future.result(WAIT)
    decoding.future.result(WAIT)
    logits = reference("llama", prompt + tokens, 13)[:-1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(got), expected, atol=1e-3)


# --- ends before the end


def test_cancel_ends_within_one_step(make_backend, gate):
    """A cancelled extension keeps what it has, its branch goes on, and others do not notice."""
    backend = make_backend()
    other = run(backend, backend.open(some(8)), stop=upto(30)).tokens
    watch = gate(backend)
    watch.stop_at(5)
    branch = backend.open(some(9))
    task = backend.extend(branch, PLAIN, upto(1000))
    mate = backend.extend(backend.open(some(8)), PLAIN, upto(30))
    watch.wait()
    task.cancel()
    task.cancel()
    watch.open()
    extension = task.future.result(WAIT)
    assert extension.finish == "cancelled"
    assert len(extension.tokens) <= 6
    assert list(branch.tokens) == some(9) + extension.tokens
    assert mate.future.result(WAIT).tokens == other
    assert run(backend, branch, stop=upto(2)).finish == "length"


def test_a_deadline_ends_within_one_step(make_backend, gate):
    """A program that is late when a step is over ends with what it has; one that starts late has nothing."""
    backend = make_backend()
    watch = gate(backend)
    watch.stop_at(4)
    deadline = time.monotonic() + 3600
    task = backend.extend(backend.open(some(9)), PLAIN, upto(1000), deadline=deadline)
    watch.wait()
    task.deadline = time.monotonic()
    watch.open()
    extension = task.future.result(WAIT)
    assert (extension.finish, len(extension.tokens)) == ("deadline", 5)
    assert len(watch.steps) == 5
    late = run(backend, backend.open(some(9)), deadline=time.monotonic() - 1)
    assert (late.finish, late.tokens, late.text) == ("deadline", [], "")
    assert len(watch.steps) == 5


def test_a_cancelled_score_gives_its_slots_back(make_backend, gate):
    """A score that is cancelled has no result, and no fork of it stays."""
    backend = make_backend()
    watch = gate(backend)
    watch.stop_at(0)
    branch = backend.open(some(3000))
    task = backend.score(branch, [[1, 2, 3]])
    watch.wait()
    task.cancel()
    watch.open()
    assert task.future.result(WAIT) is None
    branch.free()
    assert on_engine(backend, lambda: backend.runner.pool.live) == 0


def test_a_cancelled_future_is_a_cancelled_program(make_backend, gate):
    """`future.cancel()`, which asyncio calls for an awaiting task that is cancelled, ends that program alone."""
    backend = make_backend()
    watch = gate(backend)
    watch.stop_at(5)
    branch = backend.open(some(9))
    task = backend.extend(branch, PLAIN, upto(100_000))
    mate = backend.extend(backend.open(some(8)), PLAIN, upto(20))
    watch.wait()
    task.future.cancel()
    watch.open()
    assert mate.future.result(WAIT).finish == "length"
    assert on_engine(backend, lambda: backend.engine.live) == 0
    assert run(backend, branch, stop=upto(2)).finish == "length"


# --- failures


def test_an_error_in_one_program_is_its_own(make_backend):
    """A callback that raises fails its own extension; the others end as if it had not been there."""
    backend = make_backend()
    expected = run(backend, backend.open(some(8)), stop=upto(20)).tokens

    def broken(text):
        raise ZeroDivisionError(text)

    branch = backend.open(some(9))
    task = backend.extend(branch, PLAIN, upto(50), on_text=broken)
    mate = backend.extend(backend.open(some(8)), PLAIN, upto(20))
    with pytest.raises(ZeroDivisionError):
        task.future.result(WAIT)
    assert mate.future.result(WAIT).tokens == expected
    assert run(backend, branch, stop=upto(2)).finish == "length"


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        ("allowed", ZeroDivisionError),
        ("advance", ZeroDivisionError),
        ("empty", SettingError),
        ("outside", SettingError),
    ],
)
def test_a_broken_constraint_is_its_own_programs_error(make_backend, fails, error):
    """A grammar that raises, allows nothing, or allows what is no token fails its own extension only."""
    backend = make_backend()
    go = threading.Event()
    backend.engine.post(go.wait)
    task = backend.extend(
        backend.open(some(9)), PLAIN, upto(9), constraint=Cycle([[1], [2], [3]], fails)
    )
    mate = backend.extend(backend.open(some(8)), PLAIN, upto(20))
    go.set()
    with pytest.raises(error):
        task.future.result(WAIT)
    assert mate.future.result(WAIT).finish == "length"


def test_a_bias_outside_the_vocabulary_is_refused_at_once(make_backend):
    """A bias that names no token is the caller's mistake, and nobody else's failure."""
    backend = make_backend()
    branch = backend.open(some(9))
    mate = backend.extend(backend.open(some(8)), PLAIN, upto(20))
    with pytest.raises(SettingError, match="260"):
        backend.extend(branch, Sampling(logit_bias=((260, 1.0),)), upto(9)).future.result(WAIT)
    assert mate.future.result(WAIT).finish == "length"
    assert run(backend, branch).finish == "length"


def ruin(gate_, wrong, value=float("nan")):
    """Overwrites the rows of the chunks of one sequence in every step from now on."""
    step = gate_._step

    def broken(chunks):
        out = step(chunks)
        at = 0
        for chunk in chunks:
            if wrong(chunk.sequence):
                with torch.inference_mode():
                    out.rows[at : at + chunk.rows] = value
            at += chunk.rows
        return out

    gate_._step = broken


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_fail_their_program(make_backend, gate, value):
    """NumericalError names the model and its dtype, reaches the program that drew from them, and no other."""
    backend = make_backend()
    watch = gate(backend)
    bad, good = backend.open(some(9)), backend.open(some(8))
    on_engine(backend, lambda: ruin(watch, lambda s: s is bad.sequence, value))
    tasks = [backend.extend(branch, PLAIN, upto(8)) for branch in (bad, good)]
    with pytest.raises(
        NumericalError, match=r"(LlamaForCausalLM|tiny llama) gave .* (float32|F32) on cpu"
    ):
        tasks[0].future.result(WAIT)
    assert tasks[1].future.result(WAIT).finish == "length"
    assert on_engine(backend, lambda: bad.sequence.pending) == 1
    score = backend.score(good, [[1, 2]])
    assert len(score.future.result(WAIT)[0]) == 2


def test_a_score_of_broken_logits_fails(make_backend, gate):
    """A score of NaN logits is a NumericalError, not a NaN."""
    backend = make_backend()
    watch = gate(backend)
    branch = backend.open(some(9))
    on_engine(backend, lambda: ruin(watch, lambda s: s is not branch.sequence))
    with pytest.raises(NumericalError):
        backend.score(branch, [[1, 2], [3]]).future.result(WAIT)
    branch.free()
    assert on_engine(backend, lambda: backend.runner.pool.live) == 0


def test_a_branch_goes_on_after_a_failed_draw(make_backend):
    """A token that was computed and not drawn is pending again: the next extension draws what the first would have."""
    backend, other = make_backend(), make_backend()
    branch = backend.open(some(9))
    with pytest.raises(SettingError):
        run(backend, branch, constraint=Cycle([[]]))
    assert on_engine(backend, lambda: branch.sequence.pending) == 1
    assert run(backend, branch).tokens == run(other, other.open(some(9))).tokens


def test_memory_that_ran_out_once_is_no_error(make_backend, gate, monkeypatch):
    """The runner gives its scratch memory back, the chunk is halved, and the step is tried again."""
    backend = make_backend()
    watch = gate(backend)
    trims = []
    monkeypatch.setattr(backend.runner, "trim", lambda: trims.append(1))

    def small_device(chunks):
        if sum(chunk.n for chunk in chunks) > 400:
            raise torch.OutOfMemoryError("CUDA out of memory")

    watch.before = small_device
    extension = run(backend, backend.open(some(700)), stop=upto(3))
    assert len(extension.tokens) == 3
    assert [step[0][0] for step in watch.steps[:2]] == [700, 350]
    assert len(trims) == 1


def test_memory_that_ran_out_twice_is_a_capacity_error(make_backend, gate):
    """When half is too much too, the newest program of the step fails with CapacityError and the engine goes on."""
    backend = make_backend()
    watch = gate(backend)

    def tiny_device(chunks):
        if any(chunk.n > 100 for chunk in chunks):
            raise torch.OutOfMemoryError("CUDA out of memory")

    watch.before = tiny_device
    decoding = backend.extend(backend.open(some(8)), PLAIN, upto(30))
    task = backend.extend(backend.open(some(700)), PLAIN, upto(3))
    with pytest.raises(CapacityError, match="out of memory") as caught:
        task.future.result(WAIT)
    assert caught.value.kind == "memory"
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert decoding.future.result(WAIT).finish == "length"


def test_a_failing_step_fails_its_programs_and_no_more(make_backend, gate):
    """Whatever the model raises reaches every program of that step as EngineFailedError; the next request works."""
    backend = make_backend()
    watch = gate(backend)

    def fails(chunks):
        if len(watch.steps) == 4:
            raise RuntimeError("a kernel is missing")

    watch.before = fails
    branches = [backend.open(some(8, i)) for i in range(3)]
    tasks = [backend.extend(branch, PLAIN, upto(20)) for branch in branches]
    for task in tasks:
        with pytest.raises(EngineFailedError, match="a kernel is missing") as caught:
            task.future.result(WAIT)
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert run(backend, branches[0]).finish == "length"
    for branch in branches:
        branch.free()
    assert on_engine(backend, lambda: backend.runner.pool.live) == 0


def test_a_device_that_is_lost_ends_the_engine(make_backend, gate):
    """After a device assertion every program fails, later calls say so at once, and the device gets a new engine."""
    engine = engine_for("lost-device")
    backend = make_backend(engine=engine)
    watch = gate(backend)

    def lost(chunks):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    watch.before = lost
    branch = backend.open(some(8))
    task = backend.extend(branch, PLAIN, upto(9))
    with pytest.raises(EngineFailedError, match="device-side assert"):
        task.future.result(WAIT)
    engine._thread.join(WAIT)
    assert not engine._thread.is_alive()
    with pytest.raises(EngineFailedError):
        branch.append([1])
    branch.free()
    backend.close()
    new = engine_for("lost-device")
    assert new is not engine
    new.close()


def test_an_error_on_the_engine_itself_leaves_nobody_waiting(make_backend):
    """If the engine's own code fails, every future is failed with the cause, and so is every later call."""
    backend = make_backend()
    branch = backend.open(some(8))
    task = backend.extend(branch, PLAIN, upto(100_000))
    backend.engine.post(lambda: 1 / 0)
    with pytest.raises(EngineFailedError) as caught:
        task.future.result(WAIT)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(EngineFailedError):
        backend.open(some(3))
    branch.free()


# --- closing


def test_close_ends_every_program(make_backend):
    """Sixteen live programs all fail with EngineClosedError, later calls do at once, and closing twice is once."""
    backend = make_backend()
    branches = backend.open(some(20)).fork(16)
    tasks = [backend.extend(branch, PLAIN, upto(100_000)) for branch in branches]
    backend.engine.close()
    backend.engine.close()
    for task in tasks:
        with pytest.raises(EngineClosedError):
            task.future.result(WAIT)
    for use in (
        lambda: backend.open(some(3)),
        lambda: branches[0].append([1]),
        branches[0].fork,
        lambda: backend.extend(branches[0], PLAIN, upto(1)),
        lambda: backend.engine.call(lambda: None),
    ):
        with pytest.raises(EngineClosedError):
            use()
    for branch in branches:
        branch.free()
    backend.close()


def test_close_before_use(make_backend):
    """An engine that never ran closes too, and says so to whoever comes."""
    backend = make_backend()
    backend.engine.close()
    with pytest.raises(EngineClosedError):
        backend.open(some(3))


def test_a_request_never_waits_on_a_closing_engine(make_backend):
    """Whatever is submitted while the engine closes is refused or failed, and never left waiting."""
    for seed in range(12):
        backend = make_backend(slots=200)
        branches = backend.open(some(5)).fork(40)
        started = threading.Event()
        tasks = []

        def submit(backend=backend, branches=branches, started=started, tasks=tasks):
            try:
                for i, branch in enumerate(branches):
                    tasks.append(backend.extend(branch, PLAIN, upto(100_000)))
                    if i == 5:
                        started.set()
            except EngineClosedError:
                pass

        thread = threading.Thread(target=submit)
        thread.start()
        started.wait(WAIT)
        time.sleep(seed * 1e-4)
        backend.engine.close()
        thread.join(WAIT)
        for task in tasks:
            with pytest.raises(EngineClosedError):
                task.future.result(WAIT)


def test_closing_one_backend_ends_its_programs_only(make_backend):
    """A model that is given back leaves no program running on it; the engine goes on for the other model."""
    engine = Engine("shared")
    one, two = make_backend(engine=engine), make_backend("gpt2", engine=engine)
    branch = one.open(some(9))
    task = one.extend(branch, PLAIN, upto(100_000))
    mate = two.extend(two.open(some(9)), PLAIN, upto(30))
    one.close()
    one.close()
    with pytest.raises(EngineClosedError):
        task.future.result(WAIT)
    assert mate.future.result(WAIT).finish == "length"
    with pytest.raises(EngineClosedError):
        one.open(some(3))
    branch.free()


SCRIPT = """
import os, sys, threading, time
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.engine import engine_for
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.errors import EngineClosedError

torch.set_num_threads(1)
config = LlamaConfig(vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096)
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
rust = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
rust.decoder = decoders.ByteLevel()
tokenizer = HFTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust))
backend = LocalBackend("tiny", TorchRunner(LlamaForCausalLM(config).eval(), slots=60_000), tokenizer,
                       engine_for("cpu"))
branches = backend.open([1, 2, 3]).fork(17)
tasks = [backend.extend(b, Sampling(), Stop(100_000, eos=False)) for b in branches[1:]]
while backend.engine.steps < 5:
    time.sleep(0.01)
"""
FORK = """
read, write = os.pipe()
if os.fork() == 0:
    told = 0
    for use in (lambda: backend.open([1]), lambda: branches[0].fork(), branches[0].free, backend.close):
        try:
            use()
        except EngineClosedError as error:
            told += "fork" in str(error)
    os.write(write, b"%d" % told)
    os._exit(0)
os.wait()
print("child", os.read(read, 9).decode())
[task.cancel() for task in tasks]
print("parent", sum(task.future.result(60).finish == "cancelled" for task in tasks))
"""
THREADS = """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(4)  # its threads wait for us, and the interpreter for them
waiting = [pool.submit(task.future.exception) for task in tasks[:4]]
print("end")
"""


@pytest.mark.parametrize(
    ("rest", "output"), [(FORK, "child 2\nparent 16\n"), (THREADS, "end\n")], ids=["fork", "exit"]
)
def test_processes(rest, output):
    """A forked child is told at once that the engine is its parent's; an exit amid sixteen generations is silent."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT + rest],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


# --- metering


@pytest.mark.parametrize("slots", [4000, 300])
def test_usages_sum_to_the_meter(make_backend, slots):
    """Every integer of every request's usage, failed and cancelled ones included, adds up to the engine's meter."""
    backend = make_backend(slots=slots)
    roots = [backend.open(some(n, n)) for n in (5, 60, 90)]
    tasks = [backend.extend(child, PLAIN, upto(15)) for root in roots for child in root.fork(5)]
    tasks += [backend.score(root, [some(9, i) for i in range(3)]) for root in roots]
    tasks.append(backend.extend(backend.open(some(9)), PLAIN, upto(50), on_text=lambda _: 1 / 0))
    tasks.append(backend.extend(backend.open(some(10)), PLAIN, upto(1000)))
    tasks[-1].cancel()
    total = Usage()
    for task in tasks:
        task.future.exception(WAIT)
        total.add(task.usage)
    meter = on_engine(backend, lambda: Usage() + backend.engine.meter)
    assert integers(total) == integers(meter)
    assert math.isclose(total.device_seconds, meter.device_seconds)
    assert math.isclose(total.wall_seconds, meter.wall_seconds)
    assert (meter.replayed_tokens > 0) == (slots == 300)


def test_usage_says_what_happened(make_backend):
    """One request's tokens, steps and new tokens are those of the request."""
    backend = make_backend()
    usage = run(backend, backend.open(some(20)), stop=upto(7)).usage
    assert (usage.prompt_tokens, usage.new_tokens, usage.forwards) == (20, 7, 7)
    assert usage.forward_tokens == 26
    assert usage.replayed_tokens == usage.cached_tokens == usage.drafted == 0
    assert usage.flops > 26 * 2 * backend.spec.matmul_parameters
    assert usage.bytes >= 7 * backend.spec.weight_bytes
    assert 0 < usage.device_seconds <= usage.wall_seconds


def test_what_a_preemption_repeats_is_charged_to_nobody(make_backend):
    """In a pool that is too small a request is charged as in a large one; the rest is `replayed_tokens`."""

    def usages(slots):
        backend = make_backend(slots=slots)
        tasks = [backend.extend(backend.open(some(10, i)), PLAIN, upto(60)) for i in range(6)]
        out = [task.future.result(WAIT).usage for task in tasks]
        return [(u.prompt_tokens, u.new_tokens, u.forward_tokens, u.flops) for u in out], sum(
            u.replayed_tokens for u in out
        )

    (large, none), (small, replayed) = usages(4000), usages(130)
    assert large == small
    assert none == 0 < replayed


# --- branches


def test_a_busy_branch_is_refused(make_backend, gate):
    """While it is extended a branch refuses everything but free, and names the reason; reading it is fine."""
    backend = make_backend()
    watch = gate(backend)
    watch.stop_at(3)
    branch = backend.open(some(9))
    task = backend.extend(branch, PLAIN, upto(10))
    watch.wait()
    for use in (
        branch.fork,
        lambda: branch.append([1]),
        lambda: branch.truncate(2),
        lambda: backend.extend(branch, PLAIN, upto(1)),
        lambda: backend.score(branch, [[1]]),
    ):
        with pytest.raises(SequenceError, match="while it is being extended"):
            use()
    assert len(branch.tokens) == 9
    watch.open()
    task.future.result(WAIT)
    branch.append([1])


def test_a_freed_branch_is_refused(make_backend):
    """After free, which may be called twice, a branch refuses everything; its children live on."""
    backend = make_backend()
    branch = backend.open(some(9))
    child = branch.fork()[0]
    branch.free()
    branch.free()
    for use in (
        branch.fork,
        lambda: branch.append([1]),
        lambda: branch.truncate(2),
        lambda: backend.extend(branch, PLAIN, upto(1)),
        lambda: backend.score(branch, [[1]]),
    ):
        with pytest.raises(SequenceError, match="freed"):
            use()
    assert run(backend, child).finish == "length"


def test_a_branch_that_is_freed_while_busy_goes_when_it_is_done(make_backend, gate):
    """Freeing a busy branch lets its extension end, then gives its slots back."""
    backend = make_backend()
    watch = gate(backend)
    watch.stop_at(3)
    branch = backend.open(some(9))
    task = backend.extend(branch, PLAIN, upto(6))
    watch.wait()
    branch.free()
    watch.open()
    assert len(task.future.result(WAIT).tokens) == 6
    assert on_engine(backend, lambda: backend.runner.pool.live) == 0


def test_a_foreign_branch_is_refused(make_backend):
    """A branch of another backend, or something else, is a SequenceError."""
    one, two = make_backend(), make_backend()
    for stranger in (two.open(some(3)), object()):
        with pytest.raises(SequenceError, match="does not belong"):
            one.extend(stranger, PLAIN, upto(1))
        with pytest.raises(SequenceError, match="does not belong"):
            one.score(stranger, [[1]])


def test_forks_from_several_threads_have_keys_of_their_own(make_backend):
    """However many threads fork one branch, no two children share a key."""
    backend = make_backend()
    root = backend.open(some(9))
    children = []
    threads = [
        threading.Thread(target=lambda: [children.extend(root.fork(2)) for _ in range(20)])
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(children) == len({child.key for child in children}) == 240


def test_branches_that_nobody_holds_give_their_slots_back(make_backend):
    """A branch that is garbage is freed, on whatever thread the collector runs, and so is one that was extended."""
    backend = make_backend()
    root = backend.open(some(30))
    children = root.fork(8)
    for task in [backend.extend(child, PLAIN, upto(4)) for child in children]:
        task.future.result(WAIT)
    del task
    assert on_engine(backend, lambda: backend.runner.pool.live) > 30
    del children, root
    gc.collect()
    assert on_engine(backend, lambda: backend.runner.pool.live) == 0
    assert on_engine(backend, lambda: len(backend.engine._scheduler._sequences)) == 0


# --- programs of one's own


def test_a_program_may_want_many_things_at_once(make_backend, reference):
    """A program that yields draws and scores on two sequences in one step gets each in order."""
    backend = make_backend()
    runner = backend.runner

    def program():
        one, two = runner.open(some(20)), runner.open(some(21))
        runner.append(two, [5, 6])
        results = yield [
            Work(two, Named((5, 6, 7)), rows=3),
            Work(one, Draw(1, GREEDY, 20)),
        ]
        for sequence in (one, two):
            runner.free(sequence)
        return results

    logprobs, [drawn] = backend.engine.submit(Running(program(), runner, None)).future.result(WAIT)
    assert drawn.token == int(reference("llama", some(20))[0].argmax())
    expected = reference("llama", [*some(21), 5, 6], 3).log_softmax(-1)
    assert torch.allclose(torch.tensor(logprobs), expected[range(3), [5, 6, 7]], atol=1e-3)
