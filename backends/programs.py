"""
Extend and score, as generator programs: each yields the work that it wants next and is resumed with what came of it.

Knows tokens, stops and one sequence; knows no device and no other program. The engine merges the work of all live programs into one
step, draws for all of them at once, and resumes each with its own rows. A program never samples: it names the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from langchain_pareto.backends.base import Extension, Finish, Sampling, Stop
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.backends.detokenizer import Detokenizer
from langchain_pareto.backends.sequences import Sequence as TokenSequence
from langchain_pareto.backends.stops import StopStrings, step_ends
from langchain_pareto.backends.tokens import Tokenizer

if TYPE_CHECKING:
    import torch

    from langchain_pareto.backends.base import Runner

Turn = Literal["now", "together", "alone"]


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw the next token of each wanted row with this key, at the position that follows the row."""

    key: int
    sampling: Sampling
    prompt_length: int
    stats: bool = False
    constraint: Constraint | None = None
    judged: bool = False  # also the raw log-probability of the token that the sequence holds there
    counted: bool = True  # as new tokens; guesses and what is drawn to verify them are not
    keep: int = 0  # also the distribution that the token is drawn from, over the first so many ids
    # what the guesses that the sequence ends with were drawn from: draw them as often as may be
    guessed: tuple[torch.Tensor, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Named:
    """Give the raw log-probability of one named token a wanted row, or of several tokens of a single row."""

    tokens: tuple[int, ...]


@dataclass(slots=True)
class Work:
    """Compute all pending tokens of `sequence`; `want` says what to give back for the last `rows` of them.

    `runner` is that of the sequence, by default the program's own. `turn`: in the next step, in the first step in which no other
    program of this runner is still guessing ("together"), or one such work a step, first come first served ("alone"). `looks`: it only
    asks a small model about what is drawn already, and nobody waits for that.
    """

    sequence: TokenSequence
    want: Draw | Named
    rows: int = 1
    runner: Runner | None = None
    turn: Turn = "now"
    looks: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn token; the figures are of the raw model in nats, NaN unless asked for.

    `peak` is of the most probable token, `judged` of the one that the sequence holds at this place. `distribution`, (vocabulary,), stays
    on the device; None unless asked for.
    """

    token: int
    logprob: float
    entropy: float
    top_logprob: float
    peak: float = math.nan
    judged: float = math.nan
    distribution: torch.Tensor | None = field(default=None, compare=False, repr=False)


Result = list[Drawn] | list[float]
# What is sent to a program depends on what it wanted, which no annotation can say.
Program = Generator[list[Work], list[Any], object]


class Interrupted(Exception):
    """Thrown into a program whose deadline passed or that was cancelled."""

    def __init__(self, finish: Finish) -> None:
        super().__init__(finish)
        self.finish = finish


class _Text:
    """The text of one extension as it grows: detokenised and searched for stops only as far as somebody needs it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prefix: Sequence[int],
        stop: Stop,
        on_text: Callable[[str], None] | None,
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, prefix)
        self._stops = StopStrings(stop.strings)
        self._step = None if stop.step is None else re.compile(stop.step)
        self._keep, self._before = stop.keep, stop.before
        safe, ended = self._stops.feed(stop.before)
        if ended is not None:  # in the text before: it ends nothing here
            self._stops = StopStrings(stop.strings)
        self._early = 0 if stop.keep or ended else len(stop.before) - len(safe)  # held back of it
        self._on_text = on_text
        self._parts = list[str]()
        self._late = list[int]()  # tokens that nobody needed the text of yet
        self._live = bool(stop.strings or stop.step) or on_text is not None

    def push(self, token: int) -> str | None:
        """Adds one token; returns the stop string that it completed."""
        if not self._live:
            self._late.append(token)
            return None
        return self._feed(self._detokenizer.push(token))

    @property
    def ends_step(self) -> bool:
        """Whether the text has come to the end of a step."""
        if self._step is None:
            return False
        text, begun = "".join([self._before, *self._parts]), len(self._before)
        return any(end > begun for end in step_ends(self._step, text))

    def finish(self) -> str:
        """The whole text, once no more tokens come."""
        for token in self._late:
            self._feed(self._detokenizer.push(token))
        open_ = not self._keep and self._stops.matched is None
        if open_ and self._feed(self._detokenizer.flush()) is None:
            self._emit(self._stops.flush())
        return "".join(self._parts)

    def _feed(self, piece: str) -> str | None:
        safe, found = self._stops.feed(piece)
        self._emit(piece if self._keep else safe)
        return found

    def _emit(self, text: str) -> None:
        text, self._early = text[self._early :], max(0, self._early - len(text))
        if text:
            self._parts.append(text)
            if self._on_text is not None:
                self._on_text(text)


