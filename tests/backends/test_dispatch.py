"""What a decode step costs besides the model's forward: as many calls for many programs as for one, and few shapes."""

import random
from collections import Counter

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.sequences import Chunk

pytestmark = pytest.mark.parametrize("make_runner", ["torch"], indirect=True)

WAIT = 60  # seconds
STEADY = range(6, 16)  # steps in which the same programs decode on the same plan


def some(n, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(n)]


class Counting(TorchDispatchMode):
    """Counts dispatched calls outside the model's forward, and copies that leave the device."""

    def __init__(self, runner):
        super().__init__()
        self.calls = Counter()
        self.inside = False
        self.forward = runner._forward
        runner._forward = self.watched

    def watched(self, *args):
        self.inside = True
        try:
            return self.forward(*args)
        finally:
            self.inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.inside:
            self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def counted(backend, branches, sampling=None, **settings):
    """Calls in each of the last steps, by name, and whether its plan was built anew."""
    step, mode, seen = backend.runner.step, Counting(backend.runner), []
    planner, built = backend.runner._planner, []
    build = planner._build

    def watched(chunks):
        seen.append(mode.calls.copy())
        built.append(False)
        return step(chunks)

    def watched_build(chunks):
        built[-1] = True
        return build(chunks)

    backend.runner.step = watched
    planner._build = watched_build
    enter, leave = mode.__enter__, lambda: mode.__exit__(None, None, None)
    backend.engine.call(enter).result(WAIT)  # the engine's thread is what runs the steps
    tasks = [
        backend.extend(b, sampling or Sampling(), Stop(20, eos=False), **settings) for b in branches
    ]
    for task in tasks:
        task.future.result(WAIT)
    backend.engine.call(leave).result(WAIT)
    backend.runner._forward = mode.forward
    last = len(seen) - 20  # the tasks are admitted one by one: count from the last that came
    return [(seen[last + i + 1] - seen[last + i], built[last + i]) for i in STEADY]


@pytest.fixture
def decode(make_backend):
    """The calls of the steps over `trees` trees of `branches` branches each."""

    def count(trees, branches, architecture="llama", **settings):
        backend = make_backend(architecture, slots=20_000)
        roots = [backend.open(some(115, i)) for i in range(trees)]
        for root in roots:
            backend.extend(root.fork()[0], Sampling(), Stop(1)).future.result(WAIT)
        return counted(
            backend, [child for root in roots for child in root.fork(branches)], **settings
        )

    return count


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("stats", [False, True])
def test_a_step_costs_as_many_calls_for_many_as_for_one(decode, architecture, stats):
    """One program, 32 in one tree, and 32 trees: the same calls outside the forward, whether a plan is extended or built."""
    one, tree, trees = (
        {built: [calls for calls, anew in steps if anew is built] for built in (False, True)}
        for steps in (
            decode(n, branches, architecture, stats=stats)
            for n, branches in ((1, 1), (1, 32), (32, 1))
        )
    )
    for kind in (False, True):
        [first, *others] = one[kind] + tree[kind] + trees[kind]
        assert all(calls == first for calls in others)
    assert len(tree[False]) > len(tree[True])
    assert sum(one[False][0].values()) < (130 if stats else 90)


@pytest.mark.parametrize("settings", [{}, {"sampling": Sampling(temperature=0)}, {"stats": True}])
def test_a_step_is_read_once(decode, settings):
    """Tokens and figures of all programs reach the host in one conversion; nothing else is read back."""
    for calls, _ in (*decode(1, 1, **settings), *decode(2, 8, **settings)):
        read = {
            name: n
            for name, n in calls.items()
            if "_local_scalar_dense" in name or "nonzero" in name
        }
        assert read == {}


def test_a_search_has_few_shapes(make_runner):
    """Three hundred steps of a tree of up to 16 branches and a thousand tokens are at most 40 distinct shapes."""
    runner, rng = make_runner(slots=30_000), random.Random(0)
    planner, shapes = runner._planner, set()
    plan = planner.plan

    def watched(chunks):
        made = plan(chunks)
        shapes.add(made.shape)
        return made

    planner.plan = watched
    root = runner.open(some(200))
    runner.step([Chunk(root, 199, 0)])
    branches = [runner.fork(root) for _ in range(4)]
    for step in range(300):
        if step % 10 == 9:
            keep = rng.sample(branches, max(1, len(branches) // rng.choice([2, 4])))
            for branch in branches:
                if branch not in keep:
                    runner.free(branch)
            grown = [b for b in keep if len(b.tokens) < 1000] or [runner.fork(root)]
            branches = grown + [
                runner.fork(rng.choice(grown)) for _ in range(rng.choice([1, 3, 7, 15]))
            ]
            branches = branches[:16]
            for branch in rng.sample(branches, len(branches) // 3):
                runner.truncate(branch, max(200, len(branch.tokens) - rng.randint(1, 9)))
        chunks = [Chunk(b, b.pending, 1) for b in branches]
        assert runner.can_step(sum(c.n for c in chunks))
        runner.step(chunks)
        for branch in branches:
            runner.append(branch, [rng.randrange(256)])
    assert 1 < len(shapes) <= 40, sorted(shapes)
