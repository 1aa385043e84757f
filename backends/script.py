"""
What the draws of a scripted backend say, and how likely that was.

Knows lines and the order in which they are said; knows no branch, no step and no clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from langchain_pareto.backends.characters import END, CharacterTokenizer
from langchain_pareto.errors import SettingError

LOGPROB = -1.0  # nats, of every token whose line does not say


@dataclass(frozen=True, slots=True)
class Line:
    """What one draw says: `logprob` (nats) is of each of its tokens; with `ends` False it starts over until it is cut off."""

    text: str
    logprob: float = LOGPROB
    ends: bool = True


Say = str | Line | Exception  # an exception fails the draw in its first step


class Script:
    """Draw number i says `answers[i % len(answers)]`, or `answers(text, i)`."""

    def __init__(self, answers: Sequence[Say] | Callable[[str, int], Say]) -> None:
        if not callable(answers) and (isinstance(answers, str) or not answers):
            msg = f"expected a list of answers with at least one, or a function; got {answers!r}"
            raise SettingError(msg)
        self._answers = answers

    def draw(
        self, i: int, before: Sequence[int], tokenizer: CharacterTokenizer
    ) -> Iterator[tuple[int, float]]:
        """Tokens and their log-probabilities (nats) of draw number `i`, which continues the tokens `before`."""
        if callable(self._answers):
            say = self._answers(tokenizer.decode(before), i)
        else:
            say = self._answers[i % len(self._answers)]
        return _tokens(tokenizer, Line(say) if isinstance(say, str) else say)


def _tokens(tokenizer: CharacterTokenizer, say: Line | Exception) -> Iterator[tuple[int, float]]:
    """A line without an end; an exception is raised where the first token is wanted."""
    if isinstance(say, Exception):
        raise say
    tokens = tokenizer.encode(say.text)
    end = itertools.repeat(END) if say.ends else itertools.cycle(tokens or [ord(" ")])
    for token in itertools.chain(tokens, end):
        yield token, say.logprob
