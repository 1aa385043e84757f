"""
llama-cpp-python, found, silenced and asked what it complained of.

Knows where the package is and how it logs; knows no model. Nothing that uses it imports it by itself.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from types import ModuleType

from langchain_pareto.errors import CapabilityError

_WARNING = 3  # of enum ggml_log_level; errors are above, and lines go on at 5
_KEPT = 20  # pieces of the log

_log = threading.local()  # what llama.cpp last warned this thread of, for the message of an error
_callbacks: list[object] = []  # kept alive: C has their address


def library() -> ModuleType:
    """llama-cpp-python, silenced; CapabilityError where it is not installed."""
    try:
        llama_cpp = importlib.import_module("llama_cpp")
    except ImportError as error:
        msg = "GGUF models need llama-cpp-python, which is not installed"
        hint = (
            "pip install 'langchain-pareto[llama-cpp]'; the README says how to build it for a GPU."
        )
        raise CapabilityError(msg, hint=hint) from error
    except (OSError, RuntimeError) as error:  # its own libraries, or those of a GPU
        msg = f"llama-cpp-python is installed, but cannot be loaded: {error}"
        hint = "Build it again for this machine; the README says how."
        raise CapabilityError(msg, hint=hint) from error
    _silence(llama_cpp)
    return llama_cpp


def _silence(api: ModuleType) -> None:
    if _callbacks:
        return

    def hear(level: int, text: bytes, _: object) -> None:
        if level >= _WARNING:
            _lines().append(text.decode("utf-8", "replace"))
            del _lines()[:-_KEPT]

    _callbacks.append(api.llama_log_callback(hear))
    api.llama_log_set(_callbacks[0], ctypes.c_void_p(0))
    api.llama_backend_init()


def complaint() -> str:
    """What llama.cpp last warned this thread of, in one line, and forgets it."""
    text = " ".join("".join(_lines()).split()).lstrip(". ")
    _lines().clear()
    return text or "it does not say why"


def _lines() -> list[str]:
    if not hasattr(_log, "lines"):
        _log.lines = []
    lines: list[str] = _log.lines
    return lines
