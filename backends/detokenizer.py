"""
Tokens to text, one token at a time, by the rule of texts in `tokens.py`.

Knows bytes and UTF-8; knows no vocabulary but by its tokenizer, and nothing of stops.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from langchain_pareto.backends.tokens import Tokenizer, is_text

_CONTEXT = 4  # tokens of at least one byte each: more than a character can still need


class Detokenizer:
    """Text of a token stream, as it becomes certain.

    `prefix` is what stands before the stream: all of it, or its last tokens, at least one of them visible. Only whole
    characters come out: bytes that may still be completed wait, also those that `prefix` ends with, and U+FFFD stands for
    bytes that no token can complete any more. A stream that another one continues is not flushed: the bytes that wait are
    then the first of the other's.
    """

    def __init__(self, tokenizer: Tokenizer, prefix: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._piece = tokenizer.piece
        context: list[int] = []
        for token in reversed(prefix):
            if len(context) == _CONTEXT:
                break
            if self._piece(token):
                context.insert(0, token)
        self._begun = bool(context)
        self._held = b""
        self._parts: list[str] = []
        self._window = context  # of a tokenizer that does not join: tokens decoded together
        self._read = len(context)  # how many of them are already told
        self._joins: bool = getattr(tokenizer, "joins", True)
        if self._joins:
            self._characters(b"".join(map(self._piece, context)))

    @property
    def text(self) -> str:
        """Everything that came out so far."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def push(self, token: int) -> str:
        """The text that is certain now that `token` came; "" for special tokens and parts of a character."""
        text = self._by_bytes(token) if self._joins else self._by_difference(token)
        if text:
            self._parts.append(text)
        return text

    def flush(self) -> str:
        """What still waits, with U+FFFD for what is no character."""
        if self._joins:
            text, self._held = self._held.decode("utf-8", "replace"), b""
        else:
            text, self._read = self._untold(), len(self._window)
        self._parts.append(text)
        return text

    def _by_bytes(self, token: int) -> str:
        piece = self._piece(token)
        if not self._begun and piece:
            self._begun = True
            if is_text(piece):
                return self._tokenizer.decode([token])
        return self._characters(piece)

    def _characters(self, piece: bytes) -> str:
        data = self._held + piece
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def _by_difference(self, token: int) -> str:
        if token in self._tokenizer.special_tokens:
            return ""
        self._window.append(token)
        text = self._untold()
        if not text or text.endswith("\ufffd"):
            return ""
        self._window = self._window[self._read :]
        self._read = len(self._window)
        return text

    def _untold(self) -> str:
        told = self._tokenizer.decode(self._window[: self._read])
        return self._tokenizer.decode(self._window)[len(told) :]
