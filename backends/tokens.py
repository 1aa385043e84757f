"""
Text to tokens and back.

Knows vocabularies, bytes and UTF-8; `templates.py` renders chats, and `detokenizer.py` reads a stream of tokens. Knows no model and no
device, and loads no transformers: a `HFTokenizer` is given one of its tokenizers.

A text is the first visible token as `decode` shows it alone, followed by the raw bytes of the others. Both `decode` and
`Detokenizer` follow this rule, so streamed text equals decoded text also where a tokenizer drops the first token's space, and
where random bytes are no UTF-8.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from langchain_pareto.backends.templates import NO_KWARGS, render_template
from langchain_pareto.errors import SettingError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_ANCHOR = "a"  # a token text whose neighbours are looked at
_SAMPLE = 64  # tokens on which a decoder is tried

_END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_turn>",
    "<turn|>",
    "</s>",
    "<|return|>",
    "<|call|>",
)


class Tokenizer(Protocol):
    """Text to tokens and back, for one vocabulary."""

    @property
    def vocabulary(self) -> int:
        """One more than the greatest token id that has a text."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of every token's id and bytes: equal for two models whose tokens can be exchanged."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens with which the model ends its turn or its text."""
        ...

    @property
    def special_tokens(self) -> frozenset[int]:
        """Tokens that are control, not text."""
        ...

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        ...

    @property
    def template(self) -> str | None:
        """The text of the chat template, of the default one where the model has several; None without one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, none added; special tokens that are written out in it are recognised."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a prompt that was not rendered by a template: with the tokenizer's own first token, if it has one."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens` without the special ones; spaces are never cleaned up."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to a text that has begun; none for special and unknown tokens."""
        ...

    def name(self, token: int) -> str:
        """How the vocabulary itself writes `token`, special or not; "" for unknown tokens."""
        ...

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] = NO_KWARGS,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a chat; messages have a `role` and a text `content`."""
        ...


class HFTokenizer:
    """A transformers tokenizer, fast or slow; `eos` is what the model's generation config names.

    A token's bytes are read off byte-level and `<0x0A>` tokens, and otherwise off what the tokenizer's own decoder puts between
    two neighbours. `joins` says whether that agreed with the tokenizer on a sample of its tokens; where it did not, text is the
    difference of two calls to the tokenizer's `decode`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, eos: int | Collection[int] | None = None
    ) -> None:
        self._hf = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.vocabulary = 1 + max(vocabulary.values())
        self._names: list[str | None] = [None] * self.vocabulary
        for name, token in vocabulary.items():
            self._names[token] = name
        self._added = {token: added.content for token, added in _added(tokenizer).items()}
        flagged = {token for token, added in _added(tokenizer).items() if added.special}
        self.special_tokens = frozenset(flagged | set(tokenizer.all_special_ids))
        self.end_tokens = self._find_ends(eos)
        self.response_template: object = getattr(tokenizer, "response_template", None)
        # what stands around a call is text to whoever reads calls by the response template
        self.special_tokens -= self._find_marks() - self.end_tokens
        self.has_template = bool(tokenizer.chat_template)

        self._alphabet = _byte_alphabet(tokenizer)
        self._byte_fallback = "<0x00>" in vocabulary and "<0xFF>" in vocabulary
        self._before = tokenizer.convert_tokens_to_string([_ANCHOR])
        self._after = tokenizer.convert_tokens_to_string([_ANCHOR, _ANCHOR])[len(self._before) :]
        self._pieces: list[bytes | None] = [None] * self.vocabulary  # filled on first use
        self.joins = self._agrees()

        alone = tokenizer.encode(_ANCHOR, add_special_tokens=True)
        self._bos = [tokenizer.bos_token_id] if alone[:1] == [tokenizer.bos_token_id] else []

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every id's bytes, or a special token's name."""
        digest = hashlib.sha256()
        for token, name in enumerate(self._names):
            special = token in self.special_tokens
            content = (name or "").encode() if special else self.piece(token)
            digest.update(b"%d %d " % (special, len(content)) + content)
        return digest.hexdigest()

    @property
    def template(self) -> str | None:
        """The text of the chat template, of the default one where the model has several; None without one."""
        template = self._hf.chat_template
        if isinstance(template, Mapping):
            template = template.get("default", next(iter(template.values()), None))
        return template or None

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, none added; special tokens that are written out in it are recognised."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SettingError(f"the text is not Unicode: {error}") from error
        return list(self._hf.encode(text, add_special_tokens=False, verbose=False))

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a raw prompt: with the one BOS token that the tokenizer itself would add, if it adds one."""
        tokens = self.encode(text)
        return tokens if tokens[:1] == self._bos else self._bos + tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens` without the special ones; spaces are never cleaned up."""
        return self._join(tokens) if self.joins else self._hf_decode(tokens)

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to a text that has begun; none for special and unknown tokens."""
        if token >= self.vocabulary:  # rows that pad the model's embedding
            return b""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def name(self, token: int) -> str:
        """How the vocabulary itself writes `token`, special or not; "" for unknown tokens."""
        return self._names[token] or "" if 0 <= token < self.vocabulary else ""

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] = NO_KWARGS,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a chat by the model's template; without one, the messages' contents, a line each."""
        template = None
        if self.has_template:
            template = self._hf.get_chat_template(
                tools=[dict(tool) for tool in tools] if tools else None
            )
        return render_template(
            template,
            messages,
            tools=tools,
            template_kwargs={**self._hf.special_tokens_map, **template_kwargs},
            bos_token=str(self._hf.bos_token or ""),
            eos_token=str(self._hf.eos_token or ""),
            add_generation_prompt=add_generation_prompt,
        )

    def response_parser(self) -> Any:
        """What reads an answer by the response template, which there is; raises whatever a broken one raises."""
        return self._hf.get_response_parser(
            prefix=""
        )  # the prompt's part of it is told apart before

    def _find_ends(self, eos: int | Collection[int] | None) -> frozenset[int]:
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        if self._hf.eos_token_id is not None:
            ends.add(self._hf.eos_token_id)
        turns = set(_END_OF_TURN)
        if (
            "<|return|>" not in self._added.values()
        ):  # Harmony's <|end|> ends a channel, Phi's a turn
            turns.add("<|end|>")
        ends |= {token for token, content in self._added.items() if content in turns}
        return frozenset(ends)

    def _find_marks(self) -> frozenset[int]:
        """Added tokens that the fields of the response template name, as they are or in a pattern."""
        spec = self.response_template
        texts = [*_texts(spec.get("fields"))] if isinstance(spec, Mapping) else []
        return frozenset(
            token
            for token, content in self._added.items()
            if any(content in text or re.escape(content) in text for text in texts)
        )

    def _read_piece(self, token: int) -> bytes:
        name = self._names[token]
        if name is None or token in self.special_tokens:
            return b""
        if self._alphabet is not None:
            if token not in self._added and self._alphabet.keys() >= set(name):
                return bytes(self._alphabet[symbol] for symbol in name)
            return name.encode()
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        text = self._hf.convert_tokens_to_string([_ANCHOR, name, _ANCHOR])
        return text.removeprefix(self._before).removesuffix(self._after).encode("utf-8", "replace")

    def _join(self, tokens: Sequence[int]) -> str:
        visible = [token for token in tokens if self.piece(token)]
        if not visible:
            return ""
        rest = b"".join(map(self.piece, visible[1:]))
        return (self._first(visible[0]) + rest).decode("utf-8", "replace")

    def _first(self, token: int) -> bytes:
        piece = self.piece(token)
        name = self._names[token]
        if self._alphabet is not None or name is None or not is_text(piece):
            return piece
        text = self._hf.convert_tokens_to_string([name, _ANCHOR])
        return text.removesuffix(self._after).encode()

    def _agrees(self) -> bool:
        ordinary = [
            token
            for token, name in enumerate(self._names)
            if name and token not in self._added and not _BYTE_TOKEN.fullmatch(name)
        ]
        stride = 1 + len(ordinary) // _SAMPLE
        sample = [t for t in ordinary[::stride] if self.piece(t) and is_text(self.piece(t))]
        sequences = [sample, sample[::-1], *([token] for token in sample)]
        return all(self._join(tokens) == self._hf_decode(tokens) for tokens in sequences)

    def _hf_decode(self, tokens: Sequence[int]) -> str:
        visible = [token for token in tokens if token not in self.special_tokens]
        known = [token for token in visible if token < self.vocabulary]
        return str(self._hf.decode(known, clean_up_tokenization_spaces=False)) if known else ""


def _texts(value: object) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _added(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, AddedToken]:
    added: Mapping[int, AddedToken] = tokenizer.added_tokens_decoder
    return added


def _byte_alphabet(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int] | None:
    """The symbol of each byte, where tokens are spelled in GPT-2's byte alphabet."""
    slow: Mapping[str, int] | None = getattr(tokenizer, "byte_decoder", None)
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or "ByteLevel(" not in repr(decoder):
        return slow
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


def is_text(piece: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
