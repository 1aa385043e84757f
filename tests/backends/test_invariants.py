"""What every runner keeps (invariants 1 to 11 of the backend layer), on many architectures, against the stock full forward."""

import random
import threading

import pytest

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.programs import Draw, Work
from langchain_pareto.backends.running import Running
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.errors import CapacityError, SequenceError


def some(n, seed=0):
    """`n` random tokens."""
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(n)]


def everything(*sequences, rows=1):
    """One chunk a sequence: all that is pending."""
    return [Chunk(s, s.pending, min(rows, s.pending)) for s in sequences]


def live_slots(sequences):
    return len({slot for s in sequences for slot in s.slots.tolist()})


# --- 1. a distribution depends on a sequence's tokens only


@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_a_full_forward_after_any_history(
    make_runner, architecture, reference, assert_close, seed
):
    """Any mix of fork, append, truncate, free, reuse, preemption, chunks and drafts leaves every row's logits right."""
    runner, rng = make_runner(architecture, slots=6000), random.Random(seed)
    sequences = [runner.open(some(n, seed + n)) for n in (1, 30, 170)]
    for _ in range(16):
        event = rng.random()
        chosen = rng.choice(sequences)
        if event < 0.35 and len(sequences) < 9:
            sequences += [runner.fork(chosen) for _ in range(rng.randint(1, 3))]
        elif event < 0.45 and len(sequences) > 2:
            runner.free(chosen)
            sequences.remove(chosen)
        elif event < 0.6:
            runner.truncate(chosen, rng.randint(1, len(chosen.tokens)))
        elif event < 0.7:
            runner.drop(chosen)
        elif event < 0.85:
            sequences.append(runner.open(chosen.tokens + some(3, rng.random())))
            runner.reuse(sequences[-1])
        else:
            runner.append(chosen, some(rng.choice([2, 5, 140]), rng.random()))
        chunks = list[Chunk]()
        for sequence in sequences:
            if rng.random() < 0.85:
                n = rng.choice([sequence.pending, rng.randint(1, sequence.pending)])
                rows = rng.randint(1, min(n, 3)) if n == sequence.pending else 0
                chunks.append(Chunk(sequence, n, rows))
        if not any(chunk.rows for chunk in chunks):
            continue
        assert runner.can_step(sum(chunk.n for chunk in chunks))
        rows = runner.step(chunks).rows
        for chunk in chunks:
            if chunk.rows:
                expected = reference(architecture, chunk.sequence.tokens, chunk.rows)
                assert_close(rows[: chunk.rows], expected)
                rows = rows[chunk.rows :]
                runner.append(chunk.sequence, some(1, rng.random()))
        assert len(rows) == 0
        assert runner.pool.live == live_slots(sequences)


def test_decoding_equals_a_full_forward(make_runner, architecture, reference, assert_close):
    """Token after token on the kept plan, through the window and past a bucket's edge, the logits stay right."""
    runner = make_runner(architecture)
    root = runner.open(some(110))
    runner.step(everything(root))
    branches = [runner.fork(root) for _ in range(3)]
    for i, branch in enumerate(branches):
        runner.append(branch, [i])
    for step in range(24):
        rows = runner.step(everything(*branches)).rows
        if step % 6 == 5:
            for i, branch in enumerate(branches):
                assert_close(rows[i : i + 1], reference(architecture, branch.tokens))
        for i, branch in enumerate(branches):
            runner.append(branch, [(step * 7 + i) % 256])


@pytest.mark.parametrize("chunks", [[7, 13, 1, 20], [150], [5, 200], [200, 150], [130, 3, 130]])
def test_a_prefill_in_chunks_equals_one(make_runner, architecture, reference, assert_close, chunks):
    """Short and long chunks, with a past and without, give what one forward gives; the decode step after them too."""
    runner = make_runner(architecture)
    sequence = runner.open(some(sum(chunks), len(chunks)))
    mate = runner.open(some(9))
    runner.step(everything(mate))
    for n in chunks:
        runner.append(mate, [n])
        step = [*everything(mate), Chunk(sequence, n, min(n, 2) if n == sequence.pending else 0)]
        rows = runner.step(step).rows
        assert_close(rows[:1], reference(architecture, mate.tokens))
    assert_close(rows[1:], reference(architecture, sequence.tokens, len(rows) - 1))
    runner.append(sequence, [3])
    rows = runner.step(everything(sequence)).rows
    assert_close(rows, reference(architecture, sequence.tokens))


