"""
A plan: what will run, what it is expected to take and to be worth, and why nothing else was taken.

Knows numbers and words; chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from langchain_pareto.budget import Budget
from langchain_pareto.planning.catalogue import Option, described
from langchain_pareto.planning.limits import AS_MEASURED, Pace
from langchain_pareto.strategies import Strategy

_SHOWN = 6  # rejected plans that an explanation names
UNITS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "s", "joules": "J", "usd": "$"}


@dataclass(frozen=True, slots=True)
class Spend:
    """What a plan is expected to take of one resource: on average, and what 9 of 10 calls stay within."""

    mean: float
    p90: float
    limit: float | None = None

    @property
    def share(self) -> float:
        """The part of the limit that it takes on average; 0 without one."""
        return 0.0 if self.limit is None else self.mean / self.limit


@dataclass(frozen=True, slots=True)
class Quality:
    """The share of right answers that a plan is expected to give, and its 90 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """An option that was not taken, and why."""

    option: Option
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One choice. `level` is 0 without measurements and 1 with a profile; `quality` is None where no accuracy is known."""

    strategy: Strategy
    roles: Mapping[str, str] = field(default_factory=dict)
    decoder: str = "plain"
    level: int = 0
    budget: Budget | None = None
    binding: str | None = None  # the limited resource of which it takes most
    expected: Mapping[str, Spend] = field(default_factory=dict)
    quality: Quality | None = None
    source: str = "prior"  # of all that is expected
    device: str = ""  # that its model's seconds were measured on
    pace: Pace = AS_MEASURED  # of calls now; `expected` counts it
    prompt: float = 0.0  # tokens of the questions that were measured, on average
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> str | None:
        """Who answers, None for the model of the call."""
        return self.roles.get("policy")

    def as_dict(self) -> dict[str, object]:
        """Plain JSON."""
        return {
            "strategy": self.strategy.model_dump(mode="json"),
            "model": self.model,
            "roles": dict(self.roles),
            "decoder": self.decoder,
            "level": self.level,
            "binding": self.binding,
            "expected": {
                name: {
                    "mean": _rounded(spend.mean),
                    "p90": _rounded(spend.p90),
                    "limit": spend.limit,
                }
                for name, spend in self.expected.items()
            },
            "quality": None
            if self.quality is None
            else {
                "mean": round(self.quality.mean, 4),
                "low": round(self.quality.low, 4),
                "high": round(self.quality.high, 4),
            },
            "source": self.source,
            "rejected": [{"plan": str(r.option), "why": r.why} for r in self.rejected],
            "notes": list(self.notes),
        }

    def against(self, taken: Mapping[str, float]) -> dict[str, object]:
        """Plain JSON with what the run really took beside what was expected."""
        expected = {
            name: {
                "mean": _rounded(spend.mean),
                "p90": _rounded(spend.p90),
                "actual": taken.get(name),
            }
            | ({} if spend.limit is None else {"limit": spend.limit})
            for name, spend in self.expected.items()
        }
        return self.as_dict() | {"expected": expected}

    def explain(self) -> str:
        """A few lines: what was chosen, what binds, what it should take and be worth, and why others lost."""
        lines = [f"Plan: {self.title}   (from {self.source})"]
        budget = "none" if self.budget is None else str(self.budget)
        binds = "" if self.binding is None else f", of which {self.binding} bind"
        spends = ", ".join(
            f"{figure(spend.mean)} {UNITS[name]} (9 of 10 within {figure(spend.p90)})"
            for name, spend in self.expected.items()
        )
        lines.append(f"Budget: {budget}{binds}")
        if spends:
            lines.append(f"Expected: {spends}")
        if self.quality is not None:
            q = self.quality
            lines.append(f"Quality: {q.mean:.1%} right, 90 % interval {q.low:.1%} to {q.high:.1%}")
        if self.rejected:
            shown = "; ".join(f"{r.option} ({r.why})" for r in self.rejected[:_SHOWN])
            more = len(self.rejected) - _SHOWN
            lines.append(f"Not taken: {shown}" + (f"; and {more} more" if more > 0 else ""))
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)

    @property
    def title(self) -> str:
        """The choice in a short phrase."""
        if not self.roles:
            return described(self.strategy)
        return str(Option(self.strategy, self.roles)) + (
            "" if self.decoder == "plain" else f", decoded by {self.decoder}"
        )


def figure(value: float) -> str:
    """A number as people write it: three digits that count."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    digits = max(0, 3 - len(str(int(abs(value)))))
    return f"{value:,.{digits}f}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
