"""
How far a draw goes: to the end of a text or of a step, before a mark, or for some tokens.

Knows what a backend can be told to stop at; knows no branch and no money.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from langchain_pareto.backends.base import Extension, Stop
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.strategies.marks import Before
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import Thought

ANSWER: Literal["answer"] = "answer"
STEP: Literal["step"] = "step"
Until = Literal["answer", "step"] | int | Before


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What ends one draw below a thought."""

    tokens: int  # at most
    counted: bool = False  # whether all of them are a whole draw, not one that was cut off
    text: bool = False  # whether it is all the rest of a text, and no piece of it
    step: str | None = None  # a regular expression
    strings: tuple[str, ...] = ()
    special: Mapping[int, str] = field(default_factory=dict)  # marks by their one token
    marks: tuple[str, ...] = ()
    before: str = ""  # the end of the text above, in which one of the strings may begin

    def stop(self, tokens: int, parts: Sequence[Extension]) -> Stop:
        """The same for up to `tokens` more tokens, after these parts of the draw."""
        return Stop(
            tokens,
            self.strings,
            frozenset(self.special),
            step=self.step,
            keep=not self.text,
            before=self.before + "".join(part.text for part in parts),
        )

    def mark(self, drawn: Extension) -> str | None:
        """The mark that ended a draw, None where something else did."""
        last = self.special.get(drawn.tokens[-1], drawn.stop) if drawn.tokens else None
        return last if last in self.marks else None

    def is_whole(self, drawn: Extension) -> bool:
        """Whether a draw came to the end of what was asked for."""
        full = self.counted and drawn.finish == "length" and len(drawn.tokens) == self.tokens
        return full or drawn.finish in ("eos", "stop", "step")


def ends(
    until: Until, above: Thought, cap: int, *, settings: Settings, tokenizer: Tokenizer
) -> Ends:
    """What ends a draw of at most `cap` tokens below the thought `above`."""
    stops, steps = settings.stop, settings.steps
    if isinstance(until, int):
        tokens = min(cap, until)
        return Ends(tokens=tokens, counted=True, strings=stops, before=_tail(above, stops))
    if isinstance(until, Before):
        strings = stops + until.words(tokenizer)
        return Ends(
            tokens=cap,
            text=True,
            strings=strings,
            special=until.special(tokenizer),
            marks=until.marks,
            before=_tail(above, strings),
        )
    if until == ANSWER:
        return Ends(tokens=cap, text=True, strings=stops, before=_tail(above, stops))
    return Ends(
        tokens=cap if steps.tokens is None else min(cap, steps.tokens),
        counted=steps.tokens is not None,
        step=steps.end,
        strings=stops,
        before=_tail(above, stops),
    )


def before_stop(above: Thought, drawn: Extension) -> str:
    """The text of a draw below `above`, without the stop string that ended it: a step keeps its end, an answer does not."""
    if drawn.stop is None:
        return drawn.text
    begun = _tail(above, (drawn.stop,))
    return (begun + drawn.text).partition(drawn.stop)[0][len(begun) :]


def joined(parts: Sequence[Extension]) -> Extension:
    """Consecutive extensions of one branch as one."""
    first = parts[0]
    for part in parts[1:]:
        first.tokens += part.tokens
        first.text += part.text
        first.logprobs += part.logprobs
        first.entropies += part.entropies
        first.top_logprobs += part.top_logprobs
        first.usage = first.usage + part.usage  # not in place: it is the bill of the first
        first.finish, first.stop = part.finish, part.stop
    return first


def _tail(thought: Thought, strings: Sequence[str]) -> str:
    """The end of a path's text, as far as one of the strings may begin in it."""
    most = max(map(len, strings), default=0) - 1
    return thought.whole_text[-most:] if most > 0 and not thought.given else ""
