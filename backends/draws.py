"""One wanted draw, and what came of a step's draws.

Knows keys, positions, settings and where the numbers lie; sampling.py draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from langchain_pareto.backends.base import Sampling


class Guess(NamedTuple):
    """A token that another model drew for a row, and the distribution that it drew it from: (vocab,), as `coupling.fitted` makes it."""

    token: int
    distribution: Tensor


@dataclass(slots=True)
class Row:
    """One wanted draw."""

    key: int
    position: int
    sampling: Sampling
    history: Sequence[int] = ()  # read only when the settings penalise it
    prompt_length: int = 0  # tokens of `history` that are prompt
    allowed: Sequence[int] | None = None  # token ids that may come; None lets any
    guess: Guess | None = None  # to be drawn as often as may be: see coupling.py


@dataclass(slots=True)
class HostDraws:
    """What a step drew, one entry a row; the last four in nats, and empty unless asked for."""

    tokens: list[int]
    finite: list[bool]
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Draws:
    """What a step drew, on the device: float64 columns in the order of HostDraws' fields."""

    packed: Tensor  # (rows, 2 or 6)

    @property
    def tokens(self) -> Tensor:
        """Token ids on the device, int64."""
        return self.packed[:, 0].long()

    def to_host(self) -> HostDraws:
        """Everything in one device-to-host copy."""
        columns = self.packed.cpu().T.tolist()
        return HostDraws([int(t) for t in columns[0]], [f == 1.0 for f in columns[1]], *columns[2:])
