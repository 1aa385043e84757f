"""
What a constraint leaves no choice about: tokens that are known before the model has looked.

Knows constraints; knows no model. A constraint need not be able to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from langchain_pareto.backends.constraint import Constraint


@runtime_checkable
class Forces(Protocol):
    """A constraint that can tell."""

    def forced(self) -> Sequence[int]:
        """The tokens that come next, each of which is all that is allowed in its place; not always all that there are."""
        ...


def forced(constraint: Constraint | None) -> Sequence[int]:
    """The tokens that must come next; none where nobody can tell."""
    # asked in every round: what a protocol's check takes is a third of what a round takes
    if constraint is None:
        return ()
    return constraint.forced() if isinstance(constraint, Forces) else ()
