"""
The best answer your compute budget can buy, from the models on your own GPU.

The public names load on first use: importing the package costs next to nothing, and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_pareto.agents.middleware import BudgetMiddleware
    from langchain_pareto.backends.decoders import BigLittle, Lookup, Plain, Rounds, Speculative
    from langchain_pareto.budget import Budget, Cost
    from langchain_pareto.chat_model import ChatPareto
    from langchain_pareto.errors import BudgetError, BudgetExceeded, ParetoError
    from langchain_pareto.ledger import Account, current_account, run_budget
    from langchain_pareto.reports.report import Report
    from langchain_pareto.runnable import StrategyRunnable
    from langchain_pareto.strategies import (
        DVTS,
        MCTS,
        Auto,
        Beam,
        BestOfN,
        Cascade,
        Decompose,
        DeepConf,
        FirstFinish,
        Knockout,
        Rebase,
        Refine,
        Single,
        SoS,
        SpawnJoin,
        TreeOfThought,
        Vote,
        WeightedVote,
    )
    from langchain_pareto.strategies.answers import AnswerFormat
    from langchain_pareto.strategies.judge import JudgeCompare, JudgeScore, JudgeVote
    from langchain_pareto.strategies.process_reward import ProcessReward, RewardFormat
    from langchain_pareto.strategies.scorers import MeanConfidence, MeanLogprob
    from langchain_pareto.strategies.steps import Steps
    from langchain_pareto.strategies.verifier import Verifier

__all__ = [
    "DVTS",
    "MCTS",
    "Account",
    "AnswerFormat",
    "Auto",
    "Beam",
    "BestOfN",
    "BigLittle",
    "Budget",
    "BudgetError",
    "BudgetExceeded",
    "BudgetMiddleware",
    "Cascade",
    "ChatPareto",
    "Cost",
    "Decompose",
    "DeepConf",
    "FirstFinish",
    "JudgeCompare",
    "JudgeScore",
    "JudgeVote",
    "Knockout",
    "Lookup",
    "MeanConfidence",
    "MeanLogprob",
    "ParetoError",
    "Plain",
    "ProcessReward",
    "Rebase",
    "Refine",
    "Report",
    "RewardFormat",
    "Rounds",
    "Single",
    "SoS",
    "SpawnJoin",
    "Speculative",
    "Steps",
    "StrategyRunnable",
    "TreeOfThought",
    "Verifier",
    "Vote",
    "WeightedVote",
    "current_account",
    "run_budget",
]

_homes = {
    "backends.decoders": ("BigLittle", "Lookup", "Plain", "Rounds", "Speculative"),
    "budget": ("Budget", "Cost"),
    "chat_model": ("ChatPareto",),
    "errors": ("BudgetError", "BudgetExceeded", "ParetoError"),
    "ledger": ("Account", "current_account", "run_budget"),
    "agents.middleware": ("BudgetMiddleware",),
    "reports.report": ("Report",),
    "runnable": ("StrategyRunnable",),
    "strategies": (
        "Auto",
        "Beam",
        "BestOfN",
        "Cascade",
        "DVTS",
        "Decompose",
        "DeepConf",
        "FirstFinish",
        "Knockout",
        "MCTS",
        "Rebase",
        "Refine",
        "Single",
        "SoS",
        "SpawnJoin",
        "TreeOfThought",
        "Vote",
        "WeightedVote",
    ),
    "strategies.answers": ("AnswerFormat",),
    "strategies.judge": ("JudgeCompare", "JudgeScore", "JudgeVote"),
    "strategies.process_reward": ("ProcessReward", "RewardFormat"),
    "strategies.scorers": ("MeanConfidence", "MeanLogprob"),
    "strategies.steps": ("Steps",),
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
