"""
The bundled models: a draft, a policy, a process reward model, and the tokenizer that they share, described in README.md beside this
file.

Knows where the files lie. Loads nothing: a path goes wherever a model's name does.
"""

from pathlib import Path

__all__ = ["draft_path", "policy_path", "prm_path", "tokenizer_path"]

_HERE = Path(__file__).parent


def policy_path() -> Path:
    """The folder of the policy, the model that answers."""
    return _HERE / "policy"


def draft_path() -> Path:
    """The folder of the draft, the model that guesses ahead of the policy."""
    return _HERE / "draft"


def prm_path() -> Path:
    """The folder of the process reward model: as large as the policy, it judges each line of a solution."""
    return _HERE / "prm"


def tokenizer_path() -> Path:
    """The folder of the tokenizer of all: byte-level, 512 tokens, with the chat template."""
    return _HERE / "tokenizer"
