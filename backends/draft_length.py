"""
How many tokens to guess: what the last guesses came to, against what steps take.

Knows counts and measured step times; knows no model and no token. If guess number i is right with probability a_i where all before it
were, k guesses give on average 1 + a_1 + a_1 a_2 + ... tokens a round; with one rate for all that is (1 - a^(k+1)) / (1 - a) (Leviathan
et al. 2023, arXiv 2211.17192, equation 1). The rates differ: where the first guesses were right, the text is easy, and the next ones
are right more often. A round takes k steps of the draft and one step of the target that is k + 1 times as wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from langchain_pareto.backends.step_times import StepTimes

_FIRST = 4  # guesses of a pair's first rounds, until the steps are measured
_FIRST_ROUNDS = 2
# Tokens of a look: of sixteen branches four each are 64 places, which tell a rate to 0.06; later one branch looks for all. The first token
# tells the same of all branches, which begin after the same text: an early look leaves it out.
_EARLY_LOOK, _LATER_LOOK = 4, 16
_PROBE = 2  # guesses of a look where nothing can tell without guessing
# Rounds without a guess before a later look, of one branch for all: the draft reads what was drawn meanwhile.
_PAUSE, _LONGEST_PAUSE = 64, 1024
# Over no guess, what guessing must bring for all that the steps do not tell. Branches end apart, and leave the others a narrower batch: of
# texts of 256 tokens the last one took 4 % more rounds than the average of four branches, and 9 % more than that of sixteen.
_MARGIN, _APART = 0.03, 0.02  # the least; for each doubling of branches
_PATIENCE = 4  # lengths: speeds rise and then fall, but for steps in the curve of times
_PRIOR_RATE = 0.7  # of a pair that has not guessed yet
_PRIOR_WEIGHT = 4.0  # of that rate, in guesses
# Of the average of all groups in a group's own, in guesses: that of one guess's variance to that of texts, whose rates differ by 0.12.
_PAIR_WEIGHT = 16.0
_MEMORY = 200.0  # guesses that count
_PLACE_MEMORY = 64.0  # rounds that count for a place in a guess
_PLACE_WEIGHT = 8.0  # of the rate of all places, in that of one: in guesses


@dataclass(slots=True)
class _Place:
    """How many guesses of one place were right, of those that were looked at: all before them were right."""

    right: float = 0.0
    looked_at: float = 0.0

    def note(self, right: bool, share: float) -> None:
        kept = 1 - share / _PLACE_MEMORY
        self.right = self.right * kept + share * right
        self.looked_at = self.looked_at * kept + share


@dataclass(slots=True)
class Acceptance:
    """The share of guesses that were right, of those that were looked at: the first wrong one hides the rest."""

    right: float = _PRIOR_RATE * _PRIOR_WEIGHT
    looked_at: float = _PRIOR_WEIGHT
    rounds: int = 0
    _places: list[_Place] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """An exponential average over about the last 200 guesses."""
        return self.right / self.looked_at

    def note(self, drafted: int, accepted: int, alike: int = 1) -> None:
        """Adds one round, of so many that guess after the same text: they tell together what one tells."""
        seen, share = min(drafted, accepted + 1), 1 / alike
        kept = max(0.0, 1 - share * seen / _MEMORY)
        self.right = self.right * kept + share * accepted
        self.looked_at = self.looked_at * kept + share * seen
        self.rounds += 1
        self._places += [_Place() for _ in range(seen - len(self._places))]
        for i, place in enumerate(self._places[:seen]):
            place.note(i < accepted, share)

    def tokens(self) -> Iterator[float]:
        """The tokens that a round of 0, 1, 2 ... guesses gives on average, for ever."""
        total = reached = 1.0
        i = 0
        while True:
            yield total
            place = self._places[i] if i < len(self._places) else _Place()
            right = place.right + _PLACE_WEIGHT * self.rate
            reached *= right / (place.looked_at + _PLACE_WEIGHT)
            total += reached
            i += 1

    def copy(self) -> Acceptance:
        """A group's own average, which begins with this one and soon forgets it."""
        weight = min(self.looked_at, _PAIR_WEIGHT)
        places = list[_Place]()
        for place in self._places:
            share = min(1.0, _PAIR_WEIGHT / place.looked_at)
            places.append(_Place(place.right * share, place.looked_at * share))
        return Acceptance(self.rate * weight, weight, self.rounds, places)


@dataclass(frozen=True, slots=True)
class Look:
    """Of how many last tokens to look whether they would have been guessed; where nothing can tell, how many to guess."""

    back: int
    ahead: int