class Continuation:
    """One branch as tokens are drawn into it, up to its stop."""

    def __init__(
        self,
        sequence: TokenSequence,
        draw: Draw,
        stop: Stop,
        tokenizer: Tokenizer,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self._draw, self._stop, self._eos = draw, stop, tokenizer.end_tokens
        self._text = _Text(tokenizer, sequence.tokens[-8:], stop, on_text)
        self.ends = (tokenizer.end_tokens if stop.eos else frozenset()) | stop.tokens
        self.finish: Finish | None = None
        self._matched: str | None = None
        self._drawn = list[Drawn]()

    @property
    def left(self) -> int:
        """How many more tokens may be drawn."""
        return 0 if self.finish is not None else self._stop.max_tokens - len(self._drawn)

    def take(self, one: Drawn) -> None:
        """Adds one token, which may be the last; one that ends the text adds none to it."""
        self._drawn.append(one)
        if self._draw.constraint is not None:
            self._draw.constraint.advance(one.token)
        if one.token in self.ends:
            self.finish = "eos" if one.token in self._eos else "stop"
            return
        self._matched = self._text.push(one.token)
        if self._matched is not None:
            self.finish = "stop"
        elif self._text.ends_step:
            self.finish = "step"
        elif len(self._drawn) == self._stop.max_tokens:
            self.finish = "length"

    def extension(self) -> Extension:
        """What was drawn."""
        assert self.finish is not None
        drawn = self._drawn
        out = Extension([d.token for d in drawn], self._text.finish(), self.finish, self._matched)
        if self._draw.stats:
            out.logprobs = [d.logprob for d in drawn]
            out.entropies = [d.entropy for d in drawn]
            out.top_logprobs = [d.top_logprob for d in drawn]
        return out


def extend(
    runner: Runner, sequence: TokenSequence, draw: Draw, out: Continuation
) -> Generator[list[Work], list[list[Drawn]], Extension]:
    """Draws token after token into `sequence` until `out` says stop; interrupted, it gives what it has.

    The token in which a stop completes stays in the sequence; an end-of-text token too, and adds no text.
    """
    work = [Work(sequence, draw)]
    try:
        while out.left:
            [[one]] = yield work
            runner.append(sequence, [one.token])
            out.take(one)
    except Interrupted as interrupted:
        out.finish = interrupted.finish
    return out.extension()


def score(
    runner: Runner, sequence: TokenSequence, continuations: Sequence[Sequence[int]]
) -> Generator[list[Work], list[list[float]], list[list[float]]]:
    """Raw log-probabilities of each continuation, all as forks in one forward; `sequence` stays as it is.

    Single tokens are read off one row: a judgement costs one look at what it judges.
    """
    forks = list[TokenSequence]()
    single = tuple(tokens[0] for tokens in continuations if len(tokens) == 1)
    longer = [tokens for tokens in continuations if len(tokens) > 1]
    try:
        works = list[Work]()
        for tokens in [[], *longer] if single else longer:
            fork = runner.fork(sequence)
            forks.append(fork)
            runner.append(fork, tokens[:-1])
            works.append(Work(fork, Named(tuple(tokens) or single), rows=len(tokens) or 1))
        found = iter((yield works) if works else [])
        firsts = iter(next(found) if single else [])
        return [[next(firsts)] if len(tokens) == 1 else next(found) for tokens in continuations]
    finally:
        for fork in forks:
            runner.free(fork)


def prefill(
    runner: Runner, sequence: TokenSequence
) -> Generator[list[Work], list[list[float]], bool]:
    """Computes all but the last token of `sequence`, and leaves it to its relatives in the prefix index."""
    if sequence.pending < 2:
        return True
    fork = runner.fork(sequence)
    try:
        runner.truncate(fork, len(sequence.tokens) - 1)
        yield [Work(fork, Named((sequence.tokens[-1],)))]
    except Interrupted:
        return False
    finally:
        runner.free(fork)
    return True
