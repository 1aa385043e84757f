"""A recorded backend gives recorded answers again, counts what an engine would, and invents nothing."""

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.recorded import RecordedBackend
from langchain_pareto.backends.recorded_samples import CUT, NONE, likelihood, order
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import (
    CapabilityError,
    ContextLengthError,
    EngineClosedError,
    NotRecorded,
    SequenceError,
    SettingError,
)
from langchain_pareto.strategies.answers import AnswerFormat

PLAIN = Sampling()
COUNTED = ("prompt_tokens", "new_tokens", "forwards", "forward_tokens", "flops", "bytes")


@dataclass
class Rows:
    """Recorded samples of two questions."""

    answers: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float64] | None = None
    questions: tuple[str, ...] = ("a", "b")
    model: str = "recorded"


def rows(lengths, *, prompt=4, **fields) -> Rows:
    """The second question's samples have these lengths and the answers 0, 1, 2 ...; the first one's have one token."""
    n = len(lengths)
    answers = np.array([[0] * n, list(range(n))])
    return Rows(answers, np.array([[1] * n, lengths]), np.array([1, prompt]), **fields)


def backend(lengths, *, context=200, manual=False, **fields) -> RecordedBackend:
    spec = ScriptedBackend(["x"], context_length=context).spec
    return RecordedBackend(rows(lengths, **fields), spec, manual=manual)


def counted(usage) -> dict:
    return {name: getattr(usage, name) for name in COUNTED}


# --- the order


@given(st.text(), st.integers(), st.integers(1, 100))
def test_an_order_is_a_permutation_by_question_and_seed(question, seed, samples):
    """The same again for the same two, with every sample once."""
    found = order(question, seed, samples)
    assert sorted(found) == list(range(samples))
    assert found == order(question, seed, samples)


def test_every_sample_comes_first_equally_often():
    """Over 4000 seeds each of 8 is met first 500 times, within five standard deviations; two questions are independent."""
    firsts = [(order("a", seed, 8)[0], order("b", seed, 8)[0]) for seed in range(4000)]
    counts = np.bincount([first for first, _ in firsts], minlength=8)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 7 / 8)
    same = sum(a == b for a, b in firsts)
    assert abs(same - 500) < 5 * np.sqrt(500 * 7 / 8)


# --- draws


def test_draws_are_the_recorded_samples_in_their_order():
    """Draw i has the length, the class and the likelihood of sample order[i], wherever below the root it is drawn."""
    logprobs = -np.array([[1.0] * 4, [0.1, 0.2, 0.3, 0.4]])
    model = backend([5, 9, 2, 7], logprobs=logprobs)
    root = model.open("b", seed=3)
    branches = [*root.fork(2), *root.fork(1)[0].fork(2)]
    for branch, sample in zip(branches, order("b", 3, 4), strict=True):
        drawn = model.extend(branch, PLAIN, Stop(100), stats=True).future.result()
        length = [5, 9, 2, 7][sample]
        assert (drawn.tokens, drawn.finish) == ([sample] * length, "eos")
        assert AnswerFormat().extract(drawn.text) == str(sample)
        assert drawn.logprobs == [likelihood(float(logprobs[1, sample]))] * length
        assert sum(drawn.logprobs) / length == drawn.logprobs[0]
        assert list(branch.tokens) == [*root.tokens, *drawn.tokens]


def test_a_sample_without_an_answer_says_none():
    """Neither does one that is cut off; one that ends at the very limit is whole."""
    model = backend([5])
    model._recorded.answers[1, 0] = -1
    drawn = model.extend(model.open("b"), PLAIN, Stop(5)).future.result()
    assert (drawn.text, drawn.finish) == (NONE, "eos")
    cut = model.extend(model.open("b"), PLAIN, Stop(4)).future.result()
    assert (cut.text, cut.finish, len(cut.tokens)) == (CUT, "length", 4)
    assert AnswerFormat(last_number=True).extract(NONE) is None
    assert AnswerFormat(last_number=True).extract(CUT) is None


def test_the_context_cuts_as_well():
    """A draw has no more tokens than the context leaves; a full one leaves none."""
    model = backend([9], context=10)
    assert len(model.extend(model.open("b"), PLAIN, Stop(50)).future.result().tokens) == 6
    full = backend([9], context=4)
    with pytest.raises(ContextLengthError):
        full.extend(full.open("b"), PLAIN, Stop(50))
    with pytest.raises(ContextLengthError):
        backend([9], context=3).open("b")


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=6, max_size=6),
    prompt=st.integers(1, 6),
    asked=st.lists(st.none() | st.integers(1, 14), max_size=6),
)
def test_usage_is_what_an_engine_counts(lengths, prompt, asked):
    """The same prefills (None) and draws (of up to so many tokens) as on a backend that computes every token cost the same."""
    samples = order("b", 0, 6)
    scripted = ScriptedBackend([Line("x" * (lengths[s] - 1)) for s in samples], context_length=200)
    recorded = RecordedBackend(rows(lengths, prompt=prompt), scripted.spec)
    roots = [scripted.open("p" * prompt), recorded.open("b")]
    for most in asked:
        tasks = [
            model.prefill(root)
            if most is None
            else model.extend(root.fork(1)[0], PLAIN, Stop(most), stats=True)
            for model, root in zip((scripted, recorded), roots, strict=True)
        ]
        assert counted(tasks[0].usage) == counted(tasks[1].usage)
        assert tasks[0].future.done()
        assert tasks[1].future.done()
    assert counted(scripted.meter) == counted(recorded.meter)


