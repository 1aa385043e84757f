"""
Grammars: which tokens keep a text within a grammar, by llguidance, for any tokenizer.

Knows bytes, tokens and their names; knows no model, no tool and no schema. One table of a tokenizer's bytes serves all of its
grammars, and one compiled grammar all of its texts. Text that a grammar leaves no choice about is written in the tokens that the
tokenizer itself would write it in.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

from langchain_pareto.backends.constraint import Constraint, TokenMask
from langchain_pareto.backends.tokens import Tokenizer
from langchain_pareto.errors import CapabilityError, SettingError

if TYPE_CHECKING:
    from llguidance import LLMatcher

_TABLES, _GRAMMARS, _SPELLINGS = 4, 64, 4096  # that are kept
_AROUND = ("", "\n")  # what may stand before a text without being joined to it
# Texts, regular expressions and comments, in which nothing is a name; and names.
_NAMED = re.compile(r'"(?:\\.|[^"\\])*"|(?://|#)[^\n]*|/(?:\\.|[^/\\])+/|<([^<>\s]+)>')
_IDS = re.compile(r"\[[\d,^*-]*\]")  # of tokens, as llguidance itself reads them


def has_grammars() -> bool:
    """Whether llguidance, an extra, is installed."""
    return find_spec("llguidance") is not None


def compile_grammar(tokenizer: Tokenizer, grammar: str) -> Callable[[], Constraint]:
    """Makes constraints that keep a text within `grammar`, each at its beginning; for any thread.

    `grammar` is Lark text as llguidance reads it, with `%json {...}` and `%llguidance {...}`; `<NAME>` is the special token NAME or
    <NAME>. At its end come only the tokens that end the model's turn. Raises SettingError for a grammar that is none or allows no
    text, CapabilityError without llguidance or for a tokenizer whose tokens have no bytes of their own.
    """
    table = _table_of(tokenizer)
    first = table.compile(grammar)
    return lambda: GrammarConstraint(table, first)


class GrammarConstraint:
    """A place in a grammar: what may come next there, forwards and back."""

    def __init__(
        self, table: _Table, first: LLMatcher, tokens: tuple[int, ...] = (), ended: int = 0
    ) -> None:
        """At the beginning, of which `first` is the matcher, or after `tokens` and `ended` more that end the turn."""
        self._table, self._first = table, first
        self._tokens, self._ended = list(tokens), ended
        self._mask: TokenMask | None = None
        self._matcher: LLMatcher = first.deep_copy()

    def allowed(self) -> TokenMask:
        """The tokens that may come next; raises SettingError where the vocabulary has none."""
        if self._ended:
            return self._table.ends_mask
        if self._mask is None:
            mask = TokenMask(self._matcher.compute_bitmask())
            # where nothing goes on, llguidance gives the end tokens, whether or not the text is whole
            if self._matcher.is_error() or self._stuck:
                msg = f"no token of the vocabulary goes on with the grammar after {self._text}: {_reason(self._matcher)}"
                hint = "Widen the grammar there, or take a model whose tokens can write it."
                raise SettingError(msg, hint=hint)
            self._mask = mask
        return self._mask

    def forced(self) -> list[int]:
        """The tokens that must come next, up to the first choice or the end of the text: each is all that is allowed in its place."""
        return [] if self._ended else list(self._matcher.compute_ff_tokens())

    def advance(self, token: int) -> None:
        """Consumes one token; raises SettingError, and stays where it is, for one that is not allowed."""
        ends = token in self._table.ends
        if self._ended or (ends and self._matcher.is_accepting()):
            if not ends:
                raise self._refused(token)
            self._ended += 1
            return
        if not 0 <= token < len(self._table.pieces):
            raise self._refused(token)
        if not self._matcher.consume_token(token):
            self._replay()  # a matcher that refused a token is of no more use
            raise self._refused(token)
        self._tokens.append(token)
        self._mask = None

    def rollback(self, n: int) -> None:
        """Takes the last `n` tokens back; raises SettingError where there were fewer."""
        if not 0 <= n <= len(self._tokens) + self._ended:
            msg = f"{n} tokens cannot be taken back of {len(self._tokens) + self._ended}"
            raise SettingError(msg)
        ended = min(n, self._ended)
        self._ended -= ended
        n -= ended
        if n == 0:
            return
        taken, self._tokens = self._tokens[-n:], self._tokens[:-n]
        self._mask = None
        # llguidance takes back neither end tokens within a grammar nor what a `stop=` matched
        if not self._table.ends.isdisjoint(taken) or not self._matcher.rollback(n):
            self._replay()

    def fork(self) -> GrammarConstraint:
        """An independent copy."""
        copy = GrammarConstraint(self._table, self._matcher, tuple(self._tokens), self._ended)
        copy._first, copy._mask = self._first, self._mask
        return copy

    @property
    def complete(self) -> bool:
        """Whether the text so far may end here."""
        return self._ended > 0 or self._matcher.is_accepting()

    @property
    def _stuck(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_accepting()

    @property
    def _text(self) -> str:
        text = b"".join(self._table.pieces[token] for token in self._tokens)
        return repr(text.decode("utf-8", "replace")[-40:])

    def _refused(self, token: int) -> SettingError:
        msg = f"the grammar does not allow token {token} after {self._text}"
        return SettingError(msg, hint="Draw only tokens of what `allowed` gives.")

    def _replay(self) -> None:
        self._matcher, self._mask = self._first.deep_copy(), None
        for token in self._tokens:
            self._matcher.consume_token(token)


class _Spelling:
    """One tokenizer's tokens in bytes, and texts in its tokens: what llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # a token that ends the turn must not come within a text that happens to hold its name
        special = tokenizer.special_tokens | tokenizer.end_tokens
        ids = range(tokenizer.vocabulary)
        self.names = {tokenizer.name(t): t for t in sorted(special) if t in ids}
        self.special_token_ids = sorted(self.names.values())
        self.eos_token_id = min(tokenizer.end_tokens)
        self.pieces = [b"" if t in special else tokenizer.piece(t) for t in ids]
        self._known = OrderedDict[str, list[int]]()

    @property
    def tokens(self) -> list[bytes]:
        """Every token's bytes; a special one's name."""
        tokens = list(self.pieces)
        for name, token in self.names.items():
            tokens[token] = name.encode()
        return tokens

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that has begun, as the tokenizer writes it."""
        tokens = self._known.get(text)
        if tokens is None:
            tokens = self._known[text] = self._spell(text)
            if len(self._known) > _SPELLINGS:
                self._known.popitem(last=False)
        return tokens

    def _spell(self, text: str) -> list[int]:
        data = text.encode()
        for before in _AROUND:
            tokens = self._tokenizer.encode(before + text)
            for first in range(min(3, len(tokens))):  # after a space, and what stands before
                if b"".join(map(self._piece, tokens[first:])) == data:
                    return tokens[first:]
        return list(self._longest_first(data))

    def _piece(self, token: int) -> bytes:
        return self.pieces[token] if token < len(self.pieces) else b""

    def _longest_first(self, data: bytes) -> Iterator[int]:
        """The longest token at each place, up to a byte that no token has: there the grammar ends."""
        at = 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            end = next((end for end in ends if data[at:end] in self._by_piece), None)
            if end is None:
                return
            yield self._by_piece[data[at:end]]
            at = end

    @cached_property
    def _by_piece(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.pieces) if piece}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.pieces))


class _Table:
    """One tokenizer as llguidance reads it, and the grammars compiled for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.ends, self.ends_mask = tokenizer.end_tokens, TokenMask.of(tokenizer.end_tokens)
        self._spelling = spelling = _Spelling(tokenizer)
        self.pieces = spelling.pieces
        self._ll = LLTokenizer(TokenizerWrapper(spelling), eos_token=sorted(self.ends))
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: str) -> LLMatcher:
        """The matcher at the beginning of a grammar, not to be moved; raises SettingError."""
        with self._lock:
            matcher = self._compiled.pop(grammar, None) or self._compile(grammar)
            self._compiled[grammar] = matcher
            if len(self._compiled) > _GRAMMARS:
                self._compiled.popitem(last=False)
        return matcher

    def _compile(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        text = _NAMED.sub(self._by_id, grammar)
        matcher = LLMatcher(self._ll, text, log_level=0, limits=limits)
        if matcher.is_error():
            msg = f"the grammar cannot be compiled: {_reason(matcher)}"
            hint = "Write it in llguidance's Lark syntax; of a JSON schema, leave out the keyword that is named."
            raise SettingError(msg, hint=hint)
        matcher.compute_bitmask()  # what that builds up, every copy begins with
        GrammarConstraint(self, matcher).allowed()
        return matcher

    def _by_id(self, found: re.Match[str]) -> str:
        """A special token by its id instead of its name."""
        inner = found[1]
        if inner is None or _IDS.fullmatch(inner):
            return found[0]
        names = self._spelling.names
        token = names.get(found[0], names.get(inner))
        if token is None:
            msg = f"the grammar names {found[0]}, which is no special token of this model"
            known = ", ".join(sorted(names)[:20])
            raise SettingError(msg, hint=f"Its special tokens are {known}; text stands in quotes.")
        return f"<[{token}]>"


_tables = OrderedDict[tuple[object, ...], _Table]()
_lock = threading.Lock()


def _table_of(tokenizer: Tokenizer) -> _Table:
    """The table of a tokenizer, made once for all that read tokens alike and end a turn alike."""
    if not has_grammars():
        msg = "grammars need llguidance, which is not installed"
        raise CapabilityError(msg, hint="pip install 'langchain-pareto[grammar]'")
    if not getattr(tokenizer, "joins", True):
        msg = "this tokenizer's tokens have no bytes of their own: no grammar can be kept with them"
        hint = "Take a model with a byte-level or SentencePiece tokenizer."
        raise CapabilityError(msg, hint=hint)
    if not tokenizer.end_tokens:
        msg = "this model has no token that ends its text: a text could not end with its grammar"
        raise CapabilityError(msg, hint="Take a model whose tokenizer names an end-of-text token.")
    key = (tokenizer.fingerprint, tokenizer.vocabulary, tokenizer.end_tokens)
    with _lock:
        table = _tables.pop(key, None) or _Table(tokenizer)
        _tables[key] = table
        while len(_tables) > _TABLES:
            _tables.popitem(last=False)
    return table


def _reason(matcher: LLMatcher) -> str:
    """llguidance's own words."""
    return str(matcher.get_error()).removesuffix("\n<non-verbose/>").strip()
