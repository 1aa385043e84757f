"""
What to do with tokens: sample, search, score, vote.
"""

from typing import Annotated, get_args

from pydantic import Field, TypeAdapter

from langchain_pareto.strategies.auto import Auto
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.beam import Beam
from langchain_pareto.strategies.best_of_n import BestOfN
from langchain_pareto.strategies.cascade import Cascade
from langchain_pareto.strategies.decompose import Decompose
from langchain_pareto.strategies.deepconf import DeepConf
from langchain_pareto.strategies.dvts import DVTS
from langchain_pareto.strategies.first_finish import FirstFinish
from langchain_pareto.strategies.knockout import Knockout
from langchain_pareto.strategies.mcts import MCTS
from langchain_pareto.strategies.parsing import parse
from langchain_pareto.strategies.rebase import Rebase
from langchain_pareto.strategies.refine import Refine
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.sos import SoS
from langchain_pareto.strategies.spawn_join import SpawnJoin
from langchain_pareto.strategies.tree_of_thought import TreeOfThought
from langchain_pareto.strategies.vote import Vote
from langchain_pareto.strategies.weighted_vote import WeightedVote

AnyStrategy = Annotated[
    Auto
    | Beam
    | BestOfN
    | Cascade
    | Decompose
    | DeepConf
    | DVTS
    | FirstFinish
    | Knockout
    | MCTS
    | Rebase
    | Refine
    | Single
    | SoS
    | SpawnJoin
    | TreeOfThought
    | Vote
    | WeightedVote,
    Field(discriminator="kind"),
]

_kinds: tuple[type[Strategy], ...] = get_args(get_args(AnyStrategy)[0])
_names = [kind.model_fields["kind"].default for kind in _kinds]
for _kind in _kinds:  # those that nest name the union, which is known only now
    _kind.model_rebuild(_types_namespace={"AnyStrategy": AnyStrategy, "Single": Single})

_adapter: TypeAdapter[Strategy] = TypeAdapter(AnyStrategy)


def parse_strategy(value: Strategy | str | dict[str, object]) -> Strategy:
    """A strategy from itself, its name, its JSON, or a dict with a `kind`; raises SettingError."""
    return value if isinstance(value, Strategy) else parse(value, _adapter, "strategy", _names)


__all__ = [
    "DVTS",
    "MCTS",
    "AnyStrategy",
    "Auto",
    "Beam",
    "BestOfN",
    "Cascade",
    "Decompose",
    "DeepConf",
    "FirstFinish",
    "Knockout",
    "Rebase",
    "Refine",
    "Single",
    "SoS",
    "SpawnJoin",
    "Strategy",
    "TreeOfThought",
    "Vote",
    "WeightedVote",
    "parse_strategy",
]
