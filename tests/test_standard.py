"""langchain-tests' own suites for ChatPareto, none overridden: unit, and integration over the bundled models."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_pareto import ChatPareto
from langchain_pareto.backends.nano import policy_path, tokenizer_path


@cache
def _copy() -> Path:
    """The policy somewhere else: another model than "nano", as equal files at one place would be the same one."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(shutil.copytree(policy_path(), Path(folder.name) / "copy"))


class TestChatParetoUnit(ChatModelUnitTests):
    """What every chat model must do without its model; tools and structured output are claimed, images are not."""

    @property
    def chat_model_class(self) -> type[ChatPareto]:
        return ChatPareto


class TestChatParetoIntegration(ChatModelIntegrationTests):
    """What every chat model must do with it; a call that names another model gets that one."""

    @property
    def chat_model_class(self) -> type[ChatPareto]:
        return ChatPareto

    @property
    def chat_model_params(self) -> dict:
        return {"model": str(_copy()), "tokenizer": tokenizer_path(), "max_tokens": 160}

    @property
    def model_override_value(self) -> str:
        return "nano"

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
