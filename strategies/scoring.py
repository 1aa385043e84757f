"""
The scorers that can be named, and how one is read. Knows their settings; scores nothing.
"""

from __future__ import annotations

from typing import Annotated, cast, get_args

from pydantic import Field, TypeAdapter

from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.judge import JudgeScore, JudgeVote
from langchain_pareto.strategies.outcome_reward import OutcomeReward
from langchain_pareto.strategies.parsing import parse
from langchain_pareto.strategies.process_reward import ProcessReward
from langchain_pareto.strategies.scorers import MeanConfidence, MeanLogprob, RunScorer, Scorer

AnyScorer = Annotated[
    JudgeScore | JudgeVote | MeanConfidence | MeanLogprob | OutcomeReward | ProcessReward,
    Field(discriminator="kind"),
]

_adapter: TypeAdapter[Scorer | RunScorer] = TypeAdapter(AnyScorer)
_names = [kind.model_fields["kind"].default for kind in get_args(get_args(AnyScorer)[0])]


def parse_scorer(value: object) -> Scorer | RunScorer:
    """A scorer from itself, its name, its JSON, or a dict with a `kind`; raises SettingError."""
    known = hasattr(value, "score") or hasattr(value, "score_in")
    if known and not isinstance(value, type):
        return cast("Scorer | RunScorer", value)
    if callable(value) and not isinstance(value, type):
        msg = f"a function is no scorer by itself: {value!r:.80}"
        raise SettingError(
            msg, hint="Take Verifier(function), which runs it where it can neither hang nor crash."
        )
    return parse(value, _adapter, "scorer", _names)
