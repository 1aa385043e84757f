"""
Who computes what in the next step, and who gives way when the pool is full.

Knows live programs, open sequences, free slots and, where the device tells only so many sequences apart, places for them; a Step
carries its logits and start, and looks at neither. Decode steps go first, then chunks of prefill, the oldest program first. When slots
run out: evict what is only cached, drop what idle sequences hold, then preempt the newest program (its slots go, its tokens stay, and
it computes them again later).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from langchain_pareto.backends.base import Logits, Runner
from langchain_pareto.backends.programs import Work
from langchain_pareto.backends.running import Running
from langchain_pareto.backends.sequences import Chunk, Segment, Sequence as TokenSequence, goes_on
from langchain_pareto.errors import CapacityError

PREFILL_CHUNK = 512  # tokens a step while somebody else decodes or has a deadline
PREFILL_ALONE = 2048  # tokens a step otherwise
_HEADROOM = 32  # slots for each decoding sequence that stay free when a prefill is let in
_SHARED_START = 16  # tokens: a prefill that starts like another one's waits for it
_MOST_ROWS = 512  # of logits, as far as works that want several rows have a say: each is as long as the vocabulary
_PATIENCE = 16  # steps that go without a work which waits for others to guess


class Step:
    """One step being put together."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.items = list[tuple[Running, int]]()
        self.chunks = list[Chunk]()
        self.tokens = 0
        self.rows_wanted = 0  # of logits
        self.unplaced = 0  # sequences that have no place on the device yet
        self.goes_on = True  # whether it reads no prompt
        self.seconds = 0.0  # from its start on, without those of steps of other runners beside it
        self.logits: Logits | None = None
        self._leaders = list[TokenSequence]()

    def add(self, running: Running, i: int, n: int) -> None:
        """Takes the next `n` pending tokens of the program's work number `i`."""
        work = running.works[i]
        whole = n == work.sequence.pending
        self.items.append((running, i))
        self.goes_on = self.goes_on and goes_on(work.sequence.cached, n, work.rows)
        self.chunks.append(Chunk(work.sequence, n, work.rows if whole else 0))
        self.tokens += n
        self.rows_wanted += self.chunks[-1].rows
        self.unplaced += not self.runner.placed(work.sequence)
        if n > work.rows or not whole:
            self._leaders.append(work.sequence)

    def widens(self, work: Work) -> bool:
        """Whether the work's rows of logits had better wait for another step."""
        return work.rows > 1 and bool(self.chunks) and self.rows_wanted + work.rows > _MOST_ROWS

    def holds(self, running: Running) -> bool:
        """Whether the program has work in this step."""
        return any(other is running for other, _ in self.items)

    @property
    def context(self) -> float:
        """How many tokens its sequences have on average, once it is computed."""
        return sum(chunk.sequence.cached for chunk in self.chunks) / len(self.chunks)

    def rows(self, chunks: Collection[int]) -> torch.Tensor:
        """The logits of the chunks of these numbers, in order; all of them without a copy."""
        assert self.logits is not None
        rows = list[int]()
        at = 0
        for k, chunk in enumerate(self.chunks):
            if k in chunks:
                rows += range(at, at + chunk.rows)
            at += chunk.rows
        logits = self.logits.rows
        if len(rows) == at:
            return logits
        return logits.index_select(0, torch.tensor(rows, device=logits.device))

    def leads(self, sequence: TokenSequence) -> bool:
        """Whether a prefill in this step starts with the same uncomputed tokens."""
        for leader in self._leaders:
            known = min(len(leader.tokens), len(sequence.tokens)) - 1
            stop = min(known, sequence.cached + _SHARED_START)
            if (
                stop > max(sequence.cached, leader.cached)
                and leader.tokens[:stop] == sequence.tokens[:stop]
            ):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A program that can never go on."""

    running: Running
    error: CapacityError


class Scheduler:
    """Puts steps together out of the engine's live programs and open sequences."""

    def __init__(self, live: list[Running]) -> None:
        self._live = live  # the engine's, oldest first
        self._sequences = dict[int, tuple[Runner, TokenSequence]]()  # every open sequence

    def track(self, runner: Runner, sequence: TokenSequence) -> TokenSequence:
        """Notes an open sequence, so that its slots can be taken when they are needed more elsewhere."""
        self._sequences[id(sequence)] = (runner, sequence)
        return sequence

    def untrack(self, sequence: TokenSequence) -> None:
        """The sequence is freed."""
        self._sequences.pop(id(sequence), None)

    def forget(self, runner: Runner) -> None:
        """The runner is closing."""
        for key, (owner, _) in list(self._sequences.items()):
            if owner is runner:
                del self._sequences[key]

    def schedule(self, runner: Runner, limit: int) -> Step | Refusal | None:
        """Decode works first, then prefill chunks, oldest program first, as far as there are slots."""
        admitted = list[tuple[Running, int]]()
        urgent = False
        trees = _Trees(runner.max_roots)
        for running in self._live:
            for i, work in enumerate(running.works):
                if work.runner is not runner or running.results[i] is not None:
                    continue
                urgent = urgent or running.deadline is not None
                # whoever has a deadline does not wait for other trees
                if trees.admit(work.sequence) or running.deadline is not None:
                    admitted.append((running, i))
        decode, prefill = list[tuple[Running, int]](), list[tuple[Running, int]]()
        turns = _Turns(self._live, runner, admitted)
        for running, i in admitted:
            work = running.works[i]
            if turns.admit(running, work):
                few = goes_on(work.sequence.cached, work.sequence.pending, work.rows)
                (decode if few else prefill).append((running, i))
        step = Step(runner)
        for running, i in decode:
            work = running.works[i]
            if step.widens(work):
                continue
            if not self._make_room(step, running, i, work.sequence.pending):
                break
            step.add(running, i, work.sequence.pending)
        room = min(limit, PREFILL_CHUNK if urgent or step.chunks else PREFILL_ALONE)
        room = max(room - step.tokens, min(room, 64))  # many decoders never starve a prefill
        for running, i in prefill:
            if room <= 0:
                break
            if step.widens(running.works[i]):
                continue
            room -= self._add_prefill(step, running, i, room)
        if not step.chunks and (decode or prefill):
            return self._force(step, *(decode + prefill)[0])
        return step if step.chunks else None

    def _add_prefill(self, step: Step, running: Running, i: int, room: int) -> int:
        """Adds the next chunk of a prefill, unless it had better wait; returns its tokens."""
        work = running.works[i]
        sequence = work.sequence
        found = step.runner.reuse(sequence, work.rows)
        own = step.runner is running.runner  # what a draft finds is no part of the prompt
        running.usage.cached_tokens += found * own
        headroom = _HEADROOM * len(step.chunks)
        # who begins like another one in this very step waits for it
        if step.leads(sequence) or not self._make_room(
            step, running, i, sequence.pending + headroom
        ):
            if found and not step.runner.can_step(step.tokens, step.unplaced):
                step.runner.drop(sequence)  # it took the place of one that takes part
                running.usage.cached_tokens -= found * own
            return 0
        if not found:  # for want of a place, maybe
            running.usage.cached_tokens += step.runner.reuse(sequence, work.rows) * own
        n = _part(work, room, step.runner)
        step.add(running, i, n)
        return n

    def _make_room(self, step: Step, running: Running, i: int, tokens: int) -> bool:
        """Slots for `tokens` more, and a place: evict what is cached, drop idle sequences, then preempt programs newer than this one."""
        runner, needed = step.runner, step.tokens + tokens
        unplaced = step.unplaced + (not runner.placed(running.works[i].sequence))
        if runner.can_step(needed, unplaced):
            return True
        for sequence in self._gives_way(step, running):
            if not runner.recurrent:  # there a snapshot would take the place
                runner.share(sequence)  # it may still be reused, if it is not evicted
            runner.drop(sequence)
            if runner.can_step(needed, unplaced):
                return True
        return False

    def _gives_way(self, step: Step, running: Running) -> Iterator[TokenSequence]:
        """What is computed and may be computed again: of idle sequences, those with a place first, then of the newest programs."""
        runner = step.runner
        idle = self._idle(runner)
        yield from (s for s in idle if s.cached and runner.placed(s))
        yield from (s for s in idle if s.cached)
        for other in reversed(self._live):
            if other.order <= running.order:
                return
            if not step.holds(other):
                yield from (s for s, owner in other.held.items() if owner is runner and s.cached)

    def _idle(self, runner: Runner) -> list[TokenSequence]:
        """Open sequences that no program works on."""
        busy = {sequence for running in self._live for sequence in running.held}
        return [
            sequence
            for owner, sequence in self._sequences.values()
            if owner is runner and sequence not in busy
        ]

    def _force(self, step: Step, running: Running, i: int) -> Step | Refusal:
        """The oldest program's work when nothing fitted: everybody else gives way, or it can never fit."""
        work, runner = running.works[i], step.runner
        sequence = work.sequence
        others = [s for r in self._live for s, owner in r.held.items() if owner is runner]
        for other in (*self._idle(runner), *reversed(others)):
            if other is not sequence and other.cached:
                runner.drop(other)
        runner.reuse(sequence, work.rows)
        for _ in range(2):
            n = _part(work, PREFILL_CHUNK, runner)
            if runner.can_step(n, not runner.placed(sequence)):
                step.add(running, i, n)
                return step
            # what it has may hold every place there is: once more from the start
            runner.drop(sequence)
        total, pool = len(sequence.tokens), runner.pool
        msg = f"a sequence of {total} tokens does not fit into a pool of {pool.capacity} token slots, even alone"
        hint = "Give the pool more memory (memory=...), or use a shorter prompt."
        return Refusal(
            running, CapacityError(msg, needed=total, free=pool.free, kind="slots", hint=hint)
        )


