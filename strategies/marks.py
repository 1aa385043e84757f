"""
Marks in a text, and text that the host puts in their place.

Knows how texts and tokens correspond; knows no branch and no draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_pareto.backends.detokenizer import Detokenizer
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.strategies.thoughts import Thought


@dataclass(frozen=True, slots=True)
class Before:
    """Draw to the text's own end, or before the first of `marks`: words or special tokens, which are drawn and no part of the text."""

    marks: tuple[str, ...]

    def words(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """The marks that are written as text."""
        special = self.special(tokenizer).values()
        return tuple(mark for mark in self.marks if mark not in special)

    def special(self, tokenizer: Tokenizer) -> dict[int, str]:
        """The marks that are one special token, which no text shows."""
        encoded = [(tokenizer.encode(mark), mark) for mark in self.marks]
        return {
            tokens[0]: mark
            for tokens, mark in encoded
            if len(tokens) == 1 and tokens[0] in tokenizer.special_tokens
        }


def split_at_end(
    tokenizer: Tokenizer, before: Sequence[int], thought: Thought
) -> tuple[Sequence[int], str]:
    """The tokens of a thought up to the end of its text, and the rest of that text where its end lies within a token.

    `before` are the tokens that it continues.
    """
    if thought.given:
        return thought.tokens, ""
    told, length, kept, done = Detokenizer(tokenizer, before), 0, 0, 0
    for i, token in enumerate(thought.tokens, 1):
        piece = told.push(token)
        length += len(piece)
        if length > len(thought.text):
            break
        if piece:
            kept, done = i, length
    return thought.tokens[:kept], thought.text[done:]


def encode_after(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text that goes on after another: without the space that some tokenizers put first."""
    alone, both = tokenizer.encode("\n"), tokenizer.encode("\n" + text)
    return both[len(alone) :] if both[: len(alone)] == alone else tokenizer.encode(text)


def decode_after(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that `tokens` add to the tokens `before`."""
    told = Detokenizer(tokenizer, before)
    return "".join(map(told.push, tokens)) + told.flush()
