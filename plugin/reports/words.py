"""
A search in words: amounts with their units, why it ended, how a thought ended, what ran.

Knows English and units; knows neither terminals nor HTML.
"""

from __future__ import annotations

from collections.abc import Mapping

from langchain_pareto.budget import Budget
from langchain_pareto.errors import ParetoError
from langchain_pareto.reports.run import Node, Planned, Run

NO_ANSWER = "No answer was found in the text."
NO_TREE = "This answer does not hold its tree of thoughts."

_UNITS = {
    "flops": "FLOP",
    "memory": "B",
    "seconds": "s",
    "device_seconds": "s",
    "joules": "J",
    "usd": "$",
}
_NAMES = {"device_seconds": "on the device", "flops": "FLOPs", "usd": "dollars"}
_ENDS = {
    None: "given",
    "eos": "ended",
    "stop": "ended",
    "step": "step",
    "length": "cut off",
    "deadline": "out of time",
    "cancelled": "cancelled",
}


def amount(value: float, resource: str) -> str:
    """An amount with its unit, to three or four digits; counts in full."""
    unit = _UNITS.get(resource)
    if unit is None:
        return f"{value:,.0f}"
    if unit == "$":
        return f"${value:.4g}"
    if unit == "s":
        return f"{value:.3g} s" if abs(value) < 100 else f"{value:,.0f} s"
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} E{unit}"


def resource_name(resource: str) -> str:
    """A resource as people call it."""
    return _NAMES.get(resource, resource)


def counted(number: int, noun: str) -> str:
    """ "1 thought", "2 thoughts"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def dropped(run: Run, drawn: int) -> str | None:
    """What was paid beyond the `drawn` tokens of thoughts: draws that were cancelled once there was an answer; None where there was nothing."""
    more = int(run.spent.get("tokens", 0)) - drawn
    if more <= 0 or not drawn:
        return None
    return f"{counted(more, 'more token')} of what was cancelled before its end"


def score(value: float) -> str:
    """A score in three digits after the point; what is very large or small, in three digits that count."""
    plain = value == 0 or 0.0005 <= abs(value) < 1000
    return _minus(f"{value:.3f}" if plain else f"{value:.3g}")


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def ending(node: Node) -> str:
    """How a thought ended."""
    return _ENDS.get(node.finish, str(node.finish))


def limits(run: Run) -> dict[str, float]:
    """What may be spent at most, per resource; empty for a budget that cannot be read."""
    if run.budget is None:
        return {}
    try:
        budget = Budget.parse(run.budget)
    except ParetoError:
        return {}
    set_ = budget.model_dump(exclude_none=True, exclude={"on_limit"})
    return {name: float(value) for name, value in set_.items()}


def stopped(run: Run) -> str:
    """Why the search ended, in a sentence."""
    by = run.stopped_by
    if by == "done":
        return "The search ended by itself."
    if by == "length":
        return "The answer was cut off: it is as long as an answer may be."
    limit, taken = limits(run).get(by), run.spent.get(by)
    told = f"The search stopped at its limit of {resource_name(by)}"
    if limit is None or taken is None:
        return f"{told}."
    return f"{told}: {amount(taken, by)} of {amount(limit, by)} spent."


def strategy(run: Run) -> str:
    """The strategy in a short phrase; the kind alone for one that this version does not know."""
    from langchain_pareto.planning.catalogue import described
    from langchain_pareto.strategies import parse_strategy

    try:
        told = described(parse_strategy(run.strategy)).rstrip(",").removesuffix("()")
    except (ParetoError, ValueError):
        told = str(run.strategy.get("kind", "unknown"))
    return told.replace("_", " ")


def kind(settings: Mapping[str, object] | None) -> str | None:
    """The kind of a strategy or a decoder, None where it is not told."""
    return None if settings is None else str(settings.get("kind", "unknown"))


def speculation(figures: Mapping[str, float]) -> str:
    """How well the guesses of a decoder went."""
    drafted, accepted = figures.get("drafted", 0), figures.get("accepted", 0)
    told = f"{accepted / max(1, drafted):.0%} of {drafted:,.0f} guesses right"
    per_round = figures.get("tokens_per_round")
    return told if per_round is None else f"{told}, {per_round:.2f} tokens a verification"


def facts(node: Node) -> dict[str, str]:
    """What is known of a thought, by name, in the order in which it is shown."""
    out = {"tokens": f"{node.tokens:,}"}
    if node.score is not None:
        out["score"] = score(node.score)
    if node.mean_logprob is not None:
        out["mean logprob"] = _minus(f"{node.mean_logprob:.3f}")
    if node.seconds is not None:
        out["seconds"] = f"{node.seconds:.3g}"
    out["ended"] = ending(node)
    if node.role != "policy":
        out["role"] = node.role
    return out


def of_plan(plan: Planned) -> dict[str, str]:
    """What is known of a plan, by name, in the order in which it is shown."""
    out = {"planned from": plan.source}
    if (quality := plan.quality) is not None:
        low, high = f"{quality.low:.1%}", f"{quality.high:.1%}"
        out["expected quality"] = f"{quality.mean:.1%} right, 90 % interval {low} to {high}"
    if plan.binding is not None:
        out["binding resource"] = resource_name(plan.binding)
    return out | {f"role {role}": model for role, model in plan.roles.items()}


def not_taken(plan: Planned) -> str:
    """How many plans lost."""
    return f"{counted(len(plan.rejected), 'plan')} not taken"


def one_line(text: str, most: int, *, newline: str = " ") -> str:
    """The text in one line of at most `most` characters, lines joined by `newline`."""
    text = text.strip()
    lines = (" ".join(line.split()) for line in text[: 4 * most].splitlines())
    line = newline.join(line for line in lines if line)
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 1]}…"