class DraftLength:
    """The length of the next guess of one group of branches."""

    def __init__(
        self, most: int, target: StepTimes, draft: StepTimes | None, pair: Acceptance
    ) -> None:
        """`draft` is None where guesses cost nothing; `pair` is the average of all groups, and goes on with this one."""
        self._most, self._target, self._draft, self._pair = most, target, draft, pair
        self._own = pair.copy()
        self._branches = 0  # of this group that are drawn now
        self._quiet, self._pause, self._early = 0, _PAUSE, 0
        self._length = 0
        self._known, self._told = (0, 0), 0  # what it was chosen by: branches, context; rounds

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A branch of the group is drawn inside."""
        self._branches += 1
        try:
            yield
        finally:
            self._branches -= 1

    def next(self, branches: int) -> int:
        """How many tokens to guess for one branch where so many, of whatever groups, share the steps; 0 where it does not pay."""
        if not self._target.measured:
            return 0
        if self._pair.rounds < _FIRST_ROUNDS:
            return min(_FIRST, self._most)
        # chosen anew once all branches have guessed, or where texts have become longer
        known, told = (branches, self._target.context), self._own.rounds - self._told
        if known != self._known or told >= max(1, self._branches):
            self._known, self._told = known, self._own.rounds
            self._length = self._fastest(branches)
        if self._length:
            self._quiet, self._pause = 0, _PAUSE
        return self._length

    def look(self, branches: int, drawn: int) -> Look | None:
        """Asked in each round without a guess, in a branch with so many drawn tokens: how to look whether guesses would be right, if at all."""
        if not self._target.measured:
            return None
        # Whatever other texts told, one look of each of many branches tells much, and there is little yet that the draft must read.
        if branches > 1 and drawn == _EARLY_LOOK + 1 and self._early < self._branches:
            self._early += 1
            return Look(_EARLY_LOOK, min(_PROBE, self._most))
        self._quiet += 1
        if drawn < _EARLY_LOOK or self._quiet < self._pause * branches:
            return None
        self._quiet, self._pause = 0, min(2 * self._pause, _LONGEST_PAUSE)
        return Look(_LATER_LOOK, min(_PROBE, self._most))

    def note(
        self, drafted: int, accepted: int, *, first: bool = False, unsure: bool = False
    ) -> None:
        """What a guess came to; the `first` ones of a group's branches are made after the same text.

        Where the draft is `unsure` and guesses no further, it has taken a step that gave nothing, as one with a wrong guess does.
        """
        drafted += unsure and self._draft is not None
        if drafted:
            alike = max(1, self._branches) if first else 1
            self._own.note(drafted, accepted, alike)
            self._pair.note(drafted, accepted, alike)

    def note_look(self, right: Sequence[bool], *, first: bool = False) -> None:
        """Which guesses would have been right in places that follow each other: the rounds that they would have been.

        After a wrong guess, and after as many as there may be, the target's own token comes.
        """
        at = 0
        while at < len(right):
            round_ = list(right[at : at + self._most])
            accepted = (*round_, False).index(False)
            self.note(min(accepted + 1, len(round_)), accepted, first=first and not at)
            at += accepted + 1
        self._known = 0, 0  # to be chosen anew: one branch has looked for all

    def _fastest(self, branches: int) -> int:
        """The shortest of the fastest lengths, up to where a few in a row have been no faster."""
        best, fastest = 0, 0.0
        margin = 1 + max(_MARGIN, _APART * math.log2(max(1, branches)))
        for k, tokens in zip(range(self._most + 1), self._own.tokens(), strict=False):
            speed = self._speed(k, tokens, branches)
            if speed > fastest * (margin if k and not best else 1):
                best, fastest = k, speed
            elif k >= best + _PATIENCE:
                break
        return best

    def _speed(self, k: int, tokens: float, branches: int) -> float:
        """Tokens a second and branch with k guesses, of which a round gives so many."""
        verify = self._target.seconds(branches * (k + 1))
        guess = 0.0 if self._draft is None else self._draft.seconds(branches)
        if verify is None or guess is None:
            return 0.0
        return tokens / (k * guess + verify)


class FixedLength:
    """Always the same length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def drawing(self) -> AbstractContextManager[None]:
        """Nothing to count."""
        return nullcontext()

    def next(self, branches: int) -> int:  # noqa: ARG002 - the controlled length's name
        """That length."""
        return self._length

    def look(self, branches: int, drawn: int) -> Look | None:  # noqa: ARG002 - as above
        """Never."""
        return None

    def note(
        self, drafted: int, accepted: int, *, first: bool = False, unsure: bool = False
    ) -> None:
        """Nothing to learn."""

    def note_look(self, right: Sequence[bool], *, first: bool = False) -> None:
        """Nothing to learn."""
