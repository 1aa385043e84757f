"""Models with a recurrent state, on every runner: what snapshots save, and what happens without one."""

import pytest

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.errors import EngineFailedError

pytestmark = pytest.mark.parametrize("architecture", ["mamba2", "lfm2"])

WAIT = 60  # seconds
PROMPT = [(7 * i * i + 3) % 256 for i in range(90)]


def extend(backend, branches, n=6):
    tasks = [backend.extend(b, Sampling(), Stop(n, eos=False)) for b in branches]
    return [task.future.result(WAIT).tokens for task in tasks]


def test_a_truncation_is_said_to_replay(make_backend, architecture):
    """Whoever plans sees that going back costs something here, and nothing where there is attention alone."""
    assert make_backend(architecture).capabilities.rollback == "replay"
    assert make_backend("llama").capabilities.rollback == "free"


def test_sixteen_branches_compute_their_prompt_once(make_backend, architecture):
    """Forks of one root continue from its state, each with draws of its own."""
    backend = make_backend(architecture)
    root = backend.open(PROMPT)
    backend.prefill(root).future.result(WAIT)
    drawn = extend(backend, root.fork(16))
    assert len(set(map(tuple, drawn))) > 8
    meter = backend.engine.meter
    assert meter.replayed_tokens == 0
    assert meter.forward_tokens == len(PROMPT) - 1 + 16 * 6


def test_requests_with_one_prompt_compute_it_once(make_backend, architecture):
    """Eight roots of the same tokens, asked at once: the first computes up to the last token, the others go on from there."""
    backend = make_backend(architecture)
    drawn = extend(backend, [backend.open(PROMPT, seed=i) for i in range(8)])
    assert len(set(map(tuple, drawn))) > 4
    assert backend.engine.meter.forward_tokens == len(PROMPT) - 1 + 8 * 6


def test_a_chat_goes_on_from_its_last_turn(make_backend, architecture):
    """A prompt that begins with an earlier one and its answer computes what is new."""
    backend = make_backend(architecture)
    branch = backend.open(PROMPT)
    extend(backend, [branch])
    text = list(branch.tokens)
    branch.free()
    before = backend.engine.meter.forward_tokens
    again = backend.open([*text, 1, 2, 3])
    extend(backend, [again], 1)
    # the last drawn token was pending, and is new too
    assert backend.engine.meter.forward_tokens - before == 4


def test_a_prompt_is_shared_again_after_it_was_forgotten(make_backend, architecture):
    """Other requests took the lane of a prompt's snapshot: the next search computes it once, and those after it not at all."""
    backend = make_backend(architecture, lanes=16)

    def search(seed):
        before = backend.engine.meter.forward_tokens + backend.engine.meter.replayed_tokens
        root = backend.open(PROMPT, seed=seed)
        backend.prefill(root).future.result(WAIT)
        branches = root.fork(8)
        extend(backend, branches, 4)
        for branch in (root, *branches):
            branch.free()
        after = backend.engine.meter.forward_tokens + backend.engine.meter.replayed_tokens
        return after - before

    once, again = len(PROMPT) - 1 + 8 * 4, 1 + 8 * 4  # a prefill computes one token at least
    assert [search(0), search(1)] == [once, again]
    others = [backend.open([i] * 20) for i in range(20)]
    extend(backend, others)
    for branch in others:
        branch.free()
    assert [search(2), search(3)] == [once, again]


def test_waiting_branches_keep_what_they_begin_from(make_backend, architecture):
    """Of forty branches on eight lanes those that wait for a lane do not compute their prompt anew."""
    backend = make_backend(architecture, lanes=8)
    root = backend.open(PROMPT)
    backend.prefill(root).future.result(WAIT)
    branches = root.fork(40)
    root.free()
    extend(backend, branches, 4)
    assert backend.engine.meter.replayed_tokens == 0


