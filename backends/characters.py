"""
A tokenizer without a vocabulary file: a token is a character, and the end of the text is one more.

Knows Unicode; knows no model and no chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langchain_pareto.backends.templates import NO_KWARGS, render_plain
from langchain_pareto.errors import SettingError

END = 0x110000  # the end of the text: one past the last code point


class CharacterTokenizer:
    """One token a character, with the code point as its id."""

    vocabulary = END + 1
    fingerprint = "characters"
    end_tokens = frozenset({END})
    special_tokens = frozenset({END})
    has_template = False
    template = None

    def encode(self, text: str) -> list[int]:
        """The code points of `text`."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SettingError(f"the text is not Unicode: {error}") from error
        return list(map(ord, text))

    def encode_prompt(self, text: str) -> list[int]:
        """The same: no token comes first."""
        return self.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The characters of `tokens`."""
        return b"".join(map(self.piece, tokens)).decode()

    def piece(self, token: int) -> bytes:
        """UTF-8 of one character; nothing for the end and for half characters."""
        return b"" if token >= END else chr(token).encode(errors="ignore")

    def name(self, token: int) -> str:
        """The character itself; the end of the text is "<end>"."""
        return "<end>" if token == END else self.piece(token).decode()

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] = NO_KWARGS,  # noqa: ARG002 - there is no template
        add_generation_prompt: bool = True,  # noqa: ARG002
    ) -> str:
        """The messages' contents, a line each."""
        if tools:
            raise SettingError("tools need a chat template, and this model has none")
        return render_plain(messages)
