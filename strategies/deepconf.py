"""
DeepConf: a vote of confident samples, where those that lose confidence are stopped early (Fu et al. 2025, arXiv 2508.15260).

A token's confidence is minus the mean log-probability (nats) of the 20 most probable tokens at its place, a group's the mean over a
window of tokens, and a sample's the lowest of its groups. The first samples say how confident is usual.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from pydantic import Field

from langchain_pareto.errors import CapabilityError
from langchain_pareto.strategies.answers import shape_of
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Thought, ballot

_SHORTEST = 16  # tokens of a group
_LONGEST = 2048  # the paper's, where samples have ten thousand tokens and more


class DeepConf(Strategy):
    """Up to `total` samples vote with their confidence; the first `warmup` set a threshold, and whoever falls below it is cut and has no vote.

    The threshold keeps the most confident `keep` of the first samples. `window` tokens are a group: None is an eighth of the mean length
    of the first samples, from 16 to the paper's 2048. After them, `wave` samples at a time are drawn, `check` tokens at a time, until the
    leader has `consensus` of all confidence. With `mode="offline"` all are drawn to their end, and all set the threshold.

    The paper has 16 to warm up, a consensus of 0.95, 512 samples in total (its code 256), and keeps 0.1 ("low", more saved and more
    risked) or 0.9 ("high", which its code does when asked for a `confidence_percentile` of 90).
    """

    kind: Literal["deepconf"] = "deepconf"
    mode: Literal["online", "offline"] = "online"
    warmup: int = Field(default=16, ge=1)
    total: int = Field(default=64, ge=1)
    keep: float = Field(default=0.9, gt=0, le=1)
    window: int | None = Field(default=None, ge=1)
    consensus: float = Field(default=0.95, gt=0, le=1)
    wave: int = Field(default=16, ge=1)
    check: int = Field(default=32, ge=1)

    async def run(self, search: Search) -> Answer:
        """Warm up, then waves until those that vote agree."""
        first = self.total if self.mode == "offline" else min(self.warmup, self.total)
        drawn = await search.sample(search.root, first)
        ended = [thought for thought in drawn if thought.finished]
        if not ended:
            return search.best(drawn)
        window = self.window or _window([thought.length for thought in ended])
        lowest = _lowest(ended, window)
        threshold = quantile(lowest.values(), 1 - self.keep)
        voters = _above(threshold, lowest)
        answer = elected(voters)
        left = self.total - first if len(drawn) == first else 0
        while left > 0 and (answer.share or 0) < self.consensus:
            search.offer(answer)
            n = min(self.wave, left)
            new, paid = await self._draw(search, n, window, threshold)
            voters |= new
            answer = elected(voters)
            left = left - n if paid else 0
        return answer

    async def _draw(
        self, search: Search, n: int, window: int, threshold: float
    ) -> tuple[dict[Thought, float], bool]:
        """Those of `n` samples that end without falling below the threshold; and whether all could be paid for."""
        live, ended, paid = [search.root] * n, list[Thought](), True
        while live:
            drawn = await search.expand(live, self.check)
            paid = paid and len(drawn) == len(live)
            ended += [thought for thought in drawn if thought.finished]
            live = []
            for thought in (t for t in drawn if not t.finished):
                if self._has_fallen(thought, window, threshold):
                    search.drop(thought.path)
                elif thought.whole and thought.length < search.context:
                    live.append(thought)
        return _above(threshold, _lowest(ended, window)), paid

    def _has_fallen(self, thought: Thought, window: int, threshold: float) -> bool:
        """Whether a group that ends in its last `check` tokens is below the threshold."""
        recent = thought.confidences[-window - self.check :]
        return len(recent) >= window and confidence(recent, window) < threshold


def confidence(tokens: Sequence[float], window: int) -> float:
    """The lowest mean of `window` tokens in a row, of all where there are fewer (section 3.1, the lowest group confidence)."""
    if not tokens:
        message = "there are no log-probabilities, so nothing says how confident a sample is"
        raise CapabilityError(message, hint="Use a backend that returns them, or `vote`.")
    window = min(window, len(tokens))
    sums = list(accumulate(tokens, initial=0.0))
    return min((end - start) / window for start, end in zip(sums, sums[window:], strict=False))


def quantile(values: Collection[float], share: float) -> float:
    """What `share` of the values lie below, between two of them by a straight line."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (place % 1) * (high - low)


def elected(voters: Mapping[Thought, float]) -> Answer:
    """The most confident sample of the class with most confidence in sum; where nobody votes, of all. `share` is the class's part.

    Of exact answers, the shape is chosen first, by the sum of its confidences.

    Where all confidences are 0, each sample is one vote.
    """
    classes = ballot(list(voters))
    if not any(voters.values()):
        voters = dict.fromkeys(voters, 1.0)
    sums = [math.fsum(voters[thought] for thought in members) for members in classes]
    shapes = [shape_of(members[0].answer) for members in classes]
    of_shape = [math.fsum(s for s, b in zip(sums, shapes, strict=True) if a == b) for a in shapes]
    most = max(range(len(sums)), key=lambda i: (of_shape[i], sums[i]), default=None)
    if most is None:
        return Answer(max(voters, key=voters.__getitem__))
    return Answer(max(classes[most], key=voters.__getitem__), sums[most] / math.fsum(sums))


def _lowest(ended: Sequence[Thought], window: int) -> dict[Thought, float]:
    """The confidence of each sample."""
    return {thought: confidence(thought.confidences, window) for thought in ended}


def _above(threshold: float, lowest: Mapping[Thought, float]) -> dict[Thought, float]:
    """Those that are not below the threshold: the voters."""
    return {thought: value for thought, value in lowest.items() if value >= threshold}


def _window(lengths: Sequence[int]) -> int:
    """Tokens of a group, where samples have these lengths."""
    return min(_LONGEST, max(_SHORTEST, round(sum(lengths) / len(lengths) / 8)))
