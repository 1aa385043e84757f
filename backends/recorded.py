"""
A Backend that gives recorded answers again, so that a real run can be made over them without a model.

Knows recorded samples as arrays, the shape of the model that drew them, and the order in which the samples of a question are met. It
has lengths, classes of answers and likelihoods, but no texts: whatever is not a whole answer to a recorded question raises NotRecorded.
Usage is what an engine would count. Its thread is its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from langchain_pareto.backends.base import Branch, ModelSpec, Sampling, Stop
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.backends.deviceless import Deviceless
from langchain_pareto.backends.keys import root_key
from langchain_pareto.backends.recorded_branch import RecordedBranch, Root
from langchain_pareto.backends.recorded_samples import (
    Recorded,
    length_of,
    likelihood,
    not_recorded,
    order,
    text_of,
)
from langchain_pareto.backends.recorded_task import RecordedPrefill, RecordedTask
from langchain_pareto.backends.recorded_tokenizer import RecordedTokenizer


class RecordedBackend(Deviceless):
    """One model whose draw number i below a question gives that question's recorded sample `order(question, seed, samples)[i]`.

    A prompt is a question's id, or the tokens that `tokenizer.encode_prompt` makes of it. A sample that is cut off says nothing. By
    default a draw is done before its call returns; with `manual`, draws wait for `step`, in which each has one token more: side by
    side, as an engine does it.
    """

    def __init__(self, recorded: Recorded, spec: ModelSpec, *, manual: bool = False) -> None:
        samples = int(recorded.tokens.shape[1])
        super().__init__(recorded.model, spec, sequences=samples, score="none")
        self.tokenizer = RecordedTokenizer(recorded)
        self.live = list[RecordedTask]()
        self._recorded = recorded
        self._samples = samples
        self._manual = manual

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root; raises NotRecorded for what is no recorded question."""
        self.check_open()
        tokens = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        self.check_prompt(tokens)
        row = self.tokenizer.row(tokens)
        self.check_length(len(tokens))
        samples = order(self._recorded.questions[row], seed, self._samples)
        return RecordedBranch(self, Root(row, samples, len(tokens)), tokens, root_key(seed, tokens))

    def extend(
        self,
        branch: Branch,
        sampling: Sampling,  # noqa: ARG002 - the samples were drawn before
        stop: Stop,
        *,
        stats: bool = False,  # noqa: ARG002 - they cost nothing
        deadline: float | None = None,
        constraint: Constraint | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> RecordedTask:
        """Gives the next recorded sample of the branch's question, up to `stop.max_tokens`."""
        branch = self._own(branch)
        with branch.idle("extend"):
            self._check_whole(branch, stop, constraint)
            most = self.most(branch, stop)
            sample = branch.root.next_sample(self._recorded.questions[branch.root.row])
        task = RecordedTask(branch, sample, most, deadline, on_text)
        self.live.append(task)
        if not self._manual:
            task.step(most)
        return task

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> RecordedPrefill:
        """Computes all but the last token of a prompt, for the children to share; the future gives whether it got there."""
        branch = self._own(branch)
        with branch.idle("prefill"):
            if not branch.fresh:
                raise not_recorded("how a text goes on that was drawn before")
            task = RecordedPrefill(branch, deadline)
        self.charge(task.usage)
        return task

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,  # noqa: ARG002 - it never starts
    ) -> NoReturn:
        """Raises NotRecorded: nobody knows how likely anything else was."""
        with self._own(branch).idle("score"):
            raise not_recorded(f"how likely {len(continuations)} continuations are")

    def step(self, n: int = 1) -> None:
        """Every live draw has `n` more tokens, or ends."""
        for _ in range(n):
            for task in list(self.live):
                task.step()

    def close(self) -> None:
        """Ends every draw where it is; twice is once."""
        super().close()
        for task in list(self.live):
            task.cancel()

    # --- for tasks

    def length(self, row: int, sample: int) -> int:
        """Tokens of a sample."""
        return length_of(int(self._recorded.tokens[row, sample]))

    def text(self, row: int, sample: int) -> str:
        """The text of a sample."""
        return text_of(int(self._recorded.answers[row, sample]))

    def logprob(self, row: int, sample: int) -> float | None:
        """The log-probability of each of its tokens, None where that is not recorded."""
        logprobs = self._recorded.logprobs
        return None if logprobs is None else likelihood(float(logprobs[row, sample]))

    def end(self, task: RecordedTask) -> None:
        """The draw has ended: it is on the meter."""
        self.charge(task.usage)
        self.live.remove(task)

    def _check_whole(
        self, branch: RecordedBranch, stop: Stop, constraint: Constraint | None
    ) -> None:
        """Raises NotRecorded unless a whole answer is asked for, from the prompt to its own end."""
        asked = {
            "a draw below a draw": not branch.fresh,
            "a step, or some tokens of a text": stop.keep or stop.step is not None,
            "a text that ends at a stop string or at a mark": bool(stop.strings or stop.tokens),
            "a text that goes on after its end": not stop.eos,
            "a text under a constraint": constraint is not None,
        }
        for what, wanted in asked.items():
            if wanted:
                raise not_recorded(what)

    def _own(self, branch: Branch) -> RecordedBranch:
        self.check_open()
        return self.own(branch, RecordedBranch)
