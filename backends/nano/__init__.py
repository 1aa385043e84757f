"""
The bundled models: a draft, a policy, a process reward model, and the tokenizer that they share, described in README.md beside this
file.

Knows where the files lie. Loads nothing: a path goes wherever a model's name does.
"""

from pathlib import Path

__all__ = [
    "DRAFT",
    "POLICY",
    "PRM",
    "bundled",
    "draft_path",
    "policy_path",
    "prm_path",
    "tokenizer_path",
]

POLICY, DRAFT, PRM = "nano", "nano-draft", "nano-prm"  # what they are called where a model is named

_HERE = Path(__file__).parent


def bundled(model: object) -> Path | None:
    """The folder of a bundled model by its name, the policy's without one; None for any other model."""
    if model is None or model == POLICY:
        return policy_path()
    if model == PRM:
        return prm_path()
    return draft_path() if model == DRAFT else None


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
