"""
Draft and verify, as generator programs: guesses of a small model or of a look-up, verified by the target in one wide step.

Knows sequences, guesses and stops; knows no device and no other program. The target draws at every guessed place with the branch's own
key, and a guess stays if it is what the target draws (Daliri, Musco and Suresh, arXiv 2408.07978): the text is that of plain decoding,
greedy or sampled, with the same seed, up to near ties of differently shaped batches. A guess that comes with the distribution that it
was drawn from makes the target draw it as often as may be (coupling.py): the same distribution, another text. Big Little Decoder is
here too, which keeps what the target finds likely enough, and so does change the text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from langchain_pareto.backends.base import Extension, Runner
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.backends.draft_length import FixedLength, Look
from langchain_pareto.backends.drafts import Guesser, ModelGuesser, Silent, rewrite
from langchain_pareto.backends.forced import forced
from langchain_pareto.backends.programs import (
    Continuation,
    Draw,
    Drawn,
    Interrupted,
    Turn,
    Work,
)
from langchain_pareto.backends.sequences import Sequence as TokenSequence

Drawing = Generator[list[Work], list[list[Drawn]], Extension]
_MOST_FORCED = 64  # tokens of one guess


class Length(Protocol):
    """How many tokens to guess, in the branches of one group."""

    def drawing(self) -> AbstractContextManager[None]:
        """One of them is drawn inside."""
        ...

    def next(self, branches: int) -> int:
        """For one of them, where so many branches share the steps."""
        ...

    def note(
        self, drafted: int, accepted: int, *, first: bool = False, unsure: bool = False
    ) -> None:
        """What became of a guess: the branch's `first` one, which all begin after the same text, or one that ended since the guesser was `unsure`."""
        ...

    def look(self, branches: int, drawn: int) -> Look | None:
        """Asked where nothing is guessed, in a branch with so many drawn tokens: how to look whether guesses would be right, if at all."""
        ...

    def note_look(self, right: Sequence[bool], *, first: bool = False) -> None:
        """What a look found: which guesses would have been right, of places that follow each other."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """What verifies: the model's runner, the branch's sequence on it, and where its figures go.

    `count` adds to the request's usage, `branches` tells how many programs share the runner's steps.
    """

    runner: Runner
    sequence: TokenSequence
    count: Callable[..., None]
    branches: Callable[[], int]

    def take(self, out: Continuation, rows: Sequence[Drawn], guessed: int, accepted: int) -> None:
        """Draws `rows` into `out`, up to the one that ends the text, in the place of the sequence's last `guessed` tokens.

        Whatever `out` raises, the sequence and the figures hold what it was given.
        """
        verified, taken = len(self.sequence.tokens) - guessed, list[int]()
        try:
            for one in rows:
                if not out.left:
                    break
                taken.append(one.token)
                out.take(one)
        finally:
            rewrite(self.runner, self.sequence, verified, taken)
            self.count(
                new_tokens=len(taken),
                drafted=guessed,
                accepted=min(accepted, len(taken)),
                rounds=bool(guessed),
            )


def speculate(
    target: Target,
    draw: Draw,
    out: Continuation,
    guesser: Guesser,
    length: Length,
    turn: Turn,
    most_wrong: Callable[[int], int],
) -> Drawing:
    """Draws into the sequence until `out` says stop, up to all guesses and one more token a round.

    What a constraint forces is asked of no guesser, and takes one step however long it is.
    `most_wrong` is how many wrong guesses so many tokens may have cost. Interrupted, it gives what is verified.
    """
    sequence, drawn, wrong = target.sequence, 0, 0
    verify, plain = replace(draw, counted=False), [Work(target.sequence, draw)]
    with length.drawing():
        try:
            while out.left:
                if draw.constraint is not None and (sure := _forced(draw.constraint, out)):
                    drawn += 1 + (yield from _round(target, verify, out, sure, "now"))
                    continue
                asked = yield from _asked(length, guesser, sequence, target.branches(), drawn)
                # the target's own token comes on top of the guesses
                wanted = min(asked, out.left - 1, most_wrong(drawn + 1) - wrong)
                drafted = list[Drawn]()
                if wanted > 0:
                    drafted = yield from guesser.guess(sequence.tokens, wanted, out.ends)
                unsure = len(drafted) < wanted and not (drafted and drafted[-1].token in out.ends)
                if not drafted:
                    length.note(0, 0, first=not drawn, unsure=unsure)
                    [[one]] = yield plain
                    drawn += 1
                    target.runner.append(sequence, [one.token])
                    out.take(one)
                    continue
                guess = [one.token for one in drafted]
                kept = tuple(one.distribution for one in drafted if one.distribution is not None)
                wants = replace(verify, guessed=kept) if kept else verify
                right = yield from _round(target, wants, out, guess, turn)
                # branches begin where they were forked, and then write texts of their own
                length.note(len(guess), right, first=not drawn, unsure=unsure)
                drawn, wrong = drawn + right + 1, wrong + len(guess) - right
        except Interrupted as interrupted:
            out.finish = interrupted.finish
    return out.extension()


def extend(target: Target, draw: Draw, out: Continuation) -> Drawing:
    """Draws token after token as plain decoding does, but for what a constraint forces: one step for all of it."""
    return speculate(target, draw, out, Silent(), FixedLength(0), "now", lambda _: 0)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Big Little Decoder's policies (Kim et al. 2023, arXiv 2302.07863).

    The little model hands over where its most probable token has less than `fallback`, and after `most` tokens. The big one takes
    back from the first token on to which it gives a log-probability below `-rollback` (nats, its raw distribution), unless it draws
    that token itself. `verify_tail`: whether it also looks at a run that ends the text.
    """

    fallback: float
    rollback: float
    most: int
    verify_tail: bool