def test_steps_draw_side_by_side():
    """With `manual` every live draw has one more token a step; what is cancelled keeps what it has."""
    model = backend([2, 4, 6], manual=True)
    tasks = [model.extend(b, PLAIN, Stop(5)) for b in model.open("b").fork(3)]
    by_sample = sorted(tasks, key=lambda task: task.sample)
    model.step(2)
    assert [task.future.done() for task in by_sample] == [True, False, False]
    model.step()
    by_sample[1].cancel()
    model.step(9)
    found = [task.future.result() for task in by_sample]
    assert [(len(f.tokens), f.finish) for f in found] == [
        (2, "eos"),
        (3, "cancelled"),
        (5, "length"),
    ]
    assert [f.text for f in found] == ["Answer: 0", CUT, CUT]
    assert model.meter.new_tokens == 10
    assert model.live == []


def test_a_deadline_ends_a_draw(monkeypatch):
    """Once it has passed nothing more is drawn or read."""
    model = backend([9], manual=True)
    times = itertools.count()
    fake = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr("langchain_pareto.backends.recorded_task.time", fake)
    task = model.extend(model.open("b"), PLAIN, Stop(50), deadline=3)
    model.step(9)
    drawn = task.future.result()
    assert (len(drawn.tokens), drawn.finish, drawn.text) == (3, "deadline", CUT)
    late = model.prefill(model.open("b"), deadline=3)
    assert (late.future.result(), late.usage.forward_tokens) == (False, 0)


# --- what was not recorded


def test_only_whole_answers_from_a_root_are_recorded():
    """Anything else raises NotRecorded, which says what to do, and draws nothing."""
    model = backend([5, 5])
    root = model.open("b")
    drawn = root.fork(1)[0]
    model.extend(drawn, PLAIN, Stop(50))
    constraint = SimpleNamespace()
    cases = [
        lambda: model.extend(drawn, PLAIN, Stop(50)),
        lambda: model.extend(root, PLAIN, Stop(50, step=r"\n")),
        lambda: model.extend(root, PLAIN, Stop(50, keep=True)),
        lambda: model.extend(root, PLAIN, Stop(50, strings=("x",))),
        lambda: model.extend(root, PLAIN, Stop(50, tokens=frozenset({3}))),
        lambda: model.extend(root, PLAIN, Stop(50, eos=False)),
        lambda: model.extend(root, PLAIN, Stop(50), constraint=constraint),
        lambda: model.prefill(drawn),
        lambda: model.score(root, [[1]]),
        lambda: root.append([1]),
        lambda: drawn.truncate(4),
        lambda: model.open("c"),
        lambda: model.open([1, 2]),
        lambda: model.open([*root.tokens, 1]),
        lambda: model.tokenizer.encode("x"),
        lambda: model.tokenizer.decode([1]),
        lambda: model.tokenizer.piece(1),
        lambda: model.tokenizer.render([{"role": "user", "content": "b"}]),
    ]
    for case in cases:
        with pytest.raises(NotRecorded) as caught:
            case()
        assert caught.value.hint
        assert isinstance(caught.value, CapabilityError)
    assert model.meter.new_tokens == 5


def test_there_are_no_more_samples_than_were_recorded():
    """One more than there are raises NotRecorded; another root starts over."""
    model = backend([5, 5])
    root = model.open("b")
    for branch in root.fork(2):
        model.extend(branch, PLAIN, Stop(50))
    with pytest.raises(NotRecorded, match="2 recorded samples") as caught:
        model.extend(root, PLAIN, Stop(50))
    assert caught.value.hint
    assert model.extend(model.open("b"), PLAIN, Stop(50)).future.done()


def test_a_branch_that_is_freed_while_busy_counts_until_it_is_done():
    """As on an engine, which still computes it."""
    model = backend([5], manual=True)
    branch = model.open("b")
    task = model.extend(branch, PLAIN, Stop(50))
    branch.free()
    assert model.branches == 1
    task.cancel()
    branch.free()
    assert model.branches == 0


def test_misuse_is_refused():
    """Branches that are freed, busy or another's; an empty prompt; a closed backend; questions named twice; bad likelihoods."""
    model, other = backend([5], manual=True), backend([5])
    branch = model.open("b")
    task = model.extend(branch, PLAIN, Stop(50))
    with pytest.raises(SequenceError, match="being extended"):
        branch.fork()
    task.cancel()
    branch.free()
    branch.free()
    with pytest.raises(SequenceError, match="freed"):
        branch.fork()
    assert model.branches == 0
    with pytest.raises(SequenceError, match="belong"):
        model.extend(other.open("b"), PLAIN, Stop(50))
    with pytest.raises(SettingError, match="max_tokens"):
        model.extend(model.open("b"), PLAIN, Stop(0))
    with pytest.raises(SettingError, match="empty"):
        model.open([])
    with model:
        pass
    with pytest.raises(EngineClosedError):
        model.open("b")
    with pytest.raises(SettingError, match="twice"):
        backend([5], questions=("a", "a"))
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(SettingError, match="log-probability"):
            likelihood(bad)
