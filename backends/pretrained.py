"""
What transformers reads of a folder, in silence: configuration, weights, tokenizer, and the sampling that the model's authors chose.

Knows from_pretrained and its ways of failing, all of which end as ModelLoadError or CapacityError. Never uses the network.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.checkpoints import check_tokenizer, check_weights
from langchain_pareto.backends.devices import free_bytes
from langchain_pareto.backends.tokens import HFTokenizer, Tokenizer
from langchain_pareto.errors import CapacityError, ModelLoadError

# fields of a generation config that change what is drawn and that Sampling lacks, with the value that changes nothing
_UNHONOURED: Mapping[str, object] = {
    "num_beams": 1,
    "penalty_alpha": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "diversity_penalty": 0,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
} | dict.fromkeys(
    "top_h bad_words_ids force_words_ids constraints forced_bos_token_id forced_eos_token_id suppress_tokens "
    "begin_suppress_tokens sequence_bias exponential_decay_length_penalty watermarking_config stop_strings "
    "dola_layers token_healing".split()
)
_quiet_lock = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers alone, with no progress bar and no warning: its settings are the process's, and as before afterwards."""
    with _quiet_lock:
        verbosity = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        hub_silent = are_progress_bars_disabled()
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
            if hub_silent:
                disable_progress_bars()


def _forget() -> None:
    """In a forked child, where the thread that held the lock does not exist."""
    global _quiet_lock  # noqa: PLW0603 - a fork is the one thing that makes it anew
    _quiet_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def read_config(folder: Path, trust: bool) -> PreTrainedConfig:
    """The configuration in `folder`; `trust` runs code from there."""
    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust
            )
    except Exception as error:
        msg = f"{folder / 'config.json'} is no configuration that transformers understands: {error}"
        hint = "Check the file; a new kind of model needs a newer transformers."
        raise ModelLoadError(msg, hint=hint) from error
    return config


def read_model(
    folder: Path,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    kwargs: Mapping[str, object],
) -> PreTrainedModel:
    """The model in `folder` on `device`; raises ModelLoadError where a weight is missing, which transformers would draw at random."""
    needed = check_weights(folder)
    placed: dict[str, object] = {}
    if device.type != "cpu" and find_spec("accelerate") is not None:
        placed["device_map"] = {"": device}
    placed |= kwargs
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, **placed
        )
        model, info = loaded  # its type leaves out that `output_loading_info` makes it two
        if "device_map" not in placed:
            model = model.to(device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        msg = f"the weights of {name} ({needed:,} bytes in files) do not fit on {device}"
        hint = "Use a smaller or quantised model, or free memory there."
        free = free_bytes(device)
        raise CapacityError(msg, needed=needed, free=free, kind="bytes", hint=hint) from error
    except Exception as error:
        msg = f"{name} cannot be loaded from {folder}: {error}"
        hint = "Check that its files are whole and that transformers knows the model."
        raise ModelLoadError(msg, hint=hint) from error
    lacks = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if lacks:
        msg = f"the weights in {folder} do not fit its config.json: {len(lacks)} are missing or of another shape, {lacks[0]} first"
        raise ModelLoadError(msg, hint="Download the model again; random weights would answer.")
    assert isinstance(model, PreTrainedModel)
    return model


def read_tokenizer(folder: Path, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; `trust` runs code from there."""
    check_tokenizer(folder)
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust
            )
    except Exception as error:
        msg = f"the tokenizer in {folder} cannot be read: {error}"
        hint = "Download its files again, or give tokenizer= another folder."
        raise ModelLoadError(msg, hint=hint) from error
    return tokenizer


def wrap_tokenizer(
    tokenizer: Tokenizer | PreTrainedTokenizerBase, eos: int | list[int] | None
) -> Tokenizer:
    """A tokenizer of transformers as ours, with the end tokens of the generation config; ours as it is."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    try:
        return HFTokenizer(tokenizer, eos=eos)
    except Exception as error:
        msg = f"the tokenizer {type(tokenizer).__name__} cannot be used: {error}"
        raise ModelLoadError(msg, hint="Give tokenizer= another one.") from error


def sampling_of(chosen: Mapping[str, object], name: str) -> Sampling:
    """Sampling with what the model's generation config sets; `do_sample` is the caller's to say, as in vLLM."""
    ignored = [
        f"{key}={chosen[key]!r}"
        for key, neutral in _UNHONOURED.items()
        if chosen.get(key) and chosen[key] != neutral
    ]
    if ignored:
        msg = f"{name} asks in its generation config for what the engine does not do: {', '.join(ignored)}"
        warnings.warn(msg, stacklevel=2)

    def number(key: str, default: float) -> float:
        value = chosen.get(key)
        return value if isinstance(value, int | float) else default

    return Sampling(
        temperature=float(number("temperature", 1.0)),
        top_k=int(number("top_k", 0)),
        top_p=float(number("top_p", 1.0)),
        min_p=float(number("min_p", 0.0)),
        repetition_penalty=float(number("repetition_penalty", 1.0)),
    )
