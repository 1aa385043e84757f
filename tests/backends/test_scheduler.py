"""Who takes part in a step, where places are few."""

import numpy as np

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.programs import Draw, Work, prefill
from langchain_pareto.backends.running import Running
from langchain_pareto.backends.scheduler import PREFILL_ALONE, Scheduler
from langchain_pareto.backends.sequences import Sequence

CACHED = 40  # tokens that everybody finds of a prompt


class Places:
    """A recurrent runner of so many places, whose sequences take one with what they find in the cache."""

    recurrent, max_roots = True, None

    def __init__(self, count: int) -> None:
        self.count, self.taken = count, list[Sequence]()

    def placed(self, sequence: Sequence) -> bool:
        return sequence in self.taken

    def can_step(self, _tokens: int, new: int = 0) -> bool:
        return len(self.taken) + new <= self.count

    def reuse(self, sequence: Sequence, _rows: int = 1) -> int:
        if sequence.cached or len(sequence.tokens) <= CACHED or not self.can_step(0, 1):
            return 0
        self.taken.append(sequence)
        sequence.put(np.zeros(CACHED, np.int32))
        return CACHED

    def share(self, _sequence: Sequence) -> None:
        pass

    def drop(self, sequence: Sequence) -> None:
        self.taken.remove(sequence)
        sequence.take_back(sequence.cached)


def program(runner: Places, tokens: list[int]) -> Running:
    """A live program that draws after these tokens."""
    running = Running(prefill(runner, Sequence.root([1])), runner, None)  # type: ignore[arg-type]
    running.want([Work(Sequence.root(tokens), Draw(0, Sampling(), 0))])
    return running


def test_what_is_found_takes_no_place_from_who_takes_part():
    """A prompt found in the cache takes a place at once; where it cannot take part, it gives that back."""
    runner = Places(1)
    new, found = program(runner, [7]), program(runner, [*range(CACHED), 5])
    step = Scheduler([new, found]).schedule(runner, PREFILL_ALONE)  # type: ignore[arg-type]
    assert [running for running, _ in step.items] == [new]
    assert runner.can_step(step.tokens, step.unplaced)
    assert found.usage.cached_tokens == 0


def test_wide_works_share_a_step_as_far_as_their_rows_of_logits_go():
    """Guesses of many branches are verified in several steps; who wants one row is never made to wait for them."""
    runner = Places(100)
    live = [program(runner, [*range(100)]) for _ in range(8)]
    for running in live[:-1]:
        work = running.works[0]
        running.want([Work(work.sequence, work.want, rows=100)])
    for running in live:
        runner.taken.append(running.works[0].sequence)
        running.works[0].sequence.put(np.zeros(0 if running.works[0].rows > 1 else 99, np.int32))
    step = Scheduler(live).schedule(runner, PREFILL_ALONE)  # type: ignore[arg-type]
    assert sum(chunk.rows for chunk in step.chunks) <= 512
    taking_part = [running for running, _ in step.items]
    assert live[0] in taking_part, "the oldest first"
    assert live[-1] in taking_part
    assert len(taking_part) == 6
