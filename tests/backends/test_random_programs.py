"""Random programs of branches from eight threads, each equal to itself alone, on every runner."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import RECURRENT

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.local import LocalBackend

THREADS = 8
WAIT = 120  # seconds


def run(backend: LocalBackend, seed: int) -> list[list[int]]:
    """One random program; everything that it drew, in its own order."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(256) for _ in range(rng.choice([2, 9, 60]))]]
    prompts.append([*prompts[0][: len(prompts[0]) // 2], *(rng.randrange(256) for _ in range(5))])
    branches = [backend.open(rng.choice(prompts), seed=seed)]
    drawn = list[list[int]]()
    for _ in range(rng.randint(3, 9)):
        branch = rng.choice(branches)
        match rng.choice(
            ["open", "fork", "extend", "extend", "extend", "truncate", "free", "append"]
        ):
            case "open":
                branches.append(backend.open(rng.choice(prompts), seed=seed))
            case "fork" if len(branches) < 8:
                branches += branch.fork(rng.randint(1, 3))
            case "extend":
                chosen = rng.sample(branches, rng.randint(1, len(branches)))
                sampling = rng.choice([Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.8)])
                tasks = [
                    backend.extend(b, sampling, Stop(rng.randint(1, 6), eos=False)) for b in chosen
                ]
                drawn += [task.future.result(WAIT).tokens for task in tasks]
            case "truncate":
                branch.truncate(rng.randint(1, len(branch.tokens)))
            case "append":
                branch.append([rng.randrange(256) for _ in range(rng.randint(1, 4))])
            case "free" if len(branches) > 1:
                branch.free()
                branches.remove(branch)
            case _:
                pass
    for branch in branches:
        branch.free()
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "programs", "lanes"),
    [
        ("llama", 1000, None),
        ("gemma3", 250, None),
        ("lfm2", 250, None),
        ("mamba2", 250, None),
        *((architecture, 80, 6) for architecture in sorted(RECURRENT)),
    ],
)
def test_random_programs_from_many_threads_equal_themselves(
    make_backend, architecture, programs, lanes
):
    """No result depends on who shared the engine, or on how many states there is room for; when all are done nothing is held."""
    backend = make_backend(architecture, slots=2500, lanes=lanes)
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda seed: run(backend, seed), range(programs)))
    live = backend.engine.call(lambda: (backend.runner.pool.live, backend.engine.live)).result(WAIT)
    assert live == (0, 0)
    if backend.runner.recurrent:  # a state is nobody's, or that of a snapshot
        backend.engine.call(backend.runner.forget).result(WAIT)
        assert backend.runner.lanes.free == backend.runner.lanes.count
    fresh = make_backend(architecture, slots=2500)
    for seed in range(programs):
        assert run(fresh, seed) == together[seed], seed
        if seed % 50 == 0:  # nothing of the programs before is known to those after
            fresh.engine.call(fresh.runner.forget).result(WAIT)
