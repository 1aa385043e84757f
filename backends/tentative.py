"""
A branch's settings and constraint as a small model guesses under them: over the tokens that it has, and with nothing that fails.

Knows token ids; knows no model. What fails behind a guess may never come, since the guess may be wrong: who draws there hears of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.constraint import Constraint, TokenMask


class Tentative:
    """A constraint as a small model goes on in it, over the tokens that it has; what fails there ends the guess and nothing else."""

    def __init__(self, constraint: Constraint, vocabulary: int) -> None:
        self._constraint, self._vocabulary = constraint, vocabulary
        self._allowed: TokenMask | None = None
        self._advanced, self._failed = 0, False

    def goes_on(self) -> bool:
        """Looks what may come next; whether that is anything."""
        if self._failed:
            return False
        try:
            allowed = self._constraint.allowed()
            self._allowed = None if allowed is None else _known(allowed, self._vocabulary)
        except Exception:  # noqa: BLE001 - of a wrong guess, maybe
            return False
        return self._allowed is None or len(self._allowed) > 0

    def allowed(self) -> TokenMask | None:
        """What was found so."""
        return self._allowed

    def advance(self, token: int) -> None:
        """Consumes one token."""
        try:
            self._constraint.advance(token)
        except Exception:  # noqa: BLE001 - as above
            self._failed = True
        else:
            self._advanced += 1

    def rollback(self, n: int) -> None:
        """Takes the last `n` tokens back."""
        self._constraint.rollback(n)
        self._advanced -= n

    def go_back(self) -> None:
        """To where it began."""
        if self._advanced:
            self.rollback(self._advanced)

    def fork(self) -> Tentative:
        """An independent copy."""
        return Tentative(self._constraint.fork(), self._vocabulary)


def within(sampling: Sampling, vocabulary: int) -> Sampling:
    """The settings without a bias for tokens that a model does not have."""
    bias = tuple((token, by) for token, by in sampling.logit_bias if token < vocabulary)
    return sampling if bias == sampling.logit_bias else replace(sampling, logit_bias=bias)


def _known(tokens: Sequence[int], vocabulary: int) -> TokenMask:
    """Those of the tokens that a model has."""
    if isinstance(tokens, TokenMask):
        bits = int.from_bytes(tokens.bits, "little") & ((1 << vocabulary) - 1)
        return TokenMask(bits.to_bytes(-(-vocabulary // 8), "little"))
    ids = np.asarray(tokens, dtype=np.int64)
    flags = np.zeros(vocabulary, dtype=np.bool_)
    flags[ids[(ids >= 0) & (ids < vocabulary)]] = True
    return TokenMask(np.packbits(flags, bitorder="little").tobytes())
