"""
The tokenizer of recorded answers: tokens that name questions and samples, and have no text.

Knows ids and lengths; whatever would need a text raises NotRecorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langchain_pareto.backends.recorded_samples import HINT, Recorded, prompt_of
from langchain_pareto.backends.templates import NO_KWARGS
from langchain_pareto.errors import NotRecorded, SettingError


class RecordedTokenizer:
    """Tokens without a text: sample i is written in tokens i, and question q in tokens `samples` + q."""

    fingerprint = "recorded"
    end_tokens: frozenset[int] = frozenset()
    special_tokens: frozenset[int] = frozenset()
    has_template = False
    template = None

    def __init__(self, recorded: Recorded) -> None:
        self._samples = int(recorded.tokens.shape[1])
        self._rows = {question: row for row, question in enumerate(recorded.questions)}
        self._prompts = [prompt_of(int(tokens)) for tokens in recorded.prompts]
        self.vocabulary = self._samples + len(self._prompts)
        if len(self._rows) < len(self._prompts):
            msg = f"the samples of {recorded.model} name a question twice"
            raise SettingError(msg, hint="Join its samples in one row.")

    def row(self, prompt: Sequence[int]) -> int:
        """The question that a prompt asks; raises NotRecorded."""
        row = int(prompt[0]) - self._samples
        if not 0 <= row < len(self._prompts) or list(prompt) != self.prompt(row):
            msg = (
                f"this prompt of {len(prompt)} tokens is none of {len(self._prompts)} recorded ones"
            )
            raise NotRecorded(msg, hint=HINT)
        return row

    def prompt(self, row: int) -> list[int]:
        """The prompt that asks a question."""
        return [self._samples + row] * self._prompts[row]

    def encode_prompt(self, text: str) -> list[int]:
        """The prompt of a question by its id; raises NotRecorded."""
        if text not in self._rows:
            msg = f"{text!r:.80} is none of {len(self._prompts)} recorded questions"
            raise NotRecorded(msg, hint=HINT)
        return self.prompt(self._rows[text])

    def encode(self, text: str) -> list[int]:
        """Raises NotRecorded: no text but that of a prompt has tokens."""
        msg = f"the text {text!r:.80} has no recorded tokens"
        raise NotRecorded(msg, hint=HINT)

    def decode(self, tokens: Sequence[int]) -> str:
        """Raises NotRecorded: there is no text."""
        msg = f"{len(tokens)} recorded tokens have no text"
        raise NotRecorded(msg, hint=HINT)

    def piece(self, token: int) -> bytes:
        """Raises NotRecorded: there is no text."""
        msg = f"the recorded token {token} has no text"
        raise NotRecorded(msg, hint=HINT)

    def name(self, token: int) -> str:
        """Raises NotRecorded: there is no text."""
        msg = f"the recorded token {token} has no name"
        raise NotRecorded(msg, hint=HINT)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,  # noqa: ARG002 - nothing is rendered
        template_kwargs: Mapping[str, object] = NO_KWARGS,  # noqa: ARG002
        add_generation_prompt: bool = True,  # noqa: ARG002
    ) -> str:
        """Raises NotRecorded: a question is asked by its id."""
        msg = f"a chat of {len(messages)} messages was not recorded"
        raise NotRecorded(msg, hint="Ask a question by its id.")