def test_a_long_mate_changes_nobody(make_runner, architecture, assert_close):
    """A batch with one long sequence gives the others the logits that they have alone."""

    def decode(*lengths):
        runner = make_runner(architecture)
        sequences = [runner.open(some(n, n)) for n in lengths]
        runner.step(everything(*sequences))
        for sequence in sequences:
            runner.append(sequence, [7])
        return runner.step(everything(*sequences)).rows

    together = decode(5, 1500, 12, 1)
    assert_close(together[:1], decode(5))
    assert_close(together[2:3], decode(12))
    assert_close(together[3:], decode(1))


def test_a_window_hides_what_is_far(make_runner, windowed, reference, assert_close):
    """In layers with a window, branches on both sides of its edge agree with the stock model."""
    runner = make_runner(windowed)
    root = runner.open(some(6))
    runner.step(everything(root))
    branches = [runner.fork(root) for _ in range(4)]
    for i, branch in enumerate(branches):
        runner.append(branch, some(1 + i, i))
    for step in range(6):
        rows = runner.step(everything(*branches, rows=2)).rows
        for i, branch in enumerate(branches):
            k = 1 if step else min(2, 1 + i)
            assert_close(rows[:k], reference(windowed, branch.tokens, k))
            rows = rows[k:]
            runner.append(branch, [step])


# --- 2 to 4. the last token is pending; fork and truncate are metadata


def test_open_fork_append_truncate_and_free_never_run_the_model(make_backend, gate):
    """Metadata changes wait for nobody: the engine makes no step for them, and the last token stays pending."""
    backend = make_backend()
    watch = gate(backend)
    root = backend.open(some(50))
    children = root.fork(5)
    children[0].append([1, 2])
    children[1].truncate(10)
    children[2].fork(3)
    children[3].free()
    pending = backend.engine.call(lambda: [b.sequence.pending for b in children[:3]]).result(60)
    assert pending == [52, 10, 50]
    assert (watch.steps, backend.engine.steps) == ([], 0)


def test_the_last_token_is_always_pending(make_runner):
    """After a step nothing but the drawn token is pending; truncation to any length leaves at least one token."""
    runner = make_runner()
    for length in (1, 2, 19, 20):
        sequence = runner.open(some(20))
        runner.step(everything(sequence))
        runner.append(sequence, [5])
        assert sequence.pending == 1
        runner.truncate(sequence, length)
        assert sequence.pending >= 1
        assert sequence.cached == len(sequence.slots) <= length - 1
        runner.free(sequence)
    again = runner.open(some(20))
    runner.reuse(again)
    assert again.pending == 1


def test_a_fork_takes_no_slot_and_is_independent(make_runner, reference, assert_close):
    """Children share what is computed; parent and children may end in any order without touching each other."""
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        runner = make_runner()
        root = runner.open(some(40))
        runner.step(everything(root))
        live = runner.pool.live
        family = [root, *[runner.fork(root) for _ in range(2)]]
        family.append(runner.fork(family[1]))
        assert runner.pool.live == live
        for i, sequence in enumerate(family):
            runner.append(sequence, some(2, i))
        runner.step(everything(*family))
        left = list(family)
        for i in order:
            runner.free(family[i])
            left.remove(family[i])
            for sequence in left:
                runner.append(sequence, [i])
            if left:
                rows = runner.step(everything(*left)).rows
                for j, sequence in enumerate(left):
                    assert_close(rows[j : j + 1], reference("llama", sequence.tokens))
        assert runner.pool.live == 0


