"""Decoders under stress: many threads at once, and an end, a failure or an owner's change of mind at every step of a round."""

import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from langchain_pareto.backends.base import Logits, Sampling, Stop, Usage
from langchain_pareto.backends.decoders import BigLittle, Lookup, Plain, Rounds, Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.engine import Engine
from langchain_pareto.errors import EngineFailedError

WAIT = 120
HOT = Sampling()
PROMPT = [5, 9, 13, 200, 7, 7, 31, 18]
TOKENS = 20
LOSSLESS = (
    Plain(),
    Speculative(draft_tokens=3),
    Speculative(),
    Speculative(confidence=0.3),
    Lookup(draft_tokens=3, shortest=1),
    Rounds(schedule="first_come"),
    Rounds(schedule="batched"),
)
CUT = (
    Speculative(draft_tokens=3),
    Speculative(draft_tokens=3, confidence=0.5),
    Lookup(draft_tokens=3, shortest=1),
    Rounds(schedule="first_come"),
    Rounds(schedule="batched"),
    BigLittle(rollback=0, fallback=0.1, longest=3),
)


@pytest.fixture(params=["llama", "mamba2"])
def pair(make_backend, request):
    """A target, and a draft on the same engine that is mostly right."""
    engine, generator = Engine("test"), torch.Generator().manual_seed(3)
    target = make_backend(request.param, engine=engine)
    draft = make_backend(engine=engine)
    step = draft.runner.step

    def noisy(chunks):
        logits = step(chunks)
        return Logits(
            logits.rows + torch.randn(logits.rows.shape, generator=generator), logits.union
        )

    draft.runner.step = noisy
    return target, draft


class Moment:
    """Does something on the engine's thread just before a step of either model."""

    def __init__(self, pair):
        self.left, self.action = 0, None
        for backend in pair:
            backend.runner.step = self._watched(backend.runner.step)

    def before(self, step, action):
        """Before the step of this number from now on, counted from 1."""
        self.left, self.action = step, action

    def _watched(self, step):
        def go(chunks):
            self.left -= 1
            if self.left == 0:
                self.action()
            return step(chunks)

        return go


@contextmanager
def held_up(engine):
    """The engine does nothing meanwhile."""
    go = threading.Event()
    engine.call(lambda: go.wait(WAIT))
    yield
    go.set()


def plain_texts(target, seed):
    """What the first two children of a root with this seed draw."""
    children, stop = target.open(PROMPT, seed=seed).fork(2), Stop(TOKENS, eos=False)
    return [target.extend(child, HOT, stop).future.result(WAIT).tokens for child in children]


def held(pair):
    """Slots that sequences hold, once the engine is idle."""
    return [b.engine.call(lambda b=b: b.runner.pool.live).result(WAIT) for b in pair]


