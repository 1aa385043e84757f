"""
How many tokens to guess: what the last guesses came to, against what steps take.

Knows counts and measured step times; knows no model and no token. With acceptance rate a, k guesses give on average
(1 - a^(k+1)) / (1 - a) tokens a round (Leviathan et al. 2023, arXiv 2211.17192, equation 1); a round takes k steps of the draft and
one step of the target that is k + 1 times as wide.
"""

from __future__ import annotations

from dataclasses import dataclass

from langchain_pareto.backends.step_times import StepTimes

_FIRST = 4  # guesses of a pair's first rounds, until the steps are measured
_FIRST_ROUNDS = 2
_PROBE = 2  # guesses of a round that looks whether guessing pays by now
_PAUSE, _LONGEST_PAUSE = 64, 1024  # rounds without a guess before the next such look
_PRIOR_RATE, _PRIOR_WEIGHT = (
    0.7,
    4.0,
)  # of a pair that has not guessed yet: its weight is in guesses
_MEMORY = 200.0  # guesses that count


@dataclass(slots=True)
class Acceptance:
    """The share of guesses that were right, of those that were looked at: the first wrong one hides the rest."""

    right: float = _PRIOR_RATE * _PRIOR_WEIGHT
    looked_at: float = _PRIOR_WEIGHT
    rounds: int = 0

    @property
    def rate(self) -> float:
        """An exponential average over about the last 200 guesses."""
        return self.right / self.looked_at

    def note(self, drafted: int, accepted: int) -> None:
        """Adds one round."""
        seen = min(drafted, accepted + 1)
        kept = max(0.0, 1 - seen / _MEMORY)
        self.right = self.right * kept + accepted
        self.looked_at = self.looked_at * kept + seen
        self.rounds += 1

    def copy(self) -> Acceptance:
        """A group's own average, which begins with this one and soon forgets it."""
        weight = min(self.looked_at, _PRIOR_WEIGHT)
        return Acceptance(self.rate * weight, weight, self.rounds)


class DraftLength:
    """The length of the next guess of one group of branches."""

    def __init__(
        self, most: int, target: StepTimes, draft: StepTimes | None, pair: Acceptance
    ) -> None:
        """`draft` is None where guesses cost nothing; `pair` is the average of all groups, and goes on with this one."""
        self._most, self._target, self._draft, self._pair = most, target, draft, pair
        self._own = pair.copy()
        self._quiet, self._pause = 0, _PAUSE

    def next(self, branches: int) -> int:
        """How many tokens to guess for one branch where so many share the steps; 0 where it does not pay."""
        if self._target.seconds(branches) is None:
            return 0
        if self._pair.rounds < _FIRST_ROUNDS:
            return min(_FIRST, self._most)
        length = max(range(self._most + 1), key=lambda k: (self._speed(k, branches), -k))
        if length:
            self._quiet, self._pause = 0, _PAUSE
            return length
        self._quiet += 1
        if self._quiet < self._pause:
            return 0
        self._quiet, self._pause = 0, min(2 * self._pause, _LONGEST_PAUSE)
        return min(_PROBE, self._most)

    def note(self, drafted: int, accepted: int) -> None:
        """What a guess came to."""
        if drafted:
            self._own.note(drafted, accepted)
            self._pair.note(drafted, accepted)

    def _speed(self, k: int, branches: int) -> float:
        """Tokens a second and branch with k guesses."""
        verify = self._target.seconds(branches * (k + 1))
        guess = 0.0 if self._draft is None else self._draft.seconds(branches)
        if verify is None or guess is None:
            return 0.0
        a = min(self._own.rate, 0.999)
        return (1 - a ** (k + 1)) / (1 - a) / (k * guess + verify)


class FixedLength:
    """Always the same length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def next(self, branches: int) -> int:  # noqa: ARG002 - the controlled length's name
        """That length."""
        return self._length

    def note(self, drafted: int, accepted: int) -> None:
        """Nothing to learn."""
