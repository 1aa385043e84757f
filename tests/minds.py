"""A model that knows what to say: a real one whose logits are moved to what a rule makes of the prompt, token by token."""

from collections.abc import Callable, Sequence

from langchain_pareto.backends.base import Branch, Logits
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.sequences import Chunk


class Mind:
    """Makes `backend` say `answer(prompt)` to every prompt; it computes all the same, and a constraint still rules."""

    def __init__(self, backend: LocalBackend, answer: Callable[[str], str]) -> None:
        self._tokenizer, self._answer = backend.tokenizer, answer
        self._open, self._step = backend.open, backend.runner.step
        self._answers = dict[tuple[int, ...], list[int]]()
        backend.open, backend.runner.step = self._opened, self._minded

    def _opened(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        branch = self._open(prompt, seed=seed)
        asked = tuple(branch.tokens)
        said = self._tokenizer.encode(self._answer(self._tokenizer.decode(asked)))
        self._answers[asked] = [*said, min(self._tokenizer.end_tokens)]
        return branch

    def _minded(self, chunks: Sequence[Chunk]) -> Logits:
        logits = self._step(chunks)
        rows, at = logits.rows.clone(), 0
        for chunk in chunks:
            tokens = tuple(chunk.sequence.tokens)
            asked = (n for n in range(len(tokens), 0, -1) if tokens[:n] in self._answers)
            length = next(asked, 0)
            answer = self._answers.get(tokens[:length], [])
            for row in range(chunk.rows):
                drawn = len(tokens) - chunk.rows + 1 + row - length
                if 0 <= drawn < len(answer):
                    rows[at + row, answer[drawn]] = 1e9
            at += chunk.rows
        return Logits(rows, logits.union)
