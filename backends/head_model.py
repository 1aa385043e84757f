"""
A reward model as one module: a body of transformers under a head of one value or two classes.

Knows where models keep their heads. Those that are published with code of their own are laid out here, and no code of a model's is
run. Knows neither files nor how texts are cut up.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model, Qwen2PreTrainedModel


class _Qwen2Reward(Qwen2PreTrainedModel):  # type: ignore[no-untyped-call]
    """Qwen2.5-Math-PRM and Qwen2.5-Math-RM, as their published code lays them out: an MLP over every token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        wide = config.hidden_size
        self.score = nn.Sequential(
            nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, config.num_labels)
        )
        self.post_init()  # type: ignore[no-untyped-call]


class _Qwen2Value(Qwen2PreTrainedModel):  # type: ignore[no-untyped-call]
    """Skywork-o1-Open-PRM, which keeps the value head of trl over every token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.v_head = nn.ModuleDict({"summary": nn.Linear(config.hidden_size, 1)})
        self.post_init()  # type: ignore[no-untyped-call]


LAYOUTS: dict[str, type[Qwen2PreTrainedModel]] = {"score": _Qwen2Reward, "v_head": _Qwen2Value}
"""What is published with code of its own, by the name of its head's weights."""


class HeadModel(PreTrainedModel):
    """A body under its head: logits are (1, rows, 2), of class 0 and class 1; those of one value are 0 and the value.

    Without a head it gives the body's last hidden states, which is what the self-check compares.
    """

    config: PreTrainedConfig
    base_model_prefix = "model"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self, config: PreTrainedConfig, body: PreTrainedModel | None = None, head: Any = None
    ) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config) if body is None else body  # type: ignore[no-untyped-call]
        self.head = None if head is None else copy.deepcopy(head).float()  # theirs stays as it is

    @classmethod
    def of(cls, model: PreTrainedModel) -> HeadModel:
        """The body of a model and its head, which is None where it is in no known place."""
        head: Any = getattr(model, "score", None) or getattr(model, "classifier", None)
        if isinstance(model, _Qwen2Value):
            head = model.v_head["summary"]
        made: HeadModel = cls(model.config, cast("PreTrainedModel", model.base_model), head).eval()  # type: ignore[no-untyped-call]
        return made

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Inside it has no head."""
        head, self.head = self.head, None
        try:
            yield
        finally:
            self.head = head

    def forward(
        self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor | None = None, **options: object
    ) -> SimpleNamespace:
        """What the head says at each token, or at those to keep."""
        hidden = self.model(input_ids=input_ids, **options).last_hidden_state
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        if self.head is None:
            return SimpleNamespace(logits=hidden)
        # in float32: in fewer bits answers that are nearly as good would be equal
        return SimpleNamespace(logits=two_classes(self.head(hidden.float())))

    def get_input_embeddings(self) -> nn.Module:
        """The body's."""
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> None:
        """It has no words to say."""

    def set_attn_implementation(
        self, attn_implementation: str | dict[Any, Any], allow_all_kernels: bool = False
    ) -> None:
        """The body's."""
        self.model.set_attn_implementation(attn_implementation, allow_all_kernels)


def two_classes(logits: torch.Tensor) -> torch.Tensor:
    """(..., labels) -> (..., 2): one value is the log-odds of class 1."""
    return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits


@torch.inference_mode()
def looks_back(headed: HeadModel, whole: PreTrainedModel | None) -> bool:
    """Whether what is said at a token depends on no later one, and is what transformers' own model says at the last."""
    last = 9 if headed.config.get_text_config().pad_token_id != 9 else 10
    one, other = [3, 5, 2, 8, 6, 4, 7, last], [3, 5, 2, 8, 6, 7, last, last]
    ids = torch.tensor([one, other], device=headed.device)
    with headed.bare():
        states = headed(input_ids=ids).logits[:, :5].float()
    rounding = 1e-4 if headed.dtype == torch.float32 else 1e-2
    if float((states[0] - states[1]).abs().max()) > rounding * float(states.abs().max()):
        return False
    if whole is None:
        return True
    ours = headed(input_ids=ids[:1]).logits[0]  # (8, 2)
    theirs = two_classes(whole(input_ids=ids[:1]).logits.float()).view(-1, 2)[-1]
    return bool((ours[-1] - theirs).abs().max() <= 0.05 * ours.abs().max())