def big_little(
    target: Target,
    draw: Draw,
    out: Continuation,
    little: ModelGuesser,
    policy: Thresholds,
    turn: Turn,
) -> Drawing:
    """The little model writes, the big one takes over and takes back; with rollback 0 the text is the big model's own."""
    sequence = target.sequence
    verify = replace(draw, counted=False, judged=True)
    try:
        while out.left:
            wanted = min(policy.most, out.left)
            written = yield from little.guess(sequence.tokens, wanted, out.ends)
            run = [one.token for one in written]
            if not policy.verify_tail and run and run[-1] in out.ends:
                target.take(out, written, 0, 0)
                break
            rows = yield from _verified(target, verify, run, turn)
            kept = _likely(run, rows, policy.rollback)
            stays = [*_as_judged(run, rows)[:kept], *rows[kept : kept + 1]]
            target.take(out, stays, len(run), kept)
    except Interrupted as interrupted:
        out.finish = interrupted.finish
    return out.extension()


def _round(
    target: Target, draw: Draw, out: Continuation, guess: Sequence[int], turn: Turn
) -> Generator[list[Work], list[list[Drawn]], int]:
    """Draws what of a guess is right, and one token more; gives how many were right."""
    rows = yield from _verified(target, draw, guess, turn)
    right = _agreeing(guess, rows)
    target.take(out, rows[: right + 1], len(guess), right)
    return right


def _asked(
    length: Length, guesser: Guesser, sequence: TokenSequence, branches: int, drawn: int
) -> Generator[list[Work], list[list[Drawn]], int]:
    """How many tokens to guess, in a branch with so many drawn tokens; looks first whether guesses would be right, where it is time to."""
    asked = length.next(branches)
    if asked or (look := length.look(branches, drawn)) is None:
        return asked
    # what was there before this call may have been drawn with another key, or with other settings
    work = guesser.look_back(sequence.tokens, min(look.back, drawn))
    if work is None:
        return look.ahead
    [guesses] = yield [work]
    tokens = sequence.tokens[-work.rows :]
    right = [guess.token == token for guess, token in zip(guesses, tokens, strict=False)]
    length.note_look(right, first=work.rows == drawn)
    return length.next(branches)


def _verified(
    target: Target, draw: Draw, guess: Sequence[int], turn: Turn
) -> Generator[list[Work], list[list[Drawn]], list[Drawn]]:
    """What the target draws at each guessed place and after the last one, or up to where nothing can be drawn.

    The sequence ends with the guess, unless this raises.
    """
    sequence = target.sequence
    base = len(sequence.tokens)
    if guess:
        target.runner.checkpoint(sequence)
        target.runner.append(sequence, guess)
    try:
        [rows] = yield [Work(sequence, draw, rows=len(guess) + 1, turn=turn if guess else "now")]
    except BaseException:
        if guess:
            target.runner.truncate(sequence, base)
        raise
    return rows


def _forced(constraint: Constraint, out: Continuation) -> list[int]:
    """What a constraint forces, but for a token that ends the text and the last one, which are drawn on top of guesses."""
    sure = forced(constraint)[: min(_MOST_FORCED, out.left - 1)]
    return list(itertools.takewhile(lambda token: token not in out.ends, sure))


def _agreeing(guess: Sequence[int], rows: Sequence[Drawn]) -> int:
    """How many guesses are what the target draws, up to the first that is not."""
    pairs = zip(guess, rows, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1].token, pairs))


def _likely(run: Sequence[int], rows: Sequence[Drawn], rollback: float) -> int:
    """How many of the little model's tokens stay: all before the first that is too unlikely."""
    for at, (token, row) in enumerate(zip(run, rows, strict=False)):
        # at 0 nothing else stays, not even what is so likely that its probability rounds to 1
        if row.token != token and (rollback == 0 or -row.judged > rollback):
            return at
    return min(len(run), len(rows))


def _as_judged(run: Sequence[int], rows: Sequence[Drawn]) -> list[Drawn]:
    """The little model's tokens with the big one's figures."""
    return [
        replace(row, token=token, logprob=row.judged if not math.isnan(row.judged) else row.logprob)
        for token, row in zip(run, rows, strict=False)
    ]
