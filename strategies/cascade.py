"""
A cascade: a cheap model first, and a dear one only where the cheap one is not sure (Chen et al. 2023, FrugalGPT, arXiv 2305.05176;
agreement as the sign, Yue et al. 2023, arXiv 2310.03094).

It pays where a cheap sample costs less than about a third of a dear one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from langchain_pareto.strategies.answers import shape_of
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.thoughts import (
    POLICY,
    Answer,
    Thought,
    ballot,
    best_of,
    good_enough,
    leader,
)

if TYPE_CHECKING:
    from langchain_pareto.strategies import AnyStrategy


class Cascade(Strategy):
    """Asks the role `small` for `n` answers, and `large` for `n_large` more unless the small model is sure; the votes are pooled.

    It is sure if at least `agreement` of its `n` answers are one, and no fewer than two; or if the run's scorer gives one of them at
    least `score`. None is never. A role that nobody plays is the policy's.
    """

    kind: Literal["cascade"] = "cascade"
    small: str = POLICY
    large: str = "large"
    n: int = Field(default=4, ge=1)
    n_large: int = Field(default=4, ge=1)
    agreement: float | None = Field(default=0.9, gt=0, le=1)
    score: float | None = Field(default=None, allow_inf_nan=False)
    of: AnyStrategy = Field(default_factory=Single)

    async def run(self, search: Search) -> Answer:
        """The cheap ones, and the dear ones if need be."""
        cheap = await self._answers(search, self.small, self.n)
        if cheap:
            search.offer(leader(cheap))
        if self._agree(cheap):
            return leader(cheap)
        if good_enough(cheap, self.score):
            return search.best(cheap)
        dear = await self._answers(search, self.large, self.n_large)
        return _pooled(cheap, dear)

    async def _answers(self, search: Search, role: str, n: int) -> list[Thought]:
        told = _told(search) if self.temperature is None else self.temperature
        thoughts = await search.as_role(role).at_temperature(told).run(self.of, n)
        if self.score is not None:
            await search.score(thoughts)
        return thoughts

    def _agree(self, cheap: Sequence[Thought]) -> bool:
        most = len(next(iter(ballot(cheap)), ()))
        return self.agreement is not None and most > 1 and most / self.n >= self.agreement


def _told(search: Search) -> float | None:
    """The temperature that a strategy around this one has set; None where it is the model's own."""
    own, now = search.settings.roles.get(search.root.role), search.settings.sampling.temperature
    return None if own is None or own.sampling.temperature == now else now


def _pooled(cheap: Sequence[Thought], dear: Sequence[Thought]) -> Answer:
    """The largest class, of exact answers that of the shape with most votes; ties, and the choice among its members, go to the dear model,
    whose texts are no likelier for being better.
    """
    everybody = [*dear, *cheap]
    classes = ballot(everybody)
    shapes = Counter(shape_of(t.answer) for members in classes for t in members)

    def place(members: Sequence[Thought]) -> tuple[int, int, int]:
        return shapes[shape_of(members[0].answer)], len(members), sum(t in dear for t in members)

    first = max(classes, key=place, default=everybody)
    votes = sum(map(len, classes))
    chosen = best_of([t for t in first if t in dear and t.finished] or first)
    return Answer(chosen, len(first) / votes if votes else None)
