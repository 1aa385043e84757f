"""
Reward models with a head of one value or two classes in place of words, as the Backends that strategies use.

Knows what may be asked of one: branches are texts, and what may come next is a class. A head on a causal body is computed over the slot
pool like any other model, and branches share what they have in common; a body that looks ahead, such as BERT's, reads every text from
its beginning. Knows no format of a text, no strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from langchain_pareto.backends.base import Branch, Capabilities, Request, Task
from langchain_pareto.backends.checkpoints import find_folder
from langchain_pareto.backends.devices import find_device, find_dtype
from langchain_pareto.backends.head_loading import HeadSource
from langchain_pareto.backends.heads import PUBLISHED, Judges, find_head, writes_nothing
from langchain_pareto.backends.local_branch import LocalBranch
from langchain_pareto.backends.pretrained import read_config, read_tokenizer, wrap_tokenizer
from langchain_pareto.backends.sharing import SharedBackend, share
from langchain_pareto.backends.whole_runner import WholeRunner
from langchain_pareto.backends.wrapper import BackendWrapper
from langchain_pareto.errors import CapabilityError, SettingError


class RewardHead(BackendWrapper):
    """A reward model as strategies see it: a Backend whose branches are texts, and whose only continuations are its classes.

    `judges` is what it was made to score: each of the "steps" of a text, at the token that ends it, or whole "answers", at their last
    token. Of two classes the second is the good one; one value is the log-odds of the second (`classes` is 1), which for answers is
    the reward itself. `whole` says that it reads every text from its beginning.
    """

    def __init__(self, target: SharedBackend, *, judges: Judges, classes: int) -> None:
        super().__init__(target)
        self.judges: Judges = judges
        self.classes = classes
        self.whole = isinstance(target.runner, WholeRunner)

    @property
    def capabilities(self) -> Capabilities:
        """The target's, but that nothing is drawn step by step."""
        return replace(self.target.capabilities, step=False)

    def extend(self, branch: Branch, *_: object, **__: object) -> Task:  # noqa: ARG002 - the protocol's names
        """Raises CapabilityError: it writes nothing."""
        raise writes_nothing(self.name, f"for {self.judges}")

    def prefill(self, branch: Branch, *, deadline: float | None = None) -> Task:  # noqa: ARG002 - the protocol's names
        """Raises CapabilityError: only what goes on to write is prefilled."""
        raise writes_nothing(self.name, f"for {self.judges}")

    def score(
        self,
        branch: Branch,
        continuations: Sequence[Sequence[int]],
        *,
        deadline: float | None = None,
    ) -> Task:
        """Log-probabilities of its classes after the branch, which `[[1], [0]]` names: [[good], [bad]], nats; None past the deadline."""
        if not continuations or any(list(c) not in ([0], [1]) for c in continuations):
            msg = f"{self.name} says how likely its classes are, [0] and [1], and nothing else; asked for {list(continuations)!r:.80}"
            raise SettingError(msg)
        runner = self.target.runner
        if not isinstance(runner, WholeRunner):
            return super().score(branch, continuations, deadline=deadline)
        if isinstance(branch, LocalBranch):
            branch.check("score")
        return runner.submit(branch.tokens, [c[0] for c in continuations], deadline)

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs of a request, and the bytes of KV cache that it adds; where texts are read whole, what is known is read again."""
        if self.whole:
            request = replace(request, context=0, prefill=request.context + request.prefill)
        return super().estimate(request)


def load_head(
    model: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    memory: float | str | None = None,
    max_context: int | None = None,
    self_check: bool = True,
) -> RewardHead | None:
    """A reward model with a head, from a folder or hub id; None where it is a model of words. What the options mean is told by `loading.load`."""
    name = str(model)
    folder = find_folder(model, revision)
    architecture = find_head(folder, name)
    if architecture is None:
        return None
    config = read_config(folder, trust=False)
    if getattr(config, "is_encoder_decoder", False):
        msg = f"{name} is an encoder-decoder model ({config.model_type}), whose head is not read"
        raise CapabilityError(msg, hint="Use a reward model on a decoder or an encoder.")
    judges: Judges = "steps" if architecture.endswith("ForTokenClassification") else "answers"
    labels = config.num_labels
    if (published := PUBLISHED.get(architecture)) is not None:
        judges, labels = published.judges, published.labels
        if config.model_type != "qwen2":
            msg = f"{name} says that it is {architecture}, and has the configuration of {config.model_type!r}"
            raise CapabilityError(msg, hint="Check its config.json.")
        config.num_labels = labels
    if labels not in (1, 2):
        msg = f"{name} ({architecture}) has {labels} labels: a reward is one value, or two classes of which the second is good"
        raise CapabilityError(msg, hint="Use a reward model.")
    config.name_or_path = name
    read = read_tokenizer(folder, trust=False)
    on = find_device(device)
    pad = config.get_text_config().pad_token_id
    source = HeadSource(
        name=name,
        folder=folder,
        architecture=architecture,
        config=config,
        device=on,
        dtype=find_dtype(dtype, on),
        memory=memory,
        pad=int((read.pad_token_id or 0) if pad is None else pad),
        sep=read.sep_token_id,
    )
    target = share(
        source, lambda _: wrap_tokenizer(read, None), max_context=max_context, check=self_check
    )
    return RewardHead(target, judges=judges, classes=labels)
