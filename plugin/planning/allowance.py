"""
What is left of the limits of a replayed call, at every level.

Knows amounts; knows neither draws nor prices, and no more of time than when it is up.
"""

from __future__ import annotations

from langchain_pareto.budget import Limits

Charge = tuple[int, int, int, int]  # tokens, flops, nanodollars, bytes of memory
FREE: Charge = (0, 0, 0, 0)
_NAMES = ("tokens", "flops", "usd", "memory")


def minus(charge: Charge, other: Charge) -> Charge:
    """What a charge is more than another."""
    return charge[0] - other[0], charge[1] - other[1], charge[2] - other[2], charge[3] - other[3]


class Allowance:
    """What is left of all limits that there are, at every level; `deadline` is on the clock of a play."""

    __slots__ = ("deadline", "dear", "pots")

    def __init__(self, limits: Limits, deadline: float, above: Allowance | None = None) -> None:
        amounts = (limits.tokens, limits.flops, limits.nanodollars, limits.memory)
        self.pots = [[i, amount] for i, amount in enumerate(amounts) if amount is not None]
        self.deadline = deadline
        if above is not None:
            self.pots = sorted([*above.pots, *self.pots], key=lambda pot: pot[0])
            self.deadline = min(deadline, above.deadline)
        self.dear = any(i > 0 for i, _ in self.pots)  # whether more than tokens counts

    def left(self, resource: int) -> int | None:
        """What is left of one resource at the tightest level, None without a limit."""
        return min((amount for i, amount in self.pots if i == resource), default=None)

    def lack(self, charge: Charge) -> str | None:
        """The first resource in which a charge does not fit."""
        for i, amount in self.pots:
            if charge[i] > amount:
                return _NAMES[i]
        return None

    def times(self, charge: Charge, most: int) -> int:
        """How many times a charge fits, at most `most`."""
        for i, amount in self.pots:
            if charge[i] > amount:
                return 0
            if charge[i]:
                most = min(most, amount // charge[i])
        return most

    def pay(self, charge: Charge) -> None:
        """Takes a charge out; what is below zero comes back."""
        for pot in self.pots:
            pot[1] -= charge[pot[0]]
