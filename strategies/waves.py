"""
Runs side by side that have no answer before their end: those of one call go in waves, each as wide as what is left pays for.

Knows what such runs took; knows no strategy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from langchain_pareto.budget import Budget, Cost
from langchain_pareto.strategies.thoughts import POLICY

if TYPE_CHECKING:
    from langchain_pareto.strategies.search import Search


@dataclass(slots=True)
class Waves:
    """Who waits, who runs, and what those took that have ended.

    All that run have equal shares, so that none is cut off by another, and what it draws does not depend on who is faster.
    """

    took: list[Cost] = field(default_factory=list)
    _waiting: list[asyncio.Future[Budget]] = field(default_factory=list)
    _running: set[asyncio.Future[Budget]] = field(default_factory=set)

    @asynccontextmanager
    async def turn(self, search: Search) -> AsyncIterator[Search]:
        """The search within its share, once it is in a wave; without any limit the search as it is, at once."""
        if not search.limited:
            yield search
            return
        place: asyncio.Future[Budget] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await asyncio.sleep(0)  # whoever begins together with us is waiting, too
            self._begin(search)
            own = search.within(await place)
            yield own
            self.took.append(own.desk(POLICY).account.spent)
        finally:
            self._waiting = [other for other in self._waiting if other is not place]
            self._running.discard(place)
            self._begin(search)

    def _begin(self, search: Search) -> None:
        """Starts the next wave, once nobody runs: as many as fit at one and a half times what the dearest took, at least one."""
        if self._running or not self._waiting:
            return
        unspent, n = search.room.unspent, len(self._waiting)
        fits = min((unspent.times(cost, 2 * n) for cost in self.took), default=0)
        width = min(n, max(1, fits * 2 // 3))
        share = search.share(width)
        wave, self._waiting = self._waiting[:width], self._waiting[width:]
        for place in wave:
            if not place.done():  # it was cancelled, and has not left yet
                place.set_result(share)
                self._running.add(place)