def test_a_truncation_replays_from_the_newest_snapshot(
    make_runner, architecture, reference, assert_close
):
    """Cut back beyond a fork, a sequence computes again what lies between the fork and the cut, and no more."""
    runner = make_runner(architecture)
    sequence = runner.open(PROMPT[:50])
    runner.step([Chunk(sequence, 50, 1)])
    runner.fork(sequence)
    runner.append(sequence, PROMPT[50:80])
    runner.step([Chunk(sequence, 30, 1)])
    runner.truncate(sequence, 60)
    assert (sequence.cached, sequence.pending) == (50, 10)
    rows = runner.step([Chunk(sequence, 10, 1)]).rows
    assert_close(rows, reference(architecture, PROMPT[:60]))
    runner.truncate(sequence, 20)
    assert sequence.cached == 0
    rows = runner.step([Chunk(sequence, 20, 1)]).rows
    assert_close(rows, reference(architecture, PROMPT[:20]))


def test_a_checkpoint_that_was_gone_back_to_is_kept(make_runner, architecture):
    """Round after round of guesses is rejected: each begins where the last one did."""
    runner = make_runner(architecture)
    sequence = runner.open(PROMPT[:50])
    runner.step([Chunk(sequence, 49, 1)])
    for _ in range(4):
        runner.checkpoint(sequence)
        runner.append(sequence, [1, 2, 3])
        runner.step([Chunk(sequence, 4, 4)])
        runner.truncate(sequence, 50)
        assert (sequence.cached, sequence.pending) == (49, 1)


def test_what_a_truncation_computes_again_is_charged_to_nobody(make_backend, architecture):
    """After a cut the tokens since the newest snapshot are replayed; the request pays for its own tokens."""
    backend = make_backend(architecture)
    branch = backend.open(PROMPT)
    extend(backend, [branch], 6)
    branch.truncate(len(PROMPT) + 3)
    meter = backend.engine.meter
    before, replayed = meter.forward_tokens, meter.replayed_tokens
    extend(backend, [branch], 4)
    assert meter.forward_tokens - before == 4
    # from the end of the prompt's prefill to the cut, of which the last token gives a row
    assert meter.replayed_tokens - replayed == 3


def test_more_branches_than_states_wait_or_begin_again(make_backend, architecture):
    """Forty branches on a context for eight sequences draw what they draw on a large one, where nothing is computed twice."""
    plenty, few = make_backend(architecture), make_backend(architecture, lanes=8)
    drawn = []
    for backend in (plenty, few):
        root = backend.open(PROMPT)
        branches = root.fork(40)
        drawn.append([*extend(backend, branches), *extend(backend, branches, 3)])
        for branch in (root, *branches):
            branch.free()
        assert backend.engine.call(lambda b=backend: b.runner.pool.live).result(WAIT) == 0
    assert drawn[0] == drawn[1]
    assert plenty.engine.meter.replayed_tokens == 0 < few.engine.meter.replayed_tokens


def test_a_failed_step_is_computed_again(make_backend, architecture, monkeypatch):
    """After a step that failed half-way nobody trusts the states that it touched."""
    backend = make_backend(architecture)
    [wanted] = extend(backend, [backend.open(PROMPT)])
    branch = backend.open(PROMPT)
    extend(backend, [branch], 2)
    with monkeypatch.context() as patch:
        fail_half_way(backend.runner, patch)
        task = backend.extend(branch, Sampling(), Stop(1, eos=False))
        with pytest.raises(EngineFailedError, match="half-way"):
            task.future.result(WAIT)
    extend(backend, [branch], 4)
    assert list(branch.tokens[len(PROMPT) :]) == wanted


def fail_half_way(runner, patch):
    """The next step fails when the states have moved on."""
    owner, name = (
        (runner, "_forward") if isinstance(runner, TorchRunner) else (runner.context, "decode")
    )
    compute = getattr(owner, name)

    def half_way(*step):
        compute(*step)
        raise EngineFailedError("half-way")

    patch.setattr(owner, name, half_way)
