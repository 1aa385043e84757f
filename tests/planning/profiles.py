"""Profiles made by hand for tests of planning: which plan is how good at which budget is written here."""

import numpy as np

from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.profile import TERMS, Cells, Family, Profile
from langchain_pareto.strategies import Single, Strategy, Vote

BUDGETS = [100, 200, 400, 800, 1600]
OPTIONS = (
    Option(Single(), {"policy": "small"}),
    Option(Vote(n=8), {"policy": "small"}),
    Option(Single(), {"policy": "large"}),
    Option(Vote(n=8), {"policy": "large"}),
)
# share of right answers (options, budgets)
RIGHT = [
    [0.50, 0.50, 0.50, 0.50, 0.50],
    [0.50, 0.52, 0.60, 0.66, 0.66],
    [0.10, 0.70, 0.70, 0.70, 0.70],
    [0.10, 0.70, 0.70, 0.80, 0.90],
]
# mean tokens (options, budgets)
TOKENS = [
    [50, 50, 50, 50, 50],
    [90, 180, 300, 380, 400],
    [100, 150, 150, 150, 150],
    [100, 190, 380, 700, 1200],
]


def answered(share: float, questions: int) -> np.ndarray:
    """The first questions are answered right, so that better plans are right wherever worse ones are."""
    return (np.arange(questions) < round(share * questions)).astype(float)


def cells(
    right: list[list[float]] = RIGHT, tokens: list[list[float]] = TOKENS, questions: int = 2000
) -> Cells:
    """Cells where every run takes what the mean says, 100 FLOPs and a millisecond a token."""
    table = np.array([[answered(x, questions) for x in row] for row in right])
    used = np.array(tokens, float)
    terms = {
        "tokens": used,
        "flops": used * 100,
        "seconds": used / 1000,
        "samples": used / 50,
        "steps": used,
    }
    mean = np.stack([terms[name] for name in TERMS], axis=-1)
    return Cells(np.array(BUDGETS, float), table, mean, mean)


def profile(
    options: tuple[Option, ...] = OPTIONS,
    *,
    tables: dict[str, Cells] | None = None,
    labelled: bool = True,
    family: Family | None = None,
) -> Profile:
    """A profile of these tables, by default in tokens."""
    return Profile(
        name="by-hand",
        options=options,
        cells=tables or {"tokens": cells()},
        keys={"small": "s", "large": "l"},
        labelled=labelled,
        made="2026-01-10",
        prompt=20.0,
        family=family,
    )


def strategies(*kinds: Strategy) -> tuple[Option, ...]:
    """Options of one model."""
    return tuple(Option(kind, {"policy": "small"}) for kind in kinds)
