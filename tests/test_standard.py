"""langchain-tests' own suites for ChatPareto, none overridden.

The bundled policy knows puzzles only, and can be held to a schema but not to sense. So what asks for sense (which tool, with which
arguments) is asked of the same policy with a mind of its own: prompts, engine, grammar and parsing are the real ones, on both runners.
"""

import atexit
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from minds import Mind

from langchain_pareto import ChatPareto
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import policy_path, tokenizer_path


@cache
def _copy() -> Path:
    """The policy somewhere else: another model than "nano", as equal files at one place would be the same one."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(shutil.copytree(policy_path(), Path(folder.name) / "copy"))


@cache
def _minded(kind: str) -> LocalBackend:
    """The bundled policy with a mind of its own, on one of the runners."""
    if kind == "llama-cpp":
        pytest.importorskip("llama_cpp")
    backend = load("nano", backend=kind, memory="190 MB")  # nobody else has that one
    atexit.register(backend.close)
    Mind(backend, _sense)
    return backend


def _sense(prompt: str) -> str:
    """What somebody would answer to the questions of these suites."""
    if "<tool_response>" in prompt:
        return "That is what the tool says."
    if "joke" in prompt.lower():
        return '{"setup": "What does a cat read?", "punchline": "The mews."}'
    if "no_args" in prompt:
        return _call("magic_function_no_args", "{}")
    if asked := re.search(r"magic_function\((\d+)\)", prompt):
        return _call("magic_function", f'{{"input": {asked[1]}}}')
    if "weather" in prompt.lower():
        return _call("get_weather", '{"location": "San Francisco"}')
    if named := re.search(r"customer named '([^']+)'", prompt):
        return _call(
            "unicode_customer", f'{{"customer_name": "{named[1]}", "description": "{named[1]}"}}'
        )
    if "pirate" in prompt.lower():
        return _call("greeting_generator", '{"answer_style": "pirate"}')
    return "Hello."


def _call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


class TestChatParetoUnit(ChatModelUnitTests):
    """What every chat model must do without its model; tools and structured output are claimed, images are not."""

    @property
    def chat_model_class(self) -> type[ChatPareto]:
        return ChatPareto


class TestChatParetoIntegration(ChatModelIntegrationTests):
    """What every chat model must do with it, but to choose tools; a call that names another model gets that one."""

    @property
    def chat_model_class(self) -> type[ChatPareto]:
        return ChatPareto

    @property
    def chat_model_params(self) -> dict:
        return {"model": str(_copy()), "tokenizer": tokenizer_path(), "max_tokens": 100}

    @property
    def model_override_value(self) -> str:
        return "nano"

    @property
    def has_tool_calling(self) -> bool:
        return False


class TestChatParetoWithSense(ChatModelIntegrationTests):
    """Everything that is claimed, tools and JSON mode among it."""

    kind = "torch"

    @property
    def chat_model_class(self) -> type[ChatPareto]:
        return ChatPareto

    @property
    def chat_model_params(self) -> dict:
        return {"backend": _minded(self.kind), "max_tokens": 160}

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


class TestChatParetoWithSenseOnLlamaCpp(TestChatParetoWithSense):
    """The same on the other runner."""

    kind = "llama-cpp"
