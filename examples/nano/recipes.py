"""How each model of the family is made: its size, how long it learns, and what it begins with. Knows no library."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """What a Llama of the family is made of: width, layers, heads and feed-forward width."""

    width: int
    layers: int
    heads: int
    feed_forward: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """A size, the tokens of the training, padding included, the model whose weights it begins with, and the share of the learning rates.

    What begins with learned weights would lose at full rates what they know before it learns more. `lookups` says whether heads on the
    middle layers teach it whose number is whose (lookups.py).
    """

    size: Size
    tokens: int
    start: str | None = None
    rate: float = 1.0
    lookups: bool = False


_MEDIUM = Size(width=192, layers=6, heads=6, feed_forward=512)

RECIPES = {
    "S": Recipe(Size(width=96, layers=2, heads=6, feed_forward=160), 100_000_000),
    "M": Recipe(_MEDIUM, 60_000_000),
    "L": Recipe(
        Size(width=192, layers=18, heads=6, feed_forward=512), 16_000_000, start="M", rate=0.3
    ),
    # The PRM learns about puzzles first, then about both tasks.
    "PRM-puzzles": Recipe(_MEDIUM, 42_000_000, start="M", rate=0.5),
    "PRM": Recipe(_MEDIUM, 50_000_000, start="PRM-puzzles", rate=0.4, lookups=True),
}