class _Turns:
    """Who verifies guesses in one step of `runner`."""

    def __init__(
        self, live: list[Running], runner: Runner, admitted: list[tuple[Running, int]]
    ) -> None:
        self._live, self._runner = live, runner
        alone = [running for running, i in admitted if running.works[i].turn == "alone"]
        self._next = min(alone, key=lambda running: (running.ready, running.order), default=None)

    @cached_property
    def _drafting(self) -> bool:
        """Whether any program still guesses."""
        return any(r.runner is self._runner and r.drafting for r in self._live)

    def admit(self, running: Running, work: Work) -> bool:
        """Whether the work takes part."""
        if work.turn == "alone":
            return running is self._next
        if work.turn == "together" and self._drafting and running.waited < _PATIENCE:
            running.waited += 1
            return False
        return True


class _Trees:
    """The trees of one step, where only so many unrelated ones share it; the others wait."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._roots = set[Segment]()
        self._admitted = list[list[int]]()  # tokens of one sequence of each unrelated tree

    def admit(self, sequence: TokenSequence) -> bool:
        """Whether the sequence's tree takes part: there is room, or at least half of its tokens are those of one that does."""
        root = sequence.path[0]
        if self._most is None or root in self._roots:
            return True
        tokens = sequence.tokens
        if not any(_related(tokens, other) for other in self._admitted):
            if len(self._admitted) >= self._most:
                return False
            self._admitted.append(tokens)
        self._roots.add(root)
        return True


def _related(one: list[int], other: list[int]) -> bool:
    half = (min(len(one), len(other)) + 1) // 2
    return one[:half] == other[:half]


def _part(work: Work, room: int, runner: Runner) -> int:
    """How many pending tokens to compute now; the rows that are wanted come in one piece, at the end.

    Before them a model whose states have no parts stops, for others to go on from there.
    """
    pending = work.sequence.pending
    if pending == work.rows or (pending <= room and not runner.recurrent):
        return pending
    return min(room, pending - work.rows)
