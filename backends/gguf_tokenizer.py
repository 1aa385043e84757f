"""
The tokenizer in a GGUF file, by llama.cpp itself.

Knows llama.cpp's vocabulary and no weights: it keeps a copy of the vocabulary alone, so that text can be read after the model is
gone. Obeys the same rule of texts as the tokenizers of transformers (`tokens.py`).
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path

from langchain_pareto.backends.llama_model import LlamaModel
from langchain_pareto.backends.templates import NO_KWARGS, render_template
from langchain_pareto.errors import CapabilityError, SettingError

_NO_VOCABULARY = 0  # of enum llama_vocab_type
_UNUSED, _CONTROL = 2, 8  # of enum llama_token_attr
_PIECE_BYTES = 64  # of a token, at first
# llama.cpp splits some vocabularies' texts by a recursive std::regex, which takes up to 350 bytes of stack a byte of text.
_LONG = 1_000  # bytes of a text that any thread has stack for
_STACK = 1_024  # bytes for each byte of a longer one
_stack_size = threading.Lock()  # it is one setting for all threads that are made


class GGUFTokenizer:
    """Text to tokens and back for one GGUF file; for any thread."""

    def __init__(self, path: Path) -> None:
        """Reads the vocabulary; raises ModelLoadError."""
        self._model = LlamaModel(path, vocab_only=True)
        self._api, self._vocab = self._model.api, self._model.vocab
        if self._api.llama_vocab_type(self._vocab) == _NO_VOCABULARY:
            msg = f"{path.name} has no vocabulary"
            raise CapabilityError(
                msg, hint="Use a GGUF file that was converted with its tokenizer."
            )
        self.metadata = metadata = self._model.metadata
        self.template: str | None = metadata.get("tokenizer.chat_template")
        self.has_template = self.template is not None
        api, vocab = self._api, self._vocab
        count = api.llama_vocab_n_tokens(vocab)
        attributes = [api.llama_vocab_get_attr(vocab, token) for token in range(count)]
        used = [token for token, attribute in enumerate(attributes) if not attribute & _UNUSED]
        self.vocabulary = 1 + max(used, default=-1)  # rows that pad the embedding are no tokens
        self.special_tokens = frozenset(t for t, a in enumerate(attributes) if a & _CONTROL)
        self.end_tokens = frozenset(t for t in used if api.llama_vocab_is_eog(vocab, t))
        self._bos = [int(api.llama_vocab_bos(vocab))] if api.llama_vocab_get_add_bos(vocab) else []
        spaced = metadata.get("tokenizer.ggml.add_space_prefix")
        kind = metadata.get("tokenizer.ggml.model")
        # SentencePiece puts a space before a text, which is none of the text's own.
        self._drops_space = kind == "llama" if spaced is None else spaced == "true"
        self._pieces: list[bytes | None] = [None] * self.vocabulary

    def __del__(self) -> None:
        if hasattr(self, "_model"):
            self._model.close()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every id's bytes, or a special token's name; as for a tokenizer of transformers."""
        digest = hashlib.sha256()
        for token in range(self.vocabulary):
            special = token in self.special_tokens
            content = self._name(token) if special else self.piece(token)
            digest.update(b"%d %d " % (special, len(content)) + content)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, none added; special tokens that are written out in it are recognised."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise SettingError(f"the text is not Unicode: {error}") from error
        return self._encode(data) if len(data) <= _LONG else self._encode_deep(data)

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a raw prompt: with the one BOS token that the model wants, if it wants one."""
        tokens = self.encode(text)
        return tokens if tokens[:1] == self._bos else self._bos + tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens` without the special ones."""
        data = b"".join(map(self.piece, tokens))
        if self._drops_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to a text that has begun; none for special and unknown tokens."""
        if not 0 <= token < self.vocabulary or token in self.special_tokens:
            return b""
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._read_piece(token)
        return known

    def name(self, token: int) -> str:
        """How the vocabulary itself writes `token`, special or not; "" for unknown tokens."""
        return self._name(token).decode("utf-8", "replace") if 0 <= token < self.vocabulary else ""

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] = NO_KWARGS,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a chat by the template in the file; without one, the messages' contents, a line each."""
        api, vocab = self._api, self._vocab
        bos, eos = (
            self._name(token).decode() if token >= 0 else ""
            for token in (int(api.llama_vocab_bos(vocab)), int(api.llama_vocab_eos(vocab)))
        )
        return render_template(
            self.template,
            messages,
            tools=tools,
            template_kwargs=template_kwargs,
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
        )

    def _encode(self, data: bytes) -> list[int]:
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            # none added at the ends, special tokens recognised
            n = self._api.llama_tokenize(self._vocab, data, len(data), buffer, room, False, True)
            if n >= 0:
                return list(buffer[:n])
            room = -n

    def _encode_deep(self, data: bytes) -> list[int]:
        """The same, on a thread whose stack is as deep as the text is long."""
        future: Future[list[int]] = Future()

        def run() -> None:
            try:
                future.set_result(self._encode(data))
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)

        with _stack_size:
            before = threading.stack_size((_STACK * len(data) // 4096 + 256) * 4096)
            try:
                thread = threading.Thread(target=run, name="pareto-encode", daemon=True)
                thread.start()
            except RuntimeError as error:
                msg = f"a text of {len(data):,} bytes is too long to be tokenized"
                raise SettingError(msg) from error
            finally:
                threading.stack_size(before)
        return future.result()

    def _read_piece(self, token: int) -> bytes:
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = self._api.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def _name(self, token: int) -> bytes:
        name: bytes = self._api.llama_vocab_get_text(self._vocab, token) or b""
        return name
