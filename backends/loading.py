"""
One door to every model that runs in this process: a path, a hub id, a GGUF file or a loaded model becomes a LocalBackend.

Knows which engine runs what, and checks what both understand; `torch_loading.py` and `llama_loading.py` load, and are imported when
they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_pareto.backends import nano
from langchain_pareto.backends.base import BACKENDS
from langchain_pareto.backends.devices import check_memory
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from langchain_pareto.backends.reward_head import RewardHead
    from langchain_pareto.backends.torch_loading import AnyTokenizer


def load(
    model: str | Path | PreTrainedModel | None = None,
    *,
    backend: str = "auto",
    tokenizer: AnyTokenizer | None = None,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    model_kwargs: Mapping[str, object] | None = None,
    memory: float | str | None = None,
    max_context: int | None = None,
    self_check: bool = True,
) -> LocalBackend:
    """A backend for `model`: a folder, a hub id, a GGUF file, a loaded model with its `tokenizer`, or by default the bundled "nano".

    `backend` is "torch" or "llama-cpp"; by default llama.cpp runs GGUF files and torch everything else. `memory` of the pool is bytes,
    a fraction of what is free once the weights are loaded, or "4 GB"; by default 85 % of that on CUDA, on the CPU a quarter and at most
    4 GiB. `max_context` (tokens) limits one sequence. Who loads the same weights with the same settings shares them, the pool and the
    engine; each has a backend of its own to close, and the last `close` gives the model back.

    With torch, a loaded model, a PEFT wrapper too, is used as it is where it is, and is as before afterwards. `model_kwargs` go to
    `from_pretrained`. For a model with longrope `max_context` decides once which of its two sets of factors holds, for every length.
    The model's own generation config gives `sampling` and the end tokens; whatever else it asks for is named in a warning, since
    refusing it would refuse the model.

    With llama.cpp, `model_kwargs` are those of `LlamaSettings`; the tokenizer, the sampling and the end tokens are the file's own.

    A reward model with a head of classes writes nothing, and is refused here: `load_role` loads it.

    Raises ModelLoadError, CapabilityError, CapacityError and SettingError.
    """
    check_memory(memory)
    if max_context is not None and (type(max_context) is not int or max_context < 1):
        raise SettingError(f"max_context must be at least 1 token, got {max_context!r}")
    if device is not None and not isinstance(device, str):
        raise SettingError(f'device must be a name like "cpu" or "cuda:0", got {device!r}')
    if model_kwargs is not None and not isinstance(model_kwargs, Mapping):
        raise SettingError(f"model_kwargs must map names to values, got {model_kwargs!r}")
    if _is_for_llama(model, backend):
        from langchain_pareto.backends.llama_loading import load_gguf

        for name, value in {"tokenizer": tokenizer, "dtype": dtype, "revision": revision}.items():
            if value is not None:
                msg = f"{name}={value!r} is for a model of transformers: a GGUF file has its own"
                raise SettingError(msg, hint=f"Leave {name} out.")
        return load_gguf(
            model,  # type: ignore[arg-type]  # a path, or the bundled one
            device=device,
            model_kwargs=model_kwargs or {},
            memory=memory,
            max_context=max_context,
            self_check=self_check,
        )
    from langchain_pareto.backends.heads import check_writes
    from langchain_pareto.backends.torch_loading import load_pretrained

    if isinstance(model, str | Path) and nano.bundled(model) is None:
        check_writes(model, revision)
    return load_pretrained(
        model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        revision=revision,
        model_kwargs=model_kwargs or {},
        memory=memory,
        max_context=max_context,
        self_check=self_check,
    )


def load_role(
    model: str | Path | PreTrainedModel | None,
    *,
    backend: str = "auto",
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    memory: float | str | None = None,
    max_context: int | None = None,
    self_check: bool = True,
) -> LocalBackend | RewardHead:
    """A backend for the model of a role, which may be a reward model with a head of classes: for those of transformers for token or sequence
    classification, Qwen2.5-Math-PRM and -RM, and Skywork-o1-Open-PRM, by their config.json; else what `load` gives.
    """
    if isinstance(model, str | Path) and nano.bundled(model) is None:
        check_memory(memory)
        if not _is_for_llama(model, backend):
            from langchain_pareto.backends.reward_head import load_head

            head = load_head(
                model,
                device=device,
                dtype=dtype,
                revision=revision,
                memory=memory,
                max_context=max_context,
                self_check=self_check,
            )
            if head is not None:
                return head
    return load(
        model,
        backend=backend,
        device=device,
        dtype=dtype,
        revision=revision,
        memory=memory,
        max_context=max_context,
        self_check=self_check,
    )


def _is_for_llama(model: object, backend: str) -> bool:
    """Whether llama.cpp runs it; raises SettingError where the two do not go together."""
    if backend not in BACKENDS:
        raise SettingError(
            f"there is no backend {backend!r}; known backends: {', '.join(BACKENDS)}"
        )
    gguf = isinstance(model, str | Path) and (
        str(model).lower().endswith(".gguf") or _begins_as_gguf(Path(model))
    )
    if gguf and backend == "torch":
        msg = f"{model} is a GGUF file, which torch does not run"
        raise SettingError(msg, hint='Leave backend out, or say "llama-cpp".')
    if backend == "llama-cpp" and not gguf and nano.bundled(model) is None:
        msg = f"llama.cpp runs GGUF files, and {model if isinstance(model, str | Path) else type(model).__name__} is none"
        hint = "Convert it with llama.cpp's convert_hf_to_gguf.py, or leave backend out."
        raise SettingError(msg, hint=hint)
    return gguf or backend == "llama-cpp"


def _begins_as_gguf(path: Path) -> bool:
    """Whether a file without the usual ending is one all the same."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:  # a folder, the name of a model on the hub, or nothing
        return False