def test_a_truncation_is_exact(make_runner, architecture, reference, assert_close):
    """Back to any length, into the shared part or the own, and on with other tokens."""
    runner = make_runner(architecture)
    root = runner.open(some(30))
    runner.step(everything(root))
    for length in (1, 13, 30, 33):
        child, sibling = runner.fork(root), runner.fork(root)
        runner.append(child, some(5, length))
        runner.append(sibling, [9])
        runner.step(everything(child, sibling))
        runner.truncate(child, length)
        runner.append(child, some(2, length))
        runner.append(sibling, [10])
        rows = runner.step(everything(child, sibling)).rows
        assert_close(rows[:1], reference(architecture, child.tokens))
        assert_close(rows[1:], reference(architecture, sibling.tokens))
        runner.free(child)


@pytest.mark.parametrize("length", [0, -3, 11])
def test_a_length_outside_a_branch_is_refused(make_backend, length):
    """Truncating a branch to nothing or beyond its end is a SequenceError at once."""
    branch = make_backend().open(some(10))
    with pytest.raises(SequenceError, match="1 to 10 are possible"):
        branch.truncate(length)
    assert len(branch.tokens) == 10


# --- 5, 6 and 7 are told of in test_engine.py; here the draws


def test_draws_do_not_depend_on_company(make_backend):
    """A branch's tokens are those of its key and prompt, alone, in a crowd, or started later."""
    prompts = [some(n, n) for n in (3, 40, 41, 90)]

    def run(backend, chosen):
        branches = [backend.open(prompts[i], seed=i) for i in chosen]
        tasks = [backend.extend(b, Sampling(), Stop(12, eos=False)) for b in branches]
        return {i: t.future.result(60).tokens for i, t in zip(chosen, tasks, strict=True)}

    crowd = run(make_backend(), [0, 1, 2, 3])
    backward = run(make_backend(), [3, 2, 1, 0])
    backend = make_backend()
    alone = {i: run(backend, [i])[i] for i in (2, 0, 1, 3)}
    assert crowd == backward == alone


def test_seeds_and_siblings_differ(make_backend):
    """One prompt with two seeds, and two children of one branch, draw different tokens; the same key the same."""
    backend = make_backend()
    one, two, same = (backend.open(some(20), seed=seed) for seed in (1, 2, 1))
    children = one.fork(3)
    keys = {b.key for b in (one, two, *children)}
    assert len(keys) == 5
    assert same.key == one.key
    tasks = [
        backend.extend(b, Sampling(), Stop(12, eos=False)) for b in (one, two, same, *children)
    ]
    tokens = [tuple(t.future.result(60).tokens) for t in tasks]
    assert tokens[0] == tokens[2]
    assert len(set(tokens)) == 5
    again = backend.open(some(20), seed=1).fork(3)
    assert [b.key for b in again] == [b.key for b in children]


# --- 8. failure is atomic


def state(runner, sequences):
    return (
        [(list(s.tokens), s.slots.tolist()) for s in sequences],
        (runner.pool.live, runner.pool.free, runner.pool.cached),
    )


def test_a_step_without_room_changes_nothing(make_runner, reference, assert_close):
    """After CapacityError every sequence is as it was, and goes on."""
    runner = make_runner(slots=60)
    a, b = runner.open(some(20)), runner.open(some(70))
    runner.step(everything(a))
    runner.append(a, [1])
    before = state(runner, [a, b])
    with pytest.raises(CapacityError) as caught:
        runner.step(everything(a, b))
    assert (caught.value.needed, caught.value.free, caught.value.kind) == (71, 40, "slots")
    assert state(runner, [a, b]) == before
    assert_close(runner.step(everything(a)).rows, reference("llama", a.tokens))


def test_a_failing_forward_changes_nothing(make_runner, reference, assert_close, monkeypatch):
    """Whatever the model raises in the middle of a step, the slots are given back and the next step is right."""
    runner = make_runner("gemma3")
    a = runner.open(some(40))
    runner.step(everything(a))
    b = runner.fork(a)
    for sequence in (a, b):
        runner.append(sequence, [3])
    runner.step(everything(a, b))
    for sequence in (a, b):
        runner.append(sequence, [4])
    before = state(runner, [a, b])
    with monkeypatch.context() as patch:
        fail_at_the_end(runner, patch)
        with pytest.raises(ZeroDivisionError):
            runner.step(everything(a, b))
    assert state(runner, [a, b]) == before
    rows = runner.step(everything(a, b)).rows
    assert_close(rows[:1], reference("gemma3", a.tokens))
    assert_close(rows[1:], reference("gemma3", b.tokens))


