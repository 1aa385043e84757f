"""
Which models of transformers the engine can run, and the one thing it must change in some of them.

Knows configurations and modules; loads nothing. What cannot be run is refused by name: state that is kept outside transformers' cache,
attention that does not go through transformers' interface, and positions that depend on the longest sequence of a batch.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from langchain_pareto.backends.sharing import Undo
from langchain_pareto.errors import CapabilityError, ModelLoadError, SettingError

# what transformers' cache calls them; a layer of "hybrid" has attention too, one of "moe" or "mlp" has neither
_STATES = {"conv", "hybrid", "hybrid_sliding", "linear_attention"}
_LAYERS = {"full_attention", "sliding_attention", "moe", "mlp"} | _STATES
_PINNED = "pinned"  # a rope type that transformers does not update
_HINT = "Use a model whose layers are full or sliding attention, or recurrent with transformers' own cache."


def has_states(config: PreTrainedConfig) -> bool:
    """Whether layers carry a state from token to token, some or all."""
    return not _STATES.isdisjoint(getattr(config.get_text_config(), "layer_types", None) or ())


def check_config(config: PreTrainedConfig, name: str) -> None:
    """Raises CapabilityError for what the engine cannot run, ModelLoadError for what is no causal language model."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        msg = f"{name} is an encoder-decoder model ({config.model_type}), and the engine runs decoders"
        raise CapabilityError(msg, hint="Use a causal language model.")
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYERS)
    if others:
        msg = (
            f"{name} ({text.model_type}) has layers that the engine cannot run: {', '.join(others)}"
        )
        raise CapabilityError(msg, hint=_HINT)
    for rope in _ropes(text).values():
        if "dynamic" in str(rope.get("rope_type", "")):
            msg = f"{name} ({text.model_type}) has dynamic rope: its positions depend on the longest sequence of a batch"
            raise CapabilityError(
                msg, hint="Use rope_type 'yarn', 'linear' or 'longrope', or none."
            )
    known = AutoModelForCausalLM._model_mapping  # noqa: SLF001 - the only table of classes there is
    if type(config) in known:
        cls = known[type(config)]
        assert isinstance(cls, type), "one class a configuration, as for all causal models"
        _check_class(cls, config, name)
    elif not getattr(config, "auto_map", None):
        msg = f"{name} is no causal language model: transformers has none for {config.model_type!r} ({config.architectures})"
        raise ModelLoadError(msg, hint="Give a model that generates text.")


def check_model(model: PreTrainedModel, name: str) -> None:
    """Raises CapabilityError for a loaded model that the engine cannot run."""
    _check_class(type(model), model.config, name)
    if model.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        msg = f"{name} ({type(model).__name__}) gives no logits of tokens"
        raise CapabilityError(msg, hint="Load it with AutoModelForCausalLM.")


def unwrap(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model in a PEFT wrapper, whose adapters are part of it; any other model is itself."""
    configs = getattr(model, "peft_config", None)
    base = getattr(model, "get_base_model", None)
    if isinstance(configs, Mapping) and callable(base):
        for kind in (c for c in configs.values() if getattr(c, "is_prompt_learning", False)):
            msg = f"{type(kind).__name__} learns a prompt outside the model, which the engine does not see"
            raise CapabilityError(msg, hint="Use adapters in the model, such as LoRA.")
        model = base()
    if not isinstance(model, PreTrainedModel):
        msg = f"a model is a path, a hub id or a model of transformers, not {type(model).__name__}"
        raise SettingError(msg)
    return model


def _check_class(cls: type[PreTrainedModel], config: PreTrainedConfig, name: str) -> None:
    states = has_states(config)
    if (cls._is_stateful or states) and not (states and _caches_states(cls)):
        msg = f"{name} ({cls.__name__}) keeps a recurrent state where the engine cannot fork it"
        raise CapabilityError(msg, hint=_HINT)
    # the flag is not set for hybrids whose attention can be replaced all the same: the runner looks at it
    if not cls._supports_attention_backend and not states:
        msg = f"{name} ({cls.__name__}) does not let its attention be replaced"
        raise CapabilityError(
            msg, hint="Use a model that supports transformers' AttentionInterface."
        )


def _caches_states(cls: type[PreTrainedModel]) -> bool:
    """Whether the states are in transformers' own cache, as far as the source tells; the runner looks at the model itself."""
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (KeyError, OSError, TypeError):
        return True
    return "update_conv_state" in source or "update_recurrent_state" in source


# --- longrope: two sets of factors, of which transformers picks one by the longest sequence in the batch


def _ropes(config: PreTrainedConfig) -> dict[str | None, Mapping[str, object]]:
    """Rope parameters by layer type, under None where all layers have the same."""
    given = getattr(config, "rope_parameters", None) or {}
    by_layer = {layer: value for layer, value in given.items() if isinstance(value, Mapping)}
    return by_layer or ({None: given} if given else {})


def _long_ropes(config: PreTrainedConfig) -> dict[str | None, int]:
    """The length in tokens from which each longrope takes its long factors."""
    text = config.get_text_config()
    return {
        layer: int(str(rope["original_max_position_embeddings"]))
        for layer, rope in _ropes(text).items()
        if rope.get("rope_type") == "longrope"
    }


def needs_long_rope(config: PreTrainedConfig, max_context: int | None) -> bool:
    """Whether sequences of `max_context` tokens (by default of all that the model takes) need a longrope's long factors."""
    context = (
        int(config.get_text_config().max_position_embeddings or 0) if _long_ropes(config) else 0
    )
    context = context if max_context is None else min(context, max_context)
    return any(context > original for original in _long_ropes(config).values())


def pin_long_rope(model: PreTrainedModel, name: str) -> Iterator[Undo]:
    """Makes every longrope use its long factors whatever the batch holds; gives the undo of each module."""
    originals = _long_ropes(model.config)
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        kinds = kind if isinstance(kind, dict) else {None: kind}
        if "longrope" not in kinds.values():
            continue
        far = max(originals.values())
        for layer in kinds:
            _rotate(
                module, [0, far], layer, model.device
            )  # the module's own code fills in its long factors
        pinned = {k: _PINNED if v == "longrope" else v for k, v in kinds.items()}
        module.rope_type = pinned if isinstance(kind, dict) else _PINNED  # type: ignore[assignment]
        yield partial(setattr, module, "rope_type", kind)
        for layer in kinds:
            near, both = (_rotate(module, at, layer, model.device) for at in ([3], [3, far]))
            if not torch.equal(near[0, 0], both[0, 0]):
                msg = f"{name} ({type(module).__name__}) has longrope of a kind that cannot be held at its long factors"
                hint = f"Give max_context={min(originals.values())} or less, where its short ones hold."
                raise CapabilityError(msg, hint=hint)


@torch.no_grad()
def _rotate(
    module: torch.nn.Module, positions: list[int], layer: str | None, device: torch.device
) -> torch.Tensor:
    """The cosines for some positions: (1, positions, width)."""
    at = torch.tensor([positions], device=device)
    extra = {} if layer is None else {"layer_type": layer}
    cosines: torch.Tensor = module(torch.zeros(1, device=device), at, **extra)[0]
    return cosines
