"""
The best answer your compute budget can buy, from the models on your own GPU.

The public names load on first use: importing the package costs next to nothing, and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_pareto.backends.decoders import BigLittle, Lookup, Plain, Rounds, Speculative
    from langchain_pareto.budget import Budget, Cost
    from langchain_pareto.chat_model import ChatPareto
    from langchain_pareto.errors import BudgetError, BudgetExceeded, ParetoError
    from langchain_pareto.ledger import Account, current_account, run_budget
    from langchain_pareto.runnable import StrategyRunnable
    from langchain_pareto.strategies import Auto, BestOfN, Single, Vote
    from langchain_pareto.strategies.answers import AnswerFormat
    from langchain_pareto.strategies.scorers import MeanLogprob

__all__ = [
    "Account",
    "AnswerFormat",
    "Auto",
    "BestOfN",
    "BigLittle",
    "Budget",
    "BudgetError",
    "BudgetExceeded",
    "ChatPareto",
    "Cost",
    "Lookup",
    "MeanLogprob",
    "ParetoError",
    "Plain",
    "Rounds",
    "Single",
    "Speculative",
    "StrategyRunnable",
    "Verifier",
    "Vote",
    "current_account",
    "run_budget",
]

_homes = {
    "backends.decoders": ("BigLittle", "Lookup", "Plain", "Rounds", "Speculative"),
    "budget": ("Budget", "Cost"),
    "chat_model": ("ChatPareto",),
    "errors": ("BudgetError", "BudgetExceeded", "ParetoError"),
    "ledger": ("Account", "current_account", "run_budget"),
    "runnable": ("StrategyRunnable",),
    "strategies": ("Auto", "BestOfN", "Single", "Vote"),
    "strategies.answers": ("AnswerFormat",),
    "strategies.scorers": ("MeanLogprob",),
    "strategies.verifier": ("Verifier",),
}
_home_of = {name: module for module, names in _homes.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _home_of:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_home_of[name]}"), name)


def __dir__() -> list[str]:
    return __all__
