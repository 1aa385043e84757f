"""
What one call came to: the answer as an AIMessage, and the report of what was asked, chosen, spent and found.

Knows outcomes and LangChain's messages; knows no Runnable, and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata

from langchain_pareto.backends.base import Usage
from langchain_pareto.backends.thinking import THINK
from langchain_pareto.events import describe
from langchain_pareto.forms.form import Reader
from langchain_pareto.rates import Rates
from langchain_pareto.strategies.answers import split_thinking
from langchain_pareto.strategies.run import Outcome
from langchain_pareto.strategies.thoughts import Thought

if TYPE_CHECKING:
    from langchain_pareto.call import Call


@dataclass(frozen=True, slots=True)
class Reply:
    """An outcome and how to read it."""

    call: Call
    outcome: Outcome
    model: str
    seed: int
    thinking: bool  # whether the prompt had opened the think block
    reader: Reader | None = None  # of an answer that has a form

    @property
    def thought(self) -> Thought:
        """The winner."""
        assert self.outcome.answer is not None
        return self.outcome.answer.thought

    def texts(self) -> tuple[str | None, str]:
        """(reasoning, answer text) of the winner."""
        text = "".join(t.text for t in self.thought.path)
        return split_thinking(THINK + text if self.thinking else text)

    def message(self) -> AIMessage:
        """The answer as LangChain wants it."""
        reasoning, text = self.texts()
        message = AIMessage(text) if self.reader is None else self.reader.message(text)
        if reasoning is not None:
            message.additional_kwargs["reasoning_content"] = reasoning
        message.usage_metadata = self.usage()
        message.response_metadata = self.metadata(called=bool(message.tool_calls))
        return message

    def usage(self) -> UsageMetadata:
        """Everything that was computed: hidden samples count as reasoning, a reused prefix as read from the cache."""
        out = self.outcome
        shown = self.thought.length
        drawn = out.usage.new_tokens
        return UsageMetadata(
            input_tokens=out.prompt_tokens,
            output_tokens=drawn,
            total_tokens=out.prompt_tokens + drawn,
            input_token_details=InputTokenDetails(cache_read=out.cache_read),
            output_token_details=OutputTokenDetails(reasoning=max(0, drawn - shown)),
        )

    def metadata(self, *, called: bool = False) -> dict[str, object]:
        """`response_metadata`: plain JSON.

        It names no `model_provider`: agents that summarise would take the tokens of hidden samples for the length of the
        conversation.
        """
        ended = "tool_calls" if called else "stop"
        finish = ended if self.thought.finished else "length"
        return {"model_name": self.model, "finish_reason": finish, "pareto": self.report()}

    def report(self) -> dict[str, object]:
        """What was asked, chosen, spent and found."""
        out, answer = self.outcome, self.outcome.answer
        assert answer is not None
        taken = spent(out, self.call.rates)
        return {
            "strategy": out.strategy.model_dump(mode="json"),
            **({} if self.call.plan is None else {"plan": self.call.plan.against(taken)}),
            "budget": None if self.call.budget is None else str(self.call.budget),
            "spent": taken,
            "stopped_by": out.stopped_by,
            "samples": sum(not thought.given for thought in out.thoughts),
            "answer": self.thought.answer or None,
            "share": answer.share,
            **({} if not answer.figures else {"figures": dict(answer.figures)}),
            "seed": self.seed,
            "decoder": self.call.decoder.model_dump(mode="json"),
            **({} if out.usage.rounds == 0 else {"speculation": speculation(out.usage)}),
            "tree": tree(out),
        }


def spent(outcome: Outcome, rates: Rates) -> dict[str, float | int]:
    """What a run took, per resource; joules and usd where there is a rate."""
    cost = outcome.spent + rates.of_time(outcome.usage.device_seconds)
    out: dict[str, float | int] = {
        "tokens": cost.tokens,
        "seconds": round(outcome.seconds, 6),
        "flops": cost.flops,
        "memory": cost.memory,
        "calls": cost.calls,
        "device_seconds": round(outcome.usage.device_seconds, 6),
    }
    if cost.nanojoules:
        out["joules"] = cost.joules
    if cost.nanodollars:
        out["usd"] = cost.usd
    return out


def speculation(usage: Usage) -> dict[str, float | int]:
    """What guessing ahead came to; `tokens_per_round` counts the target's own token of each verification too."""
    return {
        "drafted": usage.drafted,
        "accepted": usage.accepted,
        "rounds": usage.rounds,
        "tokens_per_round": round(1 + usage.accepted / usage.rounds, 3),
    }


def tree(outcome: Outcome) -> list[dict[str, object]]:
    """The thoughts in order of drawing, each naming its parent (0 is the prompt)."""
    chosen = set(outcome.answer.thought.path) if outcome.answer is not None else set()
    return [{**describe(t), "chosen": t in chosen} for t in outcome.thoughts]
