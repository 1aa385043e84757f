"""
The bundled models: two tiny Llamas and the tokenizer that they share, described in README.md beside this file.

Knows where the files lie. Loads nothing: a path goes wherever a model's name does.
"""

from pathlib import Path

__all__ = ["draft_path", "policy_path", "tokenizer_path"]

_HERE = Path(__file__).parent


def policy_path() -> Path:
    """The folder of the policy: 1.77M parameters, the model that answers."""
    return _HERE / "policy"


def draft_path() -> Path:
    """The folder of the draft: 0.14M parameters, the model that guesses ahead of the policy."""
    return _HERE / "draft"


def tokenizer_path() -> Path:
    """The folder of the tokenizer of both: byte-level, 512 tokens."""
    return _HERE / "tokenizer"