def fail_at_the_end(runner, patch):
    """The next forward fails when most of it is done."""
    if isinstance(runner, TorchRunner):
        patch.setattr(runner.model.model.layers[-1], "forward", lambda *_, **__: 1 / 0)
    else:
        decode = runner.context.decode
        patch.setattr(runner.context, "decode", lambda *step: len(decode(*step)) / 0)


# --- 9. threads


def test_any_thread_may_use_a_backend(make_backend):
    """Eight threads that open, fork, append, truncate, extend and free get what one thread gets."""
    backend = make_backend(slots=3000)

    def work(seed):
        rng = random.Random(seed)
        root = backend.open(some(20, seed))
        out = []
        for _ in range(4):
            left, right = root.fork(2)
            left.append(some(rng.randint(1, 9), seed))
            right.truncate(rng.randint(1, len(right.tokens)))
            tasks = [backend.extend(b, Sampling(), Stop(4, eos=False)) for b in (left, right)]
            out += [t.future.result(60).tokens for t in tasks]
            left.free()
            root = right
        return out

    results = {}
    threads = [
        threading.Thread(target=lambda s=s: results.__setitem__(s, work(s)), name=str(s))
        for s in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {seed: work(seed) for seed in range(8)}


# --- 10. conservation


def test_freed_slots_come_back(make_runner):
    """Live slots are the union of the sequences' slots; freed ones are cached, and evicted all of them are free."""
    runner, rng = make_runner(slots=900), random.Random(3)
    sequences = [runner.open(some(30))]
    for step in range(60):
        if rng.random() < 0.4:
            sequences.append(runner.fork(rng.choice(sequences)))
        if rng.random() < 0.3:
            sequences.append(runner.open([*rng.choice(sequences).tokens[:-1], step]))
            runner.reuse(sequences[-1])
        if len(sequences) > 6 or (len(sequences) > 1 and rng.random() < 0.3):
            runner.free(sequences.pop(rng.randrange(len(sequences))))
        for sequence in sequences:
            runner.append(sequence, some(1, step))
        assert runner.can_step(sum(s.pending for s in sequences))
        runner.step(everything(*sequences))
        if rng.random() < 0.3:
            runner.share(rng.choice(sequences))
        for sequence in sequences:
            runner.append(sequence, [step])
        assert runner.pool.live == live_slots(sequences)
    for sequence in sequences:
        runner.free(sequence)
        runner.free(sequence)
    assert runner.pool.live == 0
    assert runner.pool.cached > 0
    assert runner.can_step(runner.pool.capacity)
    assert (runner.pool.cached, runner.pool.free) == (0, runner.pool.capacity)


# --- 11. lossless


def verify(draw, sequence, tokens, runner):
    """A program that has the draws of several positions made in one step, as speculation does."""
    runner.append(sequence, tokens[:-1])
    [drawn] = yield [Work(sequence, draw, rows=len(tokens))]
    return [one.token for one in drawn]


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.9, frequency_penalty=2.0)]
)
def test_draws_of_many_positions_at_once_equal_draws_one_by_one(
    make_backend, architecture, sampling
):
    """The target's own draws at drafted positions are those of plain decoding: accepting them is lossless."""
    backend = make_backend(architecture)
    prompt = some(30)
    branch = backend.open(prompt)
    plain = backend.extend(branch, sampling, Stop(12, eos=False)).future.result(60).tokens
    again = backend.open(prompt)
    draw = Draw(again.key, sampling, len(prompt))
    backend.engine.call(lambda: None).result(60)
    running = Running(verify(draw, again.sequence, plain, backend.runner), backend.runner, None)
    assert backend.engine.submit(running).future.result(60) == plain
