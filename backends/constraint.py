"""
What may come next in a branch: sets of tokens, and what tells them token by token.

Knows token ids; knows no grammar, no tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, overload


@dataclass(frozen=True, slots=True)
class TokenMask(Sequence[int]):
    """A set of token ids as a bit mask: token `t` is in it where bit `t % 8` (the lowest is 0) of byte `t // 8` is set.

    As a sequence it gives the ids in ascending order; `in` takes constant time.
    """

    bits: bytes

    @classmethod
    def of(cls, tokens: Iterable[int]) -> Self:
        """The mask of some tokens."""
        bits = 0
        for token in tokens:
            bits |= 1 << token
        return cls(bits.to_bytes(-(-bits.bit_length() // 8), "little"))

    def __contains__(self, token: object) -> bool:
        if not isinstance(token, int) or not 0 <= token < 8 * len(self.bits):
            return False
        return bool(self.bits[token >> 3] >> (token & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        for first, byte in enumerate(self.bits):
            if byte:
                yield from (8 * first + bit for bit in range(8) if byte >> bit & 1)

    def __len__(self) -> int:
        return int.from_bytes(self.bits, "little").bit_count()

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> list[int]: ...

    def __getitem__(self, at: int | slice) -> int | list[int]:
        return list(self)[at]


class Constraint(Protocol):
    """What may come next, token by token: a grammar, or any automaton that can be forked and rolled back."""

    def allowed(self) -> Sequence[int] | None:
        """Token ids that may come next, as a TokenMask where they are many, or None when any may."""
        ...

    def advance(self, token: int) -> None:
        """Consumes one accepted token."""
        ...

    def rollback(self, n: int) -> None:
        """Takes the last `n` tokens back."""
        ...

    def fork(self) -> Constraint:
        """An independent copy."""
        ...
