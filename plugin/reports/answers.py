"""
Which answers a search gave, and how often: spellings of one answer count together.

Knows when two answers are the same by `strategies.answers`; chooses none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from langchain_pareto.reports.run import Node
from langchain_pareto.strategies.answers import Exact, group

_COMPARED = (
    100  # different spellings: each may be compared with each, and some comparisons are slow
)


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer as it was spelled first, the thoughts that gave it, and how it was spelled."""

    answer: str
    count: int
    tokens: int
    spellings: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ballot:
    """All answers, the most frequent first; `won` holds the spellings of the chosen one, which is written as it was chosen."""

    choices: tuple[Choice, ...]
    won: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, nodes: Sequence[Node], chosen: str | None) -> Ballot:
        """The answers of some thoughts; where there are very many, each spelling stands for itself."""
        voters: dict[str, list[Node]] = {}
        for node in nodes:
            if node.answer is not None:
                answer = Exact(node.answer) if node.exact else node.answer
                voters.setdefault(answer, []).append(node)
        spellings = list(voters)
        few = len(spellings) <= _COMPARED
        clusters = group(spellings) if few else [[i] for i in range(len(spellings))]
        choices = list[Choice]()
        for indices in clusters:
            names = [spellings[i] for i in indices]
            own = [node for name in names for node in voters[name]]
            tokens = sum(node.sampled for node in own)
            answer = chosen if chosen is not None and chosen in names else names[0]
            choices.append(Choice(answer, len(own), tokens, frozenset(names)))
        choices.sort(key=lambda choice: -choice.count)
        won = next((c.spellings for c in choices if chosen in c.spellings), frozenset[str]())
        return cls(tuple(choices), won)