def test_threads_may_mix_decoders(pair):
    """Each thread's tokens are those of plain decoding, whatever the others do; the usages add up, and nothing is left behind."""
    target, draft = pair
    wanted = {seed: plain_texts(target, seed)[0] for seed in range(3 * len(LOSSLESS))}
    before = target.engine.call(lambda: Usage() + target.engine.meter).result(WAIT)
    found, used, failed = {}, [], []

    def work(first, decoder):
        backend = DecodingBackend(target, decoder, draft)
        try:
            for seed in range(first, first + 3):
                root = backend.open(PROMPT, seed=seed)
                child, other = root.fork(2)
                stop = Stop(TOKENS, eos=False)
                tasks = [backend.extend(b, HOT, stop) for b in (child, other)]
                root.free()
                found[seed] = tasks[0].future.result(WAIT).tokens
                tasks[seed % 2].cancel()
                tasks[1].future.result(WAIT)
                used.extend(task.usage for task in tasks)
                for branch in (child, other):
                    branch.free()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [
        threading.Thread(target=work, args=(3 * k, decoder)) for k, decoder in enumerate(LOSSLESS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert failed == []
    assert found == wanted
    assert held(pair) == [0, 0]
    meter = target.engine.call(lambda: Usage() + target.engine.meter).result(WAIT)
    total = sum(used, before)
    for name in ("new_tokens", "drafted", "accepted", "rounds", "forward_tokens", "flops"):
        assert getattr(total, name) == getattr(meter, name), name


def cancel(task):
    """The caller changes its mind."""
    task.cancel()


def be_late(task):
    """The deadline falls into this step."""
    task.deadline = time.monotonic()


@pytest.mark.parametrize("end", [cancel, be_late])
@pytest.mark.parametrize("decoder", CUT, ids=lambda decoder: decoder.kind)
def test_an_end_at_any_step_keeps_what_is_verified(pair, decoder, end):
    """Whichever step it falls into, the branch holds a beginning of the plain text and goes on to the rest; its sibling draws on."""
    target, draft = pair
    backend, moment = DecodingBackend(target, decoder, draft), Moment(pair)
    wanted, beside = plain_texts(target, 1)
    stop, lengths = Stop(TOKENS, eos=False), set()
    for step in range(1, 12):
        branch, sibling = backend.open(PROMPT, seed=1).fork(2)
        with held_up(target.engine):
            task, other = (backend.extend(b, HOT, stop) for b in (branch, sibling))
            moment.before(step, partial(end, task))
        got = task.future.result(WAIT)
        assert got.finish in ("cancelled", "deadline")
        assert list(branch.tokens) == [*PROMPT, *got.tokens]
        assert other.future.result(WAIT).tokens == beside
        rest = Stop(TOKENS - len(got.tokens), eos=False)
        assert got.tokens + backend.extend(branch, HOT, rest).future.result(WAIT).tokens == wanted
        lengths.add(len(got.tokens))
        for one in (branch, sibling):
            one.free()
    assert len(lengths) > 2
    assert held(pair) == [0, 0]


@pytest.mark.parametrize("broken", [0, 1], ids=["target", "draft"])
@pytest.mark.parametrize("decoder", CUT, ids=lambda decoder: decoder.kind)
def test_a_failure_at_any_step_leaves_the_branch_whole(pair, decoder, broken):
    """Whatever step of either model fails, the request says so, and the branch goes on from what was verified."""
    target, draft = pair
    backend, moment = DecodingBackend(target, decoder, draft), Moment([pair[broken]])
    [wanted, _] = plain_texts(target, 1)
    failed = 0
    for step in range(1, 9):
        branch = backend.open(PROMPT, seed=1).fork()[0]
        moment.before(step, divide_by_zero)
        task = backend.extend(branch, HOT, Stop(TOKENS, eos=False))
        error = task.future.exception(WAIT)
        moment.before(0, None)
        assert error is None or isinstance(error, EngineFailedError)
        failed += error is not None
        kept = list(branch.tokens)[len(PROMPT) :]
        assert task.usage.new_tokens == len(kept)
        if error is not None:
            rest = Stop(TOKENS - len(kept), eos=False)
            kept += backend.extend(branch, HOT, rest).future.result(WAIT).tokens
        assert kept == wanted
        branch.free()
    assert failed > 3 or (decoder.kind, broken) == ("lookup", 1)
    assert held(pair) == [0, 0]


def divide_by_zero():
    """Any error of a device."""
    raise ZeroDivisionError


class OneWay:
    """A constraint that cannot go back, and need not where nothing is guessed."""

    def allowed(self):
        return range(256)

    def advance(self, token):
        pass

    def rollback(self, n):
        raise NotImplementedError

    def fork(self):
        raise NotImplementedError


def test_what_fails_on_its_way_out_takes_nobody_along(pair):
    """A draft's step fails, and so does what its program does then: the engine and other requests go on."""
    target, draft = pair
    wanted = plain_texts(target, 1)
    backend, moment = DecodingBackend(target, Speculative(draft_tokens=8), draft), Moment([draft])
    branch, stop = target.open(PROMPT, seed=1).fork()[0], Stop(TOKENS, eos=False)
    moment.before(3, divide_by_zero)
    with held_up(target.engine):
        beside = target.extend(branch, HOT, stop)
        task = backend.extend(backend.open(PROMPT), HOT, stop, constraint=OneWay())
    with pytest.raises(EngineFailedError, match="failed in a step"):
        task.future.result(WAIT)
    assert beside.future.result(WAIT).tokens == wanted[0]
    assert plain_texts(target, 1) == wanted


@pytest.mark.parametrize("decoder", CUT, ids=lambda decoder: decoder.kind)
def test_a_branch_may_be_freed_during_any_step(pair, decoder):
    """It is gone when its request ends, and its relatives never notice."""
    target, draft = pair
    backend, moment = DecodingBackend(target, decoder, draft), Moment(pair)
    _, beside = plain_texts(target, 1)
    for step in range(1, 7):
        root = backend.open(PROMPT, seed=1)
        branch, sibling = root.fork(2)
        with held_up(target.engine):
            stop = Stop(TOKENS, eos=False)
            task, other = (backend.extend(b, HOT, stop) for b in (branch, sibling))

            def free(task=task, branches=(branch, root)):
                for one in branches:
                    one.free()
                task.cancel()

            moment.before(step, free)
        assert task.future.result(WAIT).finish == "cancelled"
        assert other.future.result(WAIT).tokens == beside
        sibling.free()
        assert held(pair) == [0, 0]
