"""
What to do with tokens: sample, search, score, vote.
"""

from typing import Annotated, get_args

from pydantic import Field, TypeAdapter, ValidationError

from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.auto import Auto
from langchain_pareto.strategies.base import Strategy
from langchain_pareto.strategies.beam import Beam
from langchain_pareto.strategies.best_of_n import BestOfN
from langchain_pareto.strategies.dvts import DVTS
from langchain_pareto.strategies.rebase import Rebase
from langchain_pareto.strategies.single import Single
from langchain_pareto.strategies.vote import Vote
from langchain_pareto.strategies.weighted_vote import WeightedVote

AnyStrategy = Annotated[
    Auto | Beam | BestOfN | DVTS | Rebase | Single | Vote | WeightedVote,
    Field(discriminator="kind"),
]

_kinds: tuple[type[Strategy], ...] = get_args(get_args(AnyStrategy)[0])
_names = {kind.model_fields["kind"].default: kind for kind in _kinds}
for _kind in _kinds:  # those that nest name the union, which is known only now
    _kind.model_rebuild(_types_namespace={"AnyStrategy": AnyStrategy, "Single": Single})

_adapter: TypeAdapter[Strategy] = TypeAdapter(AnyStrategy)


def parse_strategy(value: Strategy | str | dict[str, object]) -> Strategy:
    """A strategy from itself, its name, its JSON, or a dict with a `kind`; raises SettingError."""
    if isinstance(value, Strategy):
        return value
    known = f"known strategies: {', '.join(sorted(_names))}"
    try:
        if isinstance(value, dict):
            return _adapter.validate_python(value)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            return _adapter.validate_json(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        msg = f"cannot read the strategy {value!r}: {problems}"
        raise SettingError(msg, hint=known) from None
    if not isinstance(value, str) or value not in _names:
        msg = f"there is no strategy {value!r}; {known}"
        raise SettingError(msg)
    return _names[value].model_validate({})


__all__ = [
    "DVTS",
    "AnyStrategy",
    "Auto",
    "Beam",
    "BestOfN",
    "Rebase",
    "Single",
    "Strategy",
    "Vote",
    "WeightedVote",
    "parse_strategy",
]
