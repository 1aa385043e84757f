"""What a user may set of a GGUF model besides what every model has. Knows names and values; knows no file and no device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from langchain_pareto.backends.llama_context import KvType
from langchain_pareto.errors import SettingError


class LlamaSettings(BaseModel):
    """`model_kwargs` of a GGUF model; the names are llama.cpp's.

    `n_gpu_layers`: layers on the GPU, -1 for all. `kv_type`: type of the cache (f32, f16, q8_0, q4_0). `flash_attn`: True, False,
    or None for what llama.cpp finds faster. `lora`: paths of adapters in GGUF, with their scales. `n_threads`: by default what the
    process may use of the machine. `max_roots`: how many unrelated prompts are worked on at once, by default 32 on a processor and any
    number on a GPU; requests with another one wait, unless they have a limit in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    n_gpu_layers: int = Field(-1, ge=-1, le=2**31 - 1)
    kv_type: KvType = "f16"
    flash_attn: bool | None = None
    lora: Mapping[str, float] = Field(default_factory=dict)
    n_threads: int | None = Field(None, ge=1, le=512)  # GGML_MAX_N_THREADS
    max_roots: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _quantised_needs_flash(self) -> Self:
        if self.kv_type.startswith("q") and self.flash_attn is False:
            raise ValueError(f"a cache of type {self.kv_type} needs flash attention")
        return self

    @classmethod
    def read(cls, given: Mapping[str, object]) -> Self:
        """Checks every name and value; raises SettingError."""
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = ", ".join(sorted(cls.model_fields))
                msg = f"model_kwargs of a GGUF model has no {name!r}: it has {known}"
                if name == "n_ctx":
                    hint = "memory= says how much the cache may hold, max_context= how long a sequence may be."
                    raise SettingError(msg, hint=hint) from None
            elif name:
                said = problem["msg"][:1].lower() + problem["msg"][1:]
                msg = f"{name} of model_kwargs: {said}, got {problem['input']!r}"
            else:
                msg = str(problem["ctx"]["error"])
            raise SettingError(msg) from None
