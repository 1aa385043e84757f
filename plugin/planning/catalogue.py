"""
The plans worth considering: a strategy, and which model plays which role in it.

Small on purpose: what is not here was never ahead at any budget where it was measured. Knows strategies by their settings, and of
recorded answers how many there are and how they score; knows neither what plans cost nor how good they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.thresholds import thresholds
from langchain_pareto.strategies import (
    DVTS,
    Beam,
    BestOfN,
    Cascade,
    Rebase,
    Single,
    Strategy,
    Vote,
    WeightedVote,
)
from langchain_pareto.strategies.thoughts import POLICY

LARGE = "large"  # the role of the dearer model of a cascade
VOTES = (3, 4, 8, 16, 32)  # two votes decide nothing
SCORED = (4, 8, 16)  # samples that a scorer chooses among
SURE = ((4, 0.75), (4, 1.0), (8, 0.75), (8, 1.0))  # cheap samples, and the agreement that is enough
TREES = (4, 16)  # widths
_ALL_PAIRS = 3  # models of which every two make a cascade; of more, neighbours do


@dataclass(frozen=True, slots=True)
class Option:
    """A strategy, and the model of each role that it names.

    `drawn` is whether it only draws whole answers from the prompt, so that it can be measured on recorded ones.
    """

    strategy: Strategy
    roles: Mapping[str, str] = field(default_factory=dict)
    drawn: bool = True

    @property
    def model(self) -> str:
        """The model that answers."""
        return self.roles[POLICY]

    def __str__(self) -> str:
        """One short phrase, such as "vote of 8, adaptive, by S"."""
        return f"{described(self.strategy)} by {self.players}"

    @property
    def players(self) -> str:
        """The models, the cheap one first."""
        return ", then ".join(
            dict.fromkeys(self.roles[role] for role in (POLICY, LARGE) if role in self.roles)
        )


def catalogue(
    models: Sequence[str],
    *,
    samples: int = max(VOTES),
    scored: bool = False,
    enough: Mapping[str, Sequence[float]] | None = None,
    trees: bool = False,
) -> tuple[Option, ...]:
    """The plans for `models`, the cheapest first; about 60 for three of them.

    None draws more than `samples` answers from one model. `scored` says that a scorer reads answers, `trees` that it reads steps too;
    `enough` are the scores of each model's samples at which the best of n may stop.
    """
    stops = enough or {}
    options = [
        option
        for model in models
        for option in _of_one(
            model, samples=samples, scored=scored, enough=stops.get(model, ()), trees=trees
        )
    ]
    pairs = combinations(models, 2) if len(models) <= _ALL_PAIRS else pairwise(models)
    for small, large in pairs:
        roles = {POLICY: small, LARGE: large}
        options += [
            Option(Cascade(n=n, n_large=n, agreement=agreement), roles)
            for n, agreement in SURE
            if n <= samples
        ]
    return tuple(options)


def roles_of(strategy: Strategy) -> set[str]:
    """The roles that a strategy, or one within it, asks: the policy's, and those of cascades."""
    found = {POLICY}
    if isinstance(strategy, Cascade):
        found |= {strategy.small, strategy.large}
    for _, value in strategy:
        if isinstance(value, Strategy):
            found |= roles_of(value)
    return found


def options_for(pools: Mapping[str, Pool]) -> tuple[Option, ...]:
    """The plans that these pools can tell something of, by model, the cheapest first."""
    scores = {model: pool.scores for model, pool in pools.items() if pool.scores is not None}
    return catalogue(
        list(pools),
        samples=min(pool.samples for pool in pools.values()),
        scored=scores.keys() == pools.keys(),
        enough={model: thresholds(given) for model, given in scores.items()},
    )


def _of_one(
    model: str, *, samples: int, scored: bool, enough: Sequence[float], trees: bool
) -> list[Option]:
    """The plans for one model alone."""
    strategies: list[Strategy] = [Single(), *(Vote(n=n) for n in VOTES if n <= samples)]
    if scored:
        strategies += [
            kind(n=n) for n in SCORED if n <= samples for kind in (WeightedVote, BestOfN)
        ]
        most = min(samples, max(VOTES))
        strategies += [BestOfN(n=most, threshold=score) for score in enough if most > 1]
    options = [Option(strategy, {POLICY: model}) for strategy in strategies]
    if trees:
        searches = [tree for n in TREES for tree in (Rebase(n=n), Beam(n=n), DVTS(n=n))]
        options += [Option(strategy, {POLICY: model}, drawn=False) for strategy in searches]
    return options


def described(strategy: Strategy) -> str:
    """A strategy in a few words: what tells it from others of a catalogue; of what is in none, all that is no default."""
    match strategy:
        case Single():
            return "one sample"
        case Vote(n=n, adaptive=adaptive):
            return f"{'adaptive' if adaptive else 'fixed'} vote of {n}"
        case WeightedVote(n=n):
            return f"weighted vote of {n}"
        case BestOfN(n=n, threshold=None):
            return f"best of {n}"
        case BestOfN(n=n, threshold=score):
            return f"best of {n}, until one scores {score:.10g},"
        case Cascade(n=n, n_large=n_large, agreement=agreement):
            sure = "never" if agreement is None else f"at {agreement:.0%}"
            return f"cascade of {n} and {n_large}, sure {sure},"
        case _:
            asked = strategy.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
            told = ", ".join(f"{name}={value}" for name, value in asked.items())
            return f"{strategy.kind}({told})"
